"""Both ends of the tunnel, alone in containers of their own: a target, and clients that check every byte.

A connection's first line says what it is for:

    echo    everything comes back
    up      the target responds to end of file with the SHA-256 of what came
    down N  the target sends N bytes a second until the client's end of file, then the SHA-256 of what it sent

The client talks to its test by lines of JSON on standard output, and listens to signals. Needs the standard library
only, and knows nothing of containers.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import signal
import sys
import time
from collections.abc import AsyncIterator

PORT = 3000
BLOCK = 16_384
PING_S = 0.2
RETRY_S = 0.2
DIGEST_CHARS = 64
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def say(**what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


async def blocks(bytes_per_s: int, until: asyncio.Event) -> AsyncIterator[bytes]:
    """Give bytes that do not repeat, at most so many a second."""
    size = min(BLOCK, bytes_per_s // 4)
    index = 0
    while not until.is_set():
        yield hashlib.shake_128(b"%d" % index).digest(size)
        index += 1
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(until.wait(), size / bytes_per_s)


async def send(writer: asyncio.StreamWriter, bytes_per_s: int, until: asyncio.Event) -> tuple[int, str]:
    """Send blocks; return how many bytes they were, and their SHA-256."""
    digest, total = hashlib.sha256(), 0
    async for block in blocks(bytes_per_s, until):
        digest.update(block)
        total += len(block)
        writer.write(block)
        await writer.drain()
    return total, digest.hexdigest()


async def serve_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Be the target."""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        match (await reader.readline()).split():
            case [b"echo"]:
                while data := await reader.read(BLOCK):
                    writer.write(data)
                    await writer.drain()
            case [b"up"]:
                digest = hashlib.sha256()
                while data := await reader.read(BLOCK):
                    digest.update(data)
                writer.write(digest.hexdigest().encode())
            case [b"down", rate]:
                stop = asyncio.Event()
                sending = asyncio.create_task(send(writer, int(rate), stop))
                await reader.read(1)
                stop.set()
                writer.write((await sending)[1].encode())
    writer.close()


async def serve() -> None:
    server = await asyncio.start_server(serve_connection, "0.0.0.0", PORT, backlog=1024)
    await server.serve_forever()


async def connect(host: str, port: int) -> Streams:
    """Connect; wait for somebody to listen."""
    while True:
        with contextlib.suppress(OSError, TimeoutError):
            return await asyncio.wait_for(asyncio.open_connection(host, port), 15)
        await asyncio.sleep(RETRY_S)


async def ping(streams: Streams) -> None:
    """Have something echoed."""
    reader, writer = streams
    writer.write(b"ping")
    await writer.drain()
    assert await reader.readexactly(4) == b"ping", "something else came back"


class Lasting:
    """Transfers both ways that last until SIGUSR1, while other connections are idle, and one is asked all the time."""

    def __init__(self, host: str, port: int, bytes_per_s: int, idle: int) -> None:
        self.host, self.port, self.bytes_per_s, self.idle = host, port, bytes_per_s, idle
        self.stop = asyncio.Event()
        self.flowing = asyncio.Event()

    async def open(self, purpose: str) -> Streams:
        reader, writer = await connect(self.host, self.port)
        writer.write(purpose.encode() + b"\n")
        return reader, writer

    async def up(self) -> int:
        """Upload; return how many bytes, once the target's digest is ours."""
        reader, writer = await self.open("up")
        total, digest = await send(writer, self.bytes_per_s, self.stop)
        writer.write_eof()
        assert (await reader.read()).decode() == digest, "the target got other bytes than were sent"
        return total

    async def down(self) -> int:
        """Download; return how many bytes, once the digest at their end is theirs."""
        reader, writer = await self.open(f"down {self.bytes_per_s}")
        stopping = asyncio.create_task(self._half_close(writer))
        digest, tail, total = hashlib.sha256(), b"", 0
        while data := await reader.read(BLOCK):
            self.flowing.set()
            total += len(data)
            tail += data
            digest.update(tail[:-DIGEST_CHARS])
            tail = tail[-DIGEST_CHARS:]
        assert self.stop.is_set(), "the download ended early"
        assert tail.decode("latin-1") == digest.hexdigest(), "other bytes came than were sent"
        await stopping
        return total - DIGEST_CHARS

    async def _half_close(self, writer: asyncio.StreamWriter) -> None:
        await self.stop.wait()
        writer.write_eof()

    async def asking(self, streams: Streams) -> float:
        """Return the longest that a response took."""
        slowest_s = 0.0
        while not self.stop.is_set():
            began = time.monotonic()
            await ping(streams)
            slowest_s = max(slowest_s, time.monotonic() - began)
            await asyncio.sleep(PING_S)
        return slowest_s

    async def run(self) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self.stop.set)
        idle = [await self.open("echo") for _ in range(self.idle + 1)]
        for streams in idle:
            await ping(streams)
        async with asyncio.TaskGroup() as group:
            up, down = group.create_task(self.up()), group.create_task(self.down())
            asked = group.create_task(self.asking(idle[0]))
            await self.flowing.wait()
            say(state="flowing")
        for streams in idle:
            await ping(streams)
            streams[1].write_eof()
            assert await streams[0].read() == b"", "more came back than was sent"
        say(state="done", up=up.result(), down=down.result(), slowest_s=asked.result(), idle=len(idle) - 1)


async def short(host: str, port: int, workers: int) -> None:
    """Be short connections, one after another, until SIGUSR1: each uploads, and each must get its digest."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, stop.set)
    counts = {"done": 0, "failed": 0}
    errors = []

    async def one() -> None:
        reader, writer = await connect(host, port)
        try:
            data = hashlib.shake_128(b"%d" % counts["done"]).digest(BLOCK)
            writer.write(b"up\n" + data)
            writer.write_eof()
            response = await reader.read()
            assert response.decode() == hashlib.sha256(data).hexdigest(), f"response: {response!r}"
            counts["done"] += 1
        except (OSError, AssertionError) as exc:
            counts["failed"] += 1
            errors.append(f"{time.strftime('%X')} {exc!r}")
        finally:
            writer.close()

    async def worker() -> None:
        while not stop.is_set():
            await one()
            if counts["done"] == workers:
                say(state="flowing")
            await asyncio.sleep(PING_S)

    async with asyncio.TaskGroup() as group:
        for _ in range(workers):
            group.create_task(worker())
    say(state="done", **counts, errors=errors[:5])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["target", "lasting", "short"])
    parser.add_argument("--host", default="edge-1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--bytes-per-s", type=int, default=200_000)
    parser.add_argument("--idle", type=int, default=10)
    parser.add_argument("--workers", type=int, default=4)
    args = parser.parse_args()
    try:
        match args.what:
            case "target":
                asyncio.run(serve())
            case "lasting":
                asyncio.run(Lasting(args.host, args.port, args.bytes_per_s, args.idle).run())
            case _:
                asyncio.run(short(args.host, args.port, args.workers))
    except* (OSError, AssertionError, asyncio.IncompleteReadError) as group:
        say(state="failed", errors=[repr(exc) for exc in group.exceptions])
        sys.exit(1)


if __name__ == "__main__":
    main()
