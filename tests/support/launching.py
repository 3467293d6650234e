"""Calls every kernel case through Triton's own launcher, without a GPU, and prints what came of it as JSON.

A stub stands in for the driver, and tensors on the CPU pose as a GPU's. Each launch binds and specialises its arguments
as it would there. Then, in place of running, the code is made for each set of arguments that are 1, which the launcher
turns into constants; test_offline.py compiles it. It wants a process of its own: Triton must not have been imported
under TRITON_INTERPRET.
"""

import json
from collections import Counter
from unittest.mock import patch

import torch
import triton
from posing import GPU, posing
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import compiler
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from slth.kernels import Cut, dispatch, select
from slth.kernels.cases import all_cases
from slth.weights import inits

LARGEST_GRID = (2**31 - 1, 2**16 - 1, 2**16 - 1)


class Driver:
    """What the launcher asks of a driver before it launches."""

    def get_current_device(self):
        """Its number."""
        return 0

    def get_current_stream(self, device):
        """Its handle."""
        return 0

    def get_current_target(self):
        """An H100 or H200."""
        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self):
        """The same for torch."""
        return GPU


launches: Counter[str] = Counter()
specialisations: Counter[str] = Counter()
sources: set[tuple[str, tuple[tuple[int, ...], ...]]] = set()
_run = JITFunction.run


def launch(kernel, *args, grid, warmup, **kwargs):
    """A launch up to the point where a GPU would be needed."""
    launches[kernel.__name__] += 1
    assert len(grid) <= 3, f"grid {grid}: has three axes at most"
    for count, most in zip(grid, LARGEST_GRID, strict=False):
        assert isinstance(count, int), f"grid {grid}: must be ints"
        assert 0 <= count <= most, f"grid {grid}: must be at most {LARGEST_GRID}"
    return _run(kernel, *args, grid=grid, warmup=True, **kwargs)


def made(source, target, options, **_):
    """The code of a kernel, where it has not been made with the same arguments as constants."""
    specialisations[source.fn.__name__] += 1
    ones = tuple(sorted(path for path in source.constants if not source.fn.params[path[0]].is_constexpr))
    if (source.fn.__name__, ones) in sources:
        return source
    sources.add((source.fn.__name__, ones))
    backend = compiler.make_backend(target)
    parsed, context = backend.parse_options(dict(options)), ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    implementation = backend.get_codegen_implementation(parsed)
    return source.make_ir(target, parsed, implementation, backend.get_module_map(), context)


def zeros(shape, scale, **_):
    """In place of random numbers: nothing is computed with them."""
    return torch.zeros(shape)


def main():
    """Call all cases in all dtypes, large ones in their first alone."""
    failed = {}
    driver.set_active(Driver())
    start = Cut(torch.ones(()), torch.zeros((), dtype=torch.int64))
    with (
        patch.object(JITFunction, "run", launch),
        patch.object(triton.compiler, "compile", made),
        patch.object(dispatch, "interpreting", lambda: False),
        patch.object(dispatch, "_obstacle", lambda at: ""),  # gradients see tensors as they are
        patch.multiple(inits, normal=zeros, uniform=zeros),
        patch.dict(select._SELECT._known, {"reference": lambda scores, k, near: start}),
        posing(),
    ):
        for case in all_cases():
            for dtype in case.dtypes[:1] if case.large else case.dtypes:
                inputs = case.inputs(torch.device("cuda"))
                tensors = {name: t.to(dtype) if t.is_floating_point() else t for name, t in inputs.items()}
                try:
                    case.call(tensors, "triton")
                except Exception as error:  # whatever the launcher or the compiler throws
                    failed[f"{case.name} {dtype}"] = f"{type(error).__name__}: {error}"[-400:]
    print(json.dumps({"failed": failed, "launches": launches, "specialisations": specialisations}))


if __name__ == "__main__":
    main()
