"""Keys at work in a broker's process: who is let in, kept up to date as the state directory changes."""

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

from loguru import logger

from brokers import BrokerSecurity, Role, Router
from goreprox.errors import GoreproxError
from goreprox.keys.authority import Watcher
from goreprox.keys.join import FILE
from goreprox.keys.reach import Reach
from goreprox.keys.state import FIRST, ServerKeys, StateDir
from goreprox.process.files import read_file


class Guard:
    """Gives a router its security, and tells it when that changes. Belongs to one event loop."""

    def __init__(self, state_dir: Path) -> None:
        """Read the state directory; the first time it is made, and the server's keys are drawn.

        Raises:
            StartError: it cannot be used.
        """
        self._state = StateDir(state_dir)
        self._is_first = not self._state.was_started
        self._is_new = not self._state.server_key.exists()
        self._watcher = Watcher(self._state)
        self._task: asyncio.Task[None] | None = None
        self._router: Router | None = None

    @property
    def security(self) -> BrokerSecurity:
        """What a router is made with."""
        return BrokerSecurity(self._watcher.server_keys.present, self._watcher)

    def start(self, router: Router, reach: Reach) -> None:
        """Keep `router` up to date from now on, and `reach` in the state directory.

        At the first start also make a key for a first provider, unless there are keys, and on a terminal print how to
        use what is there.

        Raises:
            StartError: it cannot be written.
        """

        async def rekeyed(keys: ServerKeys) -> None:
            await router.rekey(keys.present)

        self._router = router
        self._task = asyncio.create_task(self._watcher.watch(router.reauthorise, rekeyed), name="keys")
        self._task.add_done_callback(self._ended)
        try:
            self._introduce(reach)
        except GoreproxError as exc:
            if self._is_new:
                raise
            logger.bind(event="reach").warning("{}; new join strings may contain an outdated address", exc)

    def _introduce(self, reach: Reach) -> None:
        """Remember where peers reach us, and at a first start say what they are to do; nobody needs it to go on."""
        if self._state.is_read_only:
            return
        if not reach.given:
            reach = replace(reach, given=self._state.reach().given)
        for name in self._state.remember(reach):
            logger.bind(event="join_renewed", key=name).info(
                "updated the address in the join string of {}; distribute it again (`keys show {}`)", name, name
            )
        if self._is_new:
            path = self._state.add(Role.PROVIDER, FIRST, None)
            self._watcher.look()
            logger.bind(event="keys_created", join_file=str(path)).info(
                "created keys in {}; the join string for a first provider is in {}", self._state.directory, path
            )
        if self._is_first and reach.assumed_host is not None:
            logger.bind(event="host_assumed").info("{}", assumption(reach.assumed_host))
        if self._is_first and sys.stdout.isatty():
            for key in self._state.all():
                path = self._state.join_file(key.name)
                if path.exists():
                    sys.stdout.write(f"{command_line(path, key.role)}\n")

    def _ended(self, task: "asyncio.Task[None]") -> None:
        """Let nobody in whom nobody could put out again."""
        if not task.cancelled():
            logger.bind(event="keys_unwatched").opt(exception=task.exception()).critical(
                "cannot watch the keys any more, so none could be revoked: disconnecting all peers"
            )
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
    what = "provider 3000" if role is Role.PROVIDER else "edge"
    hint = "on the private machine, with your service's port for 3000" if role is Role.PROVIDER else "on the edge"
    return f"{hint}:\n  goreprox {what} --join '{read_file(path, FILE).strip()}'"


def assumption(host: str) -> str:
    """Say that join strings name this machine by a name that others may not know."""
    return (
        f"join strings name {host}, this machine's own name: if others know it by another, restart the server with "
        "--address HOST, or give peers that address by --server (edges: --broker)"
    )
