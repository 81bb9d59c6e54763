"""One session, with its peer played by the test: who says what, and what the driver is told."""

import pytest

from goreprox.protocol import wire
from goreprox.protocol.events import (
    Abort,
    Accept,
    Ack,
    Batch,
    Code,
    Data,
    Drain,
    Eof,
    Event,
    Goodbye,
    Live,
    Open,
    Probe,
    Refuse,
    Reset,
    Resume,
)
from goreprox.protocol.limits import (
    ALLOWANCE_S,
    BATCH_BYTES,
    BATCH_EVENTS,
    IN_FLIGHT_MAX,
    IN_FLIGHT_MIN,
    KIB,
    LOSS_TIMEOUT_S,
    MAX_OFFSET,
    MAX_RAW_FRAMES,
    MIB,
    PATH_ACK_DELAY_S,
    PROBE_MIN_S,
    QUANTUM_MIN,
    RAW_PAYLOAD,
    RESET_LINGER_S,
    RESTART_MAX_S,
    RESTART_MIN_S,
    RESUME_PAGE,
    STALL_PROBES,
    STREAM_ACK_DELAY_S,
    WINDOW_INITIAL,
)
from goreprox.protocol.notices import Kind, Notice
from goreprox.protocol.path import Path
from goreprox.protocol.resume import GONE
from goreprox.protocol.state import State
from tests.support.peer import (
    GRACE_S,
    WINDOW,
    Peer,
    accepted,
    bound,
    dialing,
    edge,
    failure,
    hello,
    live,
    opened,
    provider,
)

# Paths and epochs.


def test_an_epoch_begins_with_a_resume_from_both_ends() -> None:
    peer = Peer()
    assert peer.path_in_use is None
    assert peer.session.epochs.round_trip_s == 0.1
    peer.session.path_up("a", 0.0)
    assert peer.path_in_use == "a"
    assert peer.heard() == [Resume(GRACE_S, peer.budget.reserved_bytes, 1, True, ())]
    before = (peer.session.established, peer.session.epochs.lost_at)
    peer.now = 0.2
    peer.say(hello())
    assert (before, peer.session.established, peer.session.epochs.lost_at) == ((False, 0.0), True, None)
    assert peer.kinds() == [Kind.ESTABLISHED]
    assert peer.session.epochs.round_trip_s == pytest.approx(0.2)


@pytest.mark.parametrize(("opener", "epochs"), [(True, [2, 4]), (False, [1, 3])])
def test_each_end_has_epochs_of_its_own(opener: bool, epochs: list[int]) -> None:
    peer = Peer(opener=opener)
    begun = []
    for _ in epochs:
        peer.session.path_up("a", 0.0)
        peer.heard()
        begun.append(peer.epoch)
    assert begun == epochs


def test_an_epoch_of_the_peer_is_adopted() -> None:
    peer = Peer(opener=False)
    peer.session.path_up("a", 0.0)
    peer.begin(hello(), epoch=2)
    assert peer.heard() == [Resume(GRACE_S, peer.budget.reserved_bytes, 1, True, ())]
    assert (peer.epoch, peer.session.established) == (2, True)


def test_the_higher_of_two_epochs_wins() -> None:
    peer = edge()
    peer.begin(hello(), epoch=1)
    assert peer.kinds() == []
    assert peer.session.counters.outages == 0
    peer.begin(hello(), epoch=3)
    assert peer.kinds() == [Kind.ESTABLISHED]
    assert peer.session.counters.outages == 1


@pytest.mark.parametrize("events", [(), (Probe(),)])
def test_an_epoch_whose_beginning_was_lost_is_begun_anew(events: tuple[Event, ...]) -> None:
    peer = edge()
    peer.epoch, peer.seq, peer.received = 5, 1, 0
    peer.say(*events)
    assert [type(event) for event in peer.heard()] == [Resume]
    assert peer.epoch == 8


def test_an_epoch_too_high_to_count_on_is_rejected() -> None:
    peer = edge()
    peer.begin(hello(), epoch=MAX_OFFSET // 2 + 1)
    assert "epoch 4611686018427387904, expected at most 4611686018427387903" in failure(peer)


def test_messages_of_an_unknown_path_are_inert() -> None:
    peer = edge()
    peer.say(Drain(), path="b")
    assert not peer.session.peer_draining


def test_messages_of_another_path_in_this_epoch_are_inert() -> None:
    peer = edge()
    peer.session.path_up("b", 0.0)
    peer.say(Drain(), path="b")
    assert not peer.session.peer_draining
    assert peer.path_in_use == "a"


def test_another_path_takes_over() -> None:
    peer = edge()
    peer.session.path_up("b", 0.0)
    assert peer.heard() == []
    peer.session.path_down("a", 1.0)
    peer.heard()
    assert (peer.path, peer.session.epochs.lost_at) == ("b", 1.0)


def test_losing_a_standby_path_changes_nothing() -> None:
    peer = edge()
    peer.session.path_up("b", 0.0)
    peer.session.path_down("b", 1.0)
    peer.session.path_down("unknown", 1.0)
    assert peer.session.established


def test_without_a_path_nothing_is_sent() -> None:
    peer = edge()
    peer.session.path_down("a", 1.0)
    peer.session.path_down("a", 1.0)
    stream = peer.open()
    stream.write(b"abc")
    assert peer.heard() == []
    assert peer.session.settled
    assert peer.session.epochs.lost_at == 1.0


def test_a_repeated_message_counts_once() -> None:
    peer = edge()
    peer.say(Drain())
    peer.say(Drain(), seq=1)
    assert peer.kinds() == [Kind.DRAINING]


def test_a_gap_begins_a_new_epoch_soon() -> None:
    peer = edge()
    peer.say(Probe(), seq=3)
    assert (peer.session.established, peer.heard()) == (False, [])
    assert peer.session.deadline() == RESTART_MIN_S
    peer.now = RESTART_MIN_S
    peer.session.tick(peer.now)
    assert [type(event) for event in peer.heard()] == [Resume]
    assert peer.epoch == 4


def test_an_acknowledgement_alone_reveals_a_gap() -> None:
    peer = edge()
    peer.say()
    whole = peer.session.established
    peer.say(seq=2)
    assert (whole, peer.session.established) == (True, False)


def test_between_two_epochs_messages_are_inert() -> None:
    peer = edge()
    peer.say(seq=2)
    peer.say(Drain())
    assert not peer.session.peer_draining


def test_a_new_epoch_tries_another_path_first() -> None:
    peer = edge()
    peer.session.path_up("b", 0.0)
    peer.say(seq=9)
    peer.now = RESTART_MIN_S
    peer.session.tick(peer.now)
    peer.heard()
    assert peer.path == "b"


def test_no_epoch_begins_once_the_last_path_is_gone() -> None:
    peer = edge()
    peer.say(seq=9)
    peer.session.path_down("a", 0.0)
    peer.session.tick(RESTART_MIN_S)
    assert peer.path_in_use is None
    assert peer.session.deadline() is None


def test_silence_is_probed_and_ends_the_epoch() -> None:
    peer = edge()
    stream = peer.open()
    stream.write(b"abc")
    peer.heard()
    assert peer.session.deadline() == PROBE_MIN_S
    peer.now = PROBE_MIN_S
    peer.session.tick(peer.now)
    assert peer.heard() == [Probe()]
    peer.session.tick(PROBE_MIN_S)
    assert peer.heard() == []
    peer.session.tick(LOSS_TIMEOUT_S)
    assert not peer.session.established


def stall(peer: Peer) -> list[float]:
    """Let probes go unanswered for `STALL_PROBES` and one more; return when they were due."""
    times: list[float] = []
    while len(times) <= STALL_PROBES:
        peer.now = peer.session.deadline() or 0.0
        peer.session.tick(peer.now)
        times.append(peer.now)
        peer.heard()
    return times


def test_a_stalled_path_is_left_for_another_before_it_counts_as_lost() -> None:
    peer = edge()
    peer.session.path_up("b", 0.0)
    peer.open()
    peer.heard()
    assert stall(peer) == [0.25, 0.75, 1.75]
    assert not peer.session.established
    peer.now += RESTART_MIN_S
    peer.session.tick(peer.now)
    assert [type(event) for event in peer.heard()] == [Resume]
    assert (peer.path, peer.path_in_use) == ("b", "b")


def test_the_only_path_is_probed_until_it_counts_as_lost() -> None:
    peer = edge()
    peer.open()
    peer.heard()
    stall(peer)
    assert (peer.path_in_use, peer.session.established) == ("a", True)


def test_a_stalled_epoch_that_was_never_established_ends_only_by_loss() -> None:
    peer = Peer()
    peer.session.path_up("a", 0.0)
    peer.session.path_up("b", 0.0)
    peer.heard()
    stall(peer)
    assert peer.path_in_use == "a"
    peer.session.tick(LOSS_TIMEOUT_S)
    assert peer.path_in_use is None


def test_pauses_between_epochs_double_up_to_a_maximum() -> None:
    peer = Peer()
    peer.session.path_up("a", 0.0)
    waits = []
    for _ in range(7):
        peer.heard()
        peer.now += LOSS_TIMEOUT_S + 0.01
        peer.session.tick(peer.now)
        due = peer.session.deadline()
        assert due is not None
        waits.append(round(due - peer.now, 3))
        peer.now = due
        peer.session.tick(peer.now)
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, RESTART_MAX_S, RESTART_MAX_S]


def test_a_probe_is_acknowledged_at_once() -> None:
    peer = edge()
    peer.heard()
    peer.say(Probe())
    assert peer.heard() == []
    assert peer.acked == 2


def test_messages_are_acknowledged_alone_after_a_delay() -> None:
    peer = edge()
    peer.now = PATH_ACK_DELAY_S
    peer.heard()
    peer.say(Drain())
    peer.heard()
    assert peer.acked == 1
    peer.now += PATH_ACK_DELAY_S
    peer.heard()
    assert peer.acked == 2


def test_a_session_is_settled_once_the_peer_has_all() -> None:
    peer = edge()
    peer.session.drain()
    settled = [peer.session.settled]
    peer.heard()
    settled.append(peer.session.settled)
    peer.say()
    settled.append(peer.session.settled)
    assert settled == [False, False, True]


# Time.


def test_streams_end_when_no_path_comes_back_in_the_grace_of_both() -> None:
    peer = Peer()
    peer.session.path_up("a", 0.0)
    peer.heard()
    peer.say(hello(grace_s=5.0))
    stream = peer.open()
    peer.heard()
    peer.session.path_down("a", 100.0)
    peer.notices()
    end = 100.0 + 5.0 + ALLOWANCE_S
    assert peer.session.deadline() == end
    peer.session.tick(end - 0.1)
    assert peer.notices() == []
    peer.session.tick(end)
    assert peer.notices() == [Notice(Kind.ABORTED, stream, "no path to the peer for 5 s")]
    assert peer.session.deadline() is None


def test_another_grace_counts_once_both_ends_know_it() -> None:
    peer = edge()
    peer.session.set_grace(5)
    assert peer.session.epochs.grace_s == GRACE_S
    peer.session.path_down("a", 0.0)
    assert peer.session.epochs.grace_s == GRACE_S
    peer.session.path_up("a", 0.0)
    (told,) = peer.heard()
    assert isinstance(told, Resume)
    assert told.grace_s == 5.0
    peer.say(hello())
    assert peer.session.epochs.grace_s == 5.0


def test_a_reset_follows_the_acknowledgement_of_what_was_delivered_before_it() -> None:
    peer, stream = accepted()
    peer.say(Data(1, 0, b"request"))
    stream.consume(4, now=1.0)
    stream.reset("gone", now=1.0)
    ack, reset = peer.heard()
    assert isinstance(ack, Ack)
    assert (ack.delivered, reset) == (4, Reset(1, 0, "gone"))


def test_a_reset_before_anything_was_delivered_is_sent_without_an_acknowledgement() -> None:
    peer, stream = accepted()
    peer.say(Data(1, 0, b"request"))
    stream.reset("gone", now=1.0)
    assert peer.heard() == [Reset(1, 0, "gone")]


def test_a_stream_whose_reset_cannot_be_delivered_in_time_is_aborted() -> None:
    peer, stream = opened()
    stream.reset("gone", now=1.0)
    peer.heard()
    peer.say()
    assert peer.notices() == [Notice(Kind.CLOSED, stream)]
    stuck = peer.open()
    stuck.reset("gone", now=2.0)
    assert peer.session.deadline() == 2.0 + RESET_LINGER_S
    peer.session.tick(2.0 + RESET_LINGER_S)
    assert peer.kinds() == [Kind.ABORTED]


def test_the_wait_for_a_reset_starts_again_with_a_path() -> None:
    peer, stream = opened()
    stream.reset("gone", now=1.0)
    peer.session.path_down("a", 1.0)
    peer.now = 30.0
    peer.session.tick(30.0)
    peer.session.path_up("a", 30.0)
    peer.heard()
    peer.say(hello(live(1), next_id=2))
    peer.notices()
    peer.session.tick(30.0 + RESET_LINGER_S - 0.1)
    assert peer.notices() == []
    peer.session.tick(30.0 + RESET_LINGER_S)
    assert peer.kinds() == [Kind.ABORTED]


# Streams of the opener.


def test_a_new_stream_is_opened_and_its_bytes_follow_at_once() -> None:
    peer = edge()
    stream = peer.open()
    stream.write(b"abc")
    assert peer.heard() == [Open(1, "web", "test", "", WINDOW_INITIAL), Data(1, 0, b"abc")]
    peer.say(Accept(1, WINDOW))
    assert peer.kinds() == [Kind.ACCEPTED, Kind.WRITABLE]
    assert stream.send.limit == WINDOW


def test_an_accept_of_a_stream_in_reset_is_not_reported() -> None:
    peer = edge()
    stream = peer.open()
    peer.heard()
    stream.reset("gone", now=0.0)
    peer.session.path_down("a", 0.0)
    peer.connect(live(1), next_id=2)
    assert stream.accepted
    assert peer.kinds() == [Kind.ESTABLISHED]


def test_a_refused_stream_may_be_carried_by_another_session() -> None:
    peer = edge()
    stream = peer.open()
    stream.write(b"abc")
    peer.heard()
    peer.say(Refuse(1, Code.TARGET, "no target"))
    assert peer.notices() == [Notice(Kind.REFUSED, stream, "no target", Code.TARGET)]
    assert (stream.host, stream.send.sendable, peer.session.streams) == (None, 3, {})


def test_a_stream_whose_open_was_never_sent_is_given_back_when_its_path_is_lost() -> None:
    peer = edge()
    sent = peer.open()
    sent.write(b"one")
    peer.heard()
    unsent = peer.open()
    unsent.write(b"two")
    peer.session.path_down(peer.path, 1.0)
    assert peer.notices() == [Notice(Kind.UNSENT, unsent)]
    assert (unsent.host, unsent.send.sendable, list(peer.session.streams.values())) == (None, 3, [sent])


def test_a_stream_whose_open_was_sent_in_an_earlier_epoch_is_kept() -> None:
    peer = edge()
    stream = peer.open()
    peer.heard()
    peer.session.path_down(peer.path, 1.0)
    peer.connect()
    peer.session.path_down(peer.path, 2.0)
    assert not [notice for notice in peer.notices() if notice.kind is Kind.UNSENT]
    assert list(peer.session.streams.values()) == [stream]


def test_a_refusal_ends_a_stream_whose_client_was_reset() -> None:
    peer = edge()
    stream = peer.open()
    peer.heard()
    stream.reset("gone", now=0.0)
    peer.say(Refuse(1, Code.TARGET, "no target"))
    assert peer.notices() == [Notice(Kind.CLOSED, stream, "no target")]


def test_a_new_stream_without_bytes_is_opened_at_once() -> None:
    peer = edge()
    before = peer.wakes
    peer.open()
    assert peer.wakes > before


def test_room_made_by_an_acknowledgement_alone_is_used_at_once() -> None:
    peer, stream = opened()
    bound(peer, IN_FLIGHT_MIN)
    stream.write(bytes(4 * IN_FLIGHT_MIN))
    peer.heard()
    assert stream.send.pending
    before = peer.wakes
    peer.say()
    assert peer.wakes > before
    assert peer.heard()


def test_streams_opened_without_a_path_are_opened_later() -> None:
    peer = Peer()
    stream = peer.open()
    stream.write(b"abc")
    assert peer.connect()[1:] == [Open(1, "web", "test", "", WINDOW_INITIAL), Data(1, 0, b"abc")]


def test_ids_continue_from_those_that_the_peer_has_seen() -> None:
    peer = Peer()
    peer.connect(next_id=8)
    assert peer.open().id == 8


# Streams of the acceptor.


def test_an_accept_is_sent() -> None:
    peer, stream = dialing()
    assert (stream.service, stream.client, stream.destination, stream.send.limit) == ("web", "test", "", WINDOW)
    stream.accept()
    assert peer.heard() == [Accept(1, WINDOW_INITIAL)]


def test_an_accept_during_a_resume_is_sent_after_it() -> None:
    peer, stream = dialing()
    peer.session.path_up("a", 0.0)
    assert peer.heard() == [
        Resume(GRACE_S, peer.budget.reserved_bytes, 2, True, (Live(1, False, 0, 0, WINDOW_INITIAL, False),))
    ]
    stream.accept()
    peer.say(hello(live(1, accepted=False), next_id=2))
    assert peer.heard() == [Accept(1, WINDOW_INITIAL)]


def test_no_accept_follows_a_resume_for_a_stream_that_has_ended() -> None:
    peer, stream = dialing()
    peer.session.path_up("a", 0.0)
    peer.heard()
    stream.accept()
    stream.abort("changed its mind")
    peer.say(hello(live(1, accepted=False), next_id=2))
    assert peer.heard() == [Abort(1, Code.OTHER, "changed its mind")]


def test_a_refusal_is_repeated_until_it_is_acknowledged() -> None:
    peer, stream = dialing()
    stream.refuse(Code.TARGET, "no target")
    assert peer.heard() == [Refuse(1, Code.TARGET, "no target")]
    peer.session.path_down("a", 0.0)
    assert peer.connect(live(1, accepted=False), next_id=2)[1:] == [Refuse(1, Code.TARGET, "no target")]
    peer.say()
    peer.session.path_down("a", 0.0)
    assert peer.connect(live(1, accepted=False), next_id=2)[1:] == [Abort(1, Code.GONE, GONE)]


# Data, acknowledgements, ends.


def test_bytes_wait_for_the_socket() -> None:
    peer, stream = opened()
    peer.say(Data(1, 0, b"abc"), Data(1, 0, b"abc"), Eof(1, 3), Eof(1, 3))
    assert peer.notices() == [Notice(Kind.READABLE, stream), Notice(Kind.READABLE, stream)]


def test_delivery_is_acknowledged_with_others_after_a_delay() -> None:
    peer = edge()
    streams = [peer.open(), peer.open(), peer.open()]
    peer.heard()
    for stream in streams:
        peer.say(Accept(stream.id, WINDOW), Data(stream.id, 0, b"abc"))
        stream.consume(3, now=1.0)
    streams[2].receive.take_ack()
    assert peer.session.deadline() == min(PATH_ACK_DELAY_S, 1.0 + STREAM_ACK_DELAY_S)
    peer.now = 1.0
    assert peer.heard() == []
    assert peer.session.deadline() == 1.0 + STREAM_ACK_DELAY_S
    peer.now = 1.0 + STREAM_ACK_DELAY_S
    assert peer.heard() == [Ack(1, 3, WINDOW_INITIAL + 3), Ack(2, 3, WINDOW_INITIAL + 3)]


def test_delivery_of_half_of_the_peers_reservation_is_acknowledged_soon() -> None:
    """A peer that has used up its budget buffers only its reservation, and waits, however large the window is."""
    reserved = 8192
    peer = Peer(opener=True)
    peer.session.path_up("a", 0.0)
    peer.heard()
    peer.say(Resume(60.0, reserved, 1, True, ()))
    few, half = peer.open(), peer.open()
    peer.heard()
    for stream, count in ((few, 3), (half, reserved // 2)):
        peer.say(Accept(stream.id, reserved), Data(stream.id, 0, bytes(count)))
        stream.consume(count, now=1.0)
    peer.now = 1.0
    assert peer.heard() == []
    assert peer.session.deadline() == 1.0 + PATH_ACK_DELAY_S
    peer.now = 1.0 + PATH_ACK_DELAY_S
    assert peer.heard() == [Ack(stream.id, n, WINDOW_INITIAL + n) for stream, n in ((few, 3), (half, reserved // 2))]


def test_delivery_of_an_eighth_of_the_first_window_is_acknowledged_at_once() -> None:
    peer, stream = opened()
    eighth = WINDOW_INITIAL // 8
    peer.say(Data(1, 0, bytes(eighth)))
    stream.consume(eighth, now=0.0)
    assert peer.heard() == [Ack(1, eighth, WINDOW_INITIAL + eighth)]


def test_delivery_without_a_path_is_acknowledged_later() -> None:
    peer, stream = opened()
    peer.say(Data(1, 0, b"abc"))
    peer.session.path_down("a", 0.0)
    stream.consume(3, now=0.0)
    events = peer.connect(live(1), next_id=2)
    assert events[1:] == [Ack(1, 3, WINDOW_INITIAL + 3)]


def test_a_stream_is_closed_once_both_directions_have_ended() -> None:
    peer, stream = opened()
    stream.write_eof()
    assert peer.heard() == [Eof(1, 0)]
    peer.say(Eof(1, 0), Ack(1, 1, WINDOW))
    assert peer.kinds() == [Kind.READABLE, Kind.WRITABLE]
    stream.deliver_eof(now=0.0)
    assert peer.kinds() == [Kind.CLOSED]
    assert peer.heard() == [Ack(1, 1, WINDOW_INITIAL)]
    assert peer.session.streams == {}
    peer.say(Ack(1, 1, WINDOW), Data(1, 0, b"x"), Eof(1, 0), Accept(1, 0), Refuse(1, Code.TARGET, ""), Reset(1, 0, ""))
    peer.say(Abort(1, Code.OTHER, ""))
    assert peer.kinds() == [], "what still arrives for it is let go"


def test_a_reset_follows_its_bytes_and_ends_the_stream_on_arrival() -> None:
    peer, stream = opened()
    stream.write(b"abc")
    stream.reset("gone", now=0.0)
    assert peer.heard() == [Data(1, 0, b"abc"), Reset(1, 3, "gone")]
    assert stream.state is State.RESETTING
    peer.say(Ack(1, 3, WINDOW))
    assert peer.notices() == [Notice(Kind.CLOSED, stream)]


def test_a_reset_is_sent_once_an_epoch() -> None:
    peer, stream = opened()
    stream.reset("gone", now=0.0)
    assert peer.heard() == [Reset(1, 0, "gone")]
    peer.session.multiplexer.stream_ready(stream)
    assert peer.heard() == []


def test_a_reset_of_the_peer_is_reported_after_its_bytes() -> None:
    peer, stream = opened()
    peer.say(Data(1, 0, b"abc"), Reset(1, 3, "gone"))
    assert peer.notices() == [Notice(Kind.READABLE, stream), Notice(Kind.RESET, stream, "gone")]
    peer.say(Ack(1, 0, WINDOW))
    assert peer.kinds() == []


def test_resets_of_both_ends_close_the_stream() -> None:
    peer, stream = opened()
    stream.reset("gone", now=0.0)
    peer.say(Reset(1, 0, "gone too"))
    assert peer.notices() == [Notice(Kind.CLOSED, stream, "gone too")]


def test_an_abort_of_the_peer_does_not_wait_for_the_bytes_before_it() -> None:
    peer, stream = opened()
    peer.say(Data(1, 0, b"abc"), Abort(1, Code.OTHER, "enough"))
    assert peer.notices()[1:] == [Notice(Kind.ABORTED, stream, "enough")]
    assert peer.session.streams == {}


@pytest.mark.parametrize("acknowledged", [False, True])
def test_an_abort_of_ours_is_kept_until_it_is_acknowledged(acknowledged: bool) -> None:
    peer, stream = opened()
    stream.abort("enough")
    assert peer.heard() == [Abort(1, Code.OTHER, "enough")]
    if acknowledged:
        peer.say()
    peer.session.path_down("a", 0.0)
    kept = Abort(1, Code.GONE, GONE) if acknowledged else Abort(1, Code.OTHER, "enough")
    assert peer.connect(live(1), next_id=2)[1:] == [kept]


# Resume.


def test_what_the_peer_did_not_receive_is_sent_again() -> None:
    peer, stream = opened()
    stream.write(b"abcdef")
    stream.write_eof()
    assert peer.heard() == [Data(1, 0, b"abcdef"), Eof(1, 6)]
    peer.session.path_down("a", 0.0)
    resume, *replay = peer.connect(live(1, received=4, delivered=2), next_id=2)
    assert resume == Resume(GRACE_S, peer.budget.reserved_bytes, 2, True, (Live(1, True, 0, 0, WINDOW_INITIAL, False),))
    assert replay == [Data(1, 4, b"ef"), Eof(1, 6)]
    assert (peer.session.counters.replayed_bytes, stream.send.acked) == (2, 2)


def test_a_stream_that_the_peer_has_not_seen_is_opened_again() -> None:
    peer = edge()
    stream = peer.open()
    stream.write(b"abc")
    peer.heard()
    peer.session.path_down("a", 0.0)
    assert peer.connect()[1:] == [Open(1, "web", "test", "", WINDOW_INITIAL), Data(1, 0, b"abc")]


def test_an_accept_that_was_lost_is_in_the_resume() -> None:
    peer = edge()
    stream = peer.open()
    peer.heard()
    peer.session.path_down("a", 0.0)
    peer.connect(live(1), next_id=2)
    assert stream.state is State.OPEN
    assert peer.kinds() == [Kind.ACCEPTED, Kind.WRITABLE, Kind.WRITABLE, Kind.ESTABLISHED]


def test_a_peer_that_has_forgotten_the_session_ends_accepted_streams() -> None:
    peer, stream = opened()
    peer.session.path_down("a", 0.0)
    peer.connect(next_id=1)
    assert peer.notices() == [Notice(Kind.ABORTED, stream, GONE), Notice(Kind.ESTABLISHED)]


@pytest.mark.parametrize(("away_s", "opened_again"), [(GRACE_S, True), (GRACE_S + ALLOWANCE_S + 1, False)])
def test_a_stream_is_not_opened_again_once_the_peer_may_have_forgotten_it(away_s: float, opened_again: bool) -> None:
    peer = edge()
    stream = peer.open()
    stream.write(b"once")
    assert peer.heard()[0] == Open(1, "web", "test", "", WINDOW_INITIAL)
    peer.now += away_s  # this process slept, so it has not noticed yet; the peer has given up, and forgotten all
    peer.session.path_down("a", peer.now)
    said = peer.connect(next_id=1)
    assert (Open(1, "web", "test", "", WINDOW_INITIAL) in said) == opened_again
    assert (Data(1, 0, b"once") in said) == opened_again
    assert (stream.state is State.OPENING) == opened_again


def test_an_open_that_was_lost_twice_counts_from_the_second_time() -> None:
    peer = edge()
    stream = peer.open()
    peer.heard()
    for _ in range(3):
        peer.now += GRACE_S
        peer.session.path_down("a", peer.now)
        assert Open(1, "web", "test", "", WINDOW_INITIAL) in peer.connect(next_id=1)
    assert stream.state is State.OPENING


def test_an_opener_without_streams_aborts_those_that_the_peer_lists() -> None:
    peer = Peer(opener=True)
    assert peer.connect(live(1), live(5), next_id=6)[1:] == [Abort(1, Code.GONE, GONE), Abort(5, Code.GONE, GONE)]
    assert peer.open().id == 6


def test_a_stream_that_only_the_peer_has_is_ended_there() -> None:
    peer, stream = accepted()
    stream.abort("enough")
    peer.session.path_down("a", 0.0)
    assert peer.connect(live(1), live(2), next_id=3)[1:] == [Abort(1, Code.OTHER, "enough")]


@pytest.mark.parametrize(("code", "kind"), [(Code.GONE, Kind.CLOSED), (Code.OTHER, Kind.ABORTED)])
def test_a_stream_that_the_peer_has_forgotten_after_both_ends_of_file_is_closed_not_aborted(
    code: Code, kind: Kind
) -> None:
    peer, stream = opened()
    stream.write_eof()
    peer.heard()
    peer.say(Eof(1, 0))
    peer.session.path_down("a", 0.0)
    peer.notices()
    stream.deliver_eof(now=0.0)
    peer.connect(next_id=2)
    peer.notices()
    peer.say(Abort(1, code, GONE))
    assert peer.notices() == [Notice(kind, stream, GONE)]


def test_a_stream_that_ended_in_an_outage_closes_with_the_resume() -> None:
    peer, stream = opened()
    stream.write_eof()
    peer.heard()
    peer.say(Eof(1, 0), Ack(1, 1, WINDOW))
    peer.session.path_down("a", 0.0)
    stream.deliver_eof(now=0.0)
    peer.notices()
    assert peer.connect(live(1, delivered=1, eof=True), next_id=2)[1:] == [Ack(1, 1, WINDOW_INITIAL)]
    assert peer.kinds() == [Kind.WRITABLE, Kind.CLOSED, Kind.ESTABLISHED]


def test_a_reset_has_arrived_if_the_peer_lists_the_stream_no_more() -> None:
    peer, stream = opened()
    stream.reset("gone", now=0.0)
    peer.heard()
    peer.session.path_down("a", 0.0)
    peer.connect(next_id=2)
    assert peer.notices() == [Notice(Kind.CLOSED, stream), Notice(Kind.ESTABLISHED)]


def test_a_stream_that_the_peer_has_reset_survives_an_outage_until_it_is_delivered() -> None:
    peer, stream = opened()
    peer.say(Data(1, 0, b"abc"), Reset(1, 3, "gone"))
    peer.session.path_down("a", 0.0)
    assert peer.connect(live(1), next_id=2)[0] == Resume(GRACE_S, peer.budget.reserved_bytes, 2, True, ())
    assert stream.state is State.RESET
    stream.consume(3, now=0.0)
    stream.finish_reset()
    assert peer.session.streams == {}


def test_many_streams_are_listed_in_pages() -> None:
    peer = Peer(memory=64 * MIB, max_streams=2 * RESUME_PAGE)
    for _ in range(RESUME_PAGE + 1):
        peer.open()
    peer.session.path_up("a", 0.0)
    pages: list[Resume] = []
    for _ in range(2):
        wakes = peer.wakes
        (page,) = peer.heard()
        assert isinstance(page, Resume)
        assert peer.wakes > wakes
        pages.append(page)
    assert [(len(page.streams), page.last) for page in pages] == [(RESUME_PAGE, False), (1, True)]


def test_the_last_page_establishes() -> None:
    peer, stream = accepted()
    peer.session.path_up("a", 0.0)
    peer.heard()
    peer.say(hello(live(1, received=0), next_id=3, last=False))
    first = peer.session.established
    peer.say(hello(live(2), next_id=3))
    assert (first, peer.session.established, stream.state) == (False, True, State.OPEN)


# Leaving.


def test_drain_is_sent_now_and_in_every_epoch() -> None:
    peer = Peer()
    peer.session.drain()
    assert peer.connect()[1:] == [Drain()]
    peer.session.drain()
    assert peer.heard() == [Drain()]
    peer.say(Drain())
    assert peer.session.peer_draining
    assert Kind.DRAINING in peer.kinds()


def test_goodbye_ends_all_streams_and_is_sent_in_every_epoch() -> None:
    peer, _ = opened()
    peer.session.goodbye("shutdown")
    assert peer.heard() == [Abort(1, Code.OTHER, "shutdown"), Goodbye("shutdown")]
    peer.session.path_down("a", 0.0)
    peer.session.goodbye("shutdown")
    assert peer.connect(next_id=2)[1:] == [Goodbye("shutdown")]


def test_goodbye_of_the_peer_ends_all_streams_and_is_acknowledged_at_once() -> None:
    peer, stream = opened()
    peer.heard()
    peer.say(Goodbye("shutdown"))
    assert peer.notices() == [
        Notice(Kind.ABORTED, stream, "shutdown"),
        Notice(Kind.GOODBYE, None, "shutdown"),
    ]
    peer.heard()
    assert peer.acked == peer.seq


# What a peer may not do.


@pytest.mark.parametrize(
    "event",
    [
        Data(1, 0, b"x"),
        Ack(1, 0, 0),
        Open(1, "", "", "", 0),
        Accept(1, 0),
        Eof(1, 0),
        Refuse(1, Code.TARGET, ""),
        Reset(1, 0, ""),
    ],
)
def test_streams_wait_for_the_last_page(event: Event) -> None:
    peer = Peer(opener=False)
    peer.session.path_up("a", 0.0)
    peer.heard()
    peer.say(event)
    assert failure(peer) == f"{type(event).__name__} before the last page of the resume"


@pytest.mark.parametrize("opener", [True, False])
@pytest.mark.parametrize(
    "event",
    [
        Data(9, 0, b"x"),
        Ack(9, 0, 0),
        Accept(9, 0),
        Eof(9, 0),
        Refuse(9, Code.TARGET, ""),
        Reset(9, 0, ""),
        Abort(9, Code.OTHER, ""),
    ],
)
def test_events_of_a_stream_that_was_never_opened_are_rejected(event: Event, opener: bool) -> None:
    peer = edge() if opener else provider()
    peer.say(event)
    assert failure(peer) == "stream 9 was never opened"


def test_an_open_from_the_acceptor_is_rejected() -> None:
    peer = edge()
    peer.say(Open(1, "", "", "", 0))
    assert failure(peer) == "Open from the acceptor"


def test_an_id_that_was_used_before_is_rejected() -> None:
    peer, _ = dialing()
    peer.say(Open(1, "web", "test", "", 0))
    assert failure(peer) == "stream id 1 used again, expected at least 2"


def test_a_resume_within_an_epoch_is_rejected() -> None:
    peer = edge()
    peer.say(hello())
    assert failure(peer) == "Resume in the midst of an epoch"


def test_a_resume_lists_each_stream_once_and_in_order() -> None:
    peer = Peer()
    peer.session.path_up("a", 0.0)
    peer.heard()
    peer.say(hello(live(2), live(2), next_id=3))
    assert failure(peer) == "stream 2 listed after 2"


def test_a_failed_session_aborts_its_streams_and_ignores_what_follows() -> None:
    peer, stream = opened()
    peer.say(Accept(1, 0))
    notices = peer.notices()
    reason = "Accept in state OPEN (stream 1)"
    assert notices == [
        Notice(Kind.ABORTED, stream, f"protocol error: {reason}"),
        Notice(Kind.FAILED, None, reason),
    ]
    assert peer.heard() == [Abort(1, Code.OTHER, f"protocol error: {reason}"), Goodbye(f"protocol error: {reason}")]
    peer.say(Drain())
    peer.session.path_up("b", 1.0)
    peer.session.tick(1000.0)
    assert peer.session.deadline() is None
    assert not peer.session.established
    assert peer.notices() == []
    assert peer.heard() == []
    assert peer.budget.pool_used_bytes == 0


def test_another_version_is_rejected() -> None:
    peer = edge()
    peer.session.receive("a", wire.encode(Batch(2, 1, 1, ()), version=2), 0.0)
    assert failure(peer) == "protocol version 2, expected 1 to 1"


def test_every_version_that_is_understood_is_read_and_the_common_one_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "VERSION", 2)
    peer = edge()
    peer.session.receive("a", wire.encode(Batch(2, 1, 1, (Drain(),)), version=2), 0.0)
    assert (peer.session.peer_draining, peer.session.failed) == (True, None)
    peer.open()
    written = {wire.decode(frames)[0] for _, frames in peer.session.flush(1.0)}
    assert written == {1}


def test_noise_is_rejected() -> None:
    peer = edge()
    peer.session.receive("a", [b"noise"], 0.0)
    assert failure(peer)


def test_a_window_grows_when_delivery_is_acknowledged_after_the_delay() -> None:
    step = WINDOW_INITIAL // 8 - 1
    peer = Peer(opener=False)
    peer.session.path_up("a", 0.0)
    peer.heard()
    peer.now = 1.0
    peer.say(Resume(GRACE_S, step, 1, True, ()), Open(1, "web", "test", "", WINDOW))
    stream = peer.notices()[-1].stream
    assert stream is not None
    stream.accept()
    peer.heard()
    for _ in range(12):
        peer.say(Data(1, stream.receive.received, bytes(step)))
        stream.consume(step, now=peer.now)
        peer.now += PATH_ACK_DELAY_S
        peer.session.tick(peer.now)
        (ack,) = (event for event in peer.heard() if isinstance(event, Ack))
        assert ack.delivered == stream.receive.delivered
    assert stream.receive.limit > stream.receive.delivered + WINDOW_INITIAL


# Batches.


@pytest.mark.parametrize("bound_bytes", [IN_FLIGHT_MIN, IN_FLIGHT_MIN + QUANTUM_MIN, MIB])
def test_what_fills_a_path_is_acknowledged_without_delay(bound_bytes: int) -> None:
    peer, stream = opened()
    bound(peer, bound_bytes)
    stream.write(bytes(2 * MIB))
    receiver = Path("a", peer.epoch, now=0.0)
    for seq, (_, frames) in enumerate(peer.session.flush(0.0)):
        receiver.receive(seq, sum(map(len, frames)), 0.0)
    assert stream.send.pending
    assert receiver.ack_due(0.0)


def test_small_pieces_that_fill_a_path_are_acknowledged_without_delay() -> None:
    peer = Peer(max_streams=4096)
    peer.connect()
    streams = [peer.open() for _ in range(4096)]
    peer.heard()
    peer.say()
    bound(peer, IN_FLIGHT_MIN)
    receiver = Path("a", peer.epoch, now=0.0)
    for stream in streams:
        stream.write(bytes(20))
    for seq, (_, frames) in enumerate(peer.session.flush(0.0)):
        receiver.receive(seq, sum(map(len, frames)), 0.0)
    assert streams[-1].send.pending
    assert receiver.ack_due(0.0)


def test_bytes_in_flight_are_bounded() -> None:
    peer, stream = opened()
    bound(peer, IN_FLIGHT_MIN)
    stream.write(bytes(MIB))
    sizes = [len(event.payload) for event in peer.heard() if isinstance(event, Data)]
    assert IN_FLIGHT_MIN - QUANTUM_MIN <= sum(sizes) <= IN_FLIGHT_MIN
    assert peer.heard() == []
    peer.say()
    assert peer.heard()


def batches(peer: Peer) -> list[list[int]]:
    """Give the sizes of the frames of what is sent now."""
    messages = [frames for _, frames in peer.session.flush(peer.now)]
    for frames in messages:
        wire.decode(frames)
    return [[len(frame) for frame in frames] for frames in messages]


def test_a_message_holds_about_one_mebibyte_of_payload() -> None:
    peer, stream = opened()
    bound(peer, IN_FLIGHT_MAX)
    for _ in range(3):
        stream.write(bytes(MIB // 2))
    assert [sum(sizes) // (BATCH_BYTES // 2) for sizes in batches(peer)] == [2, 1]


def test_a_message_holds_at_most_64_raw_frames() -> None:
    peer = Peer(memory=512 * MIB, max_streams=1000)
    peer.connect()
    bound(peer, IN_FLIGHT_MAX)
    for _ in range(MAX_RAW_FRAMES + 1):
        peer.open()
    peer.heard()
    for stream in peer.session.streams.values():
        stream.write(bytes(RAW_PAYLOAD))
    assert [len(sizes) - 1 for sizes in batches(peer)] == [MAX_RAW_FRAMES, 1]


def test_a_message_is_full_at_96_kib_of_cbor() -> None:
    peer = edge()
    bound(peer, IN_FLIGHT_MAX)
    streams = [peer.open() for _ in range(20)]
    peer.heard()
    for stream in streams:
        stream.write(bytes(10 * KIB))
    sizes = batches(peer)
    assert len(sizes) == 2
    assert max(map(sum, sizes)) < 128 * KIB


def test_a_message_holds_at_most_1024_events() -> None:
    count = BATCH_EVENTS + 1
    peer = Peer(memory=64 * MIB, max_streams=2000)
    peer.connect()
    streams = [peer.open() for _ in range(count)]
    lengths = []
    for _ in range(2):
        lengths.append([len(wire.decode(frames)[1].events) for _, frames in peer.session.flush(0.0)])
        for stream in streams:
            stream.write(b"x")
        bound(peer, IN_FLIGHT_MAX)
    assert lengths[0] == [BATCH_EVENTS, 1]
    assert max(lengths[1]) == BATCH_EVENTS


def traffic(peer: Peer) -> tuple[int, int]:
    counters = peer.session.counters
    return counters.sent_bytes, counters.received_bytes


def test_traffic_counts_the_payload_of_live_and_ended_streams_once() -> None:
    peer, stream = opened()
    stream.write(bytes(1000))
    peer.heard()
    peer.say(Data(1, 0, bytes(30)))
    stream.consume(20, now=0.0)
    assert traffic(peer) == (1000, 20)
    peer.session.path_up("a", 0.0)
    assert traffic(peer) == (1000, 20)
    stream.abort("over")
    assert traffic(peer) == (1000, 20)
    assert peer.session.counters.opened == 1
    assert not peer.session.streams
    assert peer.wakes > 0


def test_queues_and_the_round_trip_are_reported() -> None:
    peer = Peer()
    assert (peer.session.epochs.number, peer.session.path) == (0, None)
    stream = peer.open()
    peer.session.path_up("a", 0.0)
    peer.heard()
    path = peer.session.path
    assert path is not None and (peer.session.epochs.number, path.srtt) == (2, 0.0)
    peer.now = 0.25
    peer.say(hello())
    stream.write(b"x")
    assert path.srtt == 0.25
    assert (peer.session.scheduled_streams, peer.session.control_events) == (1, 1)
    peer.heard()
    assert (peer.session.scheduled_streams, peer.session.control_events) == (0, 0)


def test_many_long_last_words_fit_in_messages() -> None:
    peer = Peer(memory=128 * MIB, max_streams=2000)
    peer.connect()
    for _ in range(1200):
        peer.open()
    peer.heard()
    peer.session.goodbye("x" * 256)
    assert len(peer.heard()) == 1201


def test_unsent_bytes_of_a_refused_stream_go_to_its_next_session_only() -> None:
    first, second = edge(), edge()
    stream = first.open()
    first.heard()
    stream.write(b"abc")
    first.say(Refuse(1, Code.TARGET, "no target"))
    second.session.open(stream)
    assert first.heard() == []
    assert second.heard() == [Open(1, "web", "test", "", WINDOW_INITIAL), Data(1, 0, b"abc")]


def test_a_paused_session_is_not_settled() -> None:
    peer, _ = opened()
    peer.session.goodbye("bye")
    peer.heard()
    peer.say(seq=9)
    assert not peer.session.settled


def test_a_peer_that_acknowledges_no_last_words_may_open_no_more_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("goreprox.protocol.multiplexer.LAST_WORDS_MAX", 2)
    peer = Peer(opener=False)
    peer.session.path_up("a", 0.0)
    peer.heard()
    peer.say(hello())
    for stream_id in range(1, 4):
        peer.say(Open(stream_id, "web", "test", "", 0))
        if stream_id < 3:
            peer.session.streams[stream_id].refuse(Code.OTHER, "no")
    assert failure(peer) == "Open, with the ends of 2 streams not acknowledged"
