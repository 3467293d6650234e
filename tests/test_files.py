"""Files are written whole or not at all, and no change of a sealed one goes unnoticed."""

import os
import random
import zlib

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from tables import one_case

from slth import files
from slth.files import FileError, clear_leftovers, read, save, seal, unseal, write

TENSORS = {"bits": torch.arange(37, dtype=torch.uint8), "scale": torch.tensor([0.5, -1.0, 3.25])}
MANIFEST = {"seed": 7, "names": ["b", "a"], "loss": 1.25, "nothing": None, "é": "\u2713"}
SMALL = seal("ticket", 1, TENSORS, MANIFEST)


def refused(data, match=None, kind="ticket", versions=(1,)):
    with pytest.raises(FileError, match=match):
        unseal(data, kind, versions)


def restamped(data):
    """The bytes with a digest that fits, as one would make them who wants to do harm."""
    stamp = files._STAMP.match(data)
    return data[: stamp.start(3)] + files._digest(data, stamp) + data[stamp.end(3) :]


def with_manifest(packed):
    """A sealed file that holds these bytes as its manifest."""
    tensor = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
    stamp = {"slth": f"ticket 1 {'0' * 64}"}
    return restamped(safetensors.torch.save({files.MANIFEST: tensor}, stamp))


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        other = theirs[name]
        assert (tensor.dtype, tensor.shape) == (other.dtype, other.shape)
        assert as_bytes(tensor) == as_bytes(other)


def as_bytes(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist() if tensor.numel() else []


# ---------------------------------------------------------------- round trip

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
some_tensors = st.sampled_from(["u1", "i8", "f4", "f8", "f2", "?"]).flatmap(
    lambda dtype: arrays(dtype, array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5))
)
tensor_names = st.text(max_size=12).filter(lambda name: name not in files._RESERVED)


@given(st.dictionaries(tensor_names, some_tensors, max_size=4), st.dictionaries(st.text(), json_values, max_size=4))
def test_what_is_sealed_comes_back(tensors_in, manifest_in):
    tensors_in = {name: torch.from_numpy(array.copy()) for name, array in tensors_in.items()}
    tensors, manifest = unseal(seal("ticket", 3, tensors_in, manifest_in), "ticket", [1, 3])
    same(tensors_in, tensors)
    assert manifest == manifest_in


def test_what_does_not_lie_in_order_in_memory_comes_back():
    tensors = {"turned": torch.arange(12.0).reshape(3, 4).T, "half": torch.arange(8, dtype=torch.bfloat16)[::2]}
    same(tensors, unseal(seal("ticket", 1, tensors, {}), "ticket", [1])[0])


def test_tensors_read_may_be_written_to():
    tensors, _ = unseal(SMALL, "ticket", [1])
    tensors["scale"] += 1
    same(TENSORS, unseal(SMALL, "ticket", [1])[0])


def test_equal_arguments_give_equal_bytes():
    turned = dict(reversed(TENSORS.items())), dict(reversed(MANIFEST.items()))
    assert seal("ticket", 1, *turned) == SMALL


def test_the_file_is_a_small_safetensors_file():
    same(TENSORS, {k: t for k, t in safetensors.torch.load(SMALL).items() if k in TENSORS})
    assert len(seal("ticket", 1, {}, {})) < 200
    parameters = [{"name": f"h.{i}.attn.c_attn.weight", "shape": [768, 2304], "seed": 0} for i in range(100)]
    assert len(seal("ticket", 1, {}, {"parameters": parameters})) < 1000


# ---------------------------------------------------------------- changed bytes


def test_every_flipped_bit_is_noticed():
    for i in range(8 * len(SMALL)):
        changed = bytearray(SMALL)
        changed[i // 8] ^= 1 << i % 8
        refused(bytes(changed))


def test_a_bit_flipped_among_the_values_is_named_so():
    flipped = bytearray(SMALL)
    flipped[-1] ^= 1
    refused(bytes(flipped), "damaged: its content does not match its checksum")


def test_every_truncation_is_noticed():
    header = 8 + int.from_bytes(SMALL[:8], "little")
    for length in range(len(SMALL)):
        refused(SMALL[:length], f"cut short.*{length} bytes")
    refused(SMALL[: header - 1], f"its header alone has {header}")
    refused(SMALL[:-1], f"{len(SMALL) - 1} bytes of {len(SMALL)}")
    refused(SMALL + b"\0", "damaged")


def mutated(data, draw):
    data = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        at, length = draw.randrange(len(data) + 1), draw.randint(0, 16)
        match draw.randrange(4):
            case 0:
                data[at : at + 1] = draw.randbytes(1)
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = data[length : 2 * length]
            case 3:
                data[at : at + length] = draw.randbytes(length)
    return bytes(data)


@given(st.randoms(use_true_random=False))
def test_mutations_are_noticed(draw):
    for _ in range(10):
        data = mutated(SMALL, draw)
        if data == SMALL:
            same(TENSORS, unseal(data, "ticket", [1])[0])
        else:
            refused(data)


def test_a_digest_made_to_fit_does_no_harm():
    draw = random.Random(0)
    outcomes = set()
    for _ in range(2000):
        data = bytearray(SMALL)
        data[draw.randrange(140, len(data))] = draw.choice(b'0123456789FUI[],{}"\0\xff')
        try:
            unseal(restamped(bytes(data)), "ticket", [1])
            outcomes.add("read")
        except FileError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(data):
    refused(data, "not a safetensors file")


@one_case
@pytest.mark.parametrize(
    ("entry", "size"),
    [
        ('{"dtype":"F4","shape":[2,4],"data_offsets":[0,4]}', 4),  # known to safetensors, not to torch
        ('{"dtype":"F64","shape":[0,18446744073709551615],"data_offsets":[0,0]}', 0),
        ('{"dtype":"F64","shape":[4294967296,4294967296],"data_offsets":[0,8]}', 8),
        ('{"dtype":"F64","shape":[-1],"data_offsets":[0,8]}', 8),
        ('{"dtype":"F64","shape":[1],"data_offsets":[8,0]}', 8),
        ('{"dtype":"F64","shape":[1],"data_offsets":[0,99999999999]}', 8),
        ("[" * 5000, 0),
    ],
)
def test_hostile_headers_are_refused(entry, size):
    header = f'{{"__metadata__":{{"slth":"ticket 1 {"0" * 64}"}},"a":{entry}}}'.encode()
    refused(restamped(len(header).to_bytes(8, "little") + header + b"\2" * size), r"^(damaged|cut short)[^\n]*$")


# ---------------------------------------------------------------- other files


def test_other_files_are_told_apart():
    refused(SMALL, "a file of kind 'ticket': must be 'checkpoint'", kind="checkpoint")
    refused(SMALL, "version 1 of kind 'ticket': must be 2, 3,", versions={3, 2})
    refused(safetensors.torch.save(TENSORS), "not one of slth")
    refused(b"", "not a safetensors file")


def test_a_manifest_must_be_there():
    refused(restamped(safetensors.torch.save(TENSORS, {"slth": f"ticket 1 {'0' * 64}"})), "no manifest")


@one_case
@pytest.mark.parametrize(
    ("packed", "match"),
    [
        (b"not zlib", "cannot be decompressed"),
        (zlib.compress(b"{}")[:-1], "too soon or too late"),
        (zlib.compress(b"{}") + b"more", "too soon or too late"),
        (zlib.compress(b" " * (files.MANIFEST_LIMIT + 1)), "over 16777216 bytes"),
        (zlib.compress(b"{"), "not JSON"),
        (zlib.compress(b'{"a":"\xff"}'), "not JSON"),
        (zlib.compress(b"[" * 10**6), "not JSON"),
        (zlib.compress(b"[]"), "JSON of a list, must be an object"),
        (zlib.compress(b'{"a":NaN}'), "NaN is not a finite number"),
        (zlib.compress(b'{"a":[-Infinity]}'), "-Infinity is not a finite number"),
        (zlib.compress(b'{"a":1e999}'), "1e999 is not a finite number"),
        (zlib.compress(b'{"a":' + b"1" * 10000 + b"}"), "not JSON"),
    ],
)
def test_bad_manifests_are_refused(packed, match):
    refused(with_manifest(packed), match)


def test_a_manifest_of_other_numbers_is_refused():
    stamp = {"slth": f"ticket 1 {'0' * 64}"}
    refused(restamped(safetensors.torch.save({files.MANIFEST: torch.ones(3)}, stamp)), "must be bytes")


# ---------------------------------------------------------------- what cannot be sealed


@one_case
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"kind": "Ticket"}, "kind='Ticket'"),
        ({"kind": 'a"b'}, "kind="),
        ({"version": -1}, "version=-1"),
        ({"version": 10**9}, "version="),
        ({"version": True}, "version=True"),
        ({"version": "1"}, "version='1'"),
        ({"tensors": {"__manifest__": torch.ones(1)}}, "reserved"),
        ({"tensors": {"__metadata__": torch.ones(1)}}, "reserved"),
        ({"tensors": {"a": torch.ones(1, dtype=torch.complex128)}}, "safetensors cannot hold"),
        ({"tensors": dict.fromkeys("ab", torch.ones(1))}, "share memory"),
        ({"manifest": {"a": float("nan")}}, "manifest: must be JSON"),
        ({"manifest": {"a": float("inf")}}, "manifest: must be JSON"),
        ({"manifest": {"a": {1}}}, "manifest: must be JSON"),
        ({"manifest": {"a": " " * files.MANIFEST_LIMIT}}, "bytes of JSON, must be at most"),
    ],
)
def test_bad_arguments_are_named(change, match):
    arguments = {"kind": "ticket", "version": 1, "tensors": {}, "manifest": {}} | change
    with pytest.raises(ValueError, match=match):
        seal(**arguments)


# ---------------------------------------------------------------- on disk


def test_saved_and_read(tmp_path):
    path = tmp_path / "t.safetensors"
    save(path, "ticket", 1, TENSORS, MANIFEST)
    assert path.read_bytes() == SMALL
    tensors, manifest = read(str(path), "ticket", [1])
    same(TENSORS, tensors)
    assert manifest == MANIFEST
    path.write_bytes(SMALL[:-1])
    with pytest.raises(FileError, match=r"t\.safetensors: cut short"):
        read(path, "ticket", [1])


def test_writing_replaces_and_leaves_nothing_else(tmp_path):
    path, link = tmp_path / "file", tmp_path / "link"
    link.symlink_to(path)
    for data, name in [(b"one", path), (b"", path), (b"three", link)]:
        write(name, data)
        assert path.read_bytes() == data
    assert sorted(os.listdir(tmp_path)) == ["file", "link"]
    assert link.is_symlink()


def test_a_file_has_the_rights_of_any_new_file(tmp_path):
    write(tmp_path / "ours", b"x")
    (tmp_path / "plain").write_bytes(b"x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch, step, error):
    path = tmp_path / "file"
    write(path, b"old")

    def fail(*args):
        raise error

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(type(error)) as raised:
        write(path, b"new")
    assert os.listdir(tmp_path) == ["file"]
    assert path.read_bytes() == b"old"
    if isinstance(raised.value, OSError):
        assert str(raised.value) == f"[Errno 28] No space left on device: '{path}'"


def test_the_old_file_stands_until_the_new_one_is_on_disk(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write(path, b"old")
    steps = []
    fsync, replace = os.fsync, os.replace

    def watched(name, step):
        def call(*args):
            steps.append((name, path.read_bytes()))
            step(*args)

        return call

    monkeypatch.setattr(os, "fsync", watched("fsync", fsync))
    monkeypatch.setattr(os, "replace", watched("replace", replace))
    write(path, b"new")
    assert steps == [("fsync", b"old"), ("replace", b"old"), ("fsync", b"new")]


def test_errors_of_the_disk_name_the_path(tmp_path):
    missing = tmp_path / "none" / "file"
    with pytest.raises(FileNotFoundError) as raised:
        write(missing, b"x")
    assert raised.value.filename == str(missing)
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=r"folder'$"):
        write(tmp_path / "folder", b"x")
    assert os.listdir(tmp_path) == ["folder"]
    with pytest.raises(FileNotFoundError):
        read(missing, "ticket", [1])


def test_leftovers_are_cleared_and_nothing_else(tmp_path):
    path = tmp_path / "a.b"
    stay = ["a.b", ".a.b.tmp", ".axb.01234567.tmp", ".a.b.c.01234567.tmp", ".a.b.0123456g.tmp"]
    for name in [*stay, ".a.b.01234567.tmp", ".a.b.89abcdef.tmp"]:
        (tmp_path / name).write_bytes(b"x")
    clear_leftovers(path)
    assert sorted(os.listdir(tmp_path)) == sorted(stay)


def test_leftovers_are_what_a_killed_write_leaves(tmp_path, monkeypatch):
    path = tmp_path / "a.b"
    monkeypatch.setattr(type(path), "unlink", lambda *args, **kwargs: None)  # as if there were no time to tidy up
    monkeypatch.setattr(os, "replace", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write(path, b"x")
    monkeypatch.undo()
    assert len(os.listdir(tmp_path)) == 1
    clear_leftovers(path)
    assert os.listdir(tmp_path) == []
