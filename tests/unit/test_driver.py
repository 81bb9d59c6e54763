"""The driver: versions, faults in one session, and peers that are revoked, restarted, suspended or forgotten."""

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
from loguru import logger

from brokers import REVOKED, Buffer, Carrier, LinkCondition, PeerInfo, PeerName, Role
from goreprox.config.published import MAX_NAMES
from goreprox.process.handover import moved
from goreprox.protocol.budget import Budget
from goreprox.protocol.errors import ExportError
from goreprox.protocol.events import Code
from goreprox.protocol.limits import IN_FLIGHT_MIN, MIB, VERSION, VERSION_LEAST
from goreprox.protocol.state import State
from goreprox.protocol.stream import Stream
from goreprox.tunnel import driver
from goreprox.tunnel.driver import Driver, wait_until
from goreprox.tunnel.peer import Peer, common_version
from tests.support.waiting import DEADLINE_S, eventually


@pytest.mark.parametrize(
    ("ours", "theirs", "common"),
    [
        ((1, 1), [1, 1], 1),
        ((1, 1), [1, 2], 1),
        ((1, 2), [1, 1], 1),
        ((1, 2), [2, 3], 2),
        ((2, 3), [1, 2], 2),
        ((1, 3), [2, 3], 3),
        ((1, 1), [2, 3], None),
        ((2, 3), [1, 1], None),
        ((1, 1), [0, 0], None),
        ((1, 2), [2, 1], None),
        ((1, 1), [1], None),
        ((1, 1), ["1", "1"], None),
        ((1, 1), None, None),
    ],
)
def test_both_sides_speak_the_lower_of_their_newest_versions(
    monkeypatch: pytest.MonkeyPatch, ours: tuple[int, int], theirs: object, common: int | None
) -> None:
    monkeypatch.setattr("goreprox.tunnel.peer.VERSION_LEAST", ours[0])
    monkeypatch.setattr("goreprox.tunnel.peer.VERSION", ours[1])
    assert common_version(theirs) == common


class Wire:
    """A carrier and an application; messages arrive in the next turn of the loop."""

    label = "wire"

    def __init__(self, role: Role) -> None:
        self.name = PeerName(role, "one", os.urandom(16))
        self.driver = Driver(self, role=role, budget=Budget(total_bytes=64 * MIB, max_streams=64), grace_s=60.0)
        self.others: dict[bytes, Wire] = {}
        self.sent = 0
        self.on_question: Callable[[], None] = lambda: None
        self.condition: LinkCondition | None = None
        self.holds_back = False
        self.opened: list[Stream] = []
        self.dropped: list[Stream] = []
        self.given_back: list[Stream] = []
        self.changed: list[Peer] = []
        self.accepted: list[Stream] = []

    def meets(self, other: "Wire", epoch: int, *, over: Carrier | None = None, **attributes: object) -> Peer:
        """Announce the other end to this one."""
        self.others[other.name.id] = other
        attributes = {"protocol": [VERSION_LEAST, VERSION]} | attributes
        self.driver.peer_up(over or self, PeerInfo(other.name, epoch, attributes))
        return self.driver.peers[other.name.id]

    def send(self, peer_id: bytes, frames: Sequence[Buffer]) -> bool:
        self.sent += 1
        if self.holds_back:
            return True
        other = self.others[peer_id]
        asyncio.get_running_loop().call_soon(other.driver.message, other, self.name.id, list(frames))
        return True

    def link_condition(self, peer_id: bytes) -> LinkCondition | None:
        self.on_question()
        return self.condition

    def announce(self, attributes: Mapping[str, object]) -> None: ...

    async def close(self, *, linger_s: float) -> None: ...

    def stream_opened(self, _: Peer, stream: Stream) -> None:
        self.opened.append(stream)

    def stream_accepted(self, peer: Peer, stream: Stream) -> None:
        self.accepted.append(stream)

    def stream_refused(self, peer: Peer, stream: Stream, code: Code, reason: str) -> None:
        self.given_back.append(stream)

    def stream_unsent(self, stream: Stream) -> None:
        self.given_back.append(stream)

    def stream_dropped(self, stream: Stream) -> None:
        self.dropped.append(stream)

    def peer_changed(self, peer: Peer) -> None:
        self.changed.append(peer)


class Second:
    """Another carrier of the same application; what is sent over it arrives like over the first."""

    label = "second"

    def __init__(self, wire: Wire) -> None:
        self.name = wire.name
        self.wire = wire
        self.arrives_over: Carrier | None = None

    def send(self, peer_id: bytes, frames: Sequence[Buffer]) -> bool:
        other = self.wire.others[peer_id]
        carrier = self.arrives_over or other
        asyncio.get_running_loop().call_soon(other.driver.message, carrier, self.name.id, list(frames))
        return True

    def link_condition(self, peer_id: bytes) -> None: ...

    def announce(self, attributes: Mapping[str, object]) -> None: ...

    async def close(self, *, linger_s: float) -> None: ...


@pytest.fixture
def events() -> Iterator[list[str]]:
    """The events of the log lines so far."""
    seen: list[str] = []
    sink = logger.add(lambda message: seen.append(message.record["extra"].get("event", "")), level="DEBUG")
    yield seen
    logger.remove(sink)


async def joined() -> tuple[Wire, Wire, Peer]:
    """Return an edge, a provider, and what the edge knows of the provider, once they are connected."""
    edge, provider = Wire(Role.EDGE), Wire(Role.PROVIDER)
    peer, back = edge.meets(provider, 1), provider.meets(edge, 1)
    await eventually(lambda: peer.session.established and back.session.established)
    return edge, provider, peer


async def opened() -> tuple[Wire, Wire, Peer, Stream]:
    """Return the same, and a stream that has reached the provider."""
    edge, provider, peer = await joined()
    stream = Stream(opener=True, service="web", client="test", budget=edge.driver.budget)
    peer.session.open(stream)
    await eventually(lambda: len(provider.opened) == 1)
    return edge, provider, peer, stream


async def test_a_revoked_peer_is_sent_nothing_more_and_may_return_with_a_new_session() -> None:
    edge, provider, peer, stream = await opened()
    back = provider.driver.peers[edge.name.id]

    def something_is_due() -> bool:
        """Open streams until both ends have a timer that has not fired."""
        if peer.timer is not None and back.timer is not None:
            return True
        peer.session.open(Stream(opener=True, service="web", client="test", budget=edge.driver.budget))
        return False

    await eventually(something_is_due)
    timers = peer.timer, back.timer
    for end, other in ((edge, provider), (provider, edge)):
        end.driver.peer_down(end, other.name.id, REVOKED)
    assert stream.state is State.CLOSED
    sent = edge.sent, provider.sent
    for dropped, timer in zip((peer, back), timers, strict=True):
        assert dropped.session.path is None and timer is not None and timer.cancelled()
    again, back_again = edge.meets(provider, 2), provider.meets(edge, 2)
    assert (again, back_again) != (peer, back)
    assert (edge.sent, provider.sent) == sent, "what was due before the new sessions is not sent any more"
    await eventually(lambda: again.session.established and back_again.session.established)
    assert again.session.failed is None and back_again.session.failed is None
    for end, other in ((edge, provider), (provider, edge)):
        end.driver.peer_down(end, other.name.id, REVOKED)


@pytest.mark.parametrize("gone", [False, True])
async def test_an_unsent_stream_is_given_back_unless_its_client_has_gone_since(*, gone: bool) -> None:
    edge, provider = Wire(Role.EDGE), Wire(Role.PROVIDER)
    peer, back = edge.meets(provider, 1), provider.meets(edge, 1)
    await eventually(lambda: peer.session.established and back.session.established)
    stream = Stream(opener=True, service="web", client="test", budget=edge.driver.budget)
    peer.session.open(stream)
    edge.driver.peer_down(edge, provider.name.id, "lost")
    if gone:
        stream.reset("the client was reset", now=0.0)
    await eventually(lambda: not peer.session.notices)
    assert edge.given_back == ([] if gone else [stream])


@pytest.mark.parametrize(
    ("condition", "sends"), [(None, True), (LinkCondition(0, 0.01), True), (LinkCondition(1 << 30, 0.01), False)]
)
async def test_nothing_is_added_to_what_the_link_has_not_sent(condition: LinkCondition | None, *, sends: bool) -> None:
    edge, provider = Wire(Role.EDGE), Wire(Role.PROVIDER)
    peer, back = edge.meets(provider, 1), provider.meets(edge, 1)
    await eventually(lambda: peer.session.established and back.session.established)
    path = peer.session.epochs.path
    assert path is not None
    path.congestion.acknowledged(0.01, 100 * MIB, limited=False, now=time.monotonic())  # 2 MiB may be in flight
    edge.holds_back, edge.condition = True, condition
    asked: list[int] = []
    edge.on_question = lambda: asked.append(path.in_flight)

    async def open_and_write() -> None:
        stream = Stream(opener=True, service="web", client="test", budget=edge.driver.budget)
        peer.session.open(stream)
        stream.write(bytes(stream.room))
        sent = edge.sent
        await eventually(lambda: edge.sent > sent)

    while path.in_flight <= IN_FLIGHT_MIN:
        await open_and_write()
    before = path.in_flight
    await open_and_write()
    assert asked
    assert min(asked) > IN_FLIGHT_MIN, "less is no queue"
    if sends:
        await eventually(lambda: path.in_flight - before > IN_FLIGHT_MIN // 2)
    else:
        assert path.in_flight - before < IN_FLIGHT_MIN // 2, "an Open goes out at any time, its payload does not"


async def test_a_fault_in_one_stream_touches_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    edge, provider = Wire(Role.EDGE), Wire(Role.PROVIDER)
    peer, back = edge.meets(provider, 1), provider.meets(edge, 1)
    await eventually(lambda: peer.session.established and back.session.established)

    def fails_once(at: Peer, stream: Stream) -> None:
        monkeypatch.undo()
        raise ZeroDivisionError

    monkeypatch.setattr(provider, "stream_opened", fails_once)
    for _ in range(2):
        peer.session.open(Stream(opener=True, service="web", client="test", budget=edge.driver.budget))
    await eventually(lambda: len(provider.opened) == 1)
    assert [type(context["exception"]) for context in told] == [ZeroDivisionError]


@pytest.mark.pure
@pytest.mark.parametrize("method", ["flush", "receive"])
async def test_a_fault_in_one_session_ends_it_and_touches_no_other(
    monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    told: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    faulty, sound, provider = Wire(Role.EDGE), Wire(Role.EDGE), Wire(Role.PROVIDER)
    for edge in (faulty, sound):
        edge.meets(provider, 1)
        provider.meets(edge, 1)
    bad, good = (provider.driver.peers[edge.name.id] for edge in (faulty, sound))
    await eventually(lambda: sound.driver.peers[provider.name.id].session.established)
    stream = Stream(opener=False, service="web", client="test", budget=provider.driver.budget)
    bad.session.streams[1] = stream

    def fails(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(bad.session, method, fails)
    faulty.driver.drain()  # which makes one end say something, and the other
    provider.driver.drain()
    await eventually(lambda: sound.driver.peers[provider.name.id].session.peer_draining and bad.session.failed)
    assert bad.session.failed == "a fault in this process, which is in its log"
    assert stream.state is State.CLOSED and good.session.failed is None
    assert told and all(isinstance(context["exception"], ZeroDivisionError) for context in told)


async def test_streams_are_dropped_with_a_session_that_is_forgotten_after_a_long_suspend(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept_s = 0.0
    monkeypatch.setattr(driver, "clock", lambda: time.monotonic() + slept_s)
    monkeypatch.setattr(driver, "MAX_TIMER_S", 0.01)
    edge, provider = Wire(Role.EDGE), Wire(Role.PROVIDER)
    peer, back = edge.meets(provider, 1), provider.meets(edge, 1)
    await eventually(lambda: peer.session.established and back.session.established)
    peer.session.open(Stream(opener=True, service="web", client="test", budget=edge.driver.budget))
    await eventually(lambda: len(provider.opened) == 1)
    for end, other in ((edge, provider), (provider, edge)):
        end.driver.peer_down(end, other.name.id, "the laptop was closed")
    slept_s = 60.0 + driver.FORGET_S + 60.0
    await eventually(lambda: not edge.driver.peers and not provider.driver.peers)
    assert provider.dropped == provider.opened


async def test_a_forgotten_session_does_nothing_to_its_successor(monkeypatch: pytest.MonkeyPatch) -> None:
    slept_s = 0.0
    monkeypatch.setattr(driver, "clock", lambda: time.monotonic() + slept_s)
    monkeypatch.setattr(driver, "MAX_TIMER_S", 0.01)
    edge, provider = Wire(Role.EDGE), Wire(Role.PROVIDER)
    old = edge.meets(provider, 1)  # who does not respond
    await asyncio.sleep(0)
    slept_s = 60.0 + driver.FORGET_S + 60.0
    edge.driver.peer_down(edge, provider.name.id, "expired")
    edge.driver._tick(old)  # after a stop, timers are due in the same turn as all else
    await asyncio.sleep(0)
    peer, back = edge.meets(provider, 2), provider.meets(edge, 2)
    assert peer is not old
    await eventually(lambda: peer.session.established and back.session.established)
    assert old.due == float("inf"), "nothing of it is left to happen"
    assert edge.driver.peers == {provider.name.id: peer}


async def test_of_absent_peers_without_streams_only_the_last_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(driver, "MAX_ABSENT", 2)
    provider = Wire(Role.PROVIDER)
    edges = [Wire(Role.EDGE) for _ in range(4)]
    for edge in edges:
        provider.meets(edge, 1)
        provider.driver.peer_down(provider, edge.name.id, "left")
    assert list(provider.driver.peers) == [edge.name.id for edge in edges[2:]]
    back = provider.meets(edges[2], 2)
    provider.meets(edges[0], 3)
    provider.driver.peer_down(provider, edges[0].name.id, "left")
    assert list(provider.driver.peers) == [edge.name.id for edge in (edges[2], edges[3], edges[0])]
    assert provider.driver.peers[edges[2].name.id] is back


@pytest.mark.parametrize(("name", "buried"), [("one", True), ("two", False)])
async def test_only_a_successor_of_the_same_name_declares_a_process_dead(
    events: list[str], name: str, *, buried: bool
) -> None:
    edge, provider, _, stream = await opened()
    attributes: Mapping[str, object] = {
        "protocol": [VERSION_LEAST, VERSION],
        "predecessor": provider.name.incarnation,
    }
    other = Wire(Role.PROVIDER)
    other.name = PeerName(Role.PROVIDER, name, os.urandom(16))
    edge.others[other.name.id] = other
    edge.driver.peer_up(edge, PeerInfo(other.name, 1, attributes))
    assert (stream.state is State.CLOSED) is buried
    assert (provider.name.id not in edge.driver.peers) is buried
    assert ("peer_restarted" in events) is buried


async def test_a_carrier_that_is_lost_takes_its_paths_with_it(events: list[str]) -> None:
    edge, provider, peer = await joined()
    second = Second(edge)
    for carrier in (edge, second):
        edge.driver.carrier_up(carrier)
    edge.meets(provider, 1, over=second)
    assert edge.driver.carriers == {edge, second} and set(peer.epochs) == {edge, second}
    edge.changed.clear()
    edge.driver.carrier_down(second, "lost")
    assert edge.changed == [peer]
    assert edge.driver.carriers == {edge} and set(peer.epochs) == {edge}
    assert peer.session.established and "peer_down" not in events
    edge.driver.carrier_down(edge, "lost")
    assert not edge.driver.carriers and not peer.epochs and not peer.session.established
    assert events.count("peer_down") == 1 and edge.changed == [peer, peer]


def way(label: str) -> Second:
    carrier = Second(Wire(Role.EDGE))
    carrier.label = label
    return carrier


async def test_edges_prefer_paths_evenly_over_brokers_and_each_always_the_same() -> None:
    ways = [way(f"broker-{index}:9888") for index in range(4)]
    provider = Wire(Role.PROVIDER)
    preferred: list[int] = []
    for _ in range(32):
        edge = Wire(Role.EDGE)
        edge.driver.own_id = edge.name.id
        for _ in range(32):
            peer = edge.meets(Wire(Role.PROVIDER), 1)
            ranks = [edge.driver._rank(each, peer) for each in ways]
            assert ranks == [edge.driver._rank(each, peer) for each in ways] and len(set(ranks)) == 4
            preferred.append(ranks.index(max(ranks)))
            assert {provider.driver._rank(each, peer) for each in ways} == {0}
    shares = [preferred.count(index) for index in range(4)]
    assert all(0.75 * 256 < share < 1.25 * 256 for share in shares), shares


@pytest.mark.pure
async def test_a_session_that_moves_to_the_path_its_edge_prefers_is_no_outage_to_either_end(
    monkeypatch: pytest.MonkeyPatch, events: list[str]
) -> None:
    monkeypatch.setattr("goreprox.protocol.paths.SETTLE_MIN_S", 0.05)
    edge, provider, peer = await joined()
    second, back = Second(edge), Second(provider)
    back_peer = provider.driver.peers[edge.name.id]
    second.arrives_over, back.arrives_over = back, second
    provider.meets(edge, 1, over=back)
    monkeypatch.setattr(edge.driver, "_rank", lambda *_: 1 << 64)
    edge.meets(provider, 1, over=second)
    await eventually(lambda: peer.session.uses(second) and peer.session.established and back_peer.session.uses(back))
    await eventually(lambda: events.count("peer_moved") == 2)
    assert (peer.session.counters.outages, back_peer.session.counters.outages) == (0, 0)


async def test_a_peer_that_is_revoked_over_one_of_two_carriers_stays(events: list[str]) -> None:
    edge, provider, peer = await joined()
    second = Second(edge)
    edge.meets(provider, 1, over=second)
    stream = Stream(opener=True, service="web", client="test", budget=edge.driver.budget)
    peer.session.open(stream)
    await eventually(lambda: provider.opened)
    edge.driver.peer_down(edge, provider.name.id, REVOKED)
    assert edge.driver.peers == {provider.name.id: peer} and set(peer.epochs) == {second}
    edge.changed.clear()
    edge.driver.peer_down(second, provider.name.id, REVOKED)
    assert edge.dropped == [stream] and edge.changed == [peer]
    assert not peer.epochs and not edge.driver._by_host
    assert not edge.driver.peers and peer.gone and events.count("peer_revoked") == 1


async def test_a_path_that_is_unknown_is_not_lost() -> None:
    edge, provider, peer = await joined()
    edge.driver.peer_down(edge, bytes(17), "unknown peer")
    edge.driver.peer_down(Second(edge), provider.name.id, "unknown path")
    assert peer.session.established and set(peer.epochs) == {edge}


async def test_peers_of_the_same_role_are_ignored() -> None:
    edge = Wire(Role.EDGE)
    with pytest.raises(KeyError):
        edge.meets(Wire(Role.EDGE), 1)
    assert not edge.driver.peers


async def test_a_peer_without_a_common_version_is_logged_and_ignored(events: list[str]) -> None:
    edge = Wire(Role.EDGE)
    with pytest.raises(KeyError):
        edge.meets(Wire(Role.PROVIDER), 1, protocol=[VERSION + 1, VERSION + 1])
    assert not edge.driver.peers and events == ["peer_incompatible"]


async def test_a_peer_without_sessions_is_ignored_and_not_logged(events: list[str]) -> None:
    edge = Wire(Role.EDGE)
    info = PeerInfo(PeerName(Role.PROVIDER, "doctor", bytes(16)), 1, {"services": ["web"]})
    edge.driver.peer_up(edge, info)
    assert not edge.driver.peers and not events


async def test_new_attributes_replace_the_old_ones_in_the_same_session() -> None:
    edge, provider, peer = await joined()
    edge.changed.clear()
    assert edge.meets(provider, 1, services=["web"]) is peer
    assert peer.services == ["web"] and edge.changed == [peer] and peer.session.established


async def test_a_peer_that_said_goodbye_is_forgotten_with_its_last_path(events: list[str]) -> None:
    edge, provider, peer = await joined()
    await provider.driver.goodbye("shut down", deadline_s=10.0)
    await eventually(lambda: peer.gone)
    assert provider.driver.settled and events.count("peer_left") == 1
    assert edge.driver.peers == {provider.name.id: peer} and not peer.available
    edge.driver.peer_down(edge, provider.name.id, "left")
    assert not edge.driver.peers and edge.changed[-1] is peer and "peer_down" not in events


async def test_a_draining_driver_asks_for_no_new_streams_also_of_peers_that_come_later() -> None:
    _, provider, peer = await joined()
    assert peer.available
    provider.driver.drain()
    assert provider.driver.draining
    await eventually(lambda: peer.session.peer_draining)
    late = Wire(Role.EDGE)
    other, _ = late.meets(provider, 1), provider.meets(late, 1)
    await eventually(lambda: other.session.peer_draining)
    assert not peer.available and not other.available


async def test_the_peer_of_a_stream_is_known_as_long_as_its_session() -> None:
    edge, provider, peer = await joined()
    stream = Stream(opener=True, service="web", client="test", budget=edge.driver.budget)
    assert edge.driver.peer_of(stream) is None
    peer.session.open(stream)
    assert edge.driver.peer_of(stream) is peer
    edge.driver.peer_down(edge, provider.name.id, REVOKED)
    assert edge.driver.peer_of(stream) is None


async def test_an_absent_peer_with_a_stream_is_not_among_those_that_are_forgotten_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(driver, "MAX_ABSENT", 0)
    edge, provider, peer = await joined()
    peer.session.open(Stream(opener=True, service="web", client="test", budget=edge.driver.budget))
    await eventually(lambda: provider.opened)
    edge.driver.peer_down(edge, provider.name.id, "lost")
    assert edge.driver.peers == {provider.name.id: peer}


async def test_a_peer_with_another_path_is_not_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "MAX_ABSENT", 0)
    edge, provider, peer = await joined()
    edge.meets(provider, 1, over=Second(edge))
    edge.driver.peer_down(edge, provider.name.id, "lost")
    assert edge.driver.peers == {provider.name.id: peer}


async def test_the_loss_of_a_peer_that_never_responded_is_not_logged(events: list[str]) -> None:
    edge, provider = Wire(Role.EDGE), Wire(Role.PROVIDER)
    edge.meets(provider, 1)
    edge.driver.peer_down(edge, provider.name.id, "lost")
    assert not events


async def test_work_in_a_batch_is_sent_once_at_its_end() -> None:
    edge, provider, peer = await joined()
    for _ in range(5):
        await asyncio.sleep(0)
    sent = edge.sent

    def work() -> None:
        for _ in range(3):
            peer.session.open(Stream(opener=True, service="web", client="test", budget=edge.driver.budget))
        assert edge.sent == sent

    edge.driver.batch(work)
    assert edge.sent == sent + 1
    await eventually(lambda: len(provider.opened) == 3)


@pytest.mark.parametrize("accepts", [True, False])
async def test_the_application_is_told_of_a_stream_with_early_bytes_and_of_its_response(*, accepts: bool) -> None:
    faults: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    edge, provider, peer = await joined()
    stream = Stream(opener=True, service="web", client="test", budget=edge.driver.budget)
    stream.write(b"early")
    peer.session.open(stream)
    await eventually(lambda: provider.opened)
    (served,) = provider.opened
    if accepts:
        served.accept()
    else:
        served.refuse(Code.TARGET, "no")
    responded = edge.accepted if accepts else edge.given_back
    await eventually(lambda: responded == [stream])
    assert not faults and bytes(served.receive.chunks[0] if accepts else b"early") == b"early"


async def test_a_session_is_forgotten_once_it_has_been_without_path_and_streams_for_long_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(driver, "clock", lambda: now)
    edge, provider, peer = await joined()
    assert peer.up_at == 0.0
    kept_s = 60.0 + driver.FORGET_S
    now = 2 * kept_s
    edge.driver._tick(peer)
    assert edge.driver.peers, "it has a path"
    edge.driver.peer_down(edge, provider.name.id, "lost")
    now = 3 * kept_s
    edge.driver._tick(peer)
    assert edge.driver.peers, "not for longer than that"
    now = 3 * kept_s + 1.0
    edge.driver._tick(peer)
    assert not edge.driver.peers


async def test_sessions_go_on_in_another_driver() -> None:
    edge, provider, peer, stream = await opened()
    provider.opened[0].accept()
    await eventually(lambda: stream.state is State.OPEN)
    provider.driver.carrier_up(provider)
    provider.driver.leave("a test")
    edge.driver.peer_down(edge, provider.name.id, "a test")
    before = provider.driver.peers[edge.name.id]
    assert not before.epochs and not before.session.established
    items = list(moved(provider.driver.export(payload=True)))
    after = Wire(Role.PROVIDER)
    after.name = provider.name
    after.driver.restore(iter(items))
    assert after.driver.feed.count == provider.driver.feed.count > 0
    restored = after.driver.peers[edge.name.id]
    assert restored.info == before.info and restored.timer is None
    (restored_stream,) = restored.session.streams.values()
    assert after.driver.peer_of(restored_stream) is restored
    edge.meets(after, 2)
    assert after.meets(edge, 2) is restored
    await eventually(lambda: peer.session.established and restored.session.established)
    stream.write(b"after")
    await eventually(lambda: restored_stream.receive.received == 5)
    for end, other in ((edge, after), (after, edge)):
        end.driver.peer_down(end, other.name.id, REVOKED)


async def test_of_sessions_without_streams_that_are_restored_only_the_last_are_kept() -> None:
    edge, provider, _ = await joined()
    after = Wire(Role.PROVIDER)
    after.driver.restore(provider.driver.export(payload=False))
    assert list(after.driver._absent) == [edge.name.id]
    for end, other in ((edge, provider), (provider, edge)):
        end.driver.peer_down(end, other.name.id, REVOKED)
    after.driver._forget(after.driver.peers[edge.name.id])


@pytest.mark.parametrize("change", [{"incarnation": b"short"}, {"role": b"x"}])
async def test_a_peer_that_cannot_be_is_not_restored(change: dict[str, object]) -> None:
    edge, provider, _ = await joined()
    head, entry, *rest = provider.driver.export(payload=False)
    assert isinstance(entry, dict)
    with pytest.raises(ExportError, match="a peer in the export"):
        Wire(Role.PROVIDER).driver.restore(iter([head, entry | change, *rest]))
    for end, other in ((edge, provider), (provider, edge)):
        end.driver.peer_down(end, other.name.id, REVOKED)


async def test_the_application_is_told_of_a_peer_at_once_and_when_streams_may_flow() -> None:
    """What a provider offers is known before its session is established, so its service is not taken for misspelt."""
    edge = Wire(Role.EDGE)
    peer = edge.meets(Wire(Role.PROVIDER), 1)
    assert edge.changed == [peer] and not peer.available
    edge, _, peer = await joined()
    assert edge.changed == [peer, peer] and peer.available


async def test_a_message_of_an_unknown_peer_is_ignored() -> None:
    edge, _, peer = await joined()
    edge.driver.message(edge, os.urandom(17), [b"nothing"])
    assert peer.available


async def test_a_goodbye_waits_until_the_peer_has_it() -> None:
    edge, provider, peer = await joined()
    await edge.driver.goodbye("we are leaving", deadline_s=DEADLINE_S)
    assert edge.driver.settled and peer.session.settled
    assert provider.driver.peers[edge.name.id].gone


async def test_waiting_for_a_condition_ends_with_it_or_at_the_deadline() -> None:
    await asyncio.wait_for(wait_until(lambda: True, deadline_s=1000.0), DEADLINE_S)
    await asyncio.wait_for(wait_until(lambda: False, deadline_s=0.05), DEADLINE_S)


async def test_a_session_that_begins_later_has_another_grace_at_once() -> None:
    edge = Wire(Role.EDGE)
    before = edge.meets(Wire(Role.PROVIDER), 1)
    edge.driver.set_grace(5.0)
    after = edge.meets(Wire(Role.PROVIDER), 1)
    assert (before.session.epochs.grace_s, after.session.epochs.grace_s) == (60.0, 5.0)


async def test_what_an_edge_says_of_published_names_is_bounded_and_begins_anew_with_each_epoch() -> None:
    edge, provider = Wire(Role.EDGE), Wire(Role.PROVIDER)
    at_edge, at_provider = edge.meets(provider, 1), provider.meets(edge, 1)
    await eventually(lambda: at_edge.session.established and at_provider.session.established)
    for number in range(MAX_NAMES + 1):
        at_edge.session.multiplexer.say_served(f"tcp://{number}@one", f"h:{number}", "")
    at_edge.session.multiplexer.say_served("tcp://0@one", "", "taken")
    await eventually(lambda: "tcp://0@one" in at_provider.served and at_provider.served["tcp://0@one"].reason)
    assert len(at_provider.served) == MAX_NAMES
    provider.meets(edge, 2)
    edge.meets(provider, 2)
    await eventually(lambda: at_provider.session.established and not at_provider.served)


async def test_what_brokers_say_of_a_key_is_known_for_each_of_them() -> None:
    edge, provider, other = Wire(Role.EDGE), Wire(Role.PROVIDER), Wire(Role.EDGE)
    peer = edge.meets(provider, 1, granted=[b"key", []])
    assert edge.meets(provider, 1, over=other, granted=[b"key", [[1, 2]]]) is peer
    assert list(peer.granted.values()) == [[b"key", []], [b"key", [[1, 2]]]]
    edge.driver.peer_down(other, peer.id, "left")
    assert list(peer.granted) == [edge]
