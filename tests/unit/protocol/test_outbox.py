"""How batches are filled: exactly up to each of their bounds."""

import pytest

from goreprox.protocol.budget import Budget
from goreprox.protocol.endings import Endings
from goreprox.protocol.events import Abort, Ack, Code, Data, Eof, Event, Open, Probe, Refuse, Served
from goreprox.protocol.limits import (
    BATCH_BYTES,
    BATCH_INLINE,
    IN_FLIGHT_MAX,
    IN_FLIGHT_MIN,
    KIB,
    MAX_PAYLOAD,
    MAX_RAW_FRAMES,
    MIB,
    QUANTUM_MIN,
    RAW_PAYLOAD,
)
from goreprox.protocol.outbox import EVENT_BYTES, Outbox
from goreprox.protocol.path import Path
from goreprox.protocol.stream import Stream
from tests.support.peer import congestion

SMALL = 8 * KIB - EVENT_BYTES
"""A payload that counts as 8 KiB, with its event."""


class Sender:
    """An outbox, the path that it fills, and streams of one client."""

    def __init__(self, *, bound: int = IN_FLIGHT_MAX) -> None:
        self.budget = Budget(total_bytes=1024 * MIB, max_streams=1000)
        self.outbox = Outbox(Endings(), lambda: None)
        self.path = Path("a", 2, now=0.0)
        self.path.congestion = congestion(bound)

    def stream(self, number: int, *chunks: int, eof: bool = False) -> Stream:
        stream = Stream(opener=True, service="web", client="192.0.2.1:1", budget=self.budget)
        stream.receive_accept(0)
        stream.id = number
        stream.send.limit = 1 << 30
        for size in chunks:
            stream.write(bytes(size))
        if eof:
            stream.write_eof()
        self.outbox.streams.add(stream)
        return stream

    def batch(self) -> list[Event]:
        return self.outbox.batch(self.path)

    def sizes(self) -> list[tuple[int, int]]:
        return [(event.stream, len(event.payload)) for event in self.batch() if isinstance(event, Data)]


TEXT = "x" * 48


@pytest.mark.parametrize(
    "event",
    [
        Open(1, TEXT, TEXT, TEXT, 0),
        Refuse(1, Code.OTHER, "x" * 36),  # of up to four bytes each
        Abort(1, Code.OTHER, "x" * 36),
        Served("x" * 12, "x" * 12, "x" * 12),
    ],
)
def test_a_batch_is_full_when_its_texts_fill_the_cbor(event: Open | Refuse | Abort | Served) -> None:
    sender = Sender()
    sender.outbox.control.extend([event] * 1000)
    sender.stream(1, 10)
    assert len(sender.batch()) == BATCH_INLINE // (EVENT_BYTES + 3 * 48)


def test_a_batch_is_full_when_its_payloads_fill_the_cbor() -> None:
    sender = Sender()
    for number in range(20):
        sender.stream(number, SMALL)
    assert len(sender.sizes()) == BATCH_INLINE // (8 * KIB)


def test_a_batch_is_full_at_a_quarter_of_what_may_be_in_flight() -> None:
    sender = Sender(bound=256 * KIB)
    for number in range(20):
        sender.stream(number, SMALL)
    assert len(sender.sizes()) == 256 // 4 // 8


def test_ends_of_file_count_towards_the_size_of_a_batch() -> None:
    sender = Sender(bound=IN_FLIGHT_MIN)
    for number in range(400):
        sender.stream(number, eof=True)
    assert len(sender.batch()) == -(-IN_FLIGHT_MIN // 4 // EVENT_BYTES)


def test_a_batch_is_full_of_payload_before_it_has_too_many_frames() -> None:
    assert BATCH_BYTES <= MAX_RAW_FRAMES * RAW_PAYLOAD


def test_streams_are_served_while_the_path_has_room_for_the_least_quantum() -> None:
    sender = Sender(bound=MIB)
    sender.path.in_flight = MIB - QUANTUM_MIN - 8 * KIB
    for number in range(3):
        sender.stream(number, SMALL)
    assert len(sender.sizes()) == 2


def test_a_payload_fits_into_what_the_path_has_left() -> None:
    sender = Sender(bound=MIB)
    sender.path.in_flight = MIB - 32 * KIB
    sender.stream(1, SMALL)
    sender.stream(2, 60 * KIB)
    assert sender.sizes() == [(1, SMALL), (2, 24 * KIB)]


def test_a_turn_is_a_quarter_of_what_may_be_in_flight_divided_by_the_streams_that_wait() -> None:
    sender = Sender(bound=MIB)
    sender.stream(1, MIB)
    sender.stream(2, MIB)
    assert sender.sizes()[0] == (1, 128 * KIB)


def test_a_turn_is_never_less_than_the_least_quantum() -> None:
    sender = Sender(bound=IN_FLIGHT_MIN)
    for number in range(8):
        sender.stream(number, MIB)
    assert sender.sizes()[0] == (0, QUANTUM_MIN)


def test_a_turn_is_never_more_than_one_payload() -> None:
    sender = Sender()
    sender.stream(1, 2 * MIB)
    assert sender.sizes() == [(1, MAX_PAYLOAD)]


def test_streams_take_turns_of_one_quantum() -> None:
    sender = Sender(bound=256 * KIB)
    for number in (1, 2):
        sender.stream(number, *[16 * KIB] * 20)
    quantum = 256 * KIB // 4 // 2
    turns = [stream for _ in range(8) for stream, _ in sender.sizes()]
    both = [2] * (quantum // (16 * KIB)) + [1] * (quantum // (16 * KIB))
    assert turns[4:16] == both * 3  # once neither is new


def test_an_end_of_file_waits_for_the_last_byte() -> None:
    sender = Sender(bound=IN_FLIGHT_MIN)
    stream = sender.stream(1, 20 * KIB, eof=True)
    assert sender.batch() == [Data(1, 0, bytes(QUANTUM_MIN))]
    assert sender.batch() == [Data(1, QUANTUM_MIN, bytes(4 * KIB)), Eof(1, 20 * KIB)]
    assert not stream.send.pending


def test_payload_follows_control_events() -> None:
    sender = Sender()
    sender.stream(1, 10)
    sender.outbox.control.append(Probe())
    assert sender.batch() == [Probe(), Data(1, 0, bytes(10))]


def test_an_end_of_file_follows_the_acknowledgement_of_what_was_delivered_before_it() -> None:
    sender = Sender(bound=IN_FLIGHT_MIN)
    streams = [sender.stream(number, eof=True) for number in range(400)]
    for stream in streams:
        stream.receive_data(0, b"abc")
        stream.receive.consume(3)
    events = sender.batch()
    assert events[:2] == [Ack(0, 3, streams[0].receive.limit), Eof(0, 0)]
    assert len(events) == 2 * -(-IN_FLIGHT_MIN // 4 // (2 * EVENT_BYTES))
