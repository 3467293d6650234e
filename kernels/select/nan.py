"""Detection of NaN scores, which define no mask."""

from __future__ import annotations

import torch


def refuse_nan(found: bool) -> None:
    """Raise ValueError if NaN was found in scores."""
    if found:
        raise ValueError("scores hold NaN: all must be numbers")


class NaNWatch:
    """Detects NaN in scores on a device without synchronising: a later call reports it."""

    def __init__(self) -> None:
        self.found: torch.Tensor | None = None  # a flag that is being copied to the host
        self.waiting: torch.Tensor | None = None  # the flag of later calls, still on the device
        self.arrived: torch.cuda.Event | None = None

    def __getstate__(self) -> dict[str, object]:
        """Return the state of a copy: wait for all flags first, since events cannot be copied."""
        if self.arrived is not None:
            self.arrived.synchronize()
        flags = [flag.cpu() for flag in (self.found, self.waiting) if flag is not None]
        return {"found": torch.stack(flags).any() if flags else None, "waiting": None, "arrived": None}

    def look(self, scores: torch.Tensor) -> None:
        """Raise ValueError if an earlier call found NaN, and start to check these scores."""
        if self.found is not None and (self.arrived is None or self.arrived.query()):
            found, self.found = bool(self.found), None
            refuse_nan(found)
        seen = scores.isnan().any()
        self.waiting = seen if self.waiting is None else self.waiting.to(seen.device) | seen
        if self.found is None:
            self.found, self.waiting = self.waiting.to("cpu", non_blocking=True), None
            if scores.is_cuda:
                self.arrived = torch.cuda.Event()
                self.arrived.record(torch.cuda.current_stream(scores.device))

    def settle(self) -> None:
        """Wait for all checks. Raises ValueError if one found NaN that was not reported yet."""
        if self.arrived is not None:
            self.arrived.synchronize()
        flags = [flag for flag in (self.found, self.waiting) if flag is not None]
        self.found = self.waiting = None
        refuse_nan(any(bool(flag) for flag in flags))
