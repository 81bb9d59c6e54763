"""Runs goreprox, and prints at its end the modules that it has imported since it was ready, as JSON."""

import json
import sys

from goreprox.__main__ import main
from goreprox.process.lifetime import Lifetime

before: set[str] = set()
ready = Lifetime.ready


def noted(self: Lifetime, text: str, **ports: object) -> None:
    ready(self, text, **ports)
    before.update(sys.modules)


setattr(Lifetime, "ready", noted)  # noqa: B010 -- the moment that counts
code = main()
print(json.dumps(sorted(sys.modules.keys() - before)))  # noqa: T201 -- read by the test
sys.exit(code)
