"""`python -m slth` is the command `slth`."""

import sys

from slth.cli import main

if __name__ == "__main__":
    sys.exit(main())
