"""Clients that wait, and what a change among providers costs: counted, not timed."""

import asyncio
import os

import pytest

from brokers import LimitedLog, PeerInfo, PeerName, Role
from goreprox.protocol.budget import Budget
from goreprox.protocol.events import Code
from goreprox.protocol.stream import Stream
from goreprox.roles.dispatch import Dispatcher
from goreprox.tunnel.driver import Driver
from goreprox.tunnel.peer import Peer
from tests.support.waiting import eventually

BUDGET = Budget(total_bytes=1 << 28, max_streams=10_000)


class Client:
    """Owns a stream."""

    def __init__(self, service: str) -> None:
        self.stream = Stream(opener=True, service=service, client="test", budget=BUDGET)
        self.stream.owner = self
        self.began_at = 0.0

    def abort(self, reason: str) -> None: ...


class Nobody:
    """A carrier that leads nowhere."""

    label = "nowhere"

    def send(self, peer_id: bytes, frames: object) -> bool:
        return False

    def announce(self, attributes: object) -> None: ...

    async def close(self, *, linger_s: float) -> None: ...


class Side:
    """What an edge is to a driver, without sockets."""

    def __init__(self) -> None:
        self.driver = Driver(self, role=Role.EDGE, budget=BUDGET, grace_s=60)
        self.lost = 0
        self.dispatcher = Dispatcher(
            self.driver, LimitedLog(), services=["web"], patience_s=60, queue_timeout_s=60, lost=self._lost
        )

    def _lost(self) -> None:
        self.lost += 1

    def provider(self, *services: str) -> Peer:
        info = PeerInfo(PeerName(Role.PROVIDER, "far", os.urandom(16)), 1, said(*services))
        self.driver.peer_up(Nobody(), info)
        peer = self.driver.peers[info.name.id]
        peer.session.established = True
        self.dispatcher.peer_changed(peer)
        return peer

    def says(self, peer: Peer, *services: str) -> None:
        peer.info = PeerInfo(peer.info.name, 1, said(*services))
        self.dispatcher.peer_changed(peer)

    def peer_changed(self, peer: Peer) -> None: ...
    def stream_opened(self, peer: Peer, stream: Stream) -> None: ...
    def stream_accepted(self, peer: Peer, stream: Stream) -> None: ...
    def stream_refused(self, peer: Peer, stream: Stream, code: Code, reason: str) -> None: ...
    def stream_unsent(self, stream: Stream) -> None: ...
    def stream_dropped(self, stream: Stream) -> None: ...


def said(*services: str) -> dict[str, object]:
    return {"protocol": [1, 1], "services": list(services)}


async def test_a_flood_of_announcements_looks_at_no_client_of_other_services(monkeypatch: pytest.MonkeyPatch) -> None:
    side = Side()
    tried = 0
    plain = side.dispatcher._assign

    def counting(stream: Stream) -> bool:
        nonlocal tried
        tried += 1
        return plain(stream)

    monkeypatch.setattr(side.dispatcher, "_assign", counting)
    for _ in range(2000):
        side.dispatcher.connect(Client("web"))
    assert (tried, side.dispatcher.waiting_clients) == (2000, 2000)
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
    await eventually(lambda: not side.dispatcher.waiting_clients)
    assert len(honest.session.streams) == 2000
    assert tried <= 4001


async def test_idle_http_clients_are_looked_at_when_a_provider_is_lost_and_only_then() -> None:
    side = Side()
    peer = side.provider("web")
    for number in range(100):
        side.says(peer, "web", *["more"] * (number % 2 == 0))
        side.dispatcher.peer_changed(peer)
    await asyncio.sleep(0)
    assert side.lost <= 1
    before = side.lost
    for _ in range(100):
        side.dispatcher.peer_changed(peer)
    await asyncio.sleep(0)
    assert side.lost == before
    peer.session.peer_draining = True
    side.dispatcher.peer_changed(peer)
    await asyncio.sleep(0)
    assert side.lost == before + 1
