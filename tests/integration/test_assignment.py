"""Pending streams, and what a change among providers costs: counted, not timed."""

import asyncio
import os

import pytest

from brokers import PeerInfo, PeerName, Role
from goreprox.process.clock import clock
from goreprox.protocol.budget import Budget
from goreprox.protocol.events import Code, Drain, Event
from goreprox.protocol.stream import Stream
from goreprox.protocol.totals import EndCode
from goreprox.roles.assignment import Assignment
from goreprox.tunnel.peer import Peer
from tests.support.peer import establish
from tests.support.waiting import eventually

BUDGET = Budget(total_bytes=1 << 28, max_streams=10_000)


class Client:
    """Owns a stream."""

    def __init__(self, service: str) -> None:
        self.stream = Stream(opener=True, service=service, client="test", budget=BUDGET)
        self.stream.owner = self
        self.began_at = 0.0

    def abort(self, reason: str, code: EndCode) -> None: ...


class Nobody:
    """A carrier that leads nowhere."""

    label = "nowhere"

    def send(self, peer_id: bytes, frames: object) -> bool:
        return False

    def link_condition(self, peer_id: bytes) -> None: ...

    def announce(self, attributes: object) -> None: ...

    async def close(self, *, linger_s: float) -> None: ...


class Side:
    """An edge without sockets."""

    def __init__(self) -> None:
        self.lost = 0
        self.most: int | None = None
        self.assignment = Assignment(
            BUDGET,
            services=["web"],
            grace_s=60,
            queue_timeout_s=60,
            most=lambda _: self.most,
            lost=self._lost,
        )

    def _lost(self) -> None:
        self.lost += 1

    def provider(self, *services: str) -> Peer:
        info = PeerInfo(PeerName(Role.PROVIDER, "far", os.urandom(16)), 1, said(*services))
        driver = self.assignment.driver
        driver.peer_up(Nobody(), info)
        peer = driver.peers[info.name.id]
        self.resume(peer)
        return peer

    def resume(self, peer: Peer, *events: Event) -> None:
        path = peer.session.path
        assert path is not None
        establish(peer.session, *events, path=path.path_id, now=clock())
        self.assignment.peer_changed(peer)

    def says(self, peer: Peer, *services: str) -> None:
        peer.info = PeerInfo(peer.info.name, 1, said(*services))
        self.assignment.peer_changed(peer)


def said(*services: str) -> dict[str, object]:
    return {"protocol": [1, 1], "services": list(services)}


async def test_a_flood_of_announcements_tries_no_pending_stream_of_other_services(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    side = Side()
    tried = 0
    plain = side.assignment._assign

    def counting(stream: Stream) -> bool:
        nonlocal tried
        tried += 1
        return plain(stream)

    monkeypatch.setattr(side.assignment, "_assign", counting)
    for _ in range(2000):
        side.assignment.connect(Client("web"))
    assert (tried, side.assignment.pending) == (2000, 2000)
    hostile = side.provider("other")
    for number in range(1000):
        side.says(hostile, "other" if number % 2 else "another")
        await asyncio.sleep(0)
    assert tried == 2000
    for number in range(100):
        side.says(hostile, *["web"] * (number % 2))  # within one turn, and gone at its end
    side.says(hostile, "other")
    await asyncio.sleep(0)
    assert tried <= 2001, "the first who finds nobody ends it"

    honest = side.provider("web")
    await eventually(lambda: not side.assignment.pending)
    assert len(honest.session.streams) == 2000
    assert tried <= 4001


async def test_idle_http_clients_are_checked_only_when_a_provider_is_lost() -> None:
    side = Side()
    peer = side.provider("web")
    for number in range(100):
        side.says(peer, "web", *["more"] * (number % 2 == 0))
        side.assignment.peer_changed(peer)
    await asyncio.sleep(0)
    assert side.lost <= 1
    before = side.lost
    for _ in range(100):
        side.assignment.peer_changed(peer)
    await asyncio.sleep(0)
    assert side.lost == before
    side.resume(peer, Drain())
    await asyncio.sleep(0)
    assert side.lost == before + 1


async def test_the_places_of_a_service_come_back_however_a_stream_ends() -> None:
    side = Side()
    side.most = 2
    assignment, peer = side.assignment, side.provider("web")
    clients = [Client("web") for _ in range(5)]
    for client in clients:
        assignment.connect(client)
    assert (len(peer.session.streams), assignment.pending) == (2, 3)
    assert assignment.places.crowded("web") and not assignment.places.has_room("web")
    assert side.lost == 0
    await asyncio.sleep(0)
    assert side.lost == 1, "once: idle streams of HTTP clients make room"
    assignment.ended(clients[0])
    late = Client("web")
    assignment.connect(late)
    assert late.stream.host is None, "others have waited for longer"
    assert assignment.pending == 4
    await asyncio.sleep(0)
    assignment.ended(late)
    assert assignment.pending == 2, "it had ended"
    assignment.stream_refused(peer, clients[1].stream, Code.TARGET, "no target")
    await asyncio.sleep(0)
    assert assignment.pending == 1, "it was refused"
    assignment.stream_unsent(clients[2].stream)
    await asyncio.sleep(0)
    assert assignment.pending == 1, "its own place is free again"
    side.most = None
    assignment.reconfigure(services=["web"], grace_s=60, queue_timeout_s=60, most=lambda _: None)
    await asyncio.sleep(0)
    assert not assignment.pending and not assignment.places.crowded("web") and assignment.places.has_room("web")
