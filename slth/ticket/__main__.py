"""Show tickets: `python -m slth.ticket show FILE` and `python -m slth.ticket summary FILE [OTHER]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from slth import console
from slth.ticket import Ticket, overlap


def main(arguments: Sequence[str] | None = None) -> int:
    """Describe a ticket (show), or summarise its masks and its overlap with another. Returns the exit status."""
    console.forgive()
    parser = argparse.ArgumentParser(prog="python -m slth.ticket", description="Inspect tickets.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("show", help="describe a ticket").add_argument("file", metavar="FILE")
    help = "show shares kept by layer and projection, and dead units, of a trusted file"
    summarise = commands.add_parser("summary", help=help, description=help)
    summarise.add_argument("file", metavar="FILE")
    help = "another ticket with the same shapes, to compute the overlap"
    summarise.add_argument("other", metavar="OTHER", nargs="?", help=help)
    options = parser.parse_args(arguments)
    try:
        text = show(options.file) if options.command == "show" else summary(options.file, options.other)
    except (ValueError, OSError) as error:
        print(console.one_line(str(error)), file=sys.stderr)
        return 1
    print(text, flush=True)
    return 0


def show(file: str) -> str:
    """Describe a ticket's file. Raises TicketError for any other file, OSError if it cannot be read."""
    return Ticket.load(file).describe()


def summary(file: str, other: str | None) -> str:
    """Summarise a ticket's masks, and the overlap with another ticket of the same shapes, if any.

    Raises TicketError and OSError as :func:`show` does, and ValueError for a ticket of other shapes.
    """
    ticket = Ticket.load(file)
    text = str(ticket.summary())
    if other is None:
        return text
    rows = overlap(ticket, Ticket.load(other))
    both, union = sum(row.both for row in rows), sum(row.kept + row.kept_other - row.both for row in rows)
    chance = sum(row.kept * row.kept_other / row.size for row in rows)
    by_chance = chance / (both + union - chance)
    return f"{text}\n\noverlap with {other}: {both / union:.4f} of the union, {by_chance:.4f} by chance"


if __name__ == "__main__":
    sys.exit(main())
