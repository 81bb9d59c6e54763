"""The bound of bytes in flight on a link whose rate, delay and foreign queue change."""

from collections import deque

import pytest

from goreprox.protocol.congestion import LATE, LEAST_QUEUE_S, Congestion
from goreprox.protocol.limits import (
    DRAINED_BYTES,
    IN_FLIGHT_MIN,
    KIB,
    MESSAGE_S,
    MIB,
    PATH_ACK_BYTES,
    QUANTUM_MIN,
    REMEASURE_MAX_S,
    REMEASURE_MIN_S,
    UNSENT_S,
)
from goreprox.protocol.path import Path

MESSAGE = 16 * KIB


class Link:
    """A sender that always has more, on a link with a rate (bytes/s), a delay and a queue of others (both s)."""

    def __init__(self, *, rate: float = 12.5e6, delay: float = 0.001, reports: bool = True) -> None:
        self.rate, self.delay, self.foreign = rate, delay, 0.0
        self.reports = reports
        """Whether the kernel tells its round trip."""
        self.own_queue = 0.0
        """Seconds that our bytes wait in a broker, of which TCP on the first link sees nothing."""
        self.now = 0.0
        self.path = Path("a", 1, now=0.0)
        self.arrivals: deque[float] = deque()
        self.free_at = 0.0
        self.arrived = 0
        self.least_in_flight = 0

    def run(self, seconds: float) -> float:
        """Send for so long; return the rate at which bytes arrived, as a part of the link's rate."""
        end, before = self.now + seconds, self.arrived
        self.least_in_flight = 1 << 40
        while self.now < end:
            path = self.path
            if self.reports:
                path.congestion.link(unsent_bytes=0, round_trip_s=self.delay + self.foreign)
            while path.room >= QUANTUM_MIN:
                self.free_at = max(self.free_at, self.now) + MESSAGE / self.rate
                self.arrivals.append(self.free_at + self.delay + self.foreign + self.own_queue)
                path.send(MESSAGE, self.now)
            self.least_in_flight = min(self.least_in_flight, path.in_flight)
            self.now = max(self.now, self.arrivals.popleft())
            self.arrived += MESSAGE
            path.ack(path.peer_acked + 1, self.now)
        return (self.arrived - before) / seconds / self.rate

    @property
    def queue_s(self) -> float:
        """How long our own bytes wait for the link."""
        return max(self.free_at - self.now, 0.0)


def test_a_path_is_full_and_its_queue_at_most_another_round_trip() -> None:
    link = Link(delay=0.05)
    link.run(3)
    assert link.run(5) > 0.97
    assert link.queue_s <= 0.06


@pytest.mark.parametrize("delay", [0.05, 0.2])
def test_a_longer_route_is_as_full_as_before(delay: float) -> None:
    link = Link()
    link.run(5)
    link.delay = delay
    link.run(5)
    assert link.run(20) > 0.9


@pytest.mark.parametrize("before", [0.001, 0.02, 0.05])
@pytest.mark.parametrize("times", [1.2, 1.7, 1.9, 2.0, 2.05, 2.1, 2.2, 2.4, 2.6, 3, 5])
def test_no_longer_route_is_taken_for_our_own_queue(before: float, times: float) -> None:
    link = Link(delay=before)
    link.run(5)
    link.delay = times * max(before, LEAST_QUEUE_S)
    link.run(REMEASURE_MAX_S + 5)
    assert link.run(10) > 0.9


def test_a_route_that_grows_twice_is_as_full_as_before() -> None:
    link = Link()
    for delay in (0.001, 0.05, 0.2):
        link.delay = delay
        link.run(5)
    assert link.run(20) > 0.9


def test_a_queue_of_others_does_not_starve_us() -> None:
    link = Link(delay=0.02)
    link.run(5)
    link.foreign = 0.15
    link.run(5)
    assert link.run(20) > 0.9


def test_the_queue_is_short_again_when_others_have_left() -> None:
    link = Link(delay=0.02)
    link.run(5)
    link.foreign = 0.15
    link.run(30)
    link.foreign = 0.0
    link.run(2 * REMEASURE_MAX_S + 5)
    assert link.queue_s <= 0.03


def test_what_waits_in_a_broker_does_not_let_more_in_flight() -> None:
    link = Link(delay=0.02)
    link.run(5)
    bound = link.path.congestion.bound
    link.own_queue = 0.2
    link.run(20)
    assert link.path.congestion.bound <= bound


def test_where_the_kernel_says_nothing_nothing_is_measured_anew() -> None:
    link = Link(delay=0.02, reports=False)
    link.run(5)
    bound = link.path.congestion.bound
    link.delay = 0.2
    link.run(20)
    assert link.path.congestion.bound <= bound
    assert link.least_in_flight > DRAINED_BYTES


def test_measurements_that_find_nothing_become_rare() -> None:
    link = Link(delay=0.02)
    link.run(3)
    link.own_queue, link.foreign = 0.2, 0.03  # TCP sees some of the delay, most of it is our own
    link.run(5)
    drained = 0
    for _ in range(200):
        link.run(0.1)
        drained += link.least_in_flight <= DRAINED_BYTES
    assert 1 <= drained <= 12


def test_a_round_trip_counts_as_measured_only_with_next_to_nothing_in_flight() -> None:
    congestion = Congestion(0.0)
    congestion.link(unsent_bytes=0, round_trip_s=0.02)
    congestion.acknowledged(0.02, 10 * MIB, limited=True, now=0.02)
    congestion.round_over(MIB, 0.02)
    bound = congestion.bound
    congestion.link(unsent_bytes=0, round_trip_s=0.1)
    congestion.acknowledged(0.1, 10 * MIB, limited=True, now=1.0)
    for in_flight in (MIB, MIB, DRAINED_BYTES + 1, DRAINED_BYTES):
        congestion.round_over(in_flight, 1.0)
        assert congestion.room(0) == DRAINED_BYTES
    congestion.acknowledged(0.1, 1 * MIB, limited=False, now=1.1)
    congestion.round_over(DRAINED_BYTES, 1.1)
    congestion.acknowledged(0.1, 1 * MIB, limited=False, now=1.2)
    assert congestion.bound == pytest.approx(5 * bound, rel=1e-3)
    assert congestion.room(0) == congestion.bound


def test_what_the_first_link_has_not_sent_leaves_no_room() -> None:
    congestion = Congestion(0.0)
    congestion.acknowledged(0.1, 100 * MIB, limited=True, now=0.1)
    most = int(100 * MIB * UNSENT_S)
    assert congestion.room(MIB) == congestion.bound - MIB, "nothing is known of the link"
    congestion.link(unsent_bytes=0, round_trip_s=0.1)
    assert congestion.room(MIB) == most
    congestion.link(unsent_bytes=most, round_trip_s=0.1)
    assert congestion.room(MIB) == 0
    congestion.sent(MESSAGE)
    assert congestion.room(MIB) == -MESSAGE


def test_a_little_may_be_in_flight_whatever_the_first_link_has_not_sent() -> None:
    """Or nothing would ever be sent again: no acknowledgement is on its way, to look at the link again."""
    congestion = Congestion(0.0)
    congestion.acknowledged(0.1, 100 * MIB, limited=True, now=0.1)
    congestion.link(unsent_bytes=32 * MIB, round_trip_s=0.1)
    assert congestion.room(IN_FLIGHT_MIN + 1) < 0
    assert congestion.room(IN_FLIGHT_MIN) == congestion.bound - IN_FLIGHT_MIN


def test_a_slow_link_may_keep_the_least_bound_unsent() -> None:
    congestion = Congestion(0.0)
    congestion.acknowledged(1.0, 100 * KIB, limited=True, now=1.0)
    congestion.link(unsent_bytes=0, round_trip_s=0.1)
    congestion.sent(MESSAGE)
    assert congestion.room(IN_FLIGHT_MIN + 1) == IN_FLIGHT_MIN - MESSAGE


@pytest.mark.parametrize(
    ("rate", "size"),
    [(1e5, QUANTUM_MIN), (40 * MIB, int(40 * MIB * MESSAGE_S)), (1000 * MIB, int(1000 * MIB * MESSAGE_S))],
)
def test_a_message_takes_a_moment_at_the_rate_of_the_path(rate: float, size: int) -> None:
    congestion = Congestion(0.0)
    assert congestion.message_bytes == QUANTUM_MIN
    congestion.acknowledged(0.1, rate, limited=True, now=0.1)
    assert congestion.message_bytes == size


def test_what_is_in_flight_while_a_round_trip_is_measured_is_acknowledged_at_once() -> None:
    assert DRAINED_BYTES == PATH_ACK_BYTES == 2 * QUANTUM_MIN


def test_our_own_queue_is_never_late() -> None:
    assert LATE > 2, "which is what the bound lets wait"
    link = Link(rate=1.25e6, delay=0.04)
    link.run(5)
    link.run(30)
    assert link.least_in_flight > DRAINED_BYTES
    assert REMEASURE_MIN_S > 2 * LEAST_QUEUE_S
