"""Commands without the roles that they start."""

from typing import Any


class Started:
    """Notes what a command would have run with, in place of the network."""

    config: Any = None

    async def __call__(self, config: object, **_: object) -> None:
        self.config = config
