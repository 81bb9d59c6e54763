"""Upgrades of everything in turn, under connections of every kind and new clients all the while.

`LOAD=full` has 1,000 connections, ten upgrades and 100 new clients per second.
"""

import asyncio
import contextlib
import re
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Final, NamedTuple

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve

from tests.e2e.course import Course, Target
from tests.e2e.roles import Client, echoed
from tests.e2e.upgrading import start, upgrade
from tests.support.processes import FULL_LOAD, WAIT_S, Process, Tunnel
from tests.support.sockets import HOST, closed_port
from tests.support.traffic import echo
from tests.support.waiting import eventually
from tests.support.web import asked, polite

pytestmark = pytest.mark.long


class Numbers(NamedTuple):
    """How many clients of each kind a server or an edge has."""

    idle: int
    busy: int
    half_closed: int
    """By the client; as many by the target."""
    websockets: int
    http: int
    waiting: int
    """For a provider."""


NUMBERS: Final = Numbers(320, 10, 20, 30, 50, 50) if FULL_LOAD else Numbers(10, 1, 1, 2, 3, 2)
UPGRADES: Final = 10 if FULL_LOAD else 3
NEW_PER_S: Final = 100 if FULL_LOAD else 20
ROLES: Final = ("server", "edge", "provider")
SCHEMES: Final = {"default": "tcp", "web": "http", "sockets": "http", "late": "tcp"}
"""Of each service."""
LIMITS: Final = ("--max-connections-per-address", "4096", "--grace", "900")
Ports = dict[str, int]
"""Of a server or an edge, by service."""


class Everything(Tunnel):
    """A server, an edge with two workers at its broker, and a provider for the clients of both."""

    entrances: list[Ports]
    processes: dict[str, Process]

    async def begin(self, targets: dict[str, int], ports: Ports) -> None:
        listeners = [f"{scheme}://{HOST}:{{}}={service}" for service, scheme in SCHEMES.items()]
        server = await start(
            self, "server", *_listen(listeners, [0] * 4), "--providers", f"{HOST}:0", "--edges", f"{HOST}:0", *LIMITS
        )
        clients = (await server.ready())["clients"]
        assert isinstance(clients, list)
        self.entrances = [dict(zip(SCHEMES, clients, strict=True)), ports]
        edge = await start(
            self,
            *("edge", *_listen(listeners, list(ports.values())), "--workers", "2", *LIMITS),
            *("--broker", f"{HOST}:{await server.port('edges')}"),
        )
        self.broker = f"{HOST}:{await server.port('providers')}"
        provider = await start(self, *self.providing(targets))
        self.processes = {"server": server, "edge": edge, "provider": provider}
        await eventually(lambda: provider.events("peer_up") == 3, "it knows the server and both workers")
        await eventually(lambda: edge.events("peer_up") == 2, "so do they")

    def providing(self, targets: dict[str, int]) -> tuple[str, ...]:
        offered = (f"{service}={HOST}:{port}" for service, port in targets.items())
        return ("provider", *offered, "--server", self.broker, "--grace", "900")


def _listen(listeners: list[str], ports: list[int]) -> list[str]:
    return [word for each, port in zip(listeners, ports, strict=True) for word in ("--listen", each.format(port))]


class Clients:
    """Those of one server or edge."""

    def __init__(self, made: Everything, ports: Ports, target: Target) -> None:
        self._made = made
        self._ports = ports
        self._course = Course(target)
        self._http: list[Client] = []
        self._waiting: list[Client] = []
        self._websockets: list[ClientConnection] = []
        self._stack = contextlib.AsyncExitStack()

    async def begin(self) -> None:
        made, ports = self._made, self._ports
        await self._course.begin(
            made, ports["default"], idle=NUMBERS.idle, busy=NUMBERS.busy, half_closed=NUMBERS.half_closed
        )
        self._http = [await made.connect(ports["web"]) for _ in range(NUMBERS.http)]
        self._waiting = [await made.connect(ports["late"]) for _ in range(NUMBERS.waiting)]
        for number, (_, writer) in enumerate(self._waiting):
            writer.write(b"%8d" % number)
        for _ in range(NUMBERS.websockets):
            where = connect(f"ws://{HOST}:{ports['sockets']}/", ping_interval=None)
            self._websockets.append(await self._stack.enter_async_context(where))

    async def go_on(self) -> None:
        """Use each of them."""
        await self._course.go_on()
        for client in self._http:
            await asked(client, b"again")
        for socket in self._websockets:
            await socket.send("again")
            assert await asyncio.wait_for(socket.recv(), WAIT_S) == "again"

    async def end(self) -> None:
        """End them, once those that have waited have a provider."""
        await self._course.end()
        for number, (reader, writer) in enumerate(self._waiting):
            assert await asyncio.wait_for(reader.readexactly(8), WAIT_S) == b"%8d" % number
            writer.close()
        for _, writer in self._http:
            writer.close()
        await self._stack.aclose()


async def newcomer(port: int) -> float:
    """Be a new client; return how long that took, in seconds."""
    began = time.monotonic()
    client = await asyncio.open_connection(HOST, port)
    await echoed(client, b"new", WAIT_S)
    client[1].write_eof()
    assert not await asyncio.wait_for(client[0].read(), WAIT_S)
    client[1].close()
    return time.monotonic() - began


async def newcomers(entrances: list[Ports], over: asyncio.Event) -> list[float]:
    """Begin `NEW_PER_S` clients per second until it is `over`; return how long each took."""
    loop = asyncio.get_running_loop()
    began, clients = loop.time(), list[asyncio.Task[float]]()
    while not over.is_set():
        clients.append(asyncio.create_task(newcomer(entrances[len(clients) % len(entrances)]["default"])))
        await asyncio.sleep(began + len(clients) / NEW_PER_S - loop.time())
    return await asyncio.gather(*clients)


async def talk(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


async def test_nothing_is_refused_reset_or_lost_through_upgrades_of_everything_in_turn() -> None:
    target = Target()
    async with contextlib.AsyncExitStack() as stack:
        made = Everything(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gp", dir="/tmp"))))
        ports = {service: stack.enter_context(closed_port()) for service in SCHEMES}
        websockets = await stack.enter_async_context(serve(talk, HOST, 0, ping_interval=None))
        await stack.enter_async_context(made._stack)
        late = await made.target(echo)
        targets = {
            "default": await made.target(target.serve),
            "web": await made.target(polite),
            "sockets": next(iter(websockets.sockets)).getsockname()[1],
        }
        await made.begin(targets, ports)
        everybody = [Clients(made, each, target) for each in made.entrances]
        for clients in everybody:
            await clients.begin()
            await clients.go_on()
        over, pauses_s = asyncio.Event(), defaultdict[str, list[float]](list)
        coming = asyncio.create_task(newcomers(made.entrances, over))
        for number in range(UPGRADES):
            role = ROLES[number % len(ROLES)]
            code, out, err = await upgrade(made.tmp, "--role", role)
            assert not code, err
            pauses_s[role] += map(float, re.findall(r"after ([\d.]+) s", out))
            for clients in everybody:
                await clients.go_on()
        over.set()
        took_s = sorted(await coming)
        await made.start(*made.providing({"late": late}))
        for clients in everybody:
            await clients.end()
        for process in made.processes.values():
            assert not process.events("peer_restarted") and not process.events("restore_failed")
            assert not process.events("worker_ended")
        print(f"{len(took_s)} new clients: median {took_s[len(took_s) // 2]:.3f} s, longest {took_s[-1]:.3f} s")
        print("; ".join(f"longest pause of {role}: {max(each):.3f} s" for role, each in pauses_s.items()))
