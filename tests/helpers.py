"""What tests of several layers share."""

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

from goreprox.config.roles import ProcessConfig

HOST = "127.0.0.1"
POLL_S = 0.005


async def eventually(condition: Callable[[], object], deadline_s: float = 30.0) -> None:
    """Return as soon as the condition holds; fail, naming it, if it does not within `deadline_s`."""
    try:
        async with asyncio.timeout(deadline_s):
            while not condition():  # noqa: ASYNC110 -- conditions of any kind, on objects without events
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        code = condition.__code__
        raise AssertionError(
            f"not true within {deadline_s} s: the condition at {code.co_filename}:{code.co_firstlineno}"
        ) from None


async def stop_accepting(server: asyncio.Server) -> None:
    """Close a server; what it has accepted by now has got to its handler, which owns it, on return."""
    server.close()
    for _ in range(3):  # turns of the loop: the transport, the protocol, the handler's first step
        await asyncio.sleep(0)


def abort(writer: asyncio.StreamWriter) -> None:
    """Let go of a socket at once, sent or not, closed or not."""
    if writer.get_extra_info("socket").fileno() >= 0:  # aborting a closed one raises
        writer.transport.abort()


@contextlib.contextmanager
def closed_port() -> Iterator[int]:
    """Hold a port that refuses connections, until somebody who shares it listens."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((HOST, 0))
        yield holder.getsockname()[1]


class Level:
    """A number that is level once it has not changed for a second."""

    def __init__(self) -> None:
        self.value = -1
        self.since = time.monotonic()

    def holds(self, value: int) -> bool:
        if value != self.value:
            self.value, self.since = value, time.monotonic()
        return time.monotonic() - self.since >= 1.0


class Started:
    """Notes what a command would have run with, in place of the network."""

    config: Any = None

    async def __call__(self, config: ProcessConfig, **_: object) -> None:
        self.config = config
