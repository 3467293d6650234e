"""The HTML page of a sweep: self-contained, without scripts and without external fonts or images."""

import base64
from collections.abc import Mapping, Sequence
from html import escape

STYLE = """
body { font-family: sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; }
table { border-collapse: collapse; font-size: 90%; }
td, th { border-bottom: 1px solid #ccc; padding: .2em .8em .2em 0; text-align: left; vertical-align: top; }
td.config { font-family: monospace; }
tr.FAILED td { background: #fee; }
figure { margin: 2em 0; }
img { max-width: 100%; }
"""


def page(
    experiment: str,
    columns: Sequence[str],
    rows: Sequence[Mapping[str, str]],
    failed: Mapping[str, str],
    svgs: Mapping[str, bytes],
) -> bytes:
    """Return the page in UTF-8: the figures, then the table of runs, where each finished run links to its folder.

    Args:
        experiment: name of the experiment.
        columns: of the table; "run_id" and "status" must be among them.
        rows: the cells of each run by column.
        failed: messages of the failed runs, by run id.
        svgs: figures by file name.
    """
    heads = "".join(f"<th>{escape(column)}</th>" for column in columns)
    lines = "\n".join(_line(columns, row, failed) for row in rows)
    figures = "\n".join(_figure(name.removesuffix(".svg"), svg) for name, svg in svgs.items())
    done = len(rows) - len(failed)
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>Sweep of {escape(experiment)}</title><style>{STYLE}</style></head>
<body>
<h1>Sweep of {escape(experiment)}</h1>
<p>{done} of {len(rows)} runs are completed, {len(failed)} failed.
All measurements: <a href="results.csv">results.csv</a>; the runs: <a href="runs.csv">runs.csv</a>.</p>
{figures}
<h2>Runs</h2>
<table>
<tr>{heads}</tr>
{lines}
</table>
</body>
</html>
""".encode()


def _line(columns: Sequence[str], row: Mapping[str, str], failed: Mapping[str, str]) -> str:
    cells = {column: escape(row[column]) for column in columns}
    run_id = cells["run_id"]
    if row["run_id"] in failed:
        cells["status"] += f": {escape(failed[row['run_id']])}"
    else:
        cells["run_id"] = f'<a href="{run_id}/">{run_id}</a>'
    texts = "".join(f'<td class="{escape(column)}">{cells[column]}</td>' for column in columns)
    return f'<tr class="{escape(row["status"])}">{texts}</tr>'


def _figure(name: str, svg: bytes) -> str:
    data = base64.b64encode(svg).decode()
    return (
        f'<figure><figcaption>{escape(name)}</figcaption><img alt="{escape(name)}" '
        f'src="data:image/svg+xml;base64,{data}"></figure>'
    )
