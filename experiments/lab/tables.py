"""Tables that a run prints."""

import pandas

MOST_ROWS = 12


def show(table: pandas.DataFrame, most: int | None = MOST_ROWS) -> None:
    """Print a table in aligned columns, numbers with four digits; of more than `most` rows the first and the last."""
    print(table.to_string(index=False, max_rows=most, na_rep="", float_format="{:.4g}".format))
