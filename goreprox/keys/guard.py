"""Keys at work in a broker's process: who is let in, kept up to date as the state directory changes."""

import asyncio
import socket
import sys
from pathlib import Path

from loguru import logger

from brokers import BrokerSecurity, Role, Router
from goreprox.config import Address
from goreprox.errors import ConfigError
from goreprox.keys.authority import Watcher
from goreprox.keys.files import read_secret
from goreprox.keys.state import FIRST, ServerKeys, StateDir


class Guard:
    """Gives a router its security, and tells it when that changes. Belongs to one event loop."""

    def __init__(self, state_dir: Path) -> None:
        """Read the state directory; the first time it is made, and the server's keys are drawn.

        Raises:
            StartError: it cannot be used.
        """
        self._state = StateDir(state_dir)
        self._is_first = not self._state.server_key.exists()
        self._watcher = Watcher(self._state)
        self._task: asyncio.Task[None] | None = None
        self._router: Router | None = None

    @property
    def security(self) -> BrokerSecurity:
        """What a router is made with."""
        return BrokerSecurity(self._watcher.server_keys.present, self._watcher)

    def start(self, router: Router, provider_port: int) -> None:
        """Keep `router` up to date from now on; at the first start also make a key for a first provider.

        Raises:
            StartError: it cannot be written.
        """

        async def rekeyed(keys: ServerKeys) -> None:
            await router.rekey(keys.present)

        self._router = router
        self._task = asyncio.create_task(self._watcher.watch(router.reauthorise, rekeyed), name="keys")
        self._task.add_done_callback(self._ended)
        if self._is_first:
            path = self._state.add(Role.PROVIDER, FIRST, None, [Address(own_host(), provider_port)])
            self._watcher.look()
            logger.info("made keys in {}; the join string for a first provider is in {}", self._state.directory, path)
            if sys.stdout.isatty():
                sys.stdout.write(f"{command_line(path, Role.PROVIDER)}\n")

    def _ended(self, task: "asyncio.Task[None]") -> None:
        """Let nobody in whom nobody could put out again."""
        if not task.cancelled():
            logger.opt(exception=task.exception()).critical("keys can no longer be revoked: all peers are sent away")
            self._watcher.forget()
            assert self._router is not None
            self._router.reauthorise()

    async def close(self, *, linger_s: float) -> None:
        """Look no more; what was found last still counts."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])


def command_line(path: Path, role: Role) -> str:
    """Give the line to run where the peer is to be. It holds the secret: it is for terminals only."""
    what = "provider TARGET" if role is Role.PROVIDER else role.name.lower()
    return f"{role.name.lower()}: goreprox {what} --join '{read_secret(path).strip()}'"


def own_host() -> str:
    """Give the name by which others may know this machine; whether they do, it cannot know."""
    try:
        return str(Address.parse(f"{socket.gethostname()}:1").host)
    except ConfigError:  # no name that a resolver would take
        return "localhost"
