"""Takes no new connections from now on, when the control socket asks for it; the process stays until it is stopped."""

from typing import Protocol

from loguru import logger

from goreprox.control.message import Request
from goreprox.control.socket import Commands
from goreprox.process.lifetime import Lifetime
from goreprox.process.log import counted


class Owner(Protocol):
    """An edge or a provider."""

    @property
    def connections(self) -> int:
        """How many are open."""

    def drain(self) -> None:
        """Take no new ones. Idempotent."""


class Drain:
    """Serves `drain` on the control socket."""

    def __init__(self, owner: Owner, life: Lifetime) -> None:
        self._owner = owner
        self._life = life

    @property
    def commands(self) -> Commands:
        """What the control socket serves."""
        return {"drain": self._serve}

    async def _serve(self, _: Request) -> dict[str, int]:
        self._owner.drain()
        left = self._owner.connections
        text = f"taking no new connections, as asked; {counted(left, 'connection')} open"
        logger.bind(event="drain_asked", connections=left).info("{}", text)
        self._life.tell(f"STATUS={text}")
        return {"connections": left}
