"""Keeps what NATS servers know of the authorised keys current: writes the file, lets a server read it, tells peers.

A server disconnects a peer whose key is gone. That its streams are to be reset, and not kept for the grace, the others
hear from us.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from loguru import logger

from brokers import LimitedLog, OpenError
from brokers.nats import Engine, Login, engine, revoked
from goreprox.config.addresses import Address
from goreprox.errors import GoreproxError, StartError, advice
from goreprox.keys.nats_config import Listed, listed, nats_config
from goreprox.keys.state import StateDir
from goreprox.net.certificates import link_context
from goreprox.roles.cluster import servers_of

LOOK_S: Final = 0.5
"""Between two looks at the keys."""
TELL_S: Final = 3.0
"""For so long peers are told of a revoked key: the servers read their configuration meanwhile."""
AGAIN_S: Final = 0.25
_READABLE: Final = 0o644
"""The file has nothing secret, and servers may run as another user."""


class NatsUsers:
    """The file of users of one server, or of several that share it."""

    def __init__(
        self, state: StateDir, output: Path, *, pid_file: Path | None, servers: Sequence[Address], ca: Path | None
    ) -> None:
        """Write the keys in `state` to `output`, and send SIGHUP to the process in `pid_file`.

        Peers at `servers`, whose certificates are signed by those in `ca`, are told of keys that are revoked.
        """
        self._state = state
        self._output = output
        self._pid_file = pid_file
        self._servers = servers
        self._ca = ca
        self._log = LimitedLog()

    def watch(self) -> None:
        """Update the file whenever keys change, until a signal."""
        while True:
            try:
                self.update()
            except GoreproxError as exc:
                self._log.say("nats_users_failed", f"{exc}; retrying")
            time.sleep(LOOK_S)

    def update(self) -> None:
        """Write the file if keys have changed.

        Raises:
            GoreproxError: something of that is not possible.
        """
        keys = self._state.all()
        holder = self._state.server_keys().present
        text = nats_config(keys, holder.public)
        before = self._read()
        if text == before:
            return
        self._write(text)
        gone = listed(before) - listed(text)
        logger.bind(event="nats_users", keys=len(keys), revoked=len(gone)).info(
            "wrote {} keys to {}; {} are no longer valid", len(keys), self._output, len(gone)
        )
        if not gone or not self._servers:
            self._reload()
            return
        context = link_context(self._ca)
        at = engine(servers_of(self._servers, plaintext=False), Login(holder), lambda: context)
        asyncio.run(_tell(gone, at, self._reload))

    def _read(self) -> str:
        try:
            return self._output.read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""
        except (OSError, ValueError) as exc:
            raise StartError(f"output {self._output}: {exc}; name another file by --output") from exc

    def _write(self, text: str) -> None:
        new = self._output.with_name(f".{self._output.name}.new")
        try:
            new.write_text(text, encoding="utf-8")
            new.chmod(_READABLE)
            new.replace(self._output)
        except OSError as exc:
            raise StartError(f"output {self._output}: {exc.strerror}; {advice(exc, '--output')}") from exc

    def _reload(self) -> None:
        """Let the server read its configuration again; one that does not run reads it when it starts."""
        if self._pid_file is None:
            return
        try:
            text = self._pid_file.read_text(encoding="ascii").strip()
            if not text.isdigit() or int(text) <= 1:
                raise StartError(f"pid-file {self._pid_file}: expected the number of a nats-server; set its pid_file")
            os.kill(int(text), signal.SIGHUP)
        except (FileNotFoundError, ProcessLookupError):
            pass
        except (OSError, ValueError) as exc:
            raise StartError(f"pid-file {self._pid_file}: {exc}; run this as the user of nats-server") from exc


class _Nobody:
    """Hears nothing (brokers.nats.Listener)."""

    def received(self, subject: str, payload: bytes) -> None:
        """Ignore it."""

    def denied(self) -> None:
        """Ignore it: a server that does not know us yet is asked again."""

    def lost(self, reason: str) -> None:
        """Ignore it: what was published may be lost."""


async def _tell(gone: Iterable[Listed], at: Engine, reload: Callable[[], None]) -> None:
    """Tell peers of keys that are no longer valid, before a server ends those who have them, and for a while after it.

    Raises:
        StartError: no server takes it, or it cannot read its configuration.
    """
    until = asyncio.get_running_loop().time() + TELL_S
    told, why, reloaded = False, "", False
    while asyncio.get_running_loop().time() < until:
        try:
            connection = await at.connect((), "goreprox.inbox", _Nobody())
        except OpenError as exc:
            why = str(exc)
        else:
            for key in gone:
                connection.publish(revoked(key.role, key.name), ())
            await connection.close(linger_s=TELL_S)
            told = True
        if not reloaded:
            reload()
            reloaded = True
        await asyncio.sleep(AGAIN_S)
    if not told:
        raise StartError(f"cannot tell peers of revoked keys: {why}; their streams end with the grace")
