"""Real processes, and a relay between them that breaks the link in every way a network can."""

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path

from tests.helpers import abort, stop_accepting

DEADLINE_S = 30.0
HOST = "127.0.0.1"
FULL_LOAD = os.environ.get("LOAD") == "full"
"""Whether to measure at the numbers that are promised, which takes minutes, and not at a fraction of them."""
LOAD_S = 900 if FULL_LOAD else 300
"""What a test of load may take in all."""
WAIT_S = 600.0 if FULL_LOAD else 120.0
"""How long one answer may take under load: on a busy machine whole processes stand still for many seconds."""


async def eventually(condition: Callable[[], object], what: str, *, deadline_s: float = DEADLINE_S) -> None:
    """Wait until `condition` holds."""
    give_up = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < give_up, f"not within {deadline_s} s: {what}"
        await asyncio.sleep(0.02)


Versions = tuple[tuple[int, int], tuple[int, int]] | None
"""The oldest and the newest version of the session and of the fabric that a process speaks; None: as it is."""


def _is_ready(entry: dict[str, object]) -> bool:
    """Tell a process that is, be it without a broker, from its workers, and from their parent before they are."""
    return entry.get("event") == "ready" or (
        entry.get("event") == "starting" and not {"worker", "workers"} & entry.keys()
    )


class Process:
    """One goreprox process; its log is read as JSON."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.log: list[dict[str, object]] = []
        self._reader = asyncio.create_task(self._read(), name="log reader")

    @classmethod
    async def start(
        cls, tmp: Path, command: str, *args: str, env: dict[str, str] | None = None, versions: Versions = None
    ) -> "Process":
        if versions is None:
            program = ["-m", "goreprox"]
        else:
            program = [str(Path(__file__).with_name("versions.py")), json.dumps(versions)]
        common = ["--insecure", "--log-json", "--log-level", "debug", "--runtime-dir", str(tmp / "run")]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-W",
            "error",
            *program,
            command,
            *args,
            *common,
            stderr=asyncio.subprocess.PIPE,
            stdin=asyncio.subprocess.DEVNULL,
            env={**os.environ, **(env or {})},
            cwd=tmp,
        )
        return cls(process)

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            try:
                entry = json.loads(line)
            except ValueError:
                entry = {"message": line.decode()}
            self.log.append(entry if isinstance(entry, dict) else {"message": str(entry)})

    async def stop_reading(self) -> None:
        """Leave the log unread from now on, so that the pipe fills."""
        self._reader.cancel()
        await asyncio.wait([self._reader])

    def go_on_reading(self) -> None:
        """Read the log again."""
        self._reader = asyncio.create_task(self._read(), name="log reader")

    def said(self, text: str) -> bool:
        """Whether a log message holds `text`."""
        return self.count(text) > 0

    def count(self, text: str) -> int:
        """Return how many log messages hold `text`."""
        return sum(text in str(entry.get("message", "")) for entry in self.log)

    def events(self, event: str, **fields: object) -> int:
        """Return how many log lines are of this event and have these fields."""
        wanted = {"event": event, **fields}
        return sum(all(entry.get(key) == value for key, value in wanted.items()) for entry in self.log)

    async def ready(self) -> dict[str, object]:
        """Wait until it listens, and connects if it has anything to connect to; return the line that says so."""
        await eventually(
            lambda: self.process.returncode is not None or any(map(_is_ready, self.log)), "ready", deadline_s=WAIT_S
        )
        assert self.process.returncode is None, self.log
        return next(filter(_is_ready, self.log))

    async def port(self, kind: str) -> int:
        """Return a port of the ready line, of several the first."""
        found = (await self.ready())[kind]
        port = found[0] if isinstance(found, list) else found
        assert isinstance(port, int)
        return port

    @property
    def rss_kib(self) -> int:
        """Resident memory."""
        return self._memory_kib("VmRSS")

    @property
    def peak_rss_kib(self) -> int:
        """The most that was ever resident."""
        return self._memory_kib("VmHWM")

    def _memory_kib(self, kind: str) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith(kind)).split()[1])

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def wait(self, deadline_s: float = DEADLINE_S) -> int:
        async with asyncio.timeout(deadline_s):
            code = await self.process.wait()
            await asyncio.wait([self._reader])
        return code

    async def stop(self) -> None:
        """End the process, whatever it is doing."""
        if self.process.returncode is None:
            self.process.kill()
        if self._reader.cancelled():
            self.go_on_reading()  # else its end goes unnoticed
        await self.process.wait()
        await self._reader


class Relay:
    """A TCP relay to `port` that can fail: cut with RST or FIN, be silent, refuse, slow down, be late."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.port = 0
        self.refusing = False
        self.silent = False
        self.bytes_per_s: float | None = None
        self.delay_s = 0.0
        """What is passed on waits for so long, and at most twice as long."""
        self.connections = 0
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()

    async def start(self, port: int = 0) -> None:
        self._server = await asyncio.start_server(self._accept, HOST, port or self.port, limit=1 << 18)
        self.port = self._server.sockets[0].getsockname()[1]

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            writer.transport.abort()
            return
        self._writers.append(writer)
        self._go_on(self._carry(reader, writer))

    def _go_on(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work, name="relay")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection(HOST, self.target, limit=1 << 18)
        except OSError:
            abort(writer)
            return
        self.connections += 1
        self._writers.append(up_writer)
        self._go_on(self._copy(reader, up_writer))
        self._go_on(self._copy(up_reader, writer))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(4096 if self.bytes_per_s else 1 << 18):
                if self.silent:
                    await self._flowing.wait()
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                if self.bytes_per_s:
                    await asyncio.sleep(len(data) / self.bytes_per_s)
                writer.write(data)
                await writer.drain()
        writer.close()

    def cut(self, *, fin: bool = False) -> None:
        """End all connections, with RST or with FIN. What was silent is lost."""
        self._writers = [writer for writer in self._writers if writer.get_extra_info("socket").fileno() >= 0]
        for writer in self._writers:
            if fin:
                writer.close()
            else:
                reset_now(writer)

    def silence(self) -> None:
        """Hold the sockets and pass nothing on."""
        self.silent = True
        self._flowing.clear()

    def unsilence(self) -> None:
        """Pass on what was held back."""
        self.silent = False
        self._flowing.set()

    def resume(self) -> None:
        self.refusing = False
        self.unsilence()

    async def stop(self) -> None:
        self.resume()
        if self._server is not None:
            await stop_accepting(self._server)
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Tunnel:
    """A target in this process, a provider, a relay, and a server."""

    def __init__(self, tmp: Path) -> None:
        self.tmp = tmp
        self.scheme = "tcp"
        self.target_port = 0
        self.port = 0
        self._writers: list[asyncio.StreamWriter] = []
        self._stack = contextlib.AsyncExitStack()
        self._stack.push_async_callback(self._hang_up)

    async def _hang_up(self) -> None:
        """Let go of all sockets of targets and clients, so that nothing outlives the loop."""
        for writer in self._writers:
            abort(writer)
        await asyncio.sleep(0)

    async def target(self, handler: Handler) -> int:
        """Serve `handler` on a port of its own."""

        async def contained(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._writers.append(writer)
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await handler(reader, writer)

        server = await asyncio.start_server(contained, HOST, 0, limit=1 << 20, backlog=1024)
        self._stack.push_async_callback(stop_accepting, server)
        self.target_port = server.sockets[0].getsockname()[1]
        return self.target_port

    async def start(self, command: str, *args: str) -> Process:
        """Start any role and wait until it is ready."""
        return await self.start_as(None, command, *args)

    async def start_as(self, versions: Versions, command: str, *args: str) -> Process:
        """Start any role as if it spoke other versions."""
        process = await Process.start(self.tmp, command, *args, versions=versions)
        self._stack.push_async_callback(process.stop)
        await process.ready()
        return process

    async def serve(self, *args: str, port: int = 0, providers: int = 0) -> Process:
        """Start the server, and the relay before it."""
        self.server = await self.start(
            "server", "--listen", f"{self.scheme}://{HOST}:{port}", "--providers", f"{HOST}:{providers}", *args
        )
        self.port = await self.server.port("clients")
        self.relay = Relay(await self.server.port("providers"))
        await self.relay.start()
        self._stack.push_async_callback(self.relay.stop)
        return self.server

    async def provide(self, *args: str, target: int | None = None, connect: bool = True) -> Process:
        """Start a provider that reaches the server through the relay; both know each other unless told not to wait."""
        before = self.server.events("peer_up")
        self.provider = await self.start(
            "provider", f"{HOST}:{target or self.target_port}", "--server", f"{HOST}:{self.relay.port}", *args
        )
        if connect:
            provider = self.provider
            await eventually(lambda: provider.events("peer_up"), "provider connected")
            await eventually(lambda: self.server.events("peer_up") > before, "the server knows it")
        return self.provider

    async def connect(self, port: int | None = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Be a client; one that is reset before this loop looks at it reads that reset, as it would a moment later."""
        try:
            reader, writer = await asyncio.open_connection(HOST, port or self.port, limit=1 << 20)
        except ConnectionResetError as reset:
            near, far = socket.socketpair()
            self._stack.callback(far.close)
            reader, writer = await asyncio.open_connection(sock=near)
            reader.set_exception(reset)
        self._writers.append(writer)
        return reader, writer


@contextlib.asynccontextmanager
async def nothing_yet(tmp: Path) -> AsyncIterator[Tunnel]:
    """What is started in the context ends with it."""
    made = Tunnel(tmp)
    async with made._stack:
        yield made


@contextlib.asynccontextmanager
async def tunnel(
    tmp: Path, handler: Handler, *, server: tuple[str, ...] = (), provider: tuple[str, ...] = ()
) -> AsyncIterator[Tunnel]:
    """A tunnel to `handler`, up and connected; all of it ends with the context."""
    async with nothing_yet(tmp) as made:
        await made.target(handler)
        await made.serve(*server)
        await made.provide(*provider)
        yield made


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send everything back; end as the client ends."""
    while data := await reader.read(1 << 18):
        writer.write(data)
        await writer.drain()
    writer.close()


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


def reset_now(writer: asyncio.StreamWriter) -> None:
    """Send RST."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
