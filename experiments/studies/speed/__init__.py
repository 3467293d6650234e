"""What `speed.py` measures: one file an area, each a plain function that returns rows of the table.

A row is a dict that begins with `timing.compare`. Nothing here knows of Sacred or of the experiments: the functions can
be called from a notebook or from a bare script. A new area is a new file, and an entry in `speed.py`.
"""
