"""Build a checkpoint's network with transformers from its config, without running any code of the checkpoint."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from slth.experiments.lab import one_line
from slth.experiments.studies.checkpoints.reading import Checkpoint, Unreadable
from slth.extras import extra
from slth.weights import recipes
from slth.weights.recipes import Draw, Recipe


class IntegerLinear(nn.Module):
    """A linear layer with int8 weights (inputs, outputs) and a scale per column: x (weight scale) + bias."""

    inputs_first = True  # the layout of the matrix

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map x (..., inputs) -> (..., outputs)."""
        y = x @ (self.weight.to(x.dtype) * self.scale)
        return y if self.bias is None else y + self.bias


class IntegerEmbedding(nn.Module):
    """An embedding with int8 rows and a scale per row."""

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Embed tokens (...) -> (..., d)."""
        return self.weight[tokens].to(self.scale.dtype) * self.scale[tokens]


def random_bert(seed: int) -> nn.Module:
    """Build a tiny BERT for masked tokens, with random weights large enough for different outputs."""
    with extra("gpt2"):
        from transformers import BertConfig, BertForMaskedLM
    config = BertConfig(
        vocab_size=40,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
    )
    network: nn.Module = BertForMaskedLM._from_config(config, attn_implementation="eager")  # type: ignore[no-untyped-call]
    matrices = {name: tensor for name, tensor in network.named_parameters() if tensor.dim() > 1}
    recipes.fill(network, {name: Recipe((Draw("normal", 0.3, seed, name),)) for name in matrices})
    return _evaluated(network)


def build(checkpoint: Checkpoint) -> nn.Module:
    """Build the network in eval mode, ignoring tensors that it does not have, such as a pooler's. Raises Unreadable."""
    with extra("gpt2"):
        import transformers
    config = {key: value for key, value in checkpoint.config.items() if key not in _LEFT_OUT}
    kind = config.pop("model_type")
    try:
        settings = transformers.AutoConfig.for_model(kind, **config, attn_implementation="eager")
    except (ValueError, TypeError) as error:
        raise Unreadable(f"config.json: transformers knows no such {kind!r}") from error
    make = _class(transformers, checkpoint.config)
    try:
        network = make(settings, **_without_pooler(make, checkpoint))
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise Unreadable(
            f"config.json describes no {make.__name__} that can be built ({one_line(error)[:120]})"
        ) from error
    tensors = dict(checkpoint.tensors)
    _take_integers(network, tensors)
    try:
        result = network.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise Unreadable(
            f"its tensors have other shapes than its config says ({str(error).splitlines()[-1].strip()})"
        ) from error
    tied = set(getattr(network, "all_tied_weights_keys", {}))
    if missing := [name for name in result.missing_keys if name not in tied and not name.endswith("position_ids")]:
        raise Unreadable(f"its tensors lack {missing[0]!r}, one of {len(missing)}")
    return _evaluated(network)


_LEFT_OUT = ("architectures", "auto_map", "attn_implementation", "_attn_implementation", "torch_dtype", "dtype")


def _class(transformers: Any, config: Any) -> Any:
    """Return the class of transformers that a config names. Raises Unreadable."""
    names = config.get("architectures") or ["AutoModel"]
    kind = getattr(transformers, str(names[0]), None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise Unreadable(f"config.json: architectures={names}: transformers has no such model")
    return kind


def _without_pooler(make: Any, checkpoint: Checkpoint) -> dict[str, bool]:
    """Return the option for encoders whose checkpoint has no pooler."""
    takes = "add_pooling_layer" in inspect.signature(make).parameters
    return {"add_pooling_layer": False} if takes and not any("pooler." in name for name in checkpoint.tensors) else {}


def _take_integers(network: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Replace layers whose weights are int8 by integer layers, and remove their tensors from `tensors`."""
    for name in [name for name, tensor in tensors.items() if tensor.dtype == torch.int8]:
        path = name.removesuffix(".weight")
        weight, scale = tensors.pop(name), tensors.pop(f"{name}_scale")
        owner, _, last = path.rpartition(".")
        own = network.get_submodule(path)
        layer: nn.Module
        if isinstance(own, nn.Embedding):
            layer = IntegerEmbedding(weight, scale)
        else:
            layer = IntegerLinear(weight, scale, tensors.pop(f"{path}.bias", None))
        setattr(network.get_submodule(owner), last, layer)
        tensors |= {f"{path}.{own_name}": each for own_name, each in layer.state_dict().items()}


def _evaluated(network: nn.Module) -> nn.Module:
    return network.eval().requires_grad_(False)
