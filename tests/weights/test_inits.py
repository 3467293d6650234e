import hashlib
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import special, stats
from tables import one_case

from slth.threads import one_torch_thread
from slth.weights import inits, philox
from slth.weights.distributions import NORMAL, SIGN, UNIFORM, UNIFORM16
from slth.weights.quantile import log, quantile

CPU = torch.device("cpu")
LOW = 2**32 - 1
WORDS = {"uniform": UNIFORM, "uniform16": UNIFORM16, "sign": SIGN, "normal": NORMAL}
SYMMETRIC = {"uniform": inits.uniform, "uniform16": inits.uniform16, "sign": inits.sign, "normal": inits.normal}
DISTRIBUTIONS = SYMMETRIC | {"positive": inits.positive}
each_distribution = pytest.mark.parametrize("distribution", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
words32 = st.integers(0, LOW)
seeds = st.integers(-(2**70), 2**70)

# ---------------------------------------------------------------- an oracle in Python's own integers


def philox_block(counter, key):
    """One block of Philox4x32-10, after Salmon et al. 2011."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c0, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c2, 2**32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return [c0, c1, c2, c3]


def words(key, stream, first_block, blocks):
    counters = ([b % 2**32, b >> 32, stream, 0] for b in range(first_block, first_block + blocks))
    return [word for counter in counters for word in philox_block(counter, key)]


def words_of(seed, name, stream, blocks):
    """The words behind a named tensor, as uint32."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return np.array(words(tuple(np.frombuffer(digest[:8], "<u4").tolist()), stream, 0, blocks), np.uint32)


# ---------------------------------------------------------------- words

#: Philox4x32-10 in Random123's kat_vectors: counter, key, answer.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((LOW, LOW, LOW, LOW), (LOW, LOW), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_known_answers(counter, key, answer):
    assert tuple(philox_block(counter, key)) == answer
    made = philox.philox4x32([torch.tensor([word]) for word in counter], key)
    assert tuple(int(word) for word in made) == answer


def looped(key, stream, first_block, blocks):
    out = np.empty(4 * blocks, np.uint32)
    philox.fill(out, first_block, stream, *key)
    return out


def test_known_answer_of_the_loop_and_of_torch():
    counter, key, answer = KNOWN_ANSWERS[0]
    assert tuple(philox.words(key, counter[2], 0, 1, CPU).tolist()) == answer
    assert tuple(looped(key, counter[2], 0, 1).tolist()) == answer


@given(st.tuples(words32, words32), words32, st.integers(0, 2**62), st.integers(1, 3))
def test_words_equal_the_oracle_in_both_forms(key, stream, first_block, blocks):
    expected = words(key, stream, first_block, blocks)
    assert philox.words(key, stream, first_block, blocks, CPU).tolist() == expected
    assert looped(key, stream, first_block, blocks).tolist() == expected


@given(st.tuples(words32, words32), st.sampled_from([2**32 - 2, 2**33 - 1, 2**48]))
def test_words_run_on_past_32_bits_of_blocks(key, first_block):
    together = philox.words(key, 0, first_block, 600, CPU)
    apart = [philox.words(key, 0, first_block + i, 1, CPU) for i in range(4)]
    assert together[:16].equal(torch.cat(apart))
    assert np.array_equal(looped(key, 0, first_block, 600), together.numpy())
    assert len(set(together[:16].tolist())) == 16


# ---------------------------------------------------------------- words to numbers, as the docstrings say


@given(seeds, st.text(max_size=8), words32, st.floats(1e-6, 1e6), st.integers(1, 130))
@settings(max_examples=60)
def test_uniform_is_its_formula(seed, name, stream, scale, count):
    word = words_of(seed, name, stream, -(-count // 4)).astype(np.int64)[:count]
    expected = (2 * (word >> 8) + 1 - 2**24).astype(np.float32) * np.float32(scale * 2.0**-24)
    assert np.array_equal(inits.uniform((count,), scale, seed=seed, name=name, stream=stream).numpy(), expected)


@given(seeds, st.text(max_size=8), words32, st.floats(1e-6, 1e6), st.integers(1, 130))
@settings(max_examples=60)
def test_uniform16_is_its_formula(seed, name, stream, scale, count):
    half = words_of(seed, name, stream, -(-count // 8)).astype("<u4").view("<u2").astype(np.int64)[:count]  # low first
    expected = (2 * half + 1 - 2**16).astype(np.float32) * np.float32(scale * 2.0**-16)
    assert np.array_equal(inits.uniform16((count,), scale, seed=seed, name=name, stream=stream).numpy(), expected)


@given(seeds, st.text(max_size=8), words32, st.floats(1e-6, 1e6), st.integers(1, 130))
@settings(max_examples=60)
def test_positive_is_uniform_without_its_signs(seed, name, stream, scale, count):
    made = inits.positive((count,), scale, seed=seed, name=name, stream=stream)
    assert made.equal(inits.uniform((count,), scale, seed=seed, name=name, stream=stream).abs())
    assert (made > 0).all()
    assert (made < np.float32(scale)).all()


@given(seeds, st.text(max_size=8), words32, st.floats(1e-6, 1e6), st.integers(1, 400))
@settings(max_examples=60)
def test_sign_is_its_formula(seed, name, stream, scale, count):
    word = words_of(seed, name, stream, -(-count // 128))
    bits = np.unpackbits(word.astype("<u4").view(np.uint8), bitorder="little")[:count]
    expected = np.where(bits == 1, -np.float32(scale), np.float32(scale))
    assert np.array_equal(inits.sign((count,), scale, seed=seed, name=name, stream=stream).numpy(), expected)


@given(seeds, st.text(max_size=8), words32, st.floats(1e-6, 1e6), st.integers(1, 130))
@settings(max_examples=60)
def test_normal_is_its_formula(seed, name, stream, std, count):
    p = (words_of(seed, name, stream, -(-count // 4)).astype(np.float64)[:count] + 0.5) / 2**32
    made = inits.normal((count,), std, seed=seed, name=name, stream=stream).numpy()
    exact = (quantile(torch.from_numpy(p)).numpy() * std).astype(np.float32)
    assert np.array_equal(made, exact)
    assert np.allclose(made, special.ndtri(p) * std, rtol=2.0**-23, atol=0)


def test_normal_quantile_agrees_with_scipy():
    rng = np.random.default_rng(0)
    lattice = (np.array([0, 1, 2, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1]) + 0.5) / 2**32
    joins = np.array([0.075, np.nextafter(0.075, 0), 0.925, np.exp(-25.0), np.nextafter(np.exp(-25.0), 0)])
    tails = 10.0 ** -rng.uniform(0, 300, 20_000)
    p = np.concatenate([lattice, joins, rng.uniform(size=100_000), tails[tails < 1]])
    assert np.allclose(quantile(torch.from_numpy(p)).numpy(), special.ndtri(p), rtol=1e-13, atol=0)


def test_log_agrees_with_numpy():
    x = np.concatenate([10.0 ** np.random.default_rng(0).uniform(-300, 300, 50_000), 1 + np.linspace(-0.5, 0.5, 1001)])
    assert np.allclose(log(torch.from_numpy(x)).numpy(), np.log(x), rtol=2e-15, atol=2e-15)


#: SHA-256 of 1,000 values (little-endian float32), seed 7, name "golden", stream 3, scale 0.1. They guard the format: a
#: ticket is a seed, so these bits may never change.
GOLDEN = {
    "uniform": "1e927689b4024471cc23d991f9e15c5fd3c6b7ebcd4e5e7e31328b815667286e",
    "uniform16": "8d7fcb9604f854a525a5098be4e001cf76d38646de1c0d08a0e4604aaceb5319",
    "sign": "6c6bfd88bb74f3a2358d9f3438c5bcc8f253062cad144bdb17cb8e2bd7ff4399",
    "normal": "26ee2ccf5d6a440da4991c677db9c53e5d3668516d1787a497a71080fa45753a",
    "positive": "fc7f1208a6ee8956ce71244050fd3fb784bcb36c060e6e5dcb6d2a793c6e722b",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_digest(name):
    values = DISTRIBUTIONS[name]((1000,), 0.1, seed=7, name="golden", stream=3)
    assert hashlib.sha256(values.numpy().astype("<f4").tobytes()).hexdigest() == GOLDEN[name]


# ---------------------------------------------------------------- what a value does not depend on


@each_distribution
def test_prefix_across_blocks_and_chunks(distribution):
    per_block = {inits.uniform16: 8, inits.sign: 128}.get(distribution, 4)
    chunk = inits._CPU_WORDS // 4 * per_block  # elements made at a time
    longest = distribution((2 * chunk + 3,), 1.0, seed=5, name="w")
    near = [n + d for n in (per_block, 3 * per_block, chunk, 2 * chunk) for d in (-1, 0, 1)]
    for length in [0, 1, 2, *near]:
        assert distribution((length,), 1.0, seed=5, name="w").equal(longest[:length])


@each_distribution
@given(shape=st.lists(st.integers(0, 5), max_size=4))
@settings(max_examples=25)
def test_shape_only_reshapes(distribution, shape):
    made = distribution(shape, 0.5, seed=1, name="w")
    assert made.shape == torch.Size(shape)
    assert made.flatten().equal(distribution((math.prod(shape),), 0.5, seed=1, name="w"))
    assert made.dtype == torch.float32


@each_distribution
def test_threads_and_default_dtype_change_nothing(distribution):
    def draw(seed):
        return distribution((70_001,), 0.3, seed=seed, name="w")

    alone = [draw(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert all(a.equal(b) for a, b in zip(pool.map(draw, range(4)), alone, strict=True))
    with one_torch_thread():
        torch.set_num_threads(2)
        assert draw(0).equal(alone[0])
    torch.set_default_dtype(torch.float64)
    try:
        assert draw(0).equal(alone[0])
        assert draw(0).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@each_distribution
def test_cuda_makes_the_same_bits(distribution):
    there = distribution((300_001,), 0.3, seed=2, name="w", device="cuda")
    assert there.cpu().equal(distribution((300_001,), 0.3, seed=2, name="w"))


# ---------------------------------------------------------------- what a value does depend on


@one_case
@each_distribution
@pytest.mark.parametrize("other", [{"seed": 1}, {"seed": -1}, {"name": "v"}, {"name": ""}, {"stream": 1}])
def test_seed_name_and_stream_each_change_everything(distribution, other):
    base = {"seed": 0, "name": "w", "stream": 0}
    a, b = (distribution((20_000,), 1.0, **case).double().numpy() for case in (base, base | other))
    assert abs(np.corrcoef(a, b)[0, 1]) < 5 / math.sqrt(20_000)
    agree = np.mean(a == b)
    assert abs(agree - 0.5) < 0.02 if distribution is inits.sign else agree < 1e-3


@given(seeds, seeds, st.text(max_size=5), st.text(max_size=5))
def test_keys_of_different_streams_differ(seed_a, seed_b, name_a, name_b):
    assume((seed_a, name_a) != (seed_b, name_b))
    assert philox.stream_key(seed_a, name_a) != philox.stream_key(seed_b, name_b)


def test_key_is_the_first_bytes_of_the_hash_low_word_first():
    digest = hashlib.sha256(b"12/layer.query").hexdigest()
    low, high = philox.stream_key(12, "layer.query")
    assert low.to_bytes(4, "little").hex() + high.to_bytes(4, "little").hex() == digest[:16]
    assert philox.stream_key(np.int64(12), "layer.query") == (low, high)


# ---------------------------------------------------------------- distributions


def filled(distribution, words, scale):
    """What the CPU's loop makes of int64 words."""
    out = np.empty(distribution.per_word * len(words), np.float32)
    distribution.fill(words.numpy().astype(np.uint32), scale, out)
    return torch.from_numpy(out)


@pytest.mark.parametrize("distribution", WORDS.values(), ids=WORDS)
@given(scale=st.floats(1e-25, 1e25), seed=st.integers(0, 2**32), count=st.integers(0, 3000))
@settings(max_examples=30)
def test_the_loops_give_the_bits_of_plain_torch(distribution, scale, seed, count):
    word = torch.from_numpy(np.random.default_rng(seed).integers(0, LOW, count, endpoint=True))
    expected = distribution.of(word, scale)
    assert filled(distribution, word, scale).view(torch.int32).equal(expected.view(torch.int32))


def test_every_power_of_two_of_the_normal_has_the_bits_of_plain_torch():
    """Where the logarithm's exponent changes, and at the joins of the quantile's pieces."""
    near = np.array([2**k for k in range(32)] + [int(0.075 * 2**32), int(0.925 * 2**32)])
    word = torch.from_numpy(np.unique(np.concatenate([near + d for d in range(-3, 4)]) % 2**32))
    assert filled(NORMAL, word, 0.02).equal(NORMAL.of(word, 0.02))


@each_distribution
def test_other_devices_draw_by_plain_torch_the_same_bits(distribution, monkeypatch):
    expected = distribution((70_001,), 0.3, seed=2, name="w")
    monkeypatch.setattr(inits, "_fill_cpu", inits._fill_device)
    monkeypatch.setattr(inits, "_DEVICE_WORDS", 1 << 10)
    assert distribution((70_001,), 0.3, seed=2, name="w").equal(expected)


@given(st.sampled_from(["uniform", "uniform16", "normal"]), st.floats(1e-25, 1e25))
def test_extreme_words_stay_inside_and_off_zero(name, scale):
    extreme = torch.tensor([0, 1, 255, 256, 2**31 - 1, 2**31, 0x7FFF8000, 0x80007FFF, LOW - 255, LOW])
    values = WORDS[name].of(extreme, scale).double()
    assert values.equal(filled(WORDS[name], extreme, scale).double())
    assert (values != 0).all()
    assert (values.abs() < (6.4 if name == "normal" else 1) * scale).all()
    assert values.min() < 0 < values.max()


@pytest.mark.parametrize("distribution", SYMMETRIC.values(), ids=SYMMETRIC)
def test_words_and_their_complements_are_opposites(distribution):
    converter = WORDS[distribution.__name__].of
    word = torch.from_numpy(np.random.default_rng(0).integers(0, LOW, 1000, endpoint=True))
    assert converter(word, 0.7).equal(-converter(LOW - word, 0.7))


@pytest.mark.parametrize(
    ("distribution", "law"),
    [
        (inits.uniform, stats.uniform(-2, 4)),
        (inits.uniform16, stats.uniform(-2, 4)),
        (inits.positive, stats.uniform(0, 2)),
        (inits.normal, stats.norm(scale=2)),
    ],
    ids=["uniform", "uniform16", "positive", "normal"],
)
def test_values_follow_their_law(distribution, law):
    values = distribution((100_000,), 2.0, seed=3, name="w").double().numpy()
    assert abs(values.mean() - law.mean()) < 5 * law.std() / math.sqrt(len(values))
    assert values.std() == pytest.approx(law.std(), rel=0.01)
    assert stats.kstest(values, law.cdf).pvalue > 1e-4
    assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < 5 / math.sqrt(len(values))


def test_signs_are_fair_and_independent():
    values = inits.sign((128_000,), 0.5, seed=3, name="w").double().numpy()
    assert set(values) == {-0.5, 0.5}
    assert abs(values.mean()) < 5 * 0.5 / math.sqrt(len(values))
    by_bit = values.reshape(-1, 32).mean(axis=0)
    assert np.abs(by_bit).max() < 5 * 0.5 / math.sqrt(len(values) / 32)


# ---------------------------------------------------------------- errors


@one_case
@each_distribution
@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_bad_scale(distribution, scale):
    with pytest.raises(ValueError, match=f"scale={scale}: must be a finite number > 0"):
        distribution((3,), scale, seed=0, name="w")


@one_case
@each_distribution
@pytest.mark.parametrize("stream", [-1, 2**32])
def test_bad_stream(distribution, stream):
    with pytest.raises(ValueError, match=f"stream={stream}: must be an int >= 0 and <= 4294967295"):
        distribution((3,), 1.0, seed=0, name="w", stream=stream)


@pytest.mark.parametrize("seed", [1.0, "1", None])
def test_seed_must_be_an_integer(seed):
    with pytest.raises(ValueError, match=r"seed=.*: must be an int"):
        inits.uniform((3,), 1.0, seed=seed, name="w")


def test_unknown_init_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"init='he': must be one of theory, .*gpt2"):
        inits.weight("he", (3,), inits.Fan(fan_in=32, fan_out=16, width=81), seed=0, name="w")


@given(seeds, st.integers(1, 9), st.integers(1, 5))
@settings(max_examples=30)
def test_rows_are_orthogonal_d_at_a_time_from_the_last(seed, n, d):
    made = inits.orthogonal((2, n, d), 0.5, seed=seed, name="a").double()
    for end in range(n, 0, -d):
        rows = made[:, max(0, end - d) : end]
        assert torch.allclose(rows @ rows.mT, 0.25 * torch.eye(rows.shape[1]).double(), atol=1e-6)
    drawn = inits.normal((2, n, d), 1.0, seed=seed, name="a").double()
    first = drawn[:, :1] / drawn[:, :1].norm(dim=-1, keepdim=True)
    assert torch.allclose(made[:, :1], 0.5 * first, atol=1e-7)
