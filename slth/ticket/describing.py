"""Describe a ticket for human readers."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from slth.ticket.record import Weight

if TYPE_CHECKING:
    from slth.ticket.ticket import Ticket

_WIDTH, _LINES = 116, 12  # of the description of the module


def describe(ticket: Ticket) -> str:
    """Describe a ticket: sizes, seeds, how the module is built, and a line for each masked weight."""
    total, kept = sum(w.size for w in ticket.weights), sum(w.kept for w in ticket.weights)
    stored = [ticket.tensors[f"stored.{p.path}"] for p in ticket.plain if p.stored]
    seeds = sorted({str(draw.seed) for w in ticket.weights if w.recipe for draw in w.recipe.draws})
    lines = [
        f"ticket, version {ticket.version}, {len(ticket.to_bytes()):,} bytes",
        f"{len(ticket.weights)} masked weights with {total:,} entries, {kept:,} kept ({kept / total:.4g})",
        f"seeds: {', '.join(seeds)}" if seeds else "seeds: none",
    ]
    if ticket.over:
        lines.append(f"over a base: {len(ticket.over)} weights that no seed makes; apply it to the network it was of")
    lines += [
        f"stored as they are: {sum(t.numel() for t in stored):,} numbers in {len(stored)} tensors",
        f"digest of the network: {ticket.digest}",
    ]
    if ticket.built is not None:
        lines += textwrap.wrap(
            f"built as: {_built(ticket.built)}",
            _WIDTH,
            subsequent_indent="  ",
            max_lines=_LINES,
            placeholder=" ...",
        )
    if common := _common(ticket.weights):
        lines.append(f"all weights: {', '.join(common)}")
    lines += ["", f"{'weight':<44} {'shape':<16} {'keep':>7}  drawn"]
    lines += [_line(w, common) for w in ticket.weights]
    return "\n".join(lines)


def _common(weights: Sequence[Weight]) -> list[str]:
    """The notes of traits that all weights have."""
    first, *others = [[trait.note for trait in weight.traits] for weight in weights] or [[]]
    return [note for note in first if all(note in notes for notes in others)]


def _line(weight: Weight, common: Sequence[str]) -> str:
    """The line of a weight, without the notes common to all."""
    draws = weight.recipe.draws if weight.recipe else ()
    drawn = list(dict.fromkeys(f"{draw.distribution} {draw.scale:.4g}" for draw in draws)) or ["of the base"]
    shape, notes = "x".join(map(str, weight.shape)), [t.note for t in weight.traits if t.note not in common]
    return f"{weight.path:<44} {shape:<16} {weight.kept / weight.size:>7.4f}  {', '.join([*drawn, *notes])}"


def _built(built: Mapping[str, Any]) -> str:
    """The description of the module as one line of printable characters."""
    rest = {key: value for key, value in built.items() if key != "class"}
    named = rest.pop("arguments", None)
    text = str(built.get("class", "?"))
    if isinstance(named, dict):
        text += f"({', '.join(f'{key}={json.dumps(value)}' for key, value in named.items())})"
    if rest:
        text += f" {json.dumps(rest)}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
