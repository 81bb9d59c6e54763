"""Rates of services on virtual time: never more than the rate allows, all of what it allows, and equal shares."""

import random
from collections.abc import Iterator

import pytest

from goreprox.protocol.limits import KIB, MIB
from goreprox.tunnel.pace import BURST_BYTES, BURST_S, MAX_PACES, TURN_BYTES, Pace, Paces, Rate, Turns
from tests.sim.world import Process, Violation, World


class Paced:
    """A rate on virtual time, and what its streams move."""

    def __init__(self, bytes_per_s: float | None) -> None:
        self.world = World(1)
        self.process = Process(self.world, "e0")
        self.rate: Rate = self.process.run(lambda: Rate(self.process.boot_time, bytes_per_s))
        self.moved: list[tuple[float, int]] = []
        """When, and how many bytes."""

    def until(self, time_s: float) -> None:
        self.world.run_until(time_s)

    @property
    def total(self) -> int:
        return sum(count for _, count in self.moved)

    def most_beyond(self, bytes_per_s: float) -> float:
        """Return by how much what was moved in any time exceeds the rate at most."""
        worst = begin = total = 0.0
        for at, count in self.moved:
            begin = min(begin, total - bytes_per_s * at)
            total += count
            worst = max(worst, total - bytes_per_s * at - begin)
        return worst


class Mover:
    """A stream that moves `size` bytes at a time, as often as it may, but for those that turn out not to be there."""

    def __init__(self, paced: Paced, size: int = MIB, *, missing: float = 0.0, at: float = 0.0) -> None:
        self._paced = paced
        self._size = size
        self._missing = missing
        self.moved = 0
        self.calls = 0
        self.turns = Turns(paced.rate, self.go_on)
        paced.world.at(at, paced.process.run, self.go_on)

    def go_on(self) -> None:
        dice = self._paced.world.random
        for _ in range(10_000):
            self.calls += 1
            taken = self.turns.take(self._size)
            if not taken:
                return
            moved = dice.randrange(taken + 1) if dice.random() < self._missing else taken
            self.turns.give_back(taken - moved)
            self.moved += moved
            self._paced.moved.append((self._paced.world.now, moved))
            if moved < taken:  # its socket has no more for now
                self._paced.world.after(dice.random() * 0.05, self._paced.process.run, self.go_on)
                return
        raise AssertionError("there is no end to what it may move")


@pytest.mark.parametrize("rate", [1200.0, 50.0 * KIB, 1.0 * MIB, 100.0 * MIB])
@pytest.mark.parametrize("count", [1, 2, 7, 50])
def test_streams_that_always_have_more_get_the_whole_rate_in_equal_shares(rate: float, count: int) -> None:
    paced = Paced(rate)
    movers = [Mover(paced, size) for size, _ in zip([MIB, 16 * KIB, 1500] * count, range(count), strict=False)]
    paced.until(20.0)
    burst = max(rate * BURST_S, BURST_BYTES)
    assert paced.most_beyond(rate) <= burst + 0.001
    assert paced.total >= 0.98 * rate * 20.0
    shares = [mover.moved for mover in movers]
    if count > 1 and min(shares):
        # The first of them had the burst for itself, before the others were there.
        assert max(shares[1:]) - min(shares[1:]) <= 2 * paced.rate.turn_bytes


@pytest.mark.parametrize("seed", range(20))
def test_whatever_streams_do_no_time_has_more_than_rate_and_burst(seed: int) -> None:
    dice = random.Random(seed)
    rate = dice.choice([5.0 * KIB, 300.0 * KIB, 20.0 * MIB])
    paced = Paced(rate)
    for _ in range(dice.randint(1, 12)):
        Mover(paced, dice.choice([100, 4 * KIB, MIB]), missing=dice.random(), at=10 * dice.random())
    paced.until(30.0)
    assert paced.total
    assert paced.most_beyond(rate) <= max(rate * BURST_S, BURST_BYTES) + 0.001


def test_a_stream_that_comes_later_gets_the_same_share_from_then_on() -> None:
    paced = Paced(1.0 * MIB)
    early = [Mover(paced) for _ in range(3)]
    late = Mover(paced, at=5.0)
    paced.until(5.0)
    before = [mover.moved for mover in early]
    paced.until(15.0)
    since = [mover.moved - was for mover, was in zip(early, before, strict=True)]
    assert late.moved == pytest.approx(10 * MIB / 4, abs=4 * paced.rate.turn_bytes)
    assert since == pytest.approx([late.moved] * 3, abs=4 * paced.rate.turn_bytes)


def test_what_a_stream_does_not_use_goes_to_the_others() -> None:
    paced = Paced(1.0 * MIB)
    busy, lazy = Mover(paced), Mover(paced, 100, missing=1.0)
    paced.until(20.0)
    assert lazy.moved < KIB * KIB
    assert busy.moved >= 0.98 * 20 * MIB - lazy.moved


def test_a_stream_that_has_ended_is_called_no_more_and_holds_nothing() -> None:
    paced = Paced(100.0 * KIB)
    first, second = Mover(paced), Mover(paced)
    paced.until(1.0)
    first.turns.leave()
    calls, before = first.calls, second.moved
    paced.until(11.0)
    assert first.calls == calls
    assert second.moved - before >= 0.98 * 1000 * KIB


def test_a_fault_of_one_stream_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    paced = Paced(100.0 * KIB)
    faults: list[object] = []
    monkeypatch.setattr(paced.process, "call_exception_handler", faults.append)

    def fail() -> None:
        raise Violation("a fault")

    broken = Turns(paced.rate, fail)
    other = Mover(paced)
    paced.world.at(1.0, paced.process.run, lambda: broken.take(MIB))
    paced.until(10.0)
    assert len(faults) == 1
    assert other.moved >= 0.95 * 900 * KIB


@pytest.mark.parametrize("after", [None, 10.0 * MIB])
def test_another_rate_holds_at_once_for_those_that_wait(after: float | None) -> None:
    paced = Paced(1200.0)
    taken: list[int] = []

    def go_on() -> None:
        taken.append(turns.take(64 * KIB))

    turns = Turns(paced.rate, go_on)
    paced.process.run(lambda: [turns.take(BURST_BYTES) for _ in range(100)])
    paced.process.run(lambda: paced.rate.set(after))
    paced.until(2.0)
    assert taken == [TURN_BYTES[1]]


def test_a_service_without_a_limit_has_no_pace_and_keeps_the_one_it_had() -> None:
    process = Process(World(1), "e0")
    rates: dict[str, float | None] = {"web": 5.0}
    paces = Paces(process.boot_time, rates.get)

    def use() -> Iterator[Pace | None]:
        yield paces.of("db")
        yield paces.of("web")

    none, web = process.run(lambda: list(use()))
    assert none is None and web.up.bytes_per_s == web.down.bytes_per_s == 5.0
    process.run(lambda: paces.reconfigure({"db": 7.0}.get))
    assert web.up.bytes_per_s is None and web.down.bytes_per_s is None
    assert process.run(lambda: paces.of("web")) is web
    assert process.run(lambda: paces.of("db")).up.bytes_per_s == 7.0


def test_of_services_that_nobody_waits_for_only_so_many_are_remembered() -> None:
    process = Process(World(1), "edge")
    paces = process.run(Paces, process.boot_time, lambda _service: 1e6)
    waited_for = process.run(paces.of, "busy")
    turns = Turns(waited_for.up, lambda: None)
    while process.run(turns.take, MIB):
        pass
    for number in range(2 * MAX_PACES):
        process.run(paces.of, str(number))
        assert len(paces._paces) <= MAX_PACES
    assert process.run(paces.of, "busy") is waited_for
