"""Compile every kernel for a GPU that need not be there (sm_90: H100, H200), and say what the compiler made of it.

    python -m slth.kernels.offline            one line a kernel: registers, spills, shared memory
    python -m slth.kernels.offline --json     the same for programs

The cases.py of each folder lists its own, as they are launched: the kernel, the types of its arguments, its constants.
A process that compiles must have imported Triton without TRITON_INTERPRET.
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

SHARED_LIMIT = 232_448  # bytes that a block may have on sm_90


@dataclass(frozen=True)
class Case:
    """A kernel as it is launched.

    types: of the arguments by name, as Triton writes them ("*bf16", "i32", "fp32"); constants: the constexpr ones.
    spills: how many spill instructions (local stores and loads together) are allowed: 0 for forward kernels in 16 bits.
    products: whether it makes products of 16 bits, which is what tensor cores are for.
    """

    name: str
    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    warps: int = 4
    stages: int = 2
    spills: int = 0
    aligned: tuple[str, ...] = field(default=())  # arguments that are multiples of 16, as those of real calls are
    products: bool = False


@dataclass(frozen=True)
class Compiled:
    """What came of a case: registers a thread, spill instructions, bytes of shared memory a block."""

    name: str
    registers: int
    spills: int
    allowed_spills: int
    shared: int
    warps: int
    tensor_cores: int  # instructions that use them
    products: bool  # whether there must be some


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
    usage, sass = _disassembled(made.asm["cubin"])
    registers = int(_number(usage, r"REG:(\d+)"))
    tensor_cores = len(re.findall(r"\b(?:HGMMA|HMMA|QGMMA)\b", sass))
    spills = len(re.findall(r"\b(?:STL|LDL)\b", sass))
    shared = made.metadata.shared
    return Compiled(case.name, registers, spills, case.spills, shared, case.warps, tensor_cores, case.products)


def _disassembled(cubin: bytes) -> tuple[str, str]:
    """(resource usage, instructions) of a compiled kernel, as cuobjdump prints them."""
    import triton

    tool = triton.knobs.nvidia.cuobjdump.path
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        ran = [subprocess.run([tool, flag, str(file)], check=True, capture_output=True, text=True).stdout
               for flag in ("-res-usage", "-sass")]  # fmt: skip
    return ran[0], ran[1]


def _number(text: str, pattern: str) -> str:
    found = re.search(pattern, text)
    if not found:
        raise RuntimeError(f"cuobjdump: {pattern} not found in {text[:500]!r}")
    return found.group(1)


def cases() -> list[Case]:
    """Those of every folder."""
    return [case for module in modules("cases") for case in module.offline_cases()]


def main(arguments: list[str]) -> int:
    """Print what became of all cases, or of those whose names hold an argument."""
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
