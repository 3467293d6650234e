"""The kernels on a GPU: every case is checked there first, then ours is timed beside its peers.

    python experiments/speed.py with device=cuda

`report.py` is what is checked and timed, `hour.py` the order and the budget, `worker.py` and `processes.py` the
processes. A kernel of which a check fails has no times. The code that measures needs torch, Triton, numba, pandas and
matplotlib, and no Sacred: where that is missing, the same command line writes the same files into the folder that
out=DIR names.
"""
