"""Real goreprox processes, and a tunnel of them."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from tests.support.events import Events, logged, matching
from tests.support.forks import Fork
from tests.support.relay import Relay
from tests.support.servers import Handler
from tests.support.sockets import HOST, abort, stop_accepting
from tests.support.waiting import DEADLINE_S, eventually

MIB_KIB = 1024
FULL_LOAD = os.environ.get("LOAD") == "full"
"""Whether to measure at the numbers that are promised, which takes minutes, and not at a fraction of them."""
WAIT_S = 600.0 if FULL_LOAD else 120.0
"""How long one response may take under load: on a busy machine whole processes stand still for many seconds."""
Versions = tuple[tuple[int, int], tuple[int, int]] | None
"""The oldest and the newest version of the session and of the fabric that a process speaks; None: as it is."""


def _is_ready(entry: dict[str, object]) -> bool:
    """Tell a process that is, be it without a broker, from its workers, and from their parent before they are."""
    return entry.get("event") == "ready" or (
        entry.get("event") == "starting" and not {"worker", "workers"} & entry.keys()
    )


PATIENT: Final = {"GOREPROX_QUEUE_TIMEOUT": f"{DEADLINE_S:g}"}
"""Clients wait for a provider as long as tests do, unless a flag or a file says otherwise."""


def logging_to(tmp: Path) -> tuple[str, ...]:
    """Return the options of a process whose log tests read."""
    return ("--log-json", "--log-level", "debug", "--runtime-dir", str(tmp / "run"))


class Process:
    """One goreprox process; its log is read as JSON."""

    def __init__(self, process: asyncio.subprocess.Process | Fork) -> None:
        self.process = process
        self.log: Events = []
        self._reader = asyncio.create_task(self._read(), name="log reader")

    @classmethod
    async def start(
        cls, tmp: Path, command: str, *args: str, env: dict[str, str] | None = None, versions: Versions = None
    ) -> "Process":
        arguments = (command, *args, "--insecure", *logging_to(tmp))
        environment = {**({} if "--config" in args else PATIENT), **os.environ, **(env or {})}
        if versions is None:
            return cls(await Fork.start(*arguments, env=environment, cwd=tmp))
        program = (str(Path(__file__).with_name("versions.py")), json.dumps(versions))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", *program, *arguments),
            stderr=asyncio.subprocess.PIPE,
            stdin=asyncio.subprocess.DEVNULL,
            env=environment,
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

    def events(self, event: str, **fields: object) -> int:
        """Return how many log lines are of this event and have these fields."""
        return len(matching(self.log, event, **fields))

    async def logged(self, event: str, **fields: object) -> str:
        """Wait for a log line of this event with these fields; return the message of the first."""
        return await logged(self.log, event, **fields)

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


def descriptors(process: Process) -> list[str]:
    """Return what the open descriptors of `process` refer to."""
    found = []
    for entry in Path(f"/proc/{process.process.pid}/fd").iterdir():
        try:
            found.append(str(entry.readlink()))
        except FileNotFoundError:
            continue  # closed since it was listed
    return found
