"""`python -m slth.ticket show FILE`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from slth import console
from slth.ticket import Ticket, TicketError


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m slth.ticket show FILE`: describe a ticket. Returns the exit status."""
    console.forgive()
    parser = argparse.ArgumentParser(prog="python -m slth.ticket", description="Look at tickets.")
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show", help="describe a ticket")
    show.add_argument("file", metavar="FILE")
    given = parser.parse_args(arguments)
    try:
        text = Ticket.load(given.file).describe()
    except (TicketError, OSError) as error:
        print(_line(str(error)), file=sys.stderr)
        return 1
    print(text, flush=True)
    return 0


def _line(text: str) -> str:
    """Any text on one line, its unprintable characters escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


if __name__ == "__main__":
    sys.exit(main())
