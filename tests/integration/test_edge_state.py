"""An edge that takes the place of another one in this process: what waits and what has begun is as it was."""

import asyncio
import contextlib
import gc
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from goreprox.config.addresses import Address, Listener, Scheme
from goreprox.config.networks import Rule
from goreprox.config.roles import ServerConfig
from goreprox.process import handover
from goreprox.process.handover import Inherited
from goreprox.protocol.errors import ExportError
from goreprox.roles.assignment import Refusals
from goreprox.roles.edge import Edge
from goreprox.roles.edge_state import EdgeState, restored_listeners
from goreprox.tunnel.bridge import Bridge
from tests.support.client_hellos import first_bytes
from tests.support.configs import configured
from tests.support.sockets import HOST
from tests.support.waiting import eventually

HEAD = b"GET / HTTP/1.1\r\nHo"
HEADER = b"PROXY TCP4 192.0.2.1 19"
CONFIG: dict[str, Any] = {
    "listeners": (Listener(Address(HOST, 0)), Listener(Address(HOST, 0), "web", Scheme.HTTP)),
    "providers": Address(HOST, 0),
}
OPTIONAL = {"outages_before", "end_code", "draining"}
"""Versions that have no such values mean those that these clients have."""
NO_HELLOS = ("hellos", 0)
"""Means the same, too."""
PROXIES: dict[str, Any] = {"proxy_protocol_from": (Rule.parse("proxy-protocol-from", HOST),)}
HELLOS = CONFIG | {"listeners": (Listener(Address(HOST, 0), scheme=Scheme.SNI), CONFIG["listeners"][1])}
HELLO = first_bytes("example.com")[:99]
KINDS = pytest.mark.parametrize("config", [CONFIG, CONFIG | PROXIES, HELLOS], ids=["clients", "proxies", "hellos"])


def seen(edge: Edge) -> dict[str, object]:
    """Return what there is to be seen of an edge and its clients."""
    bridges = [owner for owner in edge.bridges.connections if isinstance(owner, Bridge)]
    return {
        "listeners": [(listener.text, port) for listener, port in edge.listeners.found],
        "waiting": [
            (
                *(edge.assignment.pending_until(bridge), bridge.began_at),
                *(bridge.stream.client, bridge.stream.destination, bridge.stream.service),
                *(bridge.stream.send.end, bridge.stream.send.eof),
            )
            for bridge in bridges
        ],
        "http": sorted(
            (
                *(str(client.address), str(client.destination), client.since),
                *(client.gateway.reader.begun, client.gateway.site.service),
            )
            for client in edge.http_clients.live
        ),
        "proxies": [{**dict(item), "descriptor": None} for item in edge.admission.proxies.export(payload=False)],  # type: ignore[call-overload]
        "hellos": [{**dict(item), "descriptor": None} for item in edge.admission.hellos.export(payload=False)],  # type: ignore[call-overload]
        "connections": edge.connections,
        "totals": edge.driver.budget.totals.export(),
        "requests": edge.http_clients.counters.export(),
        "refused_by": [edge.assignment.refusals.get(bridge.stream) for bridge in bridges],
        "events": edge.driver.feed.count,
        "counted": dict(edge._access._connections),
    }


class Clients:
    """Sockets of clients, which outlive the edge."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self.all: list[socket.socket] = []

    def connect(self, port: int, data: bytes) -> socket.socket:
        sock = self._stack.enter_context(socket.create_connection((HOST, port)))
        sock.sendall(data)
        self.all.append(sock)
        return sock


@pytest.fixture
def clients() -> Iterator[Clients]:
    with contextlib.ExitStack() as stack:
        yield Clients(stack)


async def begin(
    clients: Clients, config: dict[str, Any], *, payload: bool = True
) -> tuple[dict[str, object], list[object]]:
    """Run an edge until it has clients of every kind; return what is to be seen of it, and its state."""
    edge = Edge(configured(ServerConfig, **config))
    state = EdgeState(edge)
    edge.listeners.start()
    tcp, http = edge.listeners.ports
    if "proxy_protocol_from" in config:
        clients.connect(tcp, HEADER)
        await eventually(lambda: edge.connections == 1 and _heads(edge) == [HEADER], "it has read what there is")
    elif config == HELLOS:
        clients.connect(tcp, HELLO)
        await eventually(
            lambda: [each.seen for each in edge.admission.hellos._timers] == [len(HELLO)], "it has seen it"
        )
    else:
        clients.connect(tcp, b"waiting")
        clients.connect(tcp, b"half-closed").shutdown(socket.SHUT_WR)
        clients.connect(http, b"")
        clients.connect(http, HEAD)
        await eventually(
            lambda: (
                edge.assignment.pending == 2
                and sorted(client.gateway.reader.begun for client in edge.http_clients.live) == [b"", HEAD]
                and [owner.stream.send.end for owner in edge.bridges.connections] == [7, 11]
                and any(owner.stream.send.eof for owner in edge.bridges.connections)
            ),
            "it has read what there is",
        )
    edge.driver.budget.totals.refused_clients["denied"] += 1
    edge.http_clients.counters.add("web", 200, 0.1)
    for owner in edge.bridges.connections:
        edge.assignment.refusals[owner.stream] = Refusals({b"somebody"}, draining=True)
    edge.driver.feed.add("test", "so that there is one", {})
    before = seen(edge)
    await state.end_what_stays()
    return before, list(state.export(payload=payload))


def _heads(edge: Edge) -> list[object]:
    return [dict(item)["head"] for item in edge.admission.proxies.export(payload=False)]  # type: ignore[call-overload]


def restored(state: list[object], config: dict[str, Any], *, trial: bool = False) -> Edge:
    """Return an edge that has gone through the form in which a state is written."""
    descriptor = handover.write(state)
    try:
        items = Inherited(descriptor, trial=trial).items()
        edge = Edge(configured(ServerConfig, **config), restored_listeners(items))
        EdgeState(edge).restore(items, trial=trial)
    finally:
        os.close(descriptor)
    return edge


@KINDS
def test_what_waits_and_what_has_begun_is_as_it_was(clients: Clients, config: dict[str, Any]) -> None:
    before, state = asyncio.run(begin(clients, config))

    async def go_on() -> None:
        edge = restored(state, config)
        assert seen(edge) == before
        await edge.close(drain_s=0)

    asyncio.run(go_on())


def copied(item: object) -> object:
    """Return an item with duplicates of its descriptors."""
    match item:
        case {"listeners": [*listeners]}:
            return {"listeners": [[text, [os.dup(each) for each in descriptors]] for text, descriptors in listeners]}
        case {"descriptor": int(descriptor), **rest}:
            return {"descriptor": os.dup(descriptor), **rest}
    return item


def without_each_value(state: list[object]) -> Iterator[tuple[str, list[object]]]:
    """Yield the name of each value that is not None, and the state without it."""
    for index, item in enumerate(state):
        values = item if isinstance(item, dict) else {}
        for name in values:
            if values[name] is not None and name not in OPTIONAL and (name, values[name]) != NO_HELLOS:
                left = {other: value for other, value in values.items() if other != name}
                yield f"{index} {name}", [*state[:index], left, *state[index + 1 :]]


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # what cannot be restored ends its process, sockets and all
@KINDS
def test_a_value_left_out_of_the_state_is_noticed(clients: Clients, config: dict[str, Any]) -> None:
    before, state = asyncio.run(begin(clients, config))

    async def differs(left: list[object]) -> bool:
        try:
            edge = restored(list(map(copied, left)), config)
        except (ExportError, ValueError):
            return True
        differs = seen(edge) != before
        await edge.close(drain_s=0)
        return differs

    assert not asyncio.run(differs(state))
    unnoticed = [name for name, left in without_each_value(state) if not asyncio.run(differs(left))]
    gc.collect()
    assert not unnoticed
    for item in state:
        for descriptor in _descriptors(item):
            os.close(descriptor)


def _descriptors(item: object) -> list[int]:
    match item:
        case {"listeners": [*listeners]}:
            return [each for _, descriptors in listeners for each in descriptors]
        case {"descriptor": int(descriptor)}:
            return [descriptor]
    return []


@KINDS
def test_a_trial_touches_nothing(clients: Clients, config: dict[str, Any]) -> None:
    async def try_out() -> None:
        edge = Edge(configured(ServerConfig, **config))
        state = EdgeState(edge)
        edge.listeners.start()
        first = HELLO if config == HELLOS else HEADER if "proxy_protocol_from" in config else b"waiting"
        waiting = clients.connect(edge.listeners.ports[0], first)
        idle = clients.connect(edge.listeners.ports[1], HEADER if "proxy_protocol_from" in config else HEAD)
        await eventually(lambda: edge.connections == 2, "both are accepted")
        listening = [port for _, port in edge.listeners.found]
        trial = restored(list(state.export(payload=False)), config, trial=True)
        assert not trial.connections and not trial.listeners.ports
        assert [port for _, port in edge.listeners.found] == listening and edge.connections == 2
        await edge.close(drain_s=0)
        assert waiting.fileno() >= 0 and idle.fileno() >= 0

    asyncio.run(try_out())
