"""The measurements of `speed.py`: one file per area, each with a plain function that returns rows of the table.

A row is a dict that starts with the entries of `timing.compare`. Nothing here depends on Sacred or on the experiments,
so the functions can be called from a notebook or a script. A new area is a new file, and an entry in `speed.py`.
"""
