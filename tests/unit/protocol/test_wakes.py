"""When a session asks to be flushed, and when it asks to be ticked."""

from collections.abc import Callable

import pytest

from goreprox.protocol.events import Abort, Accept, Ack, Code, Data, Probe
from goreprox.protocol.limits import IN_FLIGHT_MIN, LOSS_TIMEOUT_S, PATH_ACK_DELAY_S, STREAM_ACK_DELAY_S
from tests.support.peer import GRACE_S, WINDOW, Peer, bound, edge, hello, opened


def _receive_and_consume(peer: Peer) -> None:
    peer.say(Data(1, 0, b"abc"))
    peer.heard()
    peer.wakes = 0
    peer.session.streams[1].consume(3, now=0.0)


def _break_the_protocol(peer: Peer) -> None:
    peer.session.streams[1].abort("so that no event of a stream wakes")
    peer.heard()
    peer.wakes = 0
    peer.say(hello())
    assert peer.session.failed


def _reset_on_a_full_path(peer: Peer) -> None:
    stream = peer.session.streams[1]
    bound(peer, IN_FLIGHT_MIN)
    stream.write(bytes(2 * IN_FLIGHT_MIN))
    peer.heard()
    assert stream.place is not None
    peer.wakes = 0
    stream.reset("gone", now=0.0)


@pytest.mark.parametrize(
    "action",
    [
        lambda peer: peer.session.streams[1].write(b"abc"),
        lambda peer: peer.session.streams[1].write_eof(),
        lambda peer: peer.session.streams[1].abort("enough"),
        lambda peer: peer.session.drain(),
        lambda peer: peer.session.path_up("a", 0.0),
        lambda peer: peer.session.path_down("a", 0.0),
        lambda peer: peer.say(Probe()),
        lambda peer: peer.say(Probe(), seq=9),
        _receive_and_consume,
        _break_the_protocol,
        _reset_on_a_full_path,
    ],
)
def test_whatever_changes_what_is_due_wakes_the_driver_once(action: Callable[[Peer], None]) -> None:
    peer, _ = opened()
    peer.heard()
    peer.wakes = 0
    action(peer)
    assert peer.wakes == 1


def test_a_new_session_wakes_the_driver_for_its_first_path() -> None:
    peer = Peer()
    peer.session.path_up("a", 0.0)
    assert peer.wakes == 1


def test_the_last_page_wakes_the_driver() -> None:
    peer = Peer()
    peer.session.path_up("a", 0.0)
    peer.heard()
    peer.heard()
    peer.wakes = 0
    peer.say(hello())
    assert peer.wakes == 1


def test_a_write_without_an_established_epoch_neither_schedules_nor_wakes() -> None:
    peer, stream = opened()
    peer.session.path_down("a", 0.0)
    peer.heard()
    peer.wakes = 0
    stream.write(b"abc")
    assert (peer.session.scheduled_streams, peer.wakes) == (0, 0)


def test_no_stream_stays_scheduled_when_an_epoch_ends() -> None:
    peer, stream = opened()
    stream.write(b"abc")
    peer.session.path_down("a", 0.0)
    assert peer.session.scheduled_streams == 0


def test_no_acknowledgement_is_due_once_it_was_sent() -> None:
    peer, stream = opened()
    peer.heard()
    peer.say(Data(1, 0, b"abc"))
    stream.consume(3, now=0.0)
    peer.now = STREAM_ACK_DELAY_S
    assert peer.heard() == [Ack(1, 3, stream.receive.limit)]
    peer.say()
    assert peer.session.deadline() is None


@pytest.mark.parametrize("again", [True, False])
def test_a_delayed_acknowledgement_is_not_sent_in_the_next_epoch_before_it_is_established(again: bool) -> None:
    peer, stream = opened()
    peer.say(Data(1, 0, b"abc"))
    stream.consume(3, now=0.0)
    peer.session.path_down("a", 0.0)
    assert peer.session.deadline() == GRACE_S + 8.0, "nothing but the grace"
    peer.session.path_up("a", 0.0)
    peer.heard()
    if again:
        stream.reset("gone", now=0.0)
    peer.now = STREAM_ACK_DELAY_S
    assert peer.heard() == []


def test_no_acknowledgement_follows_the_end_of_a_stream() -> None:
    peer, stream = opened()
    peer.say(Data(1, 0, b"abc"))
    stream.consume(3, now=0.0)
    stream.abort("enough")
    peer.now = STREAM_ACK_DELAY_S
    assert peer.heard() == [Abort(1, Code.OTHER, "enough")]


@pytest.mark.parametrize(("count", "delay_s"), [(3, STREAM_ACK_DELAY_S), (4, PATH_ACK_DELAY_S)])
def test_delivery_is_acknowledged_soon_from_half_of_the_peers_reservation_on(count: int, delay_s: float) -> None:
    peer = Peer()
    peer.session.path_up("a", 0.0)
    peer.heard()
    page = hello()
    page.window = 8
    peer.say(page)
    stream = peer.open()
    peer.heard()
    peer.say(Accept(1, WINDOW), Data(1, 0, bytes(count)))
    peer.now = 1.0
    peer.heard()
    peer.say()
    stream.consume(count, now=1.0)
    assert peer.session.deadline() == 1.0 + delay_s


def test_a_reset_is_due_only_while_streams_flow() -> None:
    peer, stream = opened()
    stream.reset("gone", now=0.0)
    peer.session.path_down("a", 5.0)
    assert peer.session.deadline() == 5.0 + GRACE_S + 8.0


def test_a_session_is_stalled_while_a_probe_is_unacknowledged() -> None:
    peer, _ = opened()
    peer.open()
    peer.heard()
    stalled = [peer.session.stalled]
    peer.now = peer.session.deadline() or 0.0
    peer.session.tick(peer.now)
    stalled.append(peer.session.stalled)
    peer.session.path_down("a", peer.now)
    stalled.append(peer.session.stalled)
    assert stalled == [False, True, False]


def test_a_session_with_something_scheduled_is_not_settled() -> None:
    peer, stream = opened()
    peer.say()
    settled = [peer.session.settled]
    stream.write(b"abc")
    settled.append(peer.session.settled)
    assert settled == [True, False]


def test_a_session_that_has_not_sent_all_its_pages_is_not_settled() -> None:
    peer = Peer(max_streams=1024)
    for _ in range(513):
        peer.open()
    peer.session.path_up("a", 0.0)
    assert len(peer.heard()) == 1
    peer.say(Probe())
    assert not peer.session.settled


def test_no_round_trip_is_known_before_the_first_acknowledgement() -> None:
    peer = Peer()
    peer.session.path_up("a", 0.0)
    assert peer.session.epochs.round_trip_s == 0.1


def test_silence_counts_from_what_was_sent() -> None:
    peer = edge()
    peer.now = 100.0
    peer.open()
    peer.heard()
    peer.session.tick(100.0 + LOSS_TIMEOUT_S - 0.01)
    assert peer.session.established


def test_the_driver_is_woken_once_until_the_next_flush() -> None:
    peer = edge()
    peer.heard()
    peer.wakes = 0
    peer.session.drain()
    peer.session.drain()
    woken = [peer.wakes]
    peer.heard()
    peer.session.drain()
    woken.append(peer.wakes)
    assert woken == [1, 2]
