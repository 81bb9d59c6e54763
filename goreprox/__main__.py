"""Let `python -m goreprox` do what the `goreprox` command does."""

import sys

from goreprox.cli import main

if __name__ == "__main__":
    sys.exit(main())
