"""Connections of several kinds through something that is upgraded meanwhile, checked at both of their ends."""

import asyncio
from collections import Counter
from typing import Final

from tests.e2e.roles import Client, echoed
from tests.support.processes import WAIT_S, Tunnel
from tests.support.traffic import echo, read_digest, send_until
from tests.support.waiting import eventually

HALF: Final = b"x" * (1 << 20)
"""What a client has sent before it half-closes its connection."""
PAUSE_S: Final = 0.01
"""Between blocks of a busy stream, which then has 6 MiB/s."""


class Target:
    """Echoes; a connection is half-closed by its client if it begins with `c`, by the target if with `t`."""

    def __init__(self) -> None:
        self.released = asyncio.Event()
        """Set when clients that have half-closed theirs are to get their bytes back."""
        self.heard: Counter[bytes] = Counter()
        """What clients have sent on connections that the target has half-closed."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kind = await reader.readexactly(1)
        writer.write(kind)
        if kind == b"c":
            data = await reader.read()
            await self.released.wait()
            writer.write(data)
            writer.close()
        elif kind == b"t":
            writer.write_eof()
            self.heard[await reader.read()] += 1
            writer.close()
        else:
            await echo(reader, writer)


class Course:
    """Clients of a `Target` that are idle, busy in both directions, or have half-closed connections."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._idle: list[Client] = []
        self._by_client: list[Client] = []
        self._by_target: list[Client] = []
        self._busy: list[tuple[asyncio.Task[tuple[int, str]], asyncio.Task[tuple[int, str]]]] = []
        """What each has sent, and received."""
        self._over = asyncio.Event()
        self._rounds = 0

    async def begin(self, made: Tunnel, port: int, *, idle: int, busy: int = 1, half_closed: int = 1) -> None:
        """Connect so many of each kind; `half_closed` by each side."""
        self._idle = [await made.connect(port) for _ in range(idle)]
        self._by_client = [await made.connect(port) for _ in range(half_closed)]
        self._by_target = [await made.connect(port) for _ in range(half_closed)]
        for client in self._idle:
            await echoed(client, b"before", WAIT_S)
        for client in self._by_client:
            await echoed(client, b"c", WAIT_S)
            client[1].write(HALF)
            client[1].write_eof()
        for client in self._by_target:
            await echoed(client, b"t", WAIT_S)
            assert not await asyncio.wait_for(client[0].read(), WAIT_S)
        for _ in range(busy):
            reader, writer = await made.connect(port)
            sending = asyncio.create_task(send_until(self._over, writer, pause_s=PAUSE_S))
            self._busy.append((sending, asyncio.create_task(read_digest(reader))))
        self.connections = idle + busy + 2 * half_closed

    async def go_on(self) -> None:
        """Use each of them."""
        self._rounds += 1
        for client in self._idle:
            await echoed(client, b"after", WAIT_S)
        for _, writer in self._by_target:
            writer.write(b"more")

    async def end(self) -> None:
        """End each in its way; nothing may be missing."""
        self._over.set()
        for sending, receiving in self._busy:
            assert await asyncio.wait_for(receiving, WAIT_S) == await sending
        self._target.released.set()
        for reader, _ in self._by_client:
            assert await asyncio.wait_for(reader.read(), WAIT_S) == HALF
        for _, writer in self._by_target:
            writer.write_eof()
        expected = b"more" * self._rounds
        await eventually(lambda: self._target.heard[expected] >= len(self._by_target), "all has arrived")
        self._target.heard[expected] -= len(self._by_target)
        for _, writer in (*self._idle, *self._by_client, *self._by_target):
            writer.close()
