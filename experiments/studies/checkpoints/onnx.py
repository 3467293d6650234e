"""Read the tensors of an encoder exported to ONNX with int8 weights, named as in transformers.

An ONNX file is a protocol buffer, of which only the graph's nodes (operation, inputs, outputs) and initial tensors are
read. Matrices have no names in such an export; each is named after the bias that is added to its product.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

_DTYPES = {1: np.float32, 3: np.int8, 6: np.int32, 7: np.int64, 9: np.bool_}  # of TensorProto
_GRAPH, _NODE, _TENSOR = 7, 1, 5


class OnnxError(ValueError):
    """An ONNX file of an unsupported kind, or no ONNX file."""


@dataclass(frozen=True)
class _Node:
    operation: str
    inputs: list[str]
    outputs: list[str]


def read(data: bytes) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return (config, tensors): matrices are NAME.weight, int8 (inputs, outputs), with a scale per column.

    The scales are NAME.weight_scale. Raises OnnxError for another file.
    """
    try:
        graph = next(value for number, value in _fields(memoryview(data)) if number == _GRAPH)
        nodes = [_node(value) for number, value in _fields(graph) if number == _NODE]
        initial = dict(_tensor(value) for number, value in _fields(graph) if number == _TENSOR)
    except (StopIteration, IndexError, TypeError, ValueError, UnicodeDecodeError, KeyError) as error:
        raise OnnxError("no ONNX file that can be read") from error
    tensors = {name: torch.from_numpy(array.copy()) for name, array in _named(nodes, initial).items()}
    return _config(tensors, nodes, initial), tensors


def _named(nodes: list[_Node], initial: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the initial tensors by their names in transformers."""
    factors = {node.outputs[0]: node.inputs[1] for node in nodes if node.operation == "MatMul"}
    layers = {}  # unnamed matrix -> name of its layer
    for node in nodes:
        biases = [name for name in node.inputs if name.endswith(".bias")]
        products = [name for name in node.inputs if name in factors]
        if node.operation == "Add" and biases and products:
            layers[factors[products[0]]] = biases[0].removesuffix(".bias") + ".weight"
    named = {}
    for name, array in initial.items():
        base, _, kind = name.rpartition("_")
        if kind in ("q", "scale") and f"{base}_q" in initial:
            weight = layers.get(base, base)
            named[weight if kind == "q" else f"{weight}_scale"] = array
        elif "." in name:
            named[name] = array
    prefix = next((name.removesuffix(_WORDS) for name in named if name.endswith(_WORDS)), None)
    if prefix is None:
        raise OnnxError(f"an ONNX file without {_WORDS}")
    return {name.removeprefix(prefix): array for name, array in named.items()}


_WORDS = "embeddings.word_embeddings.weight"


def _config(
    tensors: Mapping[str, torch.Tensor], nodes: list[_Node], initial: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Return the config of a BERT for transformers, from the shapes of its tensors and heads."""
    words, inner = tensors[_WORDS], tensors.get("encoder.layer.0.intermediate.dense.weight")
    if inner is None:
        raise OnnxError("an ONNX file of no BERT")
    shapes = [node.inputs for node in nodes if node.operation == "Concat" and len(node.inputs) == 4]
    widths = [int(initial[each[-1]].item()) for each in shapes if each[-1] in initial and initial[each[-1]].size == 1]
    return {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "hidden_size": words.shape[1],
        "vocab_size": words.shape[0],
        "intermediate_size": inner.shape[1],
        "num_hidden_layers": len({name.split(".")[2] for name in tensors if name.startswith("encoder.layer.")}),
        "num_attention_heads": words.shape[1] // widths[0] if widths and widths[0] > 0 else 12,
        "max_position_embeddings": tensors["embeddings.position_embeddings.weight"].shape[0],
        "type_vocab_size": tensors["embeddings.token_type_embeddings.weight"].shape[0],
    }


# ---------------------------------------------------------------- the wire format


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """Yield (number, value) of a message's fields; a value is an int, or bytes for other types."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        size = {1: 8, 5: 4}.get(kind)
        if size is None:
            if kind != 2:
                raise ValueError(f"a field of kind {kind}")
            size, at = _varint(data, at)
        if at + size > len(data):
            raise ValueError("cut short")
        yield number, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _node(data: memoryview) -> _Node:
    found: dict[int, list[str]] = {1: [], 2: [], 4: [""]}
    for number, value in _fields(data):
        if number in found:
            found[number].append(bytes(value).decode())
    return _Node(found[4][-1], found[1], found[2])


def _tensor(data: memoryview) -> tuple[str, np.ndarray]:
    """Return (name, array) of a tensor stored as raw bytes; an empty array for any other."""
    shape, dtype, name, raw = [], 0, "", b""
    for number, value in _fields(data):
        if number == 1:
            shape += [value] if isinstance(value, int) else [each for each, _ in _varints(value)]
        elif number == 2:
            dtype = value
        elif number == 8:
            name = bytes(value).decode()
        elif number == 9:
            raw = bytes(value)
    if dtype not in _DTYPES or not raw:
        return name, np.empty(0, np.float32)
    return name, np.frombuffer(raw, _DTYPES[dtype]).reshape(shape)


def _varints(data: memoryview) -> Iterator[tuple[int, int]]:
    at = 0
    while at < len(data):
        value, at = _varint(data, at)
        yield value, at
