"""What targets and clients say to each other, of any length, checked by a digest."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable

from tests.support.waiting import DEADLINE_S


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send everything back; end as the client ends."""
    while data := await reader.read(1 << 18):
        writer.write(data)
        await writer.drain()
    writer.close()


def echo_until(ended: "asyncio.Future[str]") -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    """Return a target that echoes, and whose first connection sets `ended` to `end of file` or `reset`."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        how = "end of file"
        try:
            await echo(reader, writer)
        except ConnectionResetError:
            how = "reset"
        if not ended.done():
            ended.set_result(how)

    return handler


def block(index: int) -> bytes:
    """64 KiB that no other index has."""
    return hashlib.shake_128(index.to_bytes(8, "big")).digest(1 << 16)


_BLOCKS = [block(index) for index in range(61)]


async def send_blocks(writer: asyncio.StreamWriter, count: int) -> str:
    """Write `count` blocks of 64 KiB; return their SHA-256."""
    digest = hashlib.sha256()
    for index in range(count):
        data = index.to_bytes(8, "big") + _BLOCKS[index % len(_BLOCKS)][8:]
        digest.update(data)
        writer.write(data)
        await writer.drain()
    return digest.hexdigest()


async def send_until(over: asyncio.Event, writer: asyncio.StreamWriter, *, pause_s: float = 0.0) -> tuple[int, str]:
    """Write blocks of 64 KiB, with pauses, until `over`, then the end of file; return their size and SHA-256."""
    digest, count = hashlib.sha256(), 0
    while not over.is_set():
        data = block(count)
        digest.update(data)
        writer.write(data)
        await writer.drain()
        await asyncio.sleep(pause_s)
        count += 1
    writer.write_eof()
    return count << 16, digest.hexdigest()


async def read_digest(reader: asyncio.StreamReader, *, size: int | None = None) -> tuple[int, str]:
    """Read `size` bytes, or to the end of file; return how many there were and their SHA-256."""
    digest = hashlib.sha256()
    total = 0
    while size is None or total < size:
        data = await reader.read(1 << 18 if size is None else min(1 << 18, size - total))
        if not data:
            break
        digest.update(data)
        total += len(data)
    return total, digest.hexdigest()


class Transfer:
    """Bytes through an echo, both ways at once, until it is told to end."""

    def __init__(self, client: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
        self.reader, self.writer = client
        self.sent = self.received = 0
        self._sent = hashlib.sha256()
        self._over = False
        self._tasks = [asyncio.create_task(each, name="transfer") for each in (self._send(), self._receive())]

    async def _send(self) -> str:
        index = 0
        while not self._over:
            data = index.to_bytes(8, "big") + _BLOCKS[0][8:]
            self._sent.update(data)
            self.writer.write(data)
            await self.writer.drain()
            index += 1
            self.sent += len(data)
            await asyncio.sleep(0.002)  # 30 MB/s are load enough
        self.writer.write_eof()
        return self._sent.hexdigest()

    async def _receive(self) -> str:
        digest = hashlib.sha256()
        while data := await self.reader.read(1 << 18):
            digest.update(data)
            self.received += len(data)
        return digest.hexdigest()

    async def end(self) -> None:
        """Expect every byte that was sent, and nothing else."""
        self._over = True
        sent, received = await asyncio.wait_for(asyncio.gather(*self._tasks), DEADLINE_S)
        assert sent == received
        self.writer.close()
