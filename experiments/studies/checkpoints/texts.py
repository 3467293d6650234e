"""What a checkpoint reads: reactions written by a small grammar, lines of a file, or tokens at random."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from slth.weights import inits

SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[MASK]")
#: Atoms, bonds and rings of SMILES, as tokens.
_SMILES = re.compile(r"\[[^\]]+\]|Br|Cl|%\d\d|>>|[A-Za-z]|\d|[().=#~/\\-]")

# Groups by what they are bound with: the end of a head, the beginning of a tail.
_HEADS = ("C", "CC", "CC(C)", "CCOC", "N#CC", "c1ccccc1", "Fc1ccc(cc1)", "COc1ccc(cc1)", "Clc1ccc(cc1)", "c1ccnc(c1)")
_TAILS = ("C", "CCC", "C(C)C", "C1CCCCC1", "CCOC", "CC#N", "c1ccccc1", "c1ccc(F)cc1", "c1cccc(Br)c1", "c1ccc(OC)nc1")
_REACTIONS = (
    "{h}C(=O)O.N{t}>>{h}C(=O)N{t}",
    "{h}C(=O)Cl.N{t}>>{h}C(=O)N{t}",
    "{h}C(=O)O.O{t}>>{h}C(=O)O{t}",
    "{h}S(=O)(=O)Cl.N{t}>>{h}S(=O)(=O)N{t}",
    "{h}N=C=O.N{t}>>{h}NC(=O)N{t}",
    "{h}Br.O{t}>>{h}O{t}",
    "{h}I.N{t}>>{h}N{t}",
    "{h}C=O.N{t}>>{h}CN{t}",
    "{h}C(=O)C{t}>>{h}C(O)C{t}",
    "{h}C(=O)O{t}>>{h}CO",
)
_REAGENTS = ("", "", "O.", "CO.", "ClCCl.", "C1CCOC1.", "CCN(CC)CC.", "CN(C)C=O.", "[Na+].[OH-].", "[BH4-].[Na+].")


@dataclass(frozen=True)
class Texts:
    """Tokens (texts, length), int64, and which of them are no padding, bool; kind: in words."""

    tokens: torch.Tensor
    present: torch.Tensor
    kind: str

    def masked(self, special: Sequence[int], mask: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(tokens of which 15 % are the mask, where), of those that are neither padding nor special."""
        hit = inits.uniform(self.tokens.shape, 1.0, seed=seed, name="hide_checkpoint/masked") < -0.7
        hit &= self.present & ~torch.isin(self.tokens, torch.tensor(list(special)))
        return self.tokens.masked_fill(hit, mask), hit


def generated(vocabulary: Sequence[str], size: int, count: int, length: int, seed: int) -> Texts:
    """Reactions where the vocabulary has their tokens, and otherwise tokens of `size` at random."""
    reactions = [_reaction(i, seed) for i in range(count)]
    if set(_SMILES.findall("".join(reactions))) <= set(vocabulary):
        return _padded([_SMILES.findall(each) for each in reactions], vocabulary, length, "reactions")
    plain = [i for i in range(size) if i >= len(vocabulary) or not re.fullmatch(r"\[.*\]|<.*>", vocabulary[i])]
    chosen = _numbers(count * length, len(plain), seed, "tokens").reshape(count, length)
    tokens = torch.tensor(plain)[torch.from_numpy(chosen)]
    return Texts(tokens, torch.ones_like(tokens, dtype=torch.bool), "tokens at random")


def lines(text: str, vocabulary: Sequence[str], length: int) -> Texts:
    """The lines of a text of SMILES. Raises ValueError where the vocabulary does not have its tokens."""
    rows = [_SMILES.findall(line) for line in text.splitlines() if line.strip()]
    if unknown := sorted({token for row in rows for token in row} - set(vocabulary)):
        raise ValueError(f"the vocabulary has no token {unknown[0]!r}: must be lines of SMILES, for a network of these")
    if not rows:
        raise ValueError("no line in it")
    return _padded(rows, vocabulary, length, "lines of the file")


def _reaction(number: int, seed: int) -> str:
    def pick(choices: Sequence[str], what: str) -> str:
        return choices[int(_numbers(1, len(choices), seed, f"{what}/{number}")[0])]

    reaction = pick(_REACTIONS, "reaction").format(h=pick(_HEADS, "head"), t=pick(_TAILS, "tail"))
    return pick(_REAGENTS, "reagent") + reaction


def _numbers(count: int, below: int, seed: int, name: str) -> np.ndarray:
    """Random ints in [0, below)."""
    uniform = inits.positive((count,), 1.0, seed=seed, name=f"hide_checkpoint/{name}").double().numpy()
    return np.minimum((uniform * below).astype(np.int64), below - 1)


def _padded(rows: list[list[str]], vocabulary: Sequence[str], length: int, kind: str) -> Texts:
    number = {token: i for i, token in enumerate(vocabulary)}
    inner = [[number[token] for token in row][: length - 2] for row in rows]
    whole = [[number.get("[CLS]", 0), *row, number.get("[SEP]", 0)] for row in inner]
    longest = max(map(len, whole))
    tokens = torch.full((len(whole), longest), number.get("[PAD]", 0))
    present = torch.zeros_like(tokens, dtype=torch.bool)
    for i, row in enumerate(whole):
        tokens[i, : len(row)], present[i, : len(row)] = torch.tensor(row), True
    return Texts(tokens, present, kind)
