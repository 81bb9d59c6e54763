"""One epoch of a path: numbers, acknowledgements, bytes in flight, probes and loss."""

import pytest

from goreprox.protocol.congestion import LEAST_QUEUE_S, RATE_WINDOW_S
from goreprox.protocol.errors import RemoteProtocolError
from goreprox.protocol.limits import (
    IN_FLIGHT_MAX,
    IN_FLIGHT_MESSAGES,
    IN_FLIGHT_MIN,
    KIB,
    LOSS_TIMEOUT_S,
    MIB,
    PATH_ACK_BYTES,
    PATH_ACK_DELAY_S,
    PROBE_MIN_S,
)
from goreprox.protocol.path import Path


def path(now: float = 0.0) -> Path:
    return Path("a", 2, now=now)


def transfer(p: Path, *, start: float, count: int, size: int, rtt: float) -> float:
    """Send so many messages, each acknowledged one round trip later; return the time."""
    now = start
    for _ in range(count):
        p.send(size, now)
        now += rtt
        p.ack(p.seq, now)
    return now


def test_messages_are_numbered_and_counted_in_flight() -> None:
    p = path()
    p.send(100, 0.0)
    p.send(50, 0.0)
    assert p.seq == 2
    assert p.in_flight == 150
    assert p.room == IN_FLIGHT_MIN - 150
    p.ack(1, 0.1)
    assert p.in_flight == 50
    assert p.peer_acked == 1


def test_a_stale_ack_changes_nothing() -> None:
    p = path()
    p.send(1, 0.0)
    p.send(1, 0.0)
    p.ack(2, 0.1)
    p.ack(1, 5.0)
    assert p.peer_acked == 2
    assert p.srtt == pytest.approx(0.1)


def test_an_ack_of_what_was_never_sent_is_rejected() -> None:
    p = path()
    p.send(1, 0.0)
    with pytest.raises(RemoteProtocolError, match="ack of 2 messages, expected at most 1"):
        p.ack(2, 0.1)


def test_messages_arrive_in_order() -> None:
    p = path()
    assert p.receive(0, 10, 0.0)
    assert p.receive(1, 10, 0.0)
    assert p.received == 2


def test_a_repeated_message_is_not_new() -> None:
    p = path()
    p.receive(0, 10, 0.0)
    assert not p.receive(0, 10, 0.0)


def test_a_gap_is_loss() -> None:
    with pytest.raises(LookupError, match="message 1, expected 0"):
        path().receive(1, 10, 0.0)


def test_an_ack_is_due_after_a_short_delay() -> None:
    p = path()
    assert not p.ack_due(0.0)
    p.receive(0, 10, 1.0)
    assert p.deadline == 1.0 + PATH_ACK_DELAY_S
    p.receive(1, 10, 1.01)
    assert p.deadline == 1.0 + PATH_ACK_DELAY_S, "the first message counts"
    assert not p.ack_due(1.01)
    assert p.ack_due(1.0 + PATH_ACK_DELAY_S)
    p.acknowledged()
    assert not p.ack_due(9.0)
    assert p.deadline is None


def test_many_bytes_are_acknowledged_at_once() -> None:
    p = path()
    p.receive(0, PATH_ACK_BYTES - 1, 1.0)
    assert not p.ack_due(1.0)
    p.receive(1, 1, 1.0)
    assert p.ack_due(1.0)


def test_every_message_carries_the_acknowledgement() -> None:
    p = path()
    p.receive(0, PATH_ACK_BYTES, 1.0)
    p.send(1, 1.0)
    assert not p.ack_due(1.0)


def test_a_probe_makes_an_acknowledgement_due_at_once() -> None:
    p = path()
    p.acknowledge_now(1.0)
    assert p.ack_due(1.0)


def test_the_round_trip_is_smoothed() -> None:
    p = path()
    transfer(p, start=0.0, count=1, size=1, rtt=0.08)
    assert p.srtt == pytest.approx(0.08)
    transfer(p, start=1.0, count=1, size=1, rtt=0.16)
    assert p.srtt == pytest.approx(0.09)


def test_an_ack_at_the_time_of_sending_is_no_division_by_zero() -> None:
    p = path()
    transfer(p, start=1.0, count=1, size=KIB, rtt=0.0)
    assert 0 < p.srtt < 1e-3
    assert IN_FLIGHT_MIN <= p.congestion.bound <= IN_FLIGHT_MAX


def test_the_bound_is_twice_what_the_path_carries_in_a_round_trip() -> None:
    p = path()
    transfer(p, start=0.0, count=1, size=MIB, rtt=0.1)
    assert p.congestion.bound == pytest.approx(2 * MIB, rel=1e-6)


def test_the_bound_has_a_least_queue_and_a_maximum() -> None:
    p = path()
    transfer(p, start=0.0, count=1, size=MIB, rtt=0.001)
    assert p.congestion.bound == pytest.approx(2 * MIB * LEAST_QUEUE_S / 0.001, rel=1e-6)
    q = path()
    transfer(q, start=0.0, count=1, size=64 * MIB, rtt=0.1)
    assert q.congestion.bound == IN_FLIGHT_MAX


def test_the_bound_falls_with_the_rate_after_two_windows() -> None:
    p = path()
    now = transfer(p, start=0.0, count=1, size=4 * MIB, rtt=0.1)
    high = p.congestion.bound
    now = transfer(p, start=now + RATE_WINDOW_S, count=1, size=4 * MIB, rtt=0.2)
    assert p.congestion.bound == high, "the rate before counts still"
    transfer(p, start=now + RATE_WINDOW_S, count=1, size=4 * MIB, rtt=0.2)
    assert p.congestion.bound == pytest.approx(high / 2, rel=1e-6)


def test_an_idle_path_keeps_its_bound() -> None:
    p = path()
    now = transfer(p, start=0.0, count=1, size=4 * MIB, rtt=0.1)
    high = p.congestion.bound
    transfer(p, start=now, count=50, size=10, rtt=0.1)
    assert p.congestion.bound == pytest.approx(high, rel=1e-6)


def test_silence_is_probed_ever_more_rarely() -> None:
    p = path()
    assert not p.probe_due(100.0), "nothing was sent"
    p.send(1, 1.0)
    assert p.deadline == 1.0 + PROBE_MIN_S
    assert not p.probe_due(1.0)
    assert p.probe_due(1.25)
    assert p.deadline == 1.75
    assert p.probe_due(1.75)
    assert p.deadline == 2.75


def test_three_unacknowledged_probes_are_a_stall_and_progress_ends_it() -> None:
    p = path()
    p.send(1, 0.0)
    p.send(1, 0.0)
    assert [(p.probe_due(now), p.stalled) for now in (0.25, 0.75, 1.75)] == [(True, False), (True, False), (True, True)]
    p.ack(1, 2.0)
    assert not p.stalled


def test_probes_wait_for_a_slow_path() -> None:
    p = path()
    now = transfer(p, start=0.0, count=1, size=1, rtt=1.0)
    p.send(1, now)
    assert p.deadline == now + 4.0


def test_six_seconds_without_progress_are_loss() -> None:
    p = path()
    assert not p.lost(100.0), "nothing was sent"
    p.send(1, 100.0)
    p.send(1, 103.0)
    assert not p.lost(100.0 + LOSS_TIMEOUT_S - 0.01)
    assert p.lost(100.0 + LOSS_TIMEOUT_S)


def test_progress_puts_off_loss() -> None:
    p = path()
    p.send(1, 0.0)
    p.send(1, 0.0)
    p.ack(1, 5.0)
    assert not p.lost(LOSS_TIMEOUT_S)
    assert p.lost(5.0 + LOSS_TIMEOUT_S)
    p.ack(2, 12.0)
    assert not p.lost(100.0)
    assert p.deadline is None


def test_messages_in_flight_are_bounded_too() -> None:
    path = Path("a", 1, now=0.0)
    for _ in range(IN_FLIGHT_MESSAGES - 1):
        path.send(1, 0.0)
    assert path.room > 0
    path.send(1, 0.0)
    assert path.room == 0
    path.ack(1, 0.1)
    assert path.room > 0


def test_a_new_path_was_not_probed() -> None:
    assert not path().probed


def test_an_acknowledgement_of_ours_is_due_though_the_peer_owes_one() -> None:
    p = path()
    p.send(10, 0.0)
    p.receive(0, 10, 0.0)
    assert p.deadline == PATH_ACK_DELAY_S


def test_bytes_that_were_acknowledged_do_not_count_again() -> None:
    p = path()
    for seq in range(2):
        p.receive(seq, PATH_ACK_BYTES - 1, 0.0)
        assert not p.ack_due(0.0)
        p.acknowledged()


def test_an_acknowledgement_puts_off_the_probe() -> None:
    p = path()
    p.send(10, 0.0)
    p.send(10, 0.2)
    p.ack(1, 0.2)
    assert p.deadline == 0.2 + 4 * 0.2
    assert not p.probe_due(0.9) and p.probe_due(1.0)


def test_the_bound_keeps_the_highest_rate_for_a_window() -> None:
    p = path(now=10.0)
    now = transfer(p, start=10.0, count=1, size=4 * MIB, rtt=0.1)
    high = p.congestion.bound
    transfer(p, start=now, count=4, size=high // 2, rtt=0.2)
    assert p.congestion.bound == high


def test_the_bound_stays_while_less_than_half_of_it_is_used() -> None:
    p = path()
    now = transfer(p, start=0.0, count=1, size=4 * MIB, rtt=0.1)
    high = p.congestion.bound
    transfer(p, start=now, count=50, size=high * 2 // 5, rtt=0.1)
    assert p.congestion.bound == pytest.approx(high, rel=1e-6)
