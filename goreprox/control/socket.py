"""The control socket of a process, beside its lock file: each connection is one request and one reply, maybe in pages.

Only the owner of the process and root can connect: the directory of the lock file has mode 0700, the socket 0600.
"""

import asyncio
import contextlib
import errno
import os
import socket
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final, Self

from loguru import logger

from goreprox.control.message import REQUEST_BYTES, Request, encode_error, encode_page, encode_result, parse_request
from goreprox.errors import ControlError, GoreproxError
from goreprox.process.instance import Instance

READ_S: Final = 5.0
"""A client that has not sent its request by then, or not taken the reply, is disconnected."""
CLIENTS: Final = 8
"""At a time. A reply is below 2 MiB (a status with 1,024 peers of at most 2 KiB), so all of them hold below 16 MiB.
One of an inspector is below 4 MiB (heads of 320 KiB and bodies of 128 KiB, of up to 6 bytes for each character)."""

FOLLOWERS: Final = 8
"""Clients at a time that take pages; so those that follow something do not keep others out. A page is below 256 KiB."""

Pages = AsyncGenerator[object, None]
Commands = Mapping[str, Callable[[Request], Awaitable[object] | Pages]]
"""What a process does when it is asked: each returns its result, which becomes JSON, or raises GoreproxError. It bounds
its own time, and goes on if the client leaves. One that yields pages, none of them None, is closed if the client leaves
or has not taken a page within `READ_S`; between two pages other work is done."""


class ControlSocket:
    """Serves clients. A process runs without it, too, so what prevents it is logged, not raised."""

    def __init__(self, path: Path, commands: Commands) -> None:
        """Serve `commands`; made by `open`."""
        self.path: Final = path
        self._commands = commands
        self._clients: set[asyncio.Task[None]] = set()
        self._followers: set[asyncio.Task[None]] = set()
        """Those that take pages."""
        self._server: asyncio.Server | None = None
        self._inode: os.stat_result | None = None

    @classmethod
    async def open(cls, lock: Path, commands: Commands) -> Self:
        """Listen beside the lock file `lock` (of `Instance`, whose directory is this user's own)."""
        made = cls(lock.with_name(f"{lock.name}.sock"), commands)
        try:
            await made._listen()
        except OSError as exc:
            reason = exc.strerror or str(exc)  # Python's own "AF_UNIX path too long" has no number
            logger.bind(event="no_control").warning(
                "no status and no reload at {}: {}; choose another directory with --runtime-dir", made.path, reason
            )
        return made

    async def _listen(self) -> None:
        _remove_stale(self.path)
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.bind(str(self.path))
            self.path.chmod(0o600)  # nobody can connect before it listens
            self._inode = self.path.lstat()
            self._server = await asyncio.start_unix_server(self._connected, sock=sock, limit=REQUEST_BYTES)
        except BaseException:
            sock.close()
            raise

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) >= CLIENTS:
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer), name="control")
        self._clients.add(task)

        def ended(_: "asyncio.Task[None]") -> None:
            """Let go of it, even if it was ended before it began."""
            self._clients.discard(task)
            self._followers.discard(task)
            writer.transport.abort()

        task.add_done_callback(ended)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(READ_S):
                line = await reader.readuntil(b"\n")
            reply = await self._reply(line, reader, writer)
            async with asyncio.timeout(READ_S):
                writer.write(reply)
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, _ClientLeft):
            pass  # it is the client that is not served

    async def _reply(self, line: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        """Return the last line of the reply; those before it are sent."""
        try:
            request = parse_request(line)._replace(client=writer.get_extra_info("socket").fileno())
            command = self._commands.get(request.command)
            if command is None:
                raise ControlError(f"the command {request.command[:64]!r} is not known here; it is of another version")
            work = command(request)
            if not isinstance(work, AsyncGenerator):
                return encode_result(await work)
            async with contextlib.aclosing(work):
                await self._send_pages(work, reader, writer)
            return encode_result(None)
        except GoreproxError as exc:
            return encode_error(exc)
        except _ClientLeft:
            raise
        except Exception as exc:  # noqa: BLE001 -- a bug in a command must not end more than the request
            asyncio.get_running_loop().call_exception_handler({"message": "serving a command", "exception": exc})
            return encode_error(ControlError("a fault in this process, which is in its log"))

    async def _send_pages(self, pages: Pages, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Send pages as they come, until the last one.

        Raises:
            ControlError: there are too many followers.
            _ClientLeft: it has left, or does not take them.
        """
        if len(self._followers) >= FOLLOWERS:
            raise ControlError(f"{FOLLOWERS} other clients list or follow what it does; end one of them")
        task = asyncio.current_task()
        assert task is not None
        self._clients.discard(task)
        self._followers.add(task)
        writer.transport.set_write_buffer_limits(0)  # so that `drain` waits for the kernel
        left = asyncio.create_task(reader.read(1), name="control: the client's end")
        try:
            while (page := await _next(pages, left)) is not None:
                writer.write(encode_page(page))
                async with asyncio.timeout(READ_S):
                    await writer.drain()
        except OSError as exc:  # TimeoutError, too
            raise _ClientLeft from exc
        finally:
            left.cancel()
            await asyncio.wait([left])

    def close(self) -> None:
        """Stop, and remove the socket file unless it is another process's by now."""
        if self._server is None or self._inode is None:
            return
        with contextlib.suppress(OSError):
            if os.path.samestat(self.path.lstat(), self._inode):
                self.path.unlink()
        self._server.close()
        for client in [*self._clients, *self._followers]:
            client.cancel()


class _ClientLeft(Exception):
    """It takes no more pages."""


async def _next(pages: Pages, left: asyncio.Task[bytes]) -> object:
    """Return the next page, None behind the last one.

    Raises:
        _ClientLeft: `left` is done before.
    """

    async def page() -> object:
        return await anext(pages, None)

    task = asyncio.create_task(page(), name="control: the next page")
    try:
        await asyncio.wait((task, left), return_when=asyncio.FIRST_COMPLETED)
        if left.done():
            raise _ClientLeft
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task])


@contextlib.asynccontextmanager
async def serving(instance: Instance, commands: Commands) -> AsyncIterator[None]:
    """Serve `commands` while in this context; at a clean end release `instance`, too."""
    control = await ControlSocket.open(instance.path, commands)
    yield
    control.close()
    instance.release()


def _remove_stale(path: Path) -> None:
    """Remove a socket file without a listener. Our lock proves that already, unless the lock file was removed."""
    with contextlib.suppress(FileNotFoundError), socket.socket(socket.AF_UNIX) as probe:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(errno.EEXIST, "there is a file of that name")
        probe.setblocking(False)
        if probe.connect_ex(str(path)) != errno.ECONNREFUSED:
            raise OSError(errno.EADDRINUSE, "another process listens there")
        path.unlink()
