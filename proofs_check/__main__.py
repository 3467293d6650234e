"""`python -m proofs_check [NAME ...]`: test statements, print a table, and exit with 1 if anything is wrong."""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
import time
from collections.abc import Callable, Sequence

import proofs_check
from proofs_check.check import Statement
from slth import console
from slth.threads import one_torch_thread

_ROW = "{:<74} {:>6} {:>12}  {}"
_LEGEND = """worst ratio: left side / right side over all cases; a claim holds up to 1, a control must be above 1.
sources: random sources at the theorem's width; 99 % bound on the probability of a failure / epsilon,
upper for claims and lower for controls; worst: the largest error seen / allowed."""


def statements() -> dict[str, Callable[[float], Statement]]:
    """Return the function check of every module that has one, by name, with numbers in names in numerical order."""
    modules = (module.name for module in pkgutil.iter_modules(proofs_check.__path__) if module.name != "__main__")
    found = {name: importlib.import_module(f"proofs_check.{name}") for name in sorted(modules, key=_natural)}
    return {name: module.check for name, module in found.items() if hasattr(module, "check")}


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part or 0), text) for text, part in re.findall(r"(\D+)(\d*)", name)]


def rows(statement: Statement, seconds: float) -> list[str]:
    """Return the lines of the table for a statement, its checks and its controls."""
    verdict = "holds" if statement.holds else "OFF"
    controls = f"{statement.failing} of {len(statement.controls)} controls fail"
    lines = [_ROW.format(statement.name, statement.cases, f"{statement.ratio:.4f}", f"{controls}: {verdict}")]
    lines[0] += f" ({seconds:.1f} s)"
    for check in statement.checks:
        outcome = "holds" if check.holds else "DOES NOT HOLD"
        lines.append(_ROW.format(f"  {check.name}", check.cases, f"{check.ratio:.4f}", outcome))
    for control in statement.controls:
        outcome = "fails, as it must" if control.fails else "DOES NOT FAIL"
        lines.append(_ROW.format(f"  control: {control.name}", "", f"{control.ratio:.4g}", outcome))
    return lines


def main(names: Sequence[str], share: float = 1.0) -> int:
    """Test the named statements, or all, with this share of the usual number of cases. Returns the exit status."""
    console.forgive()
    known = statements()
    for name in names:
        if name not in known:
            print(f"{name!r}: no such statement, must be one of {', '.join(known)}", file=sys.stderr)
            return 2
    print(_ROW.format("statement", "cases", "worst ratio", "verdict"))
    off, started = [], time.perf_counter()
    with one_torch_thread():
        for name in names or known:
            before = time.perf_counter()
            statement = known[name](share)
            print(*rows(statement, time.perf_counter() - before), sep="\n", flush=True)
            if not statement.holds:
                off.append(statement.name)
    print(_LEGEND)
    verdict = f"off: {', '.join(off)}" if off else "everything holds, every control fails"
    print(f"{verdict}; {time.perf_counter() - started:.0f} s")
    return 1 if off else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
