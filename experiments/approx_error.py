"""How fast the error of a ticket inside a random attention falls with the source's width, and how it is certified.

Figures 4 to 6 of arXiv 2511.04217: one target attention, many random sources, masks by exact subset sums.
hidden=64 draws the curve up to width 64, and the run says with which widths; hidden=[8,16,32] measures just these,
hidden=[64] this one. depth=[1,2,3,4] measures
transformers of so many blocks instead. method=edge_popup learns a mask of each source, too, and sets it beside the
construction: the same target, sources and test inputs, in the same table and figures.

In results.csv a learned ticket has method=edge_popup and side=free, since no factor's mask has a structure, and leaves
unreachable and candidates empty: no subset sum is solved. Its certificate is that of its merged matrices, for any
input of the same norm, though it was learned from inputs of the task. One mask serves all lengths; it is learned at
the shortest.
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

WIDTH = 64  # where a curve ends if the config does not say
POINTS = 9  # widths on the curve that one width asks for
SOURCES, LEARNED_SOURCES = 100, 10  # that are measured where the config does not say
# keys that a construction does not look at, but for steps and lr, which smoke gives whatever the method
OF_A_SEARCH = ("keep", "batch", "precision", "graph", "accumulate")
# what a depth allows
DEEP = {
    "method": (approximation.CONSTRUCTION,),
    "target": ("random",),
    "side": ("input", "auto"),
    "source_init": ("theory", "xavier"),
}


def per_length(default: int | None, *, help: str) -> Any:
    """A key that takes an int >= 1, or a list with one for each length."""

    def read(key: str, value: Any) -> int | list[int]:
        one = an_integer(1)
        return [one.read(key, part) for part in value] if isinstance(value, list | tuple) else one.read(key, value)

    return lab.key(default, Kind(read, lambda: "an int >= 1, or a list with one for each length"), help=help)


@dataclass(frozen=True)
class Config(lab.TrainingOptions):
    """What is measured."""

    method: methods.Method = methods.method(
        approximation.CONSTRUCTION,
        others=(approximation.CONSTRUCTION,),
        help="a search, as edge_popup: masks are learned, next to the construction",
    )
    hidden: int | list[int] | None = lab.key(
        None,
        as_given(several(an_integer(1, 2**31 - 1))),
        help="the source's width per head: an int is the end of a curve of up to nine widths, a list is just these, as "
        "in [64]; None: a curve that ends at 64, or where a coordinate has four units if d_in is above that",
    )
    lengths: list[int] = lab.integers(4, least=1, help="points in an input; the regression token comes on top")
    d_in: int = lab.integer(2, least=1, help="width of an input vector")
    d_out: int | None = lab.integer(
        None, least=1, help="None: d_in/2 with a trained target, 1 with a random one, d_in with a depth"
    )
    heads: int = lab.integer(1, least=1, help="of target and source")
    depth: list[int] | None = lab.integers(
        None, least=1, help="None: an attention; an int or a list: transformers of so many blocks"
    )
    target: str | None = lab.choice(
        None, ("trained", "random"), help="trained: on the task; None: trained, with a depth random"
    )
    target_hidden: int = lab.integer(8, least=1, help="the target's width per head")
    target_norm: float | None = lab.number(
        None,
        above=0.0,
        most=1e6,
        help="spectral norm of each of the target's factors; None: as trained, or 1 where random",
    )
    task: str = lab.choice(
        "paper", tuple(approximation.TASKS), help="learnable: a setting of the task that a target can learn"
    )
    source_init: str = lab.choice(
        "theory",
        tuple(approximation.SOURCE_INITS),
        help="of the random sources; antithetic: hidden units in pairs of opposite key and output",
    )
    sources: int | list[int] | None = per_length(
        None, help="random sources, at every length; None: 100, with a search 10"
    )
    samples: int | list[int] = per_length(64, help="inputs, at every length")
    side: str | None = lab.choice(
        None,
        ("both", *SIDES, "auto"),
        help="where the structural mask lies: input (the paper's), output, auto (the better) or both; None: both, with "
        "a depth input",
    )
    keep: float = lab.number(
        0.5, above=0.0, most=1.0, help="of a search: the share of each factor's weights that is kept"
    )
    steps: int = lab.integer(
        500, least=1, help="of a search: of training the scores, with the best of the masks on the way taken"
    )
    lr: float = lab.number(0.03, above=0.0, most=1e3, help="of a search: the highest learning rate")
    batch: int = lab.integer(64, least=1, help="of a search: inputs a step")
    seed: int = lab.seed()

    def check(self) -> None:
        """See that the study can be made, and that every key is of use."""
        if self.method.name == approximation.CONSTRUCTION:
            self.require_defaults(OF_A_SEARCH, "with method=construction, which learns nothing")
        self.check_arithmetic(self.batch)
        _ = self.study

    @cached_property
    def study(self) -> approximation.Study | deep.Study:
        """What is None filled in: an attention's study, or that of transformers where there is a depth."""
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
        """units: hidden ones that each coordinate needs for itself."""
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
        """A list of widths as it is; one width n as a curve of at most POINTS multiples of the least that ends at n.

        None is WIDTH, or four times the least where that is more than WIDTH.
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
        """One value for every length, or a list with one for each."""
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
"""Table, summary, and a ticket in the first of the widest sources."""


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
    """One attention in many sources."""
    target, report = approximation.make_target(study)
    table, ticket = approximation.measure(study, target)
    summary = approximation.summarise(table) | {"target_learned": report and asdict(report)}
    return table, summary, ticket


def transformers(study: deep.Study) -> Outcome:
    """Transformers of several depths in many sources."""
    table, ticket = deep.measure(study, deep.make_target(study))
    return table, deep.summarise(table), ticket


if __name__ == "__main__":
    lab.launch(ex)
