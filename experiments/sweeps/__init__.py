"""Sweeps: many runs of one experiment, on one machine or a cluster, with retries and resume.

conduct: the whole sweep · code: the version of the code · plan: the list of runs · store: the sweep's folder · server
and child: the fork server, and the processes that it forks · client: requests to the fork server · machine and cluster:
runs on this machine, or as Ray tasks · engine: the interface of these two · loop: starts, retries and counts runs ·
gather, numbers and page: tables, statistics and figures. No module here needs torch at import, and the module that
Ray's workers import (client) needs only the standard library.
"""
