"""Entry point of the `goreprox` command. Imports little, so that Ctrl-C is handled while the rest is loaded."""

import os
import sys
from collections.abc import Sequence

INTERRUPTED = 130
"""The exit code that shells report for SIGINT."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; see `goreprox.cli.main.main`."""
    try:
        _open_standard_streams()
        from goreprox.cli.main import main as run  # noqa: PLC0415 -- takes long

        return run(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED


def _open_standard_streams() -> None:
    """Open closed standard streams (`>&-`) on /dev/null, so that no socket or file gets their descriptors."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            if opened == descriptor:
                os.set_inheritable(opened, True)
            mode = "w" if descriptor else "r"
            setattr(sys, name, open(opened, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 -- to the end


if __name__ == "__main__":
    sys.exit(main())
