"""The keys of a running broker: keeps its router current as the state directory changes."""

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
    """Tells a router which keys are authorised, and when that changes. Belongs to one event loop."""

    def __init__(self, state_dir: Path) -> None:
        """Read the state directory. The first time, create it and the server's keys.

        Raises:
            StartError: the directory cannot be used.
        """
        self._state = StateDir(state_dir)
        self._is_first = not self._state.was_started
        self._is_new = not self._state.server_key.exists()
        self._watcher = Watcher(self._state)
        self._task: asyncio.Task[None] | None = None
        self._router: Router | None = None

    @property
    def security(self) -> BrokerSecurity:
        """The keys that the router begins with."""
        return BrokerSecurity(self._watcher.server_keys.present, self._watcher)

    def start(self, router: Router, reach: Reach) -> None:
        """Keep `router` current from now on, and store `reach` in the state directory.

        With a new directory also create a key for a first provider; at the first start print, on a terminal, the
        commands to run on other machines.

        Raises:
            StartError: the new directory cannot be written.
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
        """Store the addresses of this server, and help at a first start; without it the server runs, too."""
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
        """Fail closed: without the watcher keys cannot be revoked, so disconnect every peer."""
        if not task.cancelled():
            logger.bind(event="keys_unwatched").opt(exception=task.exception()).critical(
                "cannot watch the keys any more, so none could be revoked: disconnecting all peers"
            )
            self._watcher.forget()
            assert self._router is not None
            self._router.reauthorise()

    async def close(self, *, linger_s: float) -> None:
        """Stop watching; the keys read last stay authorised."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])


def command_line(path: Path, role: Role) -> str:
    """Return the command to run on the peer's machine. It contains the secret: for terminals only, never for a log."""
    what = "provider 3000" if role is Role.PROVIDER else "edge"
    hint = "on the private machine, with your service's port for 3000" if role is Role.PROVIDER else "on the edge"
    return f"{hint}:\n  goreprox {what} --join '{read_file(path, FILE).strip()}'"


def assumption(host: str) -> str:
    """Explain that join strings contain a host name which other machines may not be able to resolve."""
    return (
        f"join strings contain this machine's name, {host}; if others cannot resolve it, restart the server "
        "with --address HOST, or give them its address by --server (edges: --broker)"
    )
