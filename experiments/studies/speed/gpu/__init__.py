"""The kernels on a GPU: check every case, and then time the kernels against their peers.

    python experiments/speed.py with device=cuda

`report.py` has the checks and times, `hour.py` the order and the time budget, `worker.py` and `processes.py` the
processes. A kernel with a failed check is not timed. The measurement needs torch, Triton, numba, pandas and matplotlib,
but not Sacred: without it, the same command line writes the same files into the folder out=DIR.
"""
