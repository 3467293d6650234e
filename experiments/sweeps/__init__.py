"""Many runs of one experiment, on one machine or a cluster, that survive what happens to hundreds of runs.

conduct: all of it · code: the version of the code that runs · plan: which runs · store: what stands in the sweep's
folder · server and child: a process forked for every run · client: how the others talk to the server · machine and
cluster: where runs are made, by this machine's processors or by Ray · engine: what they have in common · loop: starts,
retries, counts · gather, numbers and page: what comes out. Nothing here imports torch by itself, and what Ray's workers
import (client) nothing but the standard library.
"""
