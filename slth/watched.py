"""Whether somebody follows torch's operations: what numba or a kernel of ours writes would not be seen there."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad
from torch.fx._symbolic_trace import is_fx_symbolic_tracing


def watched() -> bool:
    """Whether a compiler, a transform of `torch.func` or a dispatch mode looks on: plain operations must do then."""
    return (
        torch.compiler.is_compiling()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._len_torch_dispatch_stack() > 0
    )


def followed(*tensors: torch.Tensor) -> bool:
    """Whether gradients, tangents or transforms of `torch.func` may be asked of what is made of the tensors."""
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return True
    if torch.compiler.is_compiling():
        return False
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


def exporting() -> bool:
    """Whether `torch.export` runs. Before torch 2.12 `torch.compiler.is_exporting` is also True in what is compiled."""
    return torch.compiler._is_exporting_flag


def traced() -> bool:
    """Whether torch.jit.trace or torch.fx.symbolic_trace runs, which keep what they do not follow as a constant."""
    return torch._C._get_tracing_state() is not None or is_fx_symbolic_tracing()
