"""Tell whether torch's operations are being recorded: writes by numba or our kernels would then be missed."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad
from torch.fx._symbolic_trace import is_fx_symbolic_tracing


def watched() -> bool:
    """Return whether a compiler, a `torch.func` transform or a dispatch mode is active: use torch operations only."""
    return (
        torch.compiler.is_compiling()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._len_torch_dispatch_stack() > 0
    )


def followed(*tensors: torch.Tensor) -> bool:
    """Return whether autograd, forward-mode AD or a `torch.func` transform may differentiate results of the tensors."""
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return True
    if torch.compiler.is_compiling():
        return False
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


def exporting() -> bool:
    """Return whether `torch.export` runs. Before torch 2.12 `torch.compiler.is_exporting` is True in compiled code."""
    return torch.compiler._is_exporting_flag


def traced() -> bool:
    """Return whether torch.jit.trace or torch.fx.symbolic_trace runs: they record untraced results as constants."""
    return torch._C._get_tracing_state() is not None or is_fx_symbolic_tracing()
