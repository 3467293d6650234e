"""The commands, what they measure (studies), and how they are run and stored (lab, sweeps)."""
