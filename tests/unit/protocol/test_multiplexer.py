"""What one session does with its streams, where the order of events is unusual."""

import pytest

from goreprox.protocol.events import (
    Abort,
    Accept,
    Ack,
    Code,
    Data,
    Drain,
    Eof,
    Event,
    Goodbye,
    Open,
    Probe,
    Refuse,
    Reset,
    Resume,
    Served,
)
from goreprox.protocol.limits import ALLOWANCE_S, MAX_OFFSET, RESTART_MIN_S, WINDOW_INITIAL
from goreprox.protocol.notices import Kind, Notice
from goreprox.protocol.resume import GONE
from goreprox.protocol.state import State
from tests.support.peer import (
    GRACE_S,
    WINDOW,
    Peer,
    accepted,
    dialing,
    edge,
    failure,
    hello,
    live,
    opened,
    provider,
)

# Before the peer has responded.


def test_only_opening_streams_are_given_back_when_their_open_was_not_sent() -> None:
    peer = edge()
    aborted, reset, opening = peer.open(), peer.open(), peer.open()
    aborted.abort("enough")
    reset.reset("gone", now=0.0)
    peer.notices()
    peer.session.path_down("a", 0.0)
    assert peer.notices() == [Notice(Kind.UNSENT, opening)]
    assert list(peer.session.streams.values()) == [reset]


def test_streams_without_a_response_are_counted_until_there_is_one() -> None:
    peer = edge()
    counts = [peer.session.unanswered]
    peer.open()
    peer.heard()
    peer.open()
    counts.append(peer.session.unanswered)
    peer.heard()
    peer.say(Accept(1, WINDOW))
    counts.append(peer.session.unanswered)
    peer.say(Refuse(2, Code.OTHER, "no"))
    counts.append(peer.session.unanswered)
    peer.open()
    peer.session.path_down("a", 0.0)
    counts.append(peer.session.unanswered)
    assert counts == [0, 2, 1, 0, 0]


@pytest.mark.parametrize("event", [Accept(1, 100), Ack(1, 4, 100)])
def test_a_higher_limit_lets_the_rest_be_sent(event: Event) -> None:
    """A stream that comes from another session may hold more than this peer takes at first."""
    first, second = edge(), Peer()
    stream = first.open()
    first.heard()
    stream.write(b"0123456789")
    first.say(Refuse(1, Code.OTHER, "no"))
    second.session.path_up("a", 0.0)
    second.heard()
    page = hello()
    page.window = 4
    second.say(page)
    second.session.open(stream)
    assert second.heard() == [Open(1, "web", "test", "", WINDOW_INITIAL), Data(1, 0, b"0123")]
    if isinstance(event, Ack):
        second.say(Accept(1, 4))
    second.say(event)
    assert second.heard() == [Data(1, 4, b"456789")]


def test_an_open_is_repeated_until_the_peer_can_have_forgotten_it() -> None:
    peer = edge()
    stream = peer.open()
    peer.heard()
    peer.now = GRACE_S + ALLOWANCE_S
    peer.session.path_down("a", peer.now)
    peer.connect(next_id=1)
    assert stream.state is State.OPENING


def test_a_stream_that_the_peer_lists_as_not_accepted_stays_unaccepted() -> None:
    peer = edge()
    stream = peer.open()
    peer.heard()
    peer.session.path_down("a", 0.0)
    peer.connect(live(1, accepted=False), next_id=2)
    assert (stream.state, stream.accepted) == (State.OPENING, False)


# Ends.


def test_a_stream_is_over_when_our_end_of_file_is_acknowledged_last() -> None:
    peer, stream = opened()
    peer.say(Eof(1, 0))
    stream.deliver_eof(now=0.0)
    stream.write_eof()
    peer.heard()
    peer.notices()
    peer.say(Ack(1, 1, WINDOW))
    assert peer.notices() == [Notice(Kind.WRITABLE, stream), Notice(Kind.CLOSED, stream)]


def test_an_abort_of_a_stream_whose_socket_was_reset_closes_it() -> None:
    peer, stream = opened()
    stream.reset("gone", now=0.0)
    peer.say(Abort(1, Code.OTHER, "enough"))
    assert peer.kinds() == [Kind.CLOSED]


def test_a_stream_in_use_that_the_peer_has_forgotten_is_aborted() -> None:
    peer, _ = opened()
    peer.say(Abort(1, Code.GONE, GONE))
    assert peer.kinds() == [Kind.ABORTED]


def test_an_end_of_file_that_is_delivered_after_a_reset_is_not_acknowledged() -> None:
    peer, stream = opened()
    peer.say(Eof(1, 0), Reset(1, 0, "gone"))
    stream.deliver_eof(now=0.0)
    assert peer.heard() == []


def test_the_last_words_of_each_stream_are_kept_until_their_own_message_is_acknowledged() -> None:
    peer = edge()
    first, second = peer.open(), peer.open()
    peer.heard()
    peer.say(Accept(1, WINDOW), Accept(2, WINDOW))
    first.abort("first")
    peer.heard()
    received = peer.received
    second.abort("second")
    peer.heard()
    peer.received = received
    peer.say(Probe())
    peer.session.path_down("a", 0.0)
    assert peer.connect(live(1), live(2), next_id=3)[1:] == [Abort(1, Code.GONE, GONE), Abort(2, Code.OTHER, "second")]


def test_last_words_are_forgotten_once_the_peer_lists_the_stream_no_more() -> None:
    peer, stream = opened()
    stream.abort("enough")
    peer.session.path_down("a", 0.0)
    peer.connect(next_id=2)
    peer.session.path_down("a", 0.0)
    assert peer.connect(live(1), next_id=2)[1:] == [Abort(1, Code.GONE, GONE)]


def test_last_words_are_not_acknowledged_by_messages_of_another_epoch() -> None:
    peer, stream = opened()
    stream.abort("enough")
    peer.heard()
    messages = peer.received
    peer.session.path_down("a", 0.0)
    peer.session.path_up("a", 0.0)
    while peer.received <= messages:
        peer.session.drain()
        peer.heard()
    peer.say(Probe())
    peer.say(hello(live(1), next_id=2))
    assert peer.heard() == [Abort(1, Code.OTHER, "enough")]


def test_nothing_is_sent_for_a_stream_whose_reset_had_arrived() -> None:
    peer, stream = opened()
    stream.write_eof()
    stream.reset("gone", now=0.0)
    assert peer.heard() == [Reset(1, 0, "gone")]
    peer.session.path_down("a", 0.0)
    assert len(peer.connect(next_id=2)) == 1
    assert not peer.session.streams


def test_nothing_is_sent_for_an_accepted_stream_that_the_peer_has_forgotten() -> None:
    peer, _ = opened()
    peer.session.path_down("a", 0.0)
    assert len(peer.connect(next_id=1)) == 1


def test_an_acceptor_opens_no_stream_whatever_the_opener_has_forgotten() -> None:
    peer, stream = accepted()
    peer.session.path_down("a", 0.0)
    assert len(peer.connect(next_id=1)) == 1
    assert stream.state is State.OPEN


def test_a_goodbye_is_acknowledged_at_once_though_no_stream_is_left() -> None:
    peer = edge()
    peer.heard()
    peer.say(Goodbye("shutdown"))
    assert peer.session.peer_draining
    peer.heard()
    assert peer.acked == peer.seq


# Published names.


def test_an_edge_says_where_a_published_name_is_served_in_each_epoch_anew() -> None:
    peer = edge()
    peer.heard()
    peer.session.multiplexer.say_served("tcp://20003@laptop", "example.com:20003", "")
    assert peer.heard() == [Served("tcp://20003@laptop", "example.com:20003", "")]
    peer.session.path_down("a", 0.0)
    peer.session.multiplexer.say_served("tcp://20003@laptop", "", "taken")
    assert [type(event) for event in peer.connect(next_id=1)] == [Resume]


def test_a_provider_is_told_where_a_published_name_is_served() -> None:
    peer = provider()
    peer.notices()
    peer.say(Served("tcp://20003@laptop", "", "taken"))
    assert peer.notices() == [Notice(Kind.SERVED, served=Served("tcp://20003@laptop", "", "taken"))]


# What a peer may not do.


def test_no_edge_is_told_where_a_published_name_is_served() -> None:
    peer = edge()
    peer.say(Served("tcp://20003@laptop", "example.com:20003", ""))
    assert failure(peer) == "Served from the acceptor"


@pytest.mark.parametrize("opener", [True, False])
def test_events_of_the_next_id_are_rejected(*, opener: bool) -> None:
    peer = edge() if opener else provider()
    peer.say(Data(1, 0, b"x"))
    assert failure(peer) == "stream 1 was never opened"


def test_the_highest_epoch_is_adopted() -> None:
    peer = edge()
    peer.begin(hello(), epoch=MAX_OFFSET // 2)
    assert (peer.session.failed, peer.session.epochs.number) == (None, MAX_OFFSET // 2)


def test_an_epoch_that_begins_without_events_is_begun_anew() -> None:
    peer = edge()
    peer.begin(epoch=5)
    peer.heard()
    assert peer.epoch == 8


def test_a_higher_epoch_on_an_unknown_path_is_inert() -> None:
    peer = edge()
    peer.begin(hello(), epoch=5, path="unknown")
    assert (peer.session.epochs.number, peer.path_in_use) == (2, "a")


def test_a_message_of_a_superseded_epoch_is_inert_though_its_number_fits() -> None:
    peer = edge()
    peer.epoch = 1
    peer.say(Drain())
    assert not peer.session.peer_draining


def test_a_failed_session_uses_no_path_again() -> None:
    peer = edge()
    peer.now = 7.0
    peer.say(hello())
    peer.session.path_up("a", 8.0)
    assert peer.session.epochs.lost_at == 7.0
    assert peer.heard() == [Goodbye("protocol error: Resume in the midst of an epoch")]
    peer.session.path_down("a", 9.0)
    assert peer.path_in_use is None


def test_a_paused_session_continues_on_the_path_that_is_left() -> None:
    peer = edge()
    peer.session.path_up("b", 0.0)
    peer.say(Probe(), seq=9)
    peer.session.path_down("a", 0.0)
    assert not peer.session.settled
    peer.session.tick(RESTART_MIN_S)
    assert peer.path_in_use == "b"


def test_a_refused_stream_is_forgotten_and_the_peer_is_told() -> None:
    peer, stream = dialing()
    stream.refuse(Code.FULL, "full")
    assert not peer.session.streams
    assert peer.heard() == [Refuse(1, Code.FULL, "full")]
