"""Perplexity by a sliding window: laws that fix which token is scored from which context."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tables import one_case
from torch import nn
from torch.nn.functional import cross_entropy

from slth.tasks import text as task
from slth.weights import inits

SIZE = 7


class Decaying(nn.Module):
    """Logits in float64 from a decaying sum over the tokens so far: they depend on every token of the context."""

    def __init__(self, size=SIZE, wrapped=False):
        super().__init__()
        self.table = nn.Parameter(inits.uniform((size, size), 2.0, seed=0, name="table").double())
        self.wrapped, self.seen = wrapped, []

    def forward(self, tokens):
        assert not self.training
        assert tokens.dtype == torch.int64
        self.seen.append(tuple(tokens.shape))
        state, states = torch.zeros((), dtype=torch.float64), []
        for at in range(tokens.shape[1]):
            state = 0.7 * state + self.table[tokens[:, at]]
            states.append(state)
        logits = torch.stack(states, dim=1)
        return SimpleNamespace(logits=logits) if self.wrapped else logits


def nats_given(model, context, target):
    model.eval()
    with torch.no_grad():
        logits = model(torch.tensor([context]))
    return float(cross_entropy(logits[0, -1:], torch.tensor([target])))


tokens_of_any = st.lists(st.integers(0, SIZE - 1), min_size=2, max_size=30)


@given(tokens_of_any, st.integers(1, 12), st.data())
def test_every_token_is_scored_once_given_its_window(tokens, length, data):
    stride = data.draw(st.integers(1, length))
    model, total, scored = Decaying(), 0.0, []
    for begin in itertools.count(0, stride):
        end = min(begin + length, len(tokens) - 1)
        for at in range((scored[-1] if scored else 0) + 1, end + 1):
            total += nats_given(model, tokens[begin:at], tokens[at])
            scored.append(at)
        if end == len(tokens) - 1:
            break
    assert scored == list(range(1, len(tokens)))
    found = task.perplexity(model, torch.tensor(tokens, dtype=torch.uint8), length, stride, batch=3)
    assert found.tokens == len(scored)
    assert found.nats == pytest.approx(total, rel=1e-12)
    assert found.per_token == pytest.approx(math.exp(total / len(scored)))


@given(tokens_of_any, st.integers(1, 12))
def test_a_stride_of_one_gives_every_token_all_the_context_there_is(tokens, length):
    model = Decaying()
    naive = [nats_given(model, tokens[max(0, t - length) : t], tokens[t]) for t in range(1, len(tokens))]
    found = task.perplexity(model, torch.tensor(tokens), length, 1)
    assert found.nats == pytest.approx(math.fsum(naive), rel=1e-12)


@given(st.integers(1, 5), st.integers(1, 9), st.data())
def test_a_stride_of_the_length_is_the_mean_of_plain_windows(count, length, data):
    tokens = torch.tensor(data.draw(st.lists(st.integers(0, SIZE - 1), min_size=(n := count * length + 1), max_size=n)))
    model = Decaying(wrapped=True)
    found = task.perplexity(model, tokens, length, length)
    model.eval()
    logits = model(tokens[:-1].reshape(count, length)).logits.detach()
    assert found.loss == pytest.approx(float(cross_entropy(logits.flatten(0, 1), tokens[1:])), rel=1e-12)
    assert found.tokens == count * length


@given(st.lists(tokens_of_any, min_size=1, max_size=4), st.integers(1, 9), st.data())
def test_documents_are_scored_apart(documents, length, data):
    stride = data.draw(st.integers(1, length))
    model = Decaying()
    alone = [task.perplexity(model, torch.tensor(one), length, stride) for one in documents]
    found = task.perplexity(model, [torch.tensor(one) for one in documents], length, stride)
    assert found.tokens == sum(one.tokens for one in alone)
    assert found.nats == pytest.approx(math.fsum(one.nats for one in alone), rel=1e-12)
    started = task.perplexity(model, [torch.tensor(one) for one in documents], length, stride, start=3)
    again = task.perplexity(model, [torch.tensor([3, *one]) for one in documents], length, stride)
    assert (started.nats, started.tokens) == (again.nats, again.tokens)
    assert started.tokens == sum(map(len, documents))


def test_windows_of_one_size_go_together_and_the_mode_is_restored():
    model = Decaying().train()
    task.perplexity(model, torch.zeros(11, dtype=torch.int64), 4, 2, batch=2)
    assert model.training
    assert model.seen == [(2, 4), (2, 4)]  # from 0, 2, 4 and 6


@one_case
@pytest.mark.parametrize(
    ("tokens", "length", "stride", "message"),
    [
        ([0], 3, 1, "documents of 1 tokens: must have a token to score"),
        ([[0, 1]], 3, 1, r"documents with a shape \(1, 2\): must be tokens"),
        ([0, 1], 0, 1, "length=0: must be an int >= 1"),
        ([0, 1], 3, 0, "stride=0: must be an int >= 1 and <= 3"),
        ([0, 1], 3, 4, "stride=4: must be an int >= 1 and <= 3"),
    ],
)
def test_what_cannot_be_scored_is_refused(tokens, length, stride, message):
    with pytest.raises(ValueError, match=message):
        task.perplexity(Decaying(), torch.tensor(tokens), length, stride)


# ---------------------------------------------------------------- texts

WIKI = b" \n = One = \n \n Some text = 3 , \n = x = \n \n = = Part = = \n \n more \n \n = Two ( = ) 2 = \n \n last \n"


def test_articles_begin_at_titles_between_empty_lines():
    found = task.articles(WIKI)
    assert b"".join(found) == WIKI
    assert [one.strip().partition(b"\n")[0] for one in found] == [b"= One = ", b"= Two ( = ) 2 = "]
    stripped = WIKI.replace(b"\n \n", b"\n\n")
    assert list(map(len, task.articles(stripped))) == [len(one.replace(b"\n \n", b"\n\n")) for one in found]
    with pytest.raises(ValueError, match="documents='separate': must be a text with articles"):
        task.articles(b"a text \n without titles \n")


@given(st.text(max_size=30), st.integers(1, 9), st.data())
def test_every_byte_is_scored_once_whatever_the_stride(text, length, data):
    try:
        text = ("x" + text).encode()
    except UnicodeEncodeError:
        return
    stride = data.draw(st.integers(1, length))
    found = task.text_perplexity(Decaying(256), text, task.Bytes(), length, stride)
    assert found.tokens == found.bytes == len(text)
    assert found.bits_per_byte == pytest.approx(found.loss / math.log(2))


def test_a_model_that_knows_nothing_takes_eight_bits_a_byte():
    model = Decaying(256)
    nn.init.zeros_(model.table)
    for documents in task.DOCUMENTS:
        found = task.text_perplexity(model, WIKI, task.Bytes(), 8, 4, documents=documents)
        assert found.bits_per_byte == pytest.approx(8)
        assert found.per_token == pytest.approx(256)
        assert found.words == len(WIKI.split()) + WIKI.count(b"\n")
        assert found.per_word == pytest.approx(256 ** (len(WIKI) / found.words))


def test_separate_articles_know_nothing_of_each_other():
    model, parts = Decaying(256), task.articles(WIKI)
    found = task.text_perplexity(model, WIKI, task.Bytes(), 64, 32, documents="separate")
    alone = [task.text_perplexity(model, part, task.Bytes(), 64, 32) for part in parts]
    assert found.nats == pytest.approx(sum(one.nats for one in alone), rel=1e-12)
    joined = task.text_perplexity(model, WIKI, task.Bytes(), 64, 32)
    assert abs(joined.nats - found.nats) > 1e-3
    with pytest.raises(ValueError, match="documents='apart': must be one of joined, separate"):
        task.text_perplexity(model, WIKI, task.Bytes(), 64, 32, documents="apart")


def test_bits_a_byte_need_a_vocabulary_that_holds_the_text():
    few = task.Characters("aab", 3)
    model = Decaying(3)
    assert task.text_perplexity(model, b"abba", few, 4, 2).bytes == 4
    lossy = task.text_perplexity(model, b"abc", few, 4, 2)
    assert lossy.bytes is None
    assert math.isnan(lossy.bits_per_byte)
    assert lossy.per_token > 1
    assert math.isnan(task.perplexity(model, torch.tensor([0, 1]), 4, 2).per_word)
    assert task.Perplexity(1000.0, 1).per_token == math.inf
