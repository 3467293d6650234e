"""Scores that are NaN: no mask follows from them."""

from __future__ import annotations

import torch


def refuse_nan(found: bool) -> None:
    """Raise the ValueError for scores of which some are NaN, if some were found."""
    if found:
        raise ValueError("scores hold NaN: all must be numbers")


class NaNWatch:
    """Notices NaN in scores on a device without waiting for it: what is found is told at a later look."""

    def __init__(self) -> None:
        self.found: torch.Tensor | None = None  # a flag on its way to the host
        self.waiting: torch.Tensor | None = None  # one that is still on the device, of looks since then
        self.arrived: torch.cuda.Event | None = None

    def __getstate__(self) -> dict[str, object]:
        """What a copy begins with: all that was found, waited for, as events cannot be copied."""
        if self.arrived is not None:
            self.arrived.synchronize()
        flags = [flag.cpu() for flag in (self.found, self.waiting) if flag is not None]
        return {"found": torch.stack(flags).any() if flags else None, "waiting": None, "arrived": None}

    def look(self, scores: torch.Tensor) -> None:
        """Raise ValueError where an earlier look has found NaN, and look at these."""
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
        """Raise ValueError where any look has found NaN that was not told yet: waits for all of them."""
        if self.arrived is not None:
            self.arrived.synchronize()
        flags = [flag for flag in (self.found, self.waiting) if flag is not None]
        self.found = self.waiting = None
        refuse_nan(any(bool(flag) for flag in flags))
