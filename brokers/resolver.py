"""Resolving host names in daemon threads, one for each lookup.

asyncio's own `getaddrinfo` shares a few threads, so six lookups that hang delay all others, and the process waits for
them when it ends, for up to half a minute.
"""

import asyncio
import contextlib
import signal
import socket
import threading
from typing import Any

SocketAddress = tuple[int, Any]
"""Family and socket address."""


async def resolve(host: str | None, port: int) -> list[SocketAddress]:
    """Return the socket addresses of TCP `port` at `host`, the best first (RFC 6724); None is this host.

    Each call has a thread until the system's resolver returns, even if the caller was cancelled: resolve a name once at
    a time.

    Raises:
        OSError: it has no address, no name server responds, or no thread can be started.
        UnicodeError: it is not a valid host name.
    """
    loop = asyncio.get_running_loop()
    resolved: asyncio.Future[list[SocketAddress]] = loop.create_future()

    def ask() -> None:
        # A signal must not be delivered here while the main thread has it blocked.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        found: list[SocketAddress] | Exception
        try:
            entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found = [(family, address) for family, _, _, _, address in entries]
        except Exception as exc:  # noqa: BLE001 -- the caller's
            found = exc
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(give, found)

    def give(found: list[SocketAddress] | Exception) -> None:
        if resolved.done():
            return
        if isinstance(found, Exception):
            resolved.set_exception(found)
        else:
            resolved.set_result(found)

    try:
        threading.Thread(target=ask, name=f"resolve {host}", daemon=True).start()
    except RuntimeError as exc:
        raise OSError(str(exc)) from exc
    return await resolved
