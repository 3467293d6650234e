"""Compile every kernel for sm_90 (H100, H200), without a GPU, and report the compiler's resource usage.

    python -m slth.kernels.offline            one line per kernel: registers, spills, shared memory
    python -m slth.kernels.offline --json     the same in JSON

The cases.py of each folder lists its kernels as they are launched, with the types of arguments and the constants. The
process must have imported Triton without TRITON_INTERPRET.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .listing import modules

SHARED_LIMIT = 232_448  # bytes of shared memory per block on sm_90


@dataclass(frozen=True)
class Case:
    """A kernel as it is launched.

    types: types of the arguments by name, in Triton's notation ("*bf16", "i32", "fp32"); constants: constexpr ones.
    spills: allowed spill instructions (local stores and loads together): 0 for forward kernels in 16 bits.
    products: whether it computes products of 16 bits, which must use tensor cores.
    """

    name: str
    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    warps: int = 4
    stages: int = 2
    spills: int = 0
    aligned: tuple[str, ...] = field(default=())  # arguments that are multiples of 16, as in real calls
    products: bool = False


@dataclass(frozen=True)
class Compiled:
    """A compiled case: registers per thread, spill instructions, bytes of shared memory per block."""

    name: str
    registers: int
    spills: int
    allowed_spills: int
    shared: int
    warps: int
    tensor_cores: int  # PTX instructions that use tensor cores
    products: bool  # whether there must be any


def compiled(case: Case) -> Compiled:
    """Compile a case for sm_90."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = case.kernel.arg_names
    signature = {name: case.types.get(name, "constexpr") for name in names}
    attrs = {(names.index(name),): [["tt.divisibility", 16]] for name in case.aligned}
    source = ASTSource(fn=case.kernel, signature=signature, constexprs=dict(case.constants), attrs=attrs)
    target = GPUTarget("cuda", 90, 32)
    made = triton.compile(source, target=target, options={"num_warps": case.warps, "num_stages": case.stages})
    cubin, ptx, shared = made.asm["cubin"], made.asm["ptx"], made.metadata.shared
    usage = _cuobjdump("-res-usage", cubin)
    tensor_cores = len(re.findall(r"\b(?:mma\.sync|wgmma\.mma_async)\b", ptx))
    return Compiled(
        case.name, _number(usage, "REG"), _spills(usage, cubin), case.spills, shared, case.warps, tensor_cores,
        case.products,
    )  # fmt: skip


def _spills(usage: str, cubin: bytes) -> int:
    """Count local stores and loads. Without local memory there are none, and the slow disassembly is skipped."""
    if _number(usage, "STACK") == _number(usage, "LOCAL") == 0:
        return 0
    return len(re.findall(r"\b(?:STL|LDL)\b", _cuobjdump("-sass", cubin)))


def _cuobjdump(flag: str, cubin: bytes) -> str:
    """Return cuobjdump's output for a compiled kernel."""
    import triton

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, flag, str(file)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _number(usage: str, name: str) -> int:
    found = re.search(rf"\b{name}:(\d+)", usage)
    if not found:
        raise RuntimeError(f"cuobjdump: no {name} in {usage[:500]!r}")
    return int(found.group(1))


def cases() -> list[Case]:
    """Return the cases of all kernels."""
    return [case for module in modules("cases") for case in module.offline_cases()]


def main(arguments: list[str]) -> int:
    """Compile all cases, or those whose names contain an argument, and print the results."""
    wanted = [argument for argument in arguments if argument != "--json"]
    chosen = [case for case in cases() if not wanted or any(part in case.name for part in wanted)]
    if not chosen:
        print(f"no case holds {', '.join(wanted)}", file=sys.stderr)
        return 1
    found = []
    for case in chosen:
        one = compiled(case)
        found.append(asdict(one))
        if "--json" not in arguments:
            print(
                f"{one.name:60} {one.registers:4} registers {one.spills:5} spill instructions (allowed "
                f"{one.allowed_spills}) {one.shared:7} bytes shared, {one.warps} warps, {one.tensor_cores} tensor-core "
                "instructions",
                flush=True,
            )
    if "--json" in arguments:
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
