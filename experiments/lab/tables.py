"""Print tables."""

import pandas

MOST_ROWS = 12


def show(table: pandas.DataFrame, most: int | None = MOST_ROWS) -> None:
    """Print a table in aligned columns, numbers with four digits; over `most` rows, only the first and last ones."""
    print(table.to_string(index=False, max_rows=most, na_rep="", float_format="{:.4g}".format))
