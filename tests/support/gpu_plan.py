"""A plan for processes whose tasks go wrong in every way that a GPU's do."""

import os
import time as clock


def time(task, device, rounds, seed):
    """What was found, or no return."""
    if task == "dies":
        os._exit(3)
    if task == "hangs":
        clock.sleep(600)
    return f"{task} {rounds}"


def lost(kind, task, why):
    """What stands for a task without a result."""
    return f"lost: {why}"


def spoils(found):
    """Whether the process has to end."""
    return found.startswith("spoils")
