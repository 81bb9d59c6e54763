"""Queues of slow peers: order, bounds, and what happens while they are sent."""

from collections.abc import Callable

import pytest

from brokers import Buffer
from brokers.outboxes import OUTBOX_BYTES, OUTBOX_MESSAGES, Outboxes


class Pipes:
    """Pipes to peers that take messages while they are open."""

    def __init__(self) -> None:
        self.full: set[bytes] = set()
        self.sent: list[tuple[bytes, list[Buffer]]] = []
        self.dropped: list[tuple[bytes, int]] = []
        self.timers: list[Callable[[], None]] = []
        self.meanwhile: Callable[[], object] = lambda: None
        """Called with each message that is sent."""
        self.outboxes = Outboxes(
            transmit=self.transmit,
            overflowed=lambda key, messages: self.dropped.append((key, messages)),
            call_later=lambda _, callback: self.timers.append(callback),
        )

    def transmit(self, key: bytes, frames: list[Buffer]) -> bool:
        if key in self.full:
            return False
        self.sent.append((key, frames))
        self.meanwhile()
        return True

    def fire(self) -> None:
        timers, self.timers = self.timers, []
        for timer in timers:
            timer()


def test_a_message_goes_out_at_once_while_there_is_room() -> None:
    pipes = Pipes()
    pipes.outboxes.send(b"a", [b"1"])
    assert pipes.sent == [(b"a", [b"1"])]
    assert not pipes.timers and not pipes.outboxes.sizes


def test_messages_wait_in_order_until_there_is_room() -> None:
    pipes = Pipes()
    pipes.full = {b"a"}
    pipes.outboxes.send(b"a", [b"1", b"22"])
    pipes.outboxes.send(b"a", [b"3"])
    pipes.outboxes.send(b"b", [b"4"])
    assert pipes.sent == [(b"b", [b"4"])], "nobody else waits"
    assert pipes.outboxes.sizes == {b"a": (2, 4)}
    assert [pipes.outboxes.size(key) for key in (b"a", b"b")] == [4, 0]
    pipes.fire()
    assert len(pipes.timers) == 1, "it is tried again"
    pipes.full.clear()
    pipes.outboxes.send(b"a", [b"5"])
    assert len(pipes.sent) == 1, "none overtakes those that wait"
    pipes.fire()
    assert pipes.sent[1:] == [(b"a", [b"1", b"22"]), (b"a", [b"3"]), (b"a", [b"5"])]
    assert not pipes.timers and not pipes.outboxes.sizes


@pytest.mark.parametrize(("size", "most"), [(0, OUTBOX_MESSAGES), (64 * 1024, OUTBOX_BYTES // (64 * 1024))])
def test_a_queue_beyond_a_bound_is_dropped_as_a_whole(size: int, most: int) -> None:
    pipes = Pipes()
    pipes.full = {b"a"}
    frame = bytes(size)
    for _ in range(most):
        pipes.outboxes.send(b"a", [frame])
    assert pipes.outboxes.sizes == {b"a": (most, most * size)} and not pipes.dropped
    pipes.outboxes.send(b"a", [frame])
    assert pipes.dropped == [(b"a", most + 1)]
    assert not pipes.outboxes.sizes


def test_a_queue_may_be_dropped_while_another_is_sent() -> None:
    pipes = Pipes()
    pipes.full = {b"a", b"b"}
    pipes.outboxes.send(b"a", [b"1"])
    for _ in range(OUTBOX_MESSAGES):
        pipes.outboxes.send(b"b", [b"2"])
    pipes.full = {b"b"}
    pipes.meanwhile = lambda: pipes.outboxes.send(b"b", [b"news of a"])
    pipes.outboxes.retry()
    assert pipes.sent == [(b"a", [b"1"])]
    assert pipes.dropped == [(b"b", OUTBOX_MESSAGES + 1)]
    assert not pipes.outboxes.sizes


def test_discarded_messages_are_not_sent() -> None:
    pipes = Pipes()
    pipes.full = {b"a", b"b"}
    for key in (b"a", b"b"):
        pipes.outboxes.send(key, [b"1"])
    pipes.outboxes.discard(b"a")
    pipes.outboxes.discard(b"c")
    assert pipes.outboxes.sizes == {b"b": (1, 1)}
    pipes.outboxes.close()
    pipes.full.clear()
    pipes.fire()
    assert pipes.sent == []
