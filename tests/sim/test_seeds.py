"""Random scenarios on virtual time, from seeds; and seeded defects, each of which they must catch."""

from collections.abc import Iterator
from typing import Any

import pytest

import tests.support.network
from goreprox.protocol.events import Reset
from goreprox.protocol.export import export_session
from goreprox.protocol.multiplexer import Multiplexer
from goreprox.protocol.outbox import Outbox
from goreprox.protocol.path import Path
from goreprox.protocol.receiver import ReceiveHalf
from goreprox.protocol.sender import SendHalf
from goreprox.protocol.stream import Stream
from tests.sim.defects import Patch, accept_stale_epochs, do_not_repeat_open
from tests.sim.sessions import scenario

SEEDS = 120


@pytest.mark.parametrize("chunk", [0, *(pytest.param(each, marks=pytest.mark.long) for each in (1, 2, 3))])
def test_every_seed_keeps_the_promise(chunk: int) -> None:
    outages = replayed = 0
    for seed in range(chunk * SEEDS, (chunk + 1) * SEEDS):
        try:
            net = scenario(seed)
        except AssertionError as exc:
            raise AssertionError(f"seed {seed}") from exc
        outages += sum(session.counters.outages for session in net.sessions.values())
        replayed += sum(session.counters.replayed_bytes for session in net.sessions.values())
    assert outages > SEEDS and replayed > 0, "the scenarios broke nothing"


def _acknowledge_before_delivery(patch: pytest.MonkeyPatch) -> None:
    original = ReceiveHalf.take_ack

    def take_ack(self: ReceiveHalf) -> tuple[int, int]:
        _, limit = original(self)
        return self.received, limit

    patch.setattr(ReceiveHalf, "take_ack", take_ack)
    patch.setattr(ReceiveHalf, "ack_urgent", property(lambda _: True))
    patch.setattr(ReceiveHalf, "ack_offset", property(lambda self: self.received + self.eof_delivered))


def _do_not_trim(patch: pytest.MonkeyPatch) -> None:
    def receive(self: ReceiveHalf, offset: int, payload: Any) -> bool:
        self.chunks.append(payload)
        self.received += len(payload)
        return True

    original_rewind = SendHalf.rewind

    def rewind(self: SendHalf, received: int, *, eof_received: bool) -> int:
        return original_rewind(self, self.acked, eof_received=eof_received)

    patch.setattr(ReceiveHalf, "receive", receive)
    patch.setattr(SendHalf, "rewind", rewind)


def _rewind_too_little(patch: pytest.MonkeyPatch) -> None:
    original = SendHalf.rewind

    def rewind(self: SendHalf, received: int, *, eof_received: bool) -> int:
        return original(self, min(received + 1, self.sent), eof_received=eof_received)

    patch.setattr(SendHalf, "rewind", rewind)


def _lose_resets(patch: pytest.MonkeyPatch) -> None:
    original = Outbox._tail

    def tail(self: Outbox, stream: Stream, events: list[Any], path: Path) -> int:
        size = original(self, stream, events, path)
        if events and isinstance(events[-1], Reset):
            events.pop()
        return size

    patch.setattr(Outbox, "_tail", tail)


def _reset_overtakes_data(patch: pytest.MonkeyPatch) -> None:
    original = Stream.reset

    def reset(self: Stream, reason: str, *, now: float) -> None:
        self.abort(reason)

    assert original is not reset
    patch.setattr(Stream, "reset", reset)


def _ignore_gaps(patch: pytest.MonkeyPatch) -> None:
    original = Path.receive

    def receive(self: Path, seq: int, size: int, now: float) -> bool:
        self.received = max(self.received, seq)
        return original(self, seq, size, now)

    patch.setattr(Path, "receive", receive)


def _leak_the_budget(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ReceiveHalf, "discard", lambda self: self.chunks.clear())


def _count_the_window_twice(patch: pytest.MonkeyPatch) -> None:
    original = SendHalf.ack

    def ack(self: SendHalf, delivered: int, limit: int) -> None:
        original(self, delivered, 2 * limit)

    patch.setattr(SendHalf, "ack", ack)


def _use_ids_again(patch: pytest.MonkeyPatch) -> None:
    original = Multiplexer.open

    def open_again(self: Multiplexer, stream: Stream) -> None:
        self.next_id = max(1, self.next_id - (len(self.streams) > 2))
        original(self, stream)

    patch.setattr(Multiplexer, "open", open_again)


def _end_with_fin(patch: pytest.MonkeyPatch) -> None:
    original = Stream.receive_reset

    def receive_reset(self: Stream, final: int, reason: str) -> None:
        if self.accepted and self.receive.received == final and not self.receive.eof:
            self.receive_eof(final)
        else:
            original(self, final, reason)

    patch.setattr(Stream, "receive_reset", receive_reset)


DEFECTS: list[Patch] = [
    _acknowledge_before_delivery,
    _do_not_trim,
    _rewind_too_little,
    _lose_resets,
    _reset_overtakes_data,
    do_not_repeat_open,
    accept_stale_epochs,
    _ignore_gaps,
    _leak_the_budget,
    _count_the_window_twice,
    _use_ids_again,
    _end_with_fin,
]


EXPORTED = [
    "grace_s",
    "next_id",
    "state",
    "accepted",
    "send.acked",
    "send.sent",
    "send.end",
    "send.limit",
    "send.eof",
    "receive.received",
    "receive.delivered",
    "receive.limit",
    "receive.eof",
]
"""Fields of an export without which a scenario ends otherwise; of the others a restored session is merely compared."""


@pytest.mark.parametrize("field", EXPORTED)
def test_a_field_left_out_of_an_export_is_caught(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*args: Any, **options: Any) -> Iterator[Any]:
        for item in export_session(*args, **options):
            *groups, name = field.split(".")
            values = item
            for group in groups:
                values = values.get(group) if isinstance(values, dict) else None
            if isinstance(values, dict) and name in values:
                values[name] = "open" if name == "state" else type(values[name])()
            yield item

    monkeypatch.setattr(tests.support.network, "export_session", without)
    assert not all(map(passes, range(200))), "200 scenarios did not notice"


def passes(seed: int) -> bool:
    try:
        scenario(seed)
    except Exception:  # noqa: BLE001 -- whatever shows the defect is a catch
        return False
    return True


@pytest.mark.pure
@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__.strip("_"))
def test_a_defect_is_caught(defect: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    defect(monkeypatch)
    assert not all(map(passes, range(200))), "200 scenarios did not notice"
