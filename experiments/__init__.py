"""Experiments: the commands, their measurements (studies), and how runs are configured and stored (lab, sweeps)."""
