"""Measure how the error of a ticket in a random attention, and its certificate, fall with the source's width.

Figures 4 to 6 of arXiv 2511.04217: one target attention, many random sources, masks from exact subset sums.
hidden=64 measures a curve up to width 64 and prints its widths; hidden=[8,16,32] measures exactly these widths, and
hidden=[64] only this one. depth=[1,2,3,4] measures transformers with these numbers of blocks instead.
method=edge_popup also learns a mask of each source, with the same target and test inputs, for comparison with the
construction in the same table and figures.

In results.csv a learned ticket has method=edge_popup and side=free, since no mask is structural, and unreachable and
candidates are empty, since no subset sum is solved. Its certificate is that of its merged matrices and holds for any
input of the same norm, although it was learned on inputs of the task. One mask, learned at the shortest length, is used
for all lengths.
"""

import time
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from slth import plots
from slth.construct.factors import SIDES
from slth.experiments import lab
from slth.experiments.lab import BadConfig, methods
from slth.experiments.lab.options import Kind, an_integer, as_given, one_of, several
from slth.experiments.studies.approximation import depth as deep
from slth.experiments.studies.approximation import learning
from slth.experiments.studies.approximation import measure as approximation
from slth.ticket import Ticket

WIDTH = 64  # default end of a curve
POINTS = 9  # most widths of a curve
SOURCES, LEARNED_SOURCES = 100, 10  # default numbers of sources
# keys that a construction does not use; steps and lr are left out, since smoke sets them for all methods
OF_A_SEARCH = ("keep", "batch", "precision", "graph", "accumulate")
# the values that are allowed with a depth
DEEP = {
    "method": (approximation.CONSTRUCTION,),
    "target": ("random",),
    "side": ("input", "auto"),
    "source_init": ("theory", "xavier"),
}


def per_length(default: int | None, *, help: str) -> Any:
    """Declare a key that takes an int >= 1, or a list with one for each length."""

    def read(key: str, value: Any) -> int | list[int]:
        one = an_integer(1)
        return [one.read(key, part) for part in value] if isinstance(value, list | tuple) else one.read(key, value)

    return lab.key(default, Kind(read, lambda: "an int >= 1, or a list with one for each length"), help=help)


@dataclass(frozen=True)
class Config(lab.TrainingOptions):
    """The target, the sources, and how masks are found."""

    method: methods.Method = methods.method(
        approximation.CONSTRUCTION,
        others=(approximation.CONSTRUCTION,),
        help="how masks are found: construction, or a search such as edge_popup, compared with the construction",
    )
    hidden: int | list[int] | None = lab.key(
        None,
        as_given(several(an_integer(1, 2**31 - 1))),
        help="the source's widths per head: an int is the end of a curve of up to nine widths, a list such as [64] is "
        "exactly these widths; None: a curve up to 64, or up to four units per coordinate if that is more",
    )
    lengths: list[int] = lab.integers(4, least=1, help="points per input, without the regression token")
    d_in: int = lab.integer(2, least=1, help="width of input vectors")
    d_out: int | None = lab.integer(
        None,
        least=1,
        help="width of output vectors; None: d_in/2 for a trained target, 1 for a random one, d_in with a depth",
    )
    heads: int = lab.integer(1, least=1, help="number of heads of target and source")
    depth: list[int] | None = lab.integers(
        None, least=1, help="numbers of blocks of transformers; None: a single attention instead"
    )
    target: str | None = lab.choice(
        None,
        ("trained", "random"),
        help="the target: trained on the task, or random; None: trained, or random with a depth",
    )
    target_hidden: int = lab.integer(8, least=1, help="the target's width per head")
    target_norm: float | None = lab.number(
        None,
        above=0.0,
        most=1e6,
        help="spectral norm of each factor of the target; None: as trained, or 1 for a random target",
    )
    task: str = lab.choice(
        "paper",
        tuple(approximation.TASKS),
        help="setting of the task: paper's own, which can hardly be learned, or a learnable one",
    )
    source_init: str = lab.choice(
        "theory",
        tuple(approximation.SOURCE_INITS),
        help="initialisation of the random sources; antithetic: hidden units in pairs of opposite key and output",
    )
    sources: int | list[int] | None = per_length(
        None, help="number of random sources, for all lengths or each; None: 100, or 10 with a search"
    )
    samples: int | list[int] = per_length(64, help="number of test inputs, for all lengths or each")
    side: str | None = lab.choice(
        None,
        ("both", *SIDES, "auto"),
        help="the factor with the structural mask: input (the paper's), output, auto (the one with more candidates) or "
        "both; None: both, or input with a depth",
    )
    keep: float = lab.number(0.5, above=0.0, most=1.0, help="search: share of each factor's weights that is kept")
    steps: int = lab.integer(
        500, least=1, help="search: training steps of the scores; the best mask on the way is used"
    )
    lr: float = lab.number(0.03, above=0.0, most=1e3, help="search: peak learning rate")
    batch: int = lab.integer(64, least=1, help="search: inputs per step")
    seed: int = lab.seed()

    def check(self) -> None:
        """Raise BadConfig for values that do not fit together, and for keys that would have no effect."""
        if self.method.name == approximation.CONSTRUCTION:
            self.require_defaults(OF_A_SEARCH, "with method=construction, which learns nothing")
        self.check_arithmetic(self.batch)
        _ = self.study

    @cached_property
    def study(self) -> approximation.Study | deep.Study:
        """Return the study with defaults filled in: of an attention, or of transformers if there is a depth."""
        if self.depth is None:
            return self._attention(self.target or "trained", self.side or "both", self.d_out)
        if self.d_out not in (None, self.d_in):
            needed = f"d_in={self.d_in} with a depth: what goes into a block is added to its output"
            raise BadConfig("d_out", self.d_out, needed)
        for key, allowed in DEEP.items():
            if getattr(self, key) is not None:
                one_of(allowed).read(key, str(getattr(self, key)))
        alone = self._attention("random", self.side or "input", self.d_in, units=deep.HALVES)
        return deep.Study(**vars(alone), depths=sorted(self.depth))

    def _attention(self, target: str, side: str, d_out: int | None, units: int = 1) -> approximation.Study:
        """Return the study of an attention; units: hidden units that each coordinate needs."""
        d_in = self.d_in
        if d_out is None:
            d_out = max(1, d_in // 2) if target == "trained" else 1
        if target == "trained" and d_in % 2:
            even = "even for target=trained, whose task is made of planes; or take target=random"
            raise BadConfig("d_in", d_in, even)
        if target == "trained" and d_out != d_in // 2:
            raise BadConfig("d_out", d_out, f"d_in/2 = {d_in // 2} for target=trained; or take target=random")
        if side == "auto":
            side = "output" if d_out < d_in else "input"
        constructed = self.method.name == approximation.CONSTRUCTION
        method = None if constructed else self.method.require([self.steps], [self.keep])
        sources = SOURCES if constructed else LEARNED_SOURCES
        return approximation.Study(
            method=str(self.method),
            search=learning.Learning(self.keep, self.steps, self.lr, self.batch, method, self.arithmetic),
            hidden=self._widths(units * max(d_in, d_out if side in ("both", "output") else d_in), units),
            lengths=self.lengths,
            sources=self._per_length("sources", sources if self.sources is None else self.sources),
            samples=self._per_length("samples", self.samples),
            sides=[one for one in SIDES if side in (one, "both")],
            d_in=d_in,
            d_out=d_out,
            heads=self.heads,
            target=target,
            target_hidden=self.target_hidden,
            target_norm=self.target_norm,
            task=self.task,
            source_init=approximation.SOURCE_INITS[self.source_init],
            seed=self.seed,
        )

    def _widths(self, least: int, units: int) -> list[int]:
        """Return the widths: a list unchanged; an int n as a curve up to n of at most POINTS multiples of `least`.

        None stands for WIDTH, or for four times `least` if that is more.
        """
        hidden = self.hidden if self.hidden is not None else WIDTH if least <= WIDTH else 4 * least
        widths = [hidden] if isinstance(hidden, int) else sorted(hidden)
        for width in widths:
            if width < least:
                own = "a hidden unit of its own" if units == 1 else f"{units} hidden units"
                raise BadConfig("hidden", width, f">= {least}, {own} for each coordinate (d_in, d_out)")
        if not isinstance(hidden, int):
            return widths
        steps = np.unique(np.linspace(1, max(1, hidden // least), POINTS).round().astype(int))
        return sorted({*(least * steps[:-1]).tolist(), hidden})

    def _per_length(self, key: str, given: int | list[int]) -> list[int]:
        """Return one value for each length, from a single value or a list."""
        if isinstance(given, int):
            return [given] * len(self.lengths)
        if len(given) != len(self.lengths):
            count = len(self.lengths)
            raise BadConfig(key, given, f"an int >= 1, or a list of one for each of the {count} lengths")
        return given


ex = lab.experiment("approx_error", Config)
ex.add_named_config("smoke", hidden=[4, 8, 12, 16], sources=5, samples=8, steps=20, lr=0.3)
ex.add_named_config("paper_width", hidden=[2, 4, 6, 8, 12, 16, 20, 30, 40, 60, 80, 100], lengths=4)
ex.add_named_config(
    "paper_length",
    hidden=[20, 40],
    lengths=[8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192],
    sources=[100] * 8 + [20] * 3,
    samples=[64] * 7 + [8] * 2 + [2] * 2,
)
ex.add_named_config(
    "theory_width",
    hidden=[4, 6, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60],
    target="random",
    target_norm=1.0,
    side="input",
)
ex.add_named_config(
    "wide", d_in=64, d_out=64, heads=8, hidden=[1024], target="random", sources=3, samples=8, lengths=16, side="input"
)
ex.add_named_config(
    "learned",
    method="edge_popup",
    hidden=[4, 8, 16, 24, 40, 64],
    lengths=[4, 16, 64, 256],
    sources=10,
    samples=[64, 64, 64, 16],
    steps=1000,
)
ex.add_named_config("learnable", task="learnable")
ex.add_named_config("paper_depth", depth=[1, 2, 3, 4], hidden=list(range(16, 73, 4)), target_norm=1.0)


Outcome = tuple[pd.DataFrame, dict[str, Any], Ticket]
"""Table, summary, and the ticket in the first of the widest sources."""


@ex.main
def main(config: Config, run: lab.Run) -> dict[str, Any]:
    """Measure the widths."""
    started = time.perf_counter()
    study = config.study
    if isinstance(config.hidden, int | None) and len(study.hidden) > 1:
        widths, end = ", ".join(map(str, study.hidden)), study.hidden[-1]
        print(f"widths of the curve up to hidden={end}: {widths}; hidden=[{end}] measures this one alone")
    table, summary, ticket = transformers(study) if isinstance(study, deep.Study) else attention(study)
    summary |= {"alpha": study.alpha, "seconds": time.perf_counter() - started}
    lab.show(approximation.ends_of_curves(summary))
    print(f"errors above their certificate: {summary['certificate_violations']} of {len(table)}")
    lab.save(run, table, summary, plots.figures(table, summary), {"ticket.safetensors": ticket.to_bytes()})
    return summary


def attention(study: approximation.Study) -> Outcome:
    """Measure one target attention in many sources."""
    target, report = approximation.make_target(study)
    table, ticket = approximation.measure(study, target)
    summary = approximation.summarise(table) | {"target_learned": report and asdict(report)}
    return table, summary, ticket


def transformers(study: deep.Study) -> Outcome:
    """Measure transformers of several depths in many sources."""
    table, ticket = deep.measure(study, deep.make_target(study))
    return table, deep.summarise(table), ticket


if __name__ == "__main__":
    lab.launch(ex)
