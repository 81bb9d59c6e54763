"""The life of a stream: its table, and what each step asks of its session."""

import itertools
from collections.abc import Callable

import pytest

from goreprox.protocol.budget import Budget
from goreprox.protocol.epochs import Epochs
from goreprox.protocol.errors import LocalProtocolError, ProtocolError, RemoteProtocolError
from goreprox.protocol.events import Abort, Code, Refuse
from goreprox.protocol.limits import MIB
from goreprox.protocol.state import TRANSITIONS, State, Step
from goreprox.protocol.stream import Stream
from goreprox.protocol.totals import Counters


class Recorder:
    """A host that notes what is asked of it."""

    def __init__(self) -> None:
        self.epochs = Epochs(opener=True, grace_s=60.0, now=0.0)
        self.counters = Counters()
        self.calls: list[tuple[object, ...]] = []

    def stream_ready(self, stream: Stream) -> None:
        self.calls.append(("ready",))

    def stream_acks(self, stream: Stream, *, urgent: bool, now: float) -> None:
        self.calls.append(("acks", urgent))

    def stream_accepted(self, stream: Stream) -> None:
        self.calls.append(("accepted",))

    def stream_resetting(self, stream: Stream, now: float) -> None:
        self.calls.append(("resetting", now))

    def stream_closed(self, stream: Stream, last_word: Refuse | Abort | None) -> None:
        self.calls.append(("closed", last_word))


def make(state: State = State.OPEN, *, opener: bool = True, hosted: bool = True) -> tuple[Stream, Recorder]:
    stream = Stream(opener=opener, service="s", client="c", budget=Budget(total_bytes=4 * MIB, max_streams=64))
    host = Recorder()
    if hosted:
        stream.host = host
    stream.state = state
    return stream, host


@pytest.mark.parametrize(("state", "step"), list(itertools.product(State, Step)))
def test_every_step_in_every_state(state: State, step: Step) -> None:
    stream, _ = make(state)
    if step in TRANSITIONS[state]:
        stream.step(step)
        assert stream.state is TRANSITIONS[state][step]
        return
    by_peer = step.name.startswith("RECEIVE_")
    with pytest.raises(RemoteProtocolError if by_peer else LocalProtocolError, match=f"{step.value} in state"):
        stream.step(step)
    assert stream.state is state


METHODS: dict[Step, Callable[[Stream], object]] = {
    Step.RECEIVE_ACCEPT: lambda stream: stream.receive_accept(0),
    Step.RECEIVE_REFUSE: lambda stream: stream.receive_refuse("no"),
    Step.RECEIVE_DATA: lambda stream: stream.receive_data(0, b"x"),
    Step.RECEIVE_EOF: lambda stream: stream.receive_eof(0),
    Step.RECEIVE_ACK: lambda stream: stream.receive_ack(0, 0),
    Step.RECEIVE_RESET: lambda stream: stream.receive_reset(0, "gone"),
    Step.RECEIVE_ABORT: lambda stream: stream.receive_abort("enough"),
    Step.ACCEPT: lambda stream: stream.accept(),
    Step.REFUSE: lambda stream: stream.refuse(Code.OTHER, "no"),
    Step.WRITE: lambda stream: stream.write(b"x"),
    Step.WRITE_EOF: lambda stream: stream.write_eof(),
    Step.RESET: lambda stream: stream.reset("gone", now=0.0),
    Step.ABORT: lambda stream: stream.abort("enough"),
    Step.FINISH: lambda stream: stream.finish(),
}


@pytest.mark.parametrize(("state", "step"), list(itertools.product(State, METHODS)))
def test_every_method_in_every_state(state: State, step: Step) -> None:
    stream, _ = make(state)
    if step in TRANSITIONS[state]:
        METHODS[step](stream)
        assert stream.state is TRANSITIONS[state][step]
    elif (state, step) == (State.CLOSED, Step.ABORT):  # which may happen twice
        METHODS[step](stream)
        assert stream.state is state
    else:
        with pytest.raises(ProtocolError, match=f"{step.value} in state {state.name}"):
            METHODS[step](stream)
        assert stream.state is state


def test_nothing_happens_to_a_closed_stream() -> None:
    assert not TRANSITIONS[State.CLOSED]


@pytest.mark.parametrize("state", [state for state in State if state is not State.CLOSED])
def test_every_stream_can_be_aborted_by_either_end(state: State) -> None:
    assert TRANSITIONS[state][Step.ABORT] is TRANSITIONS[state][Step.RECEIVE_ABORT] is State.CLOSED


def test_a_new_stream_is_opening_or_dialing() -> None:
    budget = Budget(total_bytes=4 * MIB, max_streams=64)
    opener = Stream(opener=True, service="s", client="c", budget=budget)
    acceptor = Stream(opener=False, service="s", client="c", budget=budget)
    assert (opener.state, acceptor.state) == (State.OPENING, State.DIALING)
    assert repr(opener) == "<Stream 0 opening>"


@pytest.mark.parametrize("state", list(State))
def test_the_socket_is_read_only_while_its_bytes_are_wanted(state: State) -> None:
    stream, _ = make(state)
    assert (stream.room > 0) == (state in (State.OPENING, State.OPEN))


def test_bytes_may_be_written_before_there_is_a_session() -> None:
    stream, _ = make(State.OPENING, hosted=False)
    stream.write(b"abc")
    stream.write_eof()
    assert (stream.sent_bytes, stream.send.eof) == (3, True)
    assert stream.received_bytes == 0


def test_a_write_schedules_the_stream() -> None:
    stream, host = make()
    stream.write(b"abc")
    stream.write_eof()
    assert host.calls == [("ready",), ("ready",)]


def test_writes_after_the_peers_reset_are_dropped() -> None:
    stream, host = make(State.RESET)
    stream.write(b"abc")
    stream.write_eof()
    assert (stream.send.end, stream.send.eof, host.calls) == (0, False, [])


def test_a_reset_of_the_socket_follows_its_bytes() -> None:
    stream, host = make()
    stream.receive_data(0, b"unread")
    stream.write(b"abc")
    stream.reset("gone", now=7.0)
    assert stream.state is State.RESETTING
    assert host.calls == [("ready",), ("resetting", 7.0)]
    assert (stream.send.sendable, stream.end_reason) == (3, "gone")
    assert not stream.receive.chunks


def test_a_reset_without_a_session_ends_the_stream() -> None:
    stream, _ = make(State.OPENING, hosted=False)
    stream.reset("gone", now=0.0)
    assert stream.state is State.CLOSED


def test_a_reset_after_the_peers_reset_ends_the_stream() -> None:
    stream, host = make(State.RESET)
    stream.reset("gone", now=0.0)
    assert stream.state is State.CLOSED
    assert host.calls == [("closed", None)]


def test_an_abort_tells_the_peer_and_the_first_reason_stays() -> None:
    stream, host = make(State.RESETTING)
    stream.end_reason = "first"
    stream.abort("second")
    assert stream.end_reason == "first"
    assert host.calls == [("closed", Abort(0, Code.OTHER, "second"))]


def test_an_abort_of_a_closed_stream_is_no_error() -> None:
    stream, host = make(State.CLOSED)
    stream.abort("again")
    assert host.calls == []


def test_an_accept_is_passed_on() -> None:
    stream, host = make(State.DIALING, opener=False)
    stream.accept()
    assert (stream.state, stream.accepted, host.calls) == (State.OPEN, True, [("accepted",)])


def test_an_accept_after_the_peers_reset_is_not_sent() -> None:
    stream, host = make(State.RESET, opener=False)
    stream.accept()
    assert (stream.state, stream.accepted, host.calls) == (State.RESET, True, [])


def test_an_accept_without_a_session_is_not_sent() -> None:
    stream, _ = make(State.DIALING, opener=False, hosted=False)
    stream.accept()
    assert stream.state is State.OPEN


@pytest.mark.parametrize("hosted", [True, False])
def test_a_refusal_is_passed_on_where_there_is_a_session(hosted: bool) -> None:
    stream, host = make(State.DIALING, opener=False, hosted=hosted)
    stream.refuse(Code.TARGET, "no target")
    assert (stream.state, stream.end_reason) == (State.CLOSED, "no target")
    assert host.calls == [("closed", Refuse(0, Code.TARGET, "no target"))] * hosted


def test_delivery_is_acknowledged_while_the_stream_is_open() -> None:
    stream, host = make()
    stream.receive_data(0, bytes(stream.receive.limit))
    stream.consume(1, now=0.0)
    stream.consume(stream.receive.limit - 1, now=0.0)
    assert host.calls == [("acks", False), ("acks", True)]


def test_delivery_after_the_peers_reset_is_not_acknowledged() -> None:
    stream, host = make()
    stream.receive_data(0, b"abc")
    stream.receive_reset(3, "gone")
    stream.consume(3, now=0.0)
    assert host.calls == []


@pytest.mark.parametrize("hosted", [True, False])
def test_a_delivered_end_of_file_is_acknowledged_at_once(hosted: bool) -> None:
    stream, host = make(hosted=hosted)
    stream.receive_eof(0)
    stream.deliver_eof(now=0.0)
    assert stream.receive.eof_delivered
    assert host.calls == [("acks", True)] * hosted


def test_a_delivered_reset_ends_the_stream_once() -> None:
    stream, host = make()
    stream.receive_reset(0, "gone")
    stream.finish_reset()
    stream.finish_reset()
    assert stream.state is State.CLOSED
    assert host.calls == [("closed", None)]


def test_data_and_end_of_file_are_new_once() -> None:
    stream, _ = make()
    assert [stream.receive_data(0, b"abc") for _ in range(2)] == [True, False]
    assert [stream.receive_eof(3) for _ in range(2)] == [True, False]


def test_what_arrives_for_a_socket_that_was_reset_is_dropped() -> None:
    stream, _ = make(State.RESETTING)
    assert not stream.receive_data(0, b"abc")
    assert not stream.receive_eof(99)
    assert not stream.receive.chunks


def test_a_reset_of_both_ends_ends_the_stream() -> None:
    stream, host = make(State.RESETTING)
    stream.receive_reset(99, "gone")
    assert stream.state is State.CLOSED
    assert host.calls == [("closed", None)]


def test_a_reset_of_the_peer_stops_what_we_send() -> None:
    stream, _ = make()
    stream.write(b"abc")
    stream.receive_reset(0, "gone")
    assert (stream.state, stream.end_reason) == (State.RESET, "gone")
    assert not stream.send.pending
    assert stream.send.since(0) == b"abc"


def test_a_reset_at_another_offset_is_rejected() -> None:
    stream, _ = make()
    stream.id = 7
    with pytest.raises(RemoteProtocolError, match=r"reset at offset 5, expected 0 \(stream 7\)"):
        stream.receive_reset(5, "gone")


@pytest.mark.parametrize(
    ("state", "writable"),
    [(State.DIALING, False), (State.OPEN, True), (State.RESETTING, False), (State.RESET, False)],
)
def test_an_ack_reports_whether_the_socket_may_be_read_again(state: State, writable: bool) -> None:
    stream, _ = make(state)
    limit = stream.send.limit
    assert stream.receive_ack(0, limit + 1) is writable
    assert (stream.send.limit > limit) == (state is not State.RESET)


def test_a_refused_stream_is_ready_for_another_session() -> None:
    stream, _ = make(State.OPENING)
    stream.write(b"abc")
    stream.send.take(2)
    assert stream.receive_refuse("no")
    assert (stream.state, stream.host) == (State.OPENING, None)
    assert stream.send.take(3) == (0, b"abc")


def test_a_stream_of_which_bytes_were_delivered_cannot_be_refused() -> None:
    stream, host = make(State.OPENING)
    stream.write(b"abc")
    stream.send.take(3)
    stream.send.ack(2, 100)
    with pytest.raises(RemoteProtocolError):
        stream.receive_refuse("no")
    assert stream.host is host, "its session can still end it"


def test_an_abort_of_the_peer_ends_the_stream() -> None:
    stream, host = make()
    stream.receive_abort("over")
    assert (stream.state, stream.end_reason) == (State.CLOSED, "over")
    assert host.calls == [("closed", None)]


def test_a_refusal_ends_a_stream_whose_socket_was_reset() -> None:
    stream, host = make(State.RESETTING)
    assert not stream.receive_refuse("over")
    assert (stream.state, stream.end_reason) == (State.CLOSED, "over")
    assert host.calls == [("closed", None)]


def test_a_stream_is_done_when_both_ends_of_file_are_acknowledged() -> None:
    stream, _ = make()
    done = [stream.done]
    stream.write_eof()
    stream.send.take_eof()
    stream.receive_ack(1, 0)
    done.append(stream.done)
    stream.receive_eof(0)
    stream.deliver_eof(now=0.0)
    assert stream.passed
    done.append(stream.done)
    stream.receive.take_ack()
    done.append(stream.done)
    assert done == [False, False, False, True]


def test_a_stream_without_both_ends_of_file_has_not_passed() -> None:
    stream, _ = make()
    passed = [stream.passed]
    stream.send.take_eof()
    passed.append(stream.passed)
    assert passed == [False, False]


def test_a_stream_whose_end_of_file_was_not_sent_has_not_passed() -> None:
    stream, _ = make()
    stream.write(b"unsent")
    stream.write_eof()
    stream.receive_eof(0)
    stream.deliver_eof(now=0.0)
    assert not stream.passed


def test_the_end_of_a_stream_gives_its_memory_back() -> None:
    stream, _ = make()
    budget = Budget(total_bytes=4 * MIB, max_streams=64)
    stream = Stream(opener=True, service="s", client="c", budget=budget)
    stream.write(bytes(budget.reserved_bytes))
    stream.send.take(100)
    stream.receive_accept(MIB)
    stream.write(bytes(stream.room))
    stream.receive_data(0, b"unread")
    assert budget.pool_used_bytes > 0
    stream.abort("enough")
    assert budget.pool_used_bytes == 0
    assert not stream.receive.chunks and stream.send.since(stream.send.end) == b""
