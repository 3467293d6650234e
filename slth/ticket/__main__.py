"""`python -m slth.ticket show FILE` and `python -m slth.ticket summary FILE [OTHER]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from slth import console
from slth.ticket import Ticket, overlap


def main(arguments: Sequence[str] | None = None) -> int:
    """Describe a ticket (show), or say what it keeps where and how it overlaps another. Returns the exit status."""
    console.forgive()
    parser = argparse.ArgumentParser(prog="python -m slth.ticket", description="Look at tickets.")
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show", help="describe a ticket")
    show.add_argument("file", metavar="FILE")
    help = "what a ticket keeps by layer and projection, and what is dead; of a file that you trust"
    summary = commands.add_parser("summary", help=help, description=help)
    summary.add_argument("file", metavar="FILE")
    summary.add_argument("other", metavar="OTHER", nargs="?", help="another ticket of the same shapes: the overlap")
    given = parser.parse_args(arguments)
    try:
        text = _show(given.file) if given.command == "show" else _summary(given.file, given.other)
    except (ValueError, OSError) as error:
        print(_line(str(error)), file=sys.stderr)
        return 1
    print(text, flush=True)
    return 0


def _show(file: str) -> str:
    return Ticket.load(file).describe()


def _summary(file: str, other: str | None) -> str:
    ticket = Ticket.load(file)
    text = str(ticket.summary())
    if other is None:
        return text
    rows = overlap(ticket, Ticket.load(other))
    both, union = sum(row.both for row in rows), sum(row.kept + row.kept_other - row.both for row in rows)
    chance = sum(row.kept * row.kept_other / row.size for row in rows)
    by_chance = chance / (both + union - chance)
    return f"{text}\n\noverlap with {other}: {both / union:.4f} of the union, {by_chance:.4f} by chance"


def _line(text: str) -> str:
    """Any text on one line, its unprintable characters escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


if __name__ == "__main__":
    sys.exit(main())
