"""Imported by Python at its start, if PYTHONPATH names this directory: notes what a role imports once it is ready.

At the end of the process that is a JSON array, in the file `$IMPORTS/PID`. Workers inherit both variables.
"""

import atexit
import json
import os
import sys
from pathlib import Path

from goreprox.process.lifetime import Lifetime

before: set[str] = set()
make = Lifetime.__init__


def made(self: Lifetime) -> None:
    make(self)
    ready = self.ready

    def noted(text: str, **ports: object) -> None:
        ready(text, **ports)
        before.update(sys.modules)
        atexit.register(write)

    setattr(self, "ready", noted)  # noqa: B010 -- the moment that counts


def write() -> None:
    file = Path(os.environ["IMPORTS"], str(os.getpid()))
    file.write_text(json.dumps(sorted(sys.modules.keys() - before)), encoding="utf-8")


setattr(Lifetime, "__init__", made)  # noqa: B010 -- of every kind, as workers have their own
