"""Requirements of figures on their tables."""

import pandas as pd


def require(table: pd.DataFrame, columns: frozenset[str]) -> None:
    """Raise ValueError if the table has no rows or lacks a column."""
    missing = columns - set(table.columns)
    if missing:
        raise ValueError(f"the table lacks the columns {', '.join(sorted(missing))}; it has {', '.join(table.columns)}")
    if table.empty:
        raise ValueError("the table has no rows")


def count_sources(table: pd.DataFrame) -> str:
    """Return the number of sources in words, such as "5 sources"."""
    count = table["source"].nunique()
    return f"{count} source{'s' if count > 1 else ''}"
