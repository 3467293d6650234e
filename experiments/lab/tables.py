"""Tables that a run prints."""

import pandas

MOST_ROWS = 12


def show(table: pandas.DataFrame) -> None:
    """Print a table in aligned columns, numbers with four digits; of a long one the first and the last rows."""
    print(table.to_string(index=False, max_rows=MOST_ROWS, na_rep="", float_format="{:.4g}".format))
