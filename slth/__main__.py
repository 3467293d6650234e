"""Run the command `slth` as `python -m slth`."""

import sys

from slth.cli import main

if __name__ == "__main__":
    sys.exit(main())
