"""Comparison of tickets in different attentions: the measurements of `mixing.py`.

study: settings and the list of measurements · variants: the attentions · networks: attentions of equal size · errors,
losses, spikes and matrices: one kind of measurement each · jobs: running and storing them · tables: results · verdicts:
statistics of differences to MHA.

Every variant is compared with multi-head attention (MHA) of equal parameters or multiply-adds, by solving for the width
of its heads. A measurement is a `study.Job`, which depends on no seed but its own. So jobs can be stored one by one and
run on several processes, and comparisons are paired by seed (the same target, batches and random numbers).

A ticket's tensors that mix heads or features are initialised by mixing_init, by default the constant of their paper
plus a random part, which alone is masked. Dense training starts as in the papers. The lambda of differential attention
keeps its random value in a ticket. M_c of MHLA is clipped to be positive in dense training.
"""
