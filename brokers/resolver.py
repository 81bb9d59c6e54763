"""Names of hosts, looked up in threads that nobody waits for.

The threads of asyncio's own `getaddrinfo` are few, so that six names which are never answered hold up all others, and
they are waited for at the end of the process: up to half a minute after it was told to stop.
"""

import asyncio
import contextlib
import socket
import threading
from typing import Any

SocketAddress = tuple[int, Any]
"""Family and socket address."""


async def resolve(host: str | None, port: int) -> list[SocketAddress]:
    """Return where TCP `port` of `host` may be, the best first (RFC 6724); None is this host.

    Each call has a thread while the system's resolver takes its time, even if the caller is gone: ask for one name once
    at a time.

    Raises:
        OSError: it has no address, or no name server answers; or there can be no more threads.
        UnicodeError: no host can have this name.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[SocketAddress]] = loop.create_future()

    def ask() -> None:
        found: list[SocketAddress] | Exception
        try:
            entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found = [(family, address) for family, _, _, _, address in entries]
        except Exception as exc:  # noqa: BLE001 -- the caller's
            found = exc
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(give, found)

    def give(found: list[SocketAddress] | Exception) -> None:
        if answer.done():
            return
        if isinstance(found, Exception):
            answer.set_exception(found)
        else:
            answer.set_result(found)

    try:
        threading.Thread(target=ask, name=f"resolve {host}", daemon=True).start()
    except RuntimeError as exc:
        raise OSError(str(exc)) from exc
    return await answer
