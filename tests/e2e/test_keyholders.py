"""What peers with keys can do to a server, busy or hostile: lose their own connections, and nobody else's."""

import asyncio
import contextlib
import itertools
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from brokers.peers import Role
from tests.e2e.attacks import ATTACKS, attack
from tests.e2e.secured import Secured, number, secured
from tests.support.forks import FORKS
from tests.support.processes import Process
from tests.support.relay import Relay
from tests.support.sockets import HOST
from tests.support.traffic import echo
from tests.support.waiting import DEADLINE_S, eventually

pytestmark = pytest.mark.long

WATCHED_S = 10.0
"""libzmq acts on a broken connection when its next timer fires, seconds later."""
BUSY_BYTES = 1 << 22
LOADS = ("download", "upload", "both")
ROUNDS = 2
"""The first finds an abort as before the repair: of a connection with heartbeats that loses its routing id."""


class Witness:
    """An echo through the server by somebody who has nothing to do with what happens: no byte may be late or lost."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def says(self) -> None:
        word = os.urandom(16)
        self._writer.write(word)
        async with asyncio.timeout(DEADLINE_S):
            assert await self._reader.readexactly(len(word)) == word

    async def watches(self, seconds: float) -> None:
        """Speak all the while: the length is the subject."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while loop.time() < end:
            await self.says()
            await asyncio.sleep(0.05)


async def witness(it: Secured) -> Witness:
    await it.provide()
    made = Witness(*await it.connect())
    await made.says()
    return made


async def connected(process: Process) -> None:
    await eventually(lambda: process.events("peer_up"), "the peers know each other")


class Load:
    """Streams that are busy in one direction or both, until somebody ends them."""

    def __init__(self) -> None:
        self.passed = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Be the target: the first byte says which load it is."""
        kind = LOADS[(await reader.readexactly(1))[0]]
        await self._run(reader, writer, writes=kind != "upload", reads=kind != "download")

    def begin(self, kind: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Be a client."""
        writer.write(bytes([LOADS.index(kind)]))
        self._tasks.append(
            asyncio.create_task(self._run(reader, writer, writes=kind != "download", reads=kind != "upload"))
        )

    async def _run(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, writes: bool, reads: bool
    ) -> None:
        async def write() -> None:
            block = bytes(1 << 16)
            while True:
                writer.write(block)
                await writer.drain()

        async def read() -> None:
            while data := await reader.read(1 << 18):
                self.passed += len(data)

        with contextlib.suppress(OSError):
            await asyncio.gather(*([write()] if writes else []), *([read()] if reads else []))

    async def stop(self) -> None:
        """Let all clients pause for good: their streams stay, with all that they hold."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()


class Victims:
    """Three busy peers of one role, each with a key of its own and under another load, behind relays."""

    def __init__(self, it: Secured, role: Role, port: int, target: int, load: Load) -> None:
        self.it, self.role, self.port, self.target, self.load = it, role, port, target, load
        self.processes: list[Process] = []
        self.relays: list[Relay] = []
        self.names: list[str] = []

    async def start(self, group: str) -> None:
        """Start them; be busy once all are connected."""
        before = self.load.passed
        ports = await asyncio.gather(*(self._start_one(f"{group}-{kind}") for kind in LOADS))
        for kind, port in zip(LOADS, ports, strict=True):
            for _ in range(3):
                self.load.begin(kind, *await self.it.connect(port))
        await eventually(lambda: self.load.passed > before + BUSY_BYTES, "the victims are busy")

    async def end(self, action: Callable[["Victims"], Awaitable[None]]) -> None:
        """Act on them while they are busy, which they are until each has lost its link or its life."""
        await action(self)
        await eventually(
            lambda: all(
                each.events("link_lost") or each.events("link_down") or each.process.returncode is not None
                for each in self.processes
            ),
            "the victims have lost their links",
        )
        await self.load.stop()

    async def _start_one(self, name: str) -> int:
        """Return the port of its clients."""
        services = ("--services", "busy,more") if self.role is Role.PROVIDER else ()
        await self.it.keys("add", name, "--role", str(self.role), *services)
        relay = Relay(self.it.providers if self.role is Role.PROVIDER else self.it.edges)
        await relay.start()
        self.it._stack.push_async_callback(relay.stop)
        self.relays.append(relay)
        self.names.append(name)
        join = ("--join-file", str(self.it.join_file(name)))
        if self.role is Role.PROVIDER:
            process = await self.it.start(
                *("provider", f"busy={HOST}:{self.target}", "--server", f"{HOST}:{relay.port}", *join)
            )
            port = self.port
        else:
            process = await self.it.start(
                *("edge", "--listen", f"{HOST}:0=busy", "--broker", f"{HOST}:{relay.port}", *join)
            )
            clients = (await process.ready())["clients"]
            assert isinstance(clients, list)
            port = number(clients[0])
        self.processes.append(process)
        await connected(process)
        return port

    async def revoke(self) -> None:
        await asyncio.gather(*(self.it.keys("revoke", name) for name in self.names))

    async def narrow(self) -> None:
        for name in self.names:
            path = self.it.state / "authorized" / f"{name}.toml"
            path.write_text(path.read_text().replace('"busy"', '"other"'))

    async def reset(self) -> None:
        for relay in self.relays:
            relay.cut()

    async def finish(self) -> None:
        for relay in self.relays:
            relay.cut(fin=True)

    async def kill(self) -> None:
        for process in self.processes:
            process.signal(signal.SIGKILL)


@pytest.mark.parametrize("role", list(Role))
async def test_ending_a_busy_peer_in_any_way_affects_no_other_peer(tmp_path: Path, role: Role) -> None:
    actions: list[Callable[[Victims], Awaitable[None]]] = [
        Victims.revoke,
        *([Victims.narrow] if role is Role.PROVIDER else []),
        Victims.reset,
        Victims.finish,
        Victims.kill,
    ]
    load = Load()
    async with secured(tmp_path, echo, "--listen", f"{HOST}:0=busy") as it:
        it._stack.push_async_callback(load.stop)
        echoing = it.target_port
        target = await it.target(load.serve)
        it.target_port = echoing
        clients = (await it.server.ready())["clients"]
        assert isinstance(clients, list)
        seen = await witness(it)
        if role is Role.EDGE:
            await it.keys("add", "busy", "--services", "busy")
            process = await it.start(
                *("provider", f"busy={HOST}:{target}", "--server", f"{HOST}:{it.providers}"),
                *("--join-file", str(it.join_file("busy"))),
            )
            await connected(process)
        for number_, action in enumerate(actions):
            victims = Victims(it, role, number(clients[1]), target, load)
            await victims.start(f"v{number_}")
            await asyncio.gather(victims.end(action), seen.watches(1.0))
        await seen.watches(WATCHED_S)
        assert it.server.process.returncode is None


# -- hostile ones


def descriptors(process: Process) -> int:
    return sum(1 for _ in Path(f"/proc/{process.process.pid}/fd").iterdir())


@pytest.mark.parametrize("role", list(Role))
async def test_the_server_serves_others_whatever_a_hostile_key_holder_does(tmp_path: Path, role: Role) -> None:
    async with secured(tmp_path, echo) as it:
        seen = await witness(it)
        await it.keys("add", "hostile", "--role", str(role), "--services", "default")
        join, port = it.join_file("hostile").read_text(), it.providers if role is Role.PROVIDER else it.edges
        before = descriptors(it.server)
        for _ in range(ROUNDS):
            for kind, fin in itertools.product(ATTACKS, (False, True)):
                attacker = FORKS.Process(target=attack, args=(kind, role, join, port, fin), name=kind)
                attacker.start()
                await asyncio.to_thread(attacker.join)
                assert attacker.exitcode in (0, -signal.SIGABRT)
                await seen.says()
        await seen.watches(WATCHED_S)
        assert it.server.process.returncode is None
        # libzmq never closes a connection that was taken over and goes on: fewer than 64 of them, two each.
        assert descriptors(it.server) < before + 128
        assert it.server.peak_rss_kib < 256 * 1024
