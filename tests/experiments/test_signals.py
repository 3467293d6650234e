"""A signal ends a run wherever it meets it."""

import gc
import os
import signal
import time

import pytest

from slth.experiments.lab.signals import Ended, signals_end_a_run


def test_a_signal_within_a_callback_that_python_ignores_comes_again():
    """Of the collector, say, in which what is raised goes no further."""

    def interrupted(phase, info):
        gc.callbacks.remove(interrupted)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0)  # here the handler runs

    def run():
        with signals_end_a_run():
            gc.callbacks.append(interrupted)
            gc.collect()
            time.sleep(10.0)

    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(Ended):
            run()
    finally:
        signal.signal(signal.SIGTERM, before)
