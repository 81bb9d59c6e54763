"""Commands without the roles that they start."""

from typing import Any

from goreprox.config.reloads import Configuration


class Started:
    """Notes what a command would have run with, in place of the network."""

    config: Any = None

    async def __call__(self, configuration: Configuration[Any], _inherited: object) -> None:
        self.config = configuration.current
