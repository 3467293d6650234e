"""Files that hold no ticket, or another."""

import copy
import math
import random
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from regression import assert_same, state
from tables import one_case
from ticketing import blank, found, refused, resealed

import slth
from slth import Ticket, TicketError, files
from slth.search import Biprop, Frozen, IteRand
from slth.wrapping import unwrap


def weight(manifest, path="0.weight"):
    return next(entry for entry in manifest["weights"] if entry["path"] == path)


def test_a_wrong_seed_is_noticed(data):
    def change(tensors, manifest):
        weight(manifest)["recipe"][1][2] += 1

    refused(resealed(data, change), "its digest differs: a wrong seed or other bits")


def test_other_bits_are_noticed(data):
    def swap(tensors, manifest):
        """Another mask that keeps as many."""
        masks = Ticket.from_bytes(data).masks()
        masks["0.weight"] = masks["0.weight"].flip(0)
        del tensors["coded"]
        tensors["masks"] = slth.ticket.bits.pack(list(masks.values()))

    refused(resealed(data, swap), "its digest differs")


def test_a_wrong_level_is_noticed():
    def change(tensors, manifest):
        weight(manifest)["levels"][0] *= 1.0000002

    refused(resealed(Ticket.of(found(Biprop())).to_bytes(), change), "its digest differs")


def test_wrong_redraws_are_noticed():
    data = Ticket.of(found(IteRand(every=2, rate=0.5))).to_bytes()

    def redraws(change):
        def changed(tensors, manifest):
            counts = change(bytearray(zlib.decompress(tensors["generations"].numpy().tobytes())))
            tensors["generations"] = torch.frombuffer(bytearray(zlib.compress(counts)), dtype=torch.uint8)

        return resealed(data, changed)

    refused(redraws(lambda counts: counts[:-1]), "generations has 383 numbers: must be 384")
    refused(redraws(lambda counts: counts + b"\0"), "generations has 385 numbers")
    refused(redraws(lambda counts: b"\0" * 10**8), "generations has 385 numbers")
    refused(redraws(lambda counts: b"\5" + counts[1:]), "its digest differs")
    refused(resealed(data, lambda tensors, _: tensors["generations"].fill_(3)), "no ticket: its manifest does not fit")


def test_every_flipped_bit_and_truncation_is_noticed(data):
    for i in range(0, 8 * len(data), 31):
        changed = bytearray(data)
        changed[i // 8] ^= 1 << i % 8
        with pytest.raises(TicketError):
            Ticket.from_bytes(bytes(changed))
    for length in range(0, len(data), 17):
        with pytest.raises(TicketError, match="cut short"):
            Ticket.from_bytes(data[:length])


def test_a_file_is_named_in_the_error(tmp_path, data):
    path = tmp_path / "t.safetensors"
    path.write_bytes(data[:-1])
    with pytest.raises(TicketError, match=r"t\.safetensors: no ticket: cut short or damaged"):
        Ticket.load(path)
    with pytest.raises(FileNotFoundError):
        Ticket.load(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        Ticket.load(tmp_path)


@one_case
@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: b"", "not a safetensors file"),
        (lambda: b"PK\3\4" + bytes(2000), "not a safetensors file"),
        (lambda: files.seal("ticket", 4, {}, {}), "version 4 of kind 'ticket': must be 1, 2, 3"),
        (lambda: files.seal("checkpoint", 1, {}, {}), "a file of kind 'checkpoint': must be 'ticket'"),
        (lambda: files.seal("ticket", 1, {}, {}), r"its manifest does not fit \(KeyError: 'weights'\)"),
    ],
)
def test_other_files_are_refused(make, match):
    refused(make(), f"^no ticket: .*{match}")


def put(*keys):
    """A change of the manifest's entry at the end of the keys, of its first weight unless they say otherwise."""
    *way, last, value = keys

    def change(tensors, manifest):
        at = manifest if way[:1] == ["manifest"] else weight(manifest)
        for key in way[1:] if way[:1] == ["manifest"] else way:
            at = at[key]
        at[last] = value

    return change


def drop(*keys):
    def change(tensors, manifest):
        at = weight(manifest)
        for key in keys[:-1]:
            at = at[key]
        del at[keys[-1]]

    return change


def of_base(value):
    def change(tensors, manifest):
        del weight(manifest)["recipe"]
        weight(manifest)["base"] = value

    return change


def twice(tensors, manifest):
    manifest["weights"].append(manifest["weights"][0])


def both_kinds(tensors, manifest):
    manifest["plain"].append(dict(manifest["plain"][0], path="0.weight"))


def tensor(name, value=None):
    def change(tensors, manifest):
        tensors.pop(name, None)
        if value is not None:
            tensors[name] = value

    return change


def shorter(tensors, manifest):
    tensors["coded"] = tensors["coded"][:-1].clone()


def raw(tensors, manifest):
    tensors["masks"] = tensors.pop("coded")


WRONG = {
    "weights of no list": (put("manifest", "weights", 5), "TypeError"),
    "no weights": (put("manifest", "weights", []), "must have at least one weight"),
    "no digest": (put("manifest", "digest", "x"), "its digest is malformed"),
    "a weight twice": (twice, "no name twice"),
    "a weight and plain": (both_kinds, "no name twice"),
    "no path": (drop("path"), "KeyError: 'path'"),
    "path of a number": (put("path", 5), "must be text"),
    "path of control characters": (put("path", "0.weight\n\x1b[31m"), "must be printable"),
    "shape of no list": (put("shape", 768), "must be a list"),
    "shape of truth": (put("shape", [True, 768]), "must be an int"),
    "shape below zero": (put("shape", [-48, -16]), "sizes >= 0"),
    "empty shape": (put("shape", [0, 16]), "must keep 0 to all of some"),
    "too many entries": (put("shape", [2**40, 2**40]), "more entries than a tensor can have"),
    "too many axes": (put("shape", [1] * 10**6), "1000000 axes"),
    "other shape": (put("shape", [16, 48]), r"0\.weight: is float32 \(48, 16\), must be float32 \(16, 48\)"),
    "large shape": (put("shape", [2**31, 2**31]), r"0\.weight: is float32 \(48, 16\), must be float32 \(2147483648, "),
    "other dtype": (put("dtype", "float64"), r"0\.weight: is float32 .* must be float64"),
    "keeps more than all": (put("kept", 769), "keeps 769 of 768"),
    "keeps another number": (put("kept", 100), r"0\.weight: its mask keeps 154, must keep 100"),
    "recipe and base": (put("base", "0" * 64), "must have either a recipe or the digest of a base"),
    "base of nothing": (of_base(None), "must be text"),
    "base of no digest": (of_base("x"), "the digest of its base is malformed"),
    "another base": (of_base("0" * 64), r"0\.weight: is not that of the ticket's base"),
    "built of text": (put("manifest", "built", "x"), "built='x': must be an object"),
    "no draws": (put("recipe", [0]), "0 parts along axis 0"),
    "draws that do not divide": (put("recipe", [0] + [["sign", 1.0, 0, "a", 0]] * 5), "5 parts along axis 0"),
    "axis outside": (put("recipe", 0, 2), "parts along axis 2"),
    "unknown distribution": (put("recipe", 1, 0, "exec"), "distribution='exec'"),
    "scale of zero": (put("recipe", 1, 1, 0), "scale=0"),
    "scale of text": (put("recipe", 1, 1, "1"), "must be a number"),
    "seed of a fraction": (put("recipe", 1, 2, 0.5), "must be an int"),
    "name that is no text": (put("recipe", 1, 3, "\ud800"), "UnicodeEncodeError"),
    "stream below zero": (put("recipe", 1, 4, -1), "stream=-1"),
    "parts of nothing": (put("parts", [0]), "IndexError"),
    "parts that do not divide": (put("parts", [0, *"abcde"]), "5 parts along axis 0"),
    "parts along no axis": (put("parts", [7, "a", "b"]), "parts along axis 7"),
    "levels without parts": (put("levels", [1.0, 2.0]), "2 levels, must be one for each of 1"),
    "a level": (put("levels", [1.0]), "its digest differs"),
    "frozen without a seed": (put("freezing", {"pruned": 0.1, "locked": 0.1}), "TypeError"),
    "frozen wholly": (put("freezing", {"pruned": 0.5, "locked": 0.5, "seed": 0}), r"pruned \+ locked"),
    "frozen": (put("freezing", {"pruned": 0.1, "locked": 0.1, "seed": 0}), "ValueError|its mask keeps"),
    "redrawn": (put("redrawn", True), "'generations' is missing"),
    "plain of no list": (put("manifest", "plain", {"a": 1}), "TypeError"),
    "value of text": (put("manifest", "plain", 0, "value", "x"), "must be a number"),
    "value": (put("manifest", "plain", 0, "value", 3.0), r"'stored\.0\.bias' is unexpected"),
    "plain of another shape": (put("manifest", "plain", 0, "shape", [47]), r"0\.bias: is stored with another shape"),
    "no bits": (tensor("coded"), "'masks' is missing"),
    "no bias": (tensor("stored.0.bias"), r"'stored\.0\.bias' is missing"),
    "another bias": (tensor("stored.0.bias", torch.ones(47)), r"0\.bias: is stored with another shape"),
    "wrong bias": (tensor("stored.0.bias", torch.ones(48)), "its digest differs"),
    "one tensor more": (tensor("stored.x", torch.ones(1)), r"'stored\.x' is unexpected"),
    "bits twice": (tensor("masks", torch.ones(120, dtype=torch.uint8)), "'masks' is unexpected"),
    "bits of floats": (tensor("coded", torch.ones(60)), "bits of torch.float32"),
    "no bytes": (tensor("coded", torch.zeros(0, dtype=torch.uint8)), "0 bytes: must be at least 16"),
    "too few bytes": (shorter, "bytes of chunks: must be|damaged"),
    "coded bits as raw ones": (raw, "bytes: must be 120 for 960 bits"),
}


@pytest.fixture
def little_memory():
    """Have any allocation beyond half a gigabyte fail."""
    resource, held = pytest.importorskip("resource"), Path("/proc/self/statm")
    if not held.exists():
        pytest.skip("needs to know how much memory this process has")
    pages = int(held.read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 29), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@one_case
@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize(("change", "match"), WRONG.values(), ids=WRONG)
def test_a_manifest_that_does_not_fit_is_refused(data, change, match):
    refused(resealed(data, change), match)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("freezing", [None, {"pruned": 0.1, "locked": 0.1, "seed": 0}])
@pytest.mark.parametrize("kind", ["coded", "masks"])
def test_a_small_file_does_not_take_much_memory(data, freezing, kind):
    """Each chunk of 2^20 bits that are all one takes but 8 bytes."""

    def change(tensors, manifest):
        shape, chunks = [1 << 20, 1 << 20], 1 << 16
        weight(manifest).update(shape=shape, kept=math.prod(shape))
        if freezing:
            weight(manifest)["freezing"] = freezing
        del tensors["coded"]
        tensors[kind] = torch.tensor([1 << 20, 0] * chunks, dtype=torch.int32).view(torch.uint8)

    hostile = resealed(data, change)
    assert "1048576x1048576" in Ticket.from_bytes(hostile).describe()
    refused(hostile, r"0\.weight: is float32 \(48, 16\), must be float32 \(1048576, 1048576\)")


@given(st.randoms(use_true_random=False))
def test_damaged_files_are_refused(data, draw):
    for _ in range(10):
        changed = bytearray(data)
        for _ in range(draw.randint(1, 3)):
            at, length = draw.randrange(len(changed) + 1), draw.randint(0, 16)
            changed[at : at + draw.choice([0, 1, length])] = draw.randbytes(draw.choice([0, 1, length]))
        if changed != data:
            with pytest.raises(TicketError):
                Ticket.from_bytes(bytes(changed))


def places(value, way=()):
    """Where anything stands in JSON."""
    yield way
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*way, key))


def other_values(draw, value):
    numbers = [0, 1, -1, 2, 48, 2**31, 2**63, 10**30, 0.5, 1e-300, True, False]
    return draw.choice([*numbers, None, "", "x", "0.weight", "float64", [], {}, [value], [value, value], {"a": value}])


def mutated(manifest, draw):
    for _ in range(draw.randint(1, 2)):
        *way, last = draw.choice([place for place in places(manifest) if place])
        at = manifest
        for key in way:
            at = at[key]
        match draw.randrange(4):
            case 0 if isinstance(at, list):
                at.insert(last, copy.deepcopy(draw.choice(at)))
            case 0 | 1:
                del at[last]
            case 2 | 3:
                at[last] = other_values(draw, at[last])


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("method", [Biprop(), Frozen(pruned=0.2, locked=0.2), IteRand(every=2, rate=0.5)])
def test_hostile_manifests_are_refused_or_tell_the_same_network(method):
    model = found(method)
    data, draw, outcomes = Ticket.of(model).to_bytes(), random.Random(0), []
    expected = state(unwrap(model))
    for _ in range(120):
        module = blank()
        try:
            ticket = Ticket.from_bytes(resealed(data, lambda tensors, manifest: mutated(manifest, draw)))
            ticket.describe()
            ticket.apply(module)
            assert_same(expected, state(module))
            outcomes.append("applied")
        except TicketError:
            assert_same(state(blank()), state(module))
            outcomes.append("refused")
    assert outcomes.count("refused") > 80
