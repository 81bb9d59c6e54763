"""Serves the status document of a process, at a Unix socket beside its lock file.

Each connection gets one document and is closed; nothing is ever read from it.
"""

import asyncio
import contextlib
import errno
import json
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final, Self

from loguru import logger

from goreprox.process.instance import Instance
from goreprox.status.document import Document

READ_S: Final = 5.0
"""A reader that has not taken its document by then is disconnected."""
READERS: Final = 8
"""Readers at a time. A document is below 2 MiB (1,024 peers of at most 2 KiB), so all of them hold below 16 MiB."""


class StatusSocket:
    """Serves readers. A process runs without it, too, so what prevents it is logged, not raised."""

    def __init__(self, path: Path, describe: Callable[[], Document]) -> None:
        """Serve what `describe` returns at that moment; made by `open`."""
        self.path: Final = path
        self._describe = describe
        self._readers: set[_Reader] = set()
        self._server: asyncio.Server | None = None
        self._inode: os.stat_result | None = None

    @classmethod
    async def open(cls, lock: Path, describe: Callable[[], Document]) -> Self:
        """Listen beside the lock file `lock` (of `Instance`, whose directory is this user's own)."""
        made = cls(lock.with_name(f"{lock.name}.sock"), describe)
        try:
            await made._listen()
        except OSError as exc:
            reason = exc.strerror or str(exc)  # Python's own "AF_UNIX path too long" has no number
            logger.bind(event="no_status").warning(
                "no status at {}: {}; choose another directory with --runtime-dir", made.path, reason
            )
        return made

    async def _listen(self) -> None:
        _remove_stale(self.path)
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.bind(str(self.path))
            self.path.chmod(0o600)  # nobody can connect before it listens
            self._inode = self.path.lstat()
            self._server = await asyncio.get_running_loop().create_unix_server(lambda: _Reader(self), sock=sock)
        except BaseException:
            sock.close()
            raise

    def admit(self, reader: "_Reader") -> bytes | None:
        """Return the document for one more reader, or None if there are `READERS` already."""
        if len(self._readers) >= READERS:
            return None
        self._readers.add(reader)
        return json.dumps(self._describe()).encode()

    def leave(self, reader: "_Reader") -> None:
        """Note that a reader has left."""
        self._readers.discard(reader)

    def close(self) -> None:
        """Stop, and remove the socket file unless it is another process's by now."""
        if self._server is None or self._inode is None:
            return
        with contextlib.suppress(OSError):
            if os.path.samestat(self.path.lstat(), self._inode):
                self.path.unlink()
        self._server.close()
        for reader in list(self._readers):
            reader.hang_up()


@contextlib.asynccontextmanager
async def serving(instance: Instance, describe: Callable[[], Document]) -> AsyncIterator[None]:
    """Serve what `describe` returns while in this context; at a clean end release `instance`, too."""
    status = await StatusSocket.open(instance.path, describe)
    yield
    status.close()
    instance.release()


class _Reader(asyncio.Protocol):
    """One connection."""

    def __init__(self, owner: StatusSocket) -> None:
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        document = self._owner.admit(self)
        if document is None:
            transport.abort()
            return
        self._deadline = asyncio.get_running_loop().call_later(READ_S, self.hang_up)
        transport.write(document)
        transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._owner.leave(self)
        if self._deadline is not None:
            self._deadline.cancel()

    def hang_up(self) -> None:
        """Disconnect; what has not been read is lost."""
        if self._transport is not None:
            self._transport.abort()


def _remove_stale(path: Path) -> None:
    """Remove a socket file without a listener. Our lock proves that already, unless the lock file was removed."""
    with contextlib.suppress(FileNotFoundError), socket.socket(socket.AF_UNIX) as probe:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(errno.EEXIST, "there is a file of that name")
        probe.setblocking(False)
        if probe.connect_ex(str(path)) != errno.ECONNREFUSED:
            raise OSError(errno.EADDRINUSE, "another process listens there")
        path.unlink()
