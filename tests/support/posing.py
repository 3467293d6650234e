"""A GPU that is not there: tensors on the CPU pose as its own, and what torch.cuda is asked has an answer."""

from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode

GPU = torch.device("cuda", 0)


class Event:
    """Stands in for torch.cuda.Event: cannot be copied or pickled, as it cannot."""

    def __init__(self):
        self.waited = 0

    def record(self, stream=None):
        """Nothing runs here that could be waited for."""

    def query(self):
        """Whether all before it is done."""
        return True

    def synchronize(self):
        """Wait for it."""
        self.waited += 1

    def __reduce_ex__(self, protocol):
        raise TypeError("cannot pickle 'Event' object")


#: what a tensor says of where it lies
_ANSWERS = {
    torch.Tensor.device.__get__: GPU,
    torch.Tensor.is_cuda.__get__: True,
    torch.Tensor.is_cpu.__get__: False,
    torch.Tensor.get_device: GPU.index,
}


class _Mode(TorchFunctionMode):
    """Every tensor says that it lies on cuda:0; what is wanted there is made on the CPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in _ANSWERS:
            return _ANSWERS[func]
        if func is torch.Tensor.pin_memory:
            return args[0]
        kwargs = {name: _here(one) for name, one in (kwargs or {}).items()}
        return func(*(_here(one) for one in args), **kwargs)


def _here(given):
    """A device of CUDA's as the CPU, everything else as it is."""
    if isinstance(given, torch.device):
        return torch.device("cpu") if given.type == "cuda" else given
    return "cpu" if isinstance(given, str) and given.split(":")[0] == "cuda" else given


@contextmanager
def posing():
    """Within, all tensors pose as those of a GPU like an H100."""
    gpu = SimpleNamespace(name="no GPU", major=9, minor=0, shared_memory_per_block_optin=232_448)
    stand_ins = {
        "is_available": lambda: True,
        "current_device": lambda: GPU.index,
        "device_of": lambda tensor: nullcontext(),
        "get_device_properties": lambda device=None: gpu,
        "get_device_name": lambda device=None: gpu.name,
        "current_stream": lambda device=None: None,
        "synchronize": lambda device=None: None,
        "is_current_stream_capturing": lambda: False,
        "Event": Event,
    }
    with ExitStack() as stack:
        for name, stand_in in stand_ins.items():
            stack.enter_context(patch.object(torch.cuda, name, stand_in))
        stack.enter_context(_Mode())
        yield
