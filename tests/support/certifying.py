"""Matrices and tickets, and the worst inputs that a search finds for them."""

import copy
from functools import cache

import numpy as np
import pytest
import torch
from helpers import random_target
from hypothesis import settings
from hypothesis import strategies as st

from slth.attention import MultiHeadAttention
from slth.construct import attention
from slth.construct.adversary import worst_input

seeds = st.integers(0, 2**32 - 1)
few, laws = settings(max_examples=20), settings(max_examples=40)

#: (d_in, d_out, heads, hidden, seed): tickets of few and of many candidates an entry, with errors from 1 to 1e-5.
TICKETS = [
    (1, 1, 1, 5, 0),
    (2, 1, 1, 8, 0),
    (2, 1, 1, 12, 1),
    (2, 1, 1, 24, 2),
    (2, 2, 3, 16, 3),
    (3, 2, 2, 13, 4),
    (4, 4, 4, 4, 5),
    (8, 8, 2, 64, 6),
]
each_ticket = pytest.mark.parametrize("case", TICKETS, ids=str)


@cache
def ticket_of(case):
    """Target, source pruned (float64), and the ticket."""
    d_in, d_out, heads, hidden, seed = case
    target = random_target(d_in, d_out, heads, seed=seed + 50)
    source = MultiHeadAttention(d_in, d_out, heads, hidden, seed=seed, dtype=torch.float64)
    ticket = attention(target, source)
    pruned = copy.deepcopy(source)
    ticket.prune(pruned)
    return target, pruned, ticket


@cache
def adversarial(case):
    """The adversary's error and inputs against a ticket, at the norm that its certificate speaks of."""
    target, _, ticket = ticket_of(case)
    return worst_input(wanted(target), ticket.merged, ticket.certificate.alpha)


def wanted(module):
    return tuple(matrix.detach() for matrix in module.merged())


def largest_distance(a, b):
    return float(torch.linalg.vector_norm(a.detach() - b.detach(), dim=-1).max())


def matrices(seed, heads, d_in, d_out, size_qk=1.0, size_vo=1.0):
    """Random merged matrices, entries of about the given sizes."""
    rng = np.random.default_rng(seed)
    qk, vo = size_qk * rng.normal(size=(heads, d_in, d_in)), size_vo * rng.normal(size=(heads, d_in, d_out))
    return torch.from_numpy(qk), torch.from_numpy(vo)


def moved(pair, seed, *, by_qk, by_vo):
    """The pair with random errors of about the given sizes."""
    qk, vo = pair
    d_qk, d_vo = matrices(seed + 1, qk.shape[-3], *vo.shape[-2:], by_qk, by_vo)
    return qk + d_qk, vo + d_vo


@st.composite
def pairs(draw):
    """Two attentions by their merged matrices, and alpha: errors from tiny to huge, one head or several."""
    seed, heads, d_in, d_out = draw(seeds), draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    sizes = st.sampled_from([0.0, 1e-6, 1e-2, 1.0, 1e2])
    target = matrices(seed, heads, d_in, d_out, draw(st.sampled_from([0.1, 1.0, 10.0])))
    return target, moved(target, seed, by_qk=draw(sizes), by_vo=draw(sizes)), draw(st.sampled_from([0.3, 1.0, 4.0]))


#: A size for the first factor of each pair; the second has its inverse, or another size.
sizes = st.sampled_from([0.0, 1e-320, 1e-300, 1e-160, 1e-8, 1.0, 1e8, 1e100, 1e150, 1e300])
