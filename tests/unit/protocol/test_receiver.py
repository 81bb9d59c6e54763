"""The receiving half: duplicates, gaps, the end of file, and a window that follows the socket."""

from collections.abc import Callable

import pytest

from goreprox.protocol.budget import Budget
from goreprox.protocol.errors import RemoteProtocolError
from goreprox.protocol.limits import KIB, MIB, WINDOW_INITIAL
from goreprox.protocol.receiver import ReceiveHalf

RTT_S = 0.1


def half() -> ReceiveHalf:
    return ReceiveHalf(Budget(total_bytes=64 * MIB, max_streams=64))


def waiting(receive: ReceiveHalf) -> bytes:
    return b"".join(map(bytes, receive.chunks))


def consume(receive: ReceiveHalf, count: int, now: float = 0.0) -> None:
    receive.consume(count)
    if receive.pace_known:
        receive.adapt(now=now, round_trip_s=RTT_S)


def test_bytes_wait_in_order() -> None:
    receive = half()
    assert receive.receive(0, b"abc")
    assert receive.receive(3, b"def")
    assert waiting(receive) == b"abcdef"
    assert receive.received == 6


def test_a_duplicate_is_dropped() -> None:
    receive = half()
    receive.receive(0, b"abc")
    assert not receive.receive(0, b"abc")
    assert not receive.receive(1, b"b")
    assert waiting(receive) == b"abc"


def test_an_overlap_is_trimmed() -> None:
    receive = half()
    receive.receive(0, b"abc")
    assert receive.receive(1, b"bcde")
    assert waiting(receive) == b"abcde"


def test_a_gap_is_rejected() -> None:
    with pytest.raises(RemoteProtocolError, match="data at offset 1, expected 0"):
        half().receive(1, b"a")


def test_bytes_beyond_the_limit_are_rejected() -> None:
    receive = half()
    assert receive.limit == WINDOW_INITIAL
    receive.receive(0, bytes(WINDOW_INITIAL))
    with pytest.raises(RemoteProtocolError, match="data up to offset 65537, expected at most 65536"):
        receive.receive(WINDOW_INITIAL, b"a")


def test_bytes_after_the_end_of_file_are_rejected_but_duplicates_are_not() -> None:
    receive = half()
    receive.receive(0, b"abc")
    receive.receive_eof(3)
    assert not receive.receive(0, b"abc")
    with pytest.raises(RemoteProtocolError, match="data up to offset 4 after the end of file at 3"):
        receive.receive(3, b"d")


def test_an_end_of_file_is_new_once() -> None:
    receive = half()
    assert receive.receive_eof(0)
    assert not receive.receive_eof(0)


def test_an_end_of_file_at_another_offset_is_rejected() -> None:
    with pytest.raises(RemoteProtocolError, match="end of file at offset 5, expected 0"):
        half().receive_eof(5)


def test_the_socket_takes_chunks_and_parts_of_them() -> None:
    receive = half()
    for offset, chunk in ((0, b"abc"), (3, b"def"), (6, b"ghi")):
        receive.receive(offset, chunk)
    consume(receive, 5)
    assert waiting(receive) == b"fghi"
    consume(receive, 4)
    assert waiting(receive) == b""
    assert receive.delivered == 9


def test_the_end_of_file_follows_the_last_byte() -> None:
    receive = half()
    receive.receive(0, b"ab")
    ready = [receive.eof_ready]
    receive.receive_eof(2)
    ready.append(receive.eof_ready)
    consume(receive, 2)
    ready.append(receive.eof_ready)
    receive.deliver_eof()
    ready.append(receive.eof_ready)
    assert ready == [False, False, True, False]


def test_an_end_of_file_counts_as_one_in_acks() -> None:
    receive = half()
    receive.receive(0, b"ab")
    receive.receive_eof(2)
    consume(receive, 2)
    assert receive.take_ack() == (2, WINDOW_INITIAL)
    pending = receive.ack_pending
    receive.deliver_eof()
    assert (pending, receive.ack_pending) == (False, True)
    assert receive.ack_urgent
    assert receive.take_ack() == (3, WINDOW_INITIAL), "no byte will come: the limit stays"


def poor() -> ReceiveHalf:
    """Give one with the least window: others use all of the pool."""
    budget = Budget(total_bytes=MIB, max_streams=128)
    budget.account(used=0, holding=budget.reserved_bytes + budget.pool_bytes)
    return ReceiveHalf(budget)


def grown() -> ReceiveHalf:
    """Give one with a window that has grown."""
    receive = half()
    while (window := receive.limit - receive.delivered) < MIB:
        receive.receive(receive.received, bytes(window))
        consume(receive, window)
        receive.take_ack()
    return receive


@pytest.mark.parametrize(("make", "part"), [(poor, 4), (half, 8), (grown, 16)])
def test_an_ack_is_urgent_after_a_part_of_the_window(make: Callable[[], ReceiveHalf], part: int) -> None:
    receive = make()
    window, before = receive.limit - receive.delivered, receive.delivered
    urgent = window // part
    receive.receive(before, bytes(window))
    state = [(receive.ack_pending, receive.ack_urgent)]
    for count in (urgent - 1, 1):
        receive.consume(count)
        state.append((receive.ack_pending, receive.ack_urgent))
    assert state == [(False, False), (True, False), (True, True)]
    assert receive.take_ack() == (before + urgent, before + urgent + window)
    assert not receive.ack_urgent


def test_the_window_doubles_while_the_socket_keeps_up() -> None:
    receive = half()
    receive.receive(0, bytes(WINDOW_INITIAL))
    consume(receive, WINDOW_INITIAL // 2, now=2 * RTT_S)
    assert receive.take_ack()[1] == WINDOW_INITIAL // 2 + 2 * WINDOW_INITIAL


def test_the_window_stays_while_the_socket_is_slow() -> None:
    receive = half()
    receive.receive(0, bytes(WINDOW_INITIAL))
    consume(receive, WINDOW_INITIAL // 2, now=2 * RTT_S + 0.01)
    assert receive.take_ack()[1] == WINDOW_INITIAL // 2 + WINDOW_INITIAL


def test_the_window_grows_no_further_than_the_budget() -> None:
    budget = Budget(total_bytes=MIB, max_streams=64)
    receive = ReceiveHalf(budget)
    receive.receive(0, bytes(WINDOW_INITIAL))
    used = WINDOW_INITIAL - budget.reserved_bytes
    assert budget.pool_used_bytes == used
    budget.account(used=0, holding=budget.reserved_bytes + 400 * KIB)
    expected = budget.allowance(used, moved=WINDOW_INITIAL // 2)
    assert expected < WINDOW_INITIAL
    consume(receive, WINDOW_INITIAL // 2)
    assert receive.take_ack() == (WINDOW_INITIAL // 2, max(WINDOW_INITIAL, WINDOW_INITIAL // 2 + expected))


def test_windows_that_grew_during_an_outage_stay_within_the_budget() -> None:
    budget = Budget(total_bytes=32 * MIB, max_streams=1250)
    halves = [ReceiveHalf(budget) for _ in range(250)]

    def move(receive: ReceiveHalf, now: float) -> None:
        count = min(receive.limit - receive.received, WINDOW_INITIAL // 2)
        receive.receive(receive.received, bytes(count))
        consume(receive, count, now)

    for receive in halves:
        move(receive, 0.01)
        receive.take_ack()
    for receive in halves:
        move(receive, 0.06)
    for receive in halves:
        receive.take_ack()
    assert budget.pool_used_bytes <= budget.pool_bytes // 2  # the other half is for those that have moved more


def test_the_limit_never_moves_back() -> None:
    budget = Budget(total_bytes=MIB, max_streams=64)
    receive = ReceiveHalf(budget)
    receive.receive(0, bytes(WINDOW_INITIAL))
    budget.account(used=0, holding=budget.reserved_bytes + budget.pool_bytes)
    consume(receive, WINDOW_INITIAL // 2)
    assert receive.take_ack()[1] == WINDOW_INITIAL


def test_a_discard_gives_the_budget_back() -> None:
    budget = Budget(total_bytes=4 * MIB, max_streams=64)
    receive = ReceiveHalf(budget)
    assert budget.pool_used_bytes == WINDOW_INITIAL - budget.reserved_bytes
    receive.receive(0, b"abc")
    receive.discard()
    assert budget.pool_used_bytes == 0
    assert not receive.chunks


def test_what_was_promised_before_a_window_shrank_stays_counted() -> None:
    budget = Budget(total_bytes=MIB, max_streams=64)
    receive = ReceiveHalf(budget)
    receive.receive(0, bytes(WINDOW_INITIAL))
    budget.account(used=0, holding=budget.reserved_bytes + budget.pool_bytes)
    consume(receive, WINDOW_INITIAL // 2)
    delivered, limit = receive.take_ack()
    assert limit - delivered == WINDOW_INITIAL // 2
    assert budget.pool_used_bytes == budget.pool_bytes + WINDOW_INITIAL // 2 - budget.reserved_bytes


def test_a_chunk_that_the_socket_took_whole_is_gone() -> None:
    receive = half()
    chunk = bytes(KIB)
    receive.receive(0, chunk)
    assert receive.chunks[0] is chunk
    receive.consume(KIB)
    assert not receive.chunks


def test_no_end_of_file_is_ready_before_it_came() -> None:
    receive = half()
    assert not receive.eof_ready


def test_unacknowledged_bytes_are_those_since_the_last_ack() -> None:
    receive = half()
    receive.receive(0, bytes(15))
    receive.consume(10)
    receive.take_ack()
    receive.consume(5)
    assert receive.unacknowledged == 5


def test_the_pace_is_known_after_half_a_window_each_time() -> None:
    receive = half()
    known = []
    for count in (WINDOW_INITIAL // 2 - 1, 1):
        receive.receive(receive.received, bytes(count))
        receive.consume(count)
        known.append(receive.pace_known)
    receive.adapt(now=100.0, round_trip_s=0.1)
    receive.receive(receive.received, bytes(KIB))
    receive.consume(KIB)
    known.append(receive.pace_known)
    assert known == [False, True, False]
