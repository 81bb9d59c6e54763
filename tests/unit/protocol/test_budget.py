"""The memory budget: reservations, the shared pool, and the window of new streams."""

import pytest

from goreprox.protocol.budget import RESERVED_MAX, TIERS, Budget
from goreprox.protocol.limits import KIB, MIB, WINDOW_INITIAL, WINDOW_MAX

MUCH = TIERS[-1]


def test_half_of_the_total_is_reserved_and_half_is_the_pool() -> None:
    budget = Budget(total_bytes=4 * MIB, max_streams=64)
    assert budget.reserved_bytes == 2 * MIB // (2 * 64)
    assert budget.pool_bytes == 2 * MIB
    assert budget.pool_used_bytes == 0


def test_no_more_is_reserved_than_an_initial_window() -> None:
    assert Budget(total_bytes=100 * MIB, max_streams=1).reserved_bytes == RESERVED_MAX == WINDOW_INITIAL


def test_the_least_total_is_accepted_and_one_byte_less_is_rejected() -> None:
    assert Budget(total_bytes=8 * KIB * 10, max_streams=10).reserved_bytes == 2 * KIB
    with pytest.raises(ValueError, match="81919 bytes for 10 streams, expected at least 81920"):
        Budget(total_bytes=8 * KIB * 10 - 1, max_streams=10)


def test_a_budget_is_resized_under_streams() -> None:
    budget = Budget(total_bytes=4 * MIB, max_streams=64)
    told = budget.reserved_bytes
    held = budget.account(used=0, holding=told + MIB)
    budget.resize(total_bytes=2 * MIB, max_streams=128)
    assert (budget.reserved_bytes, budget.pool_bytes) == (told // 4, MIB)
    assert budget.initial_window() == told, "peers may have been told that so much is reserved"
    assert budget.allowance(0, moved=MUCH) == budget.reserved_bytes, "the pool is used up"
    assert budget.account(used=held, holding=MIB // 2) == budget.pool_used_bytes == MIB // 2 - budget.reserved_bytes
    budget.resize(total_bytes=4 * MIB, max_streams=64)
    assert budget.account(used=budget.pool_used_bytes, holding=0) == budget.pool_used_bytes == 0
    assert budget.max_streams == 128, "peers may have ended so many streams"
    with pytest.raises(ValueError, match="expected at least"):
        budget.resize(total_bytes=MIB, max_streams=1000)
    assert budget.pool_bytes == 2 * MIB


def test_a_direction_may_use_a_fifth_of_what_is_free_to_it() -> None:
    budget = Budget(total_bytes=4 * MIB, max_streams=64)
    assert budget.allowance(0, moved=MUCH) == budget.reserved_bytes + 2 * MIB // 5
    held = budget.account(used=0, holding=budget.reserved_bytes + MIB)
    assert held == MIB
    assert budget.allowance(0, moved=MUCH) == budget.reserved_bytes + MIB // 5, "another one's share"
    assert budget.allowance(held, moved=MUCH) == budget.reserved_bytes + 2 * MIB // 5, (
        "what it uses itself counts as free to it"
    )


def test_the_allowance_ends_at_the_largest_window() -> None:
    assert Budget(total_bytes=1024 * MIB, max_streams=1).allowance(0, moved=MUCH) == WINDOW_MAX


def test_the_reservation_stays_when_the_pool_is_used_up() -> None:
    budget = Budget(total_bytes=4 * MIB, max_streams=64)
    budget.account(used=0, holding=budget.reserved_bytes + budget.pool_bytes + 1)
    assert budget.allowance(0, moved=MUCH) == budget.reserved_bytes


def test_what_is_used_sums_up_and_returns_to_zero() -> None:
    budget = Budget(total_bytes=4 * MIB, max_streams=64)
    assert budget.account(used=0, holding=budget.reserved_bytes) == 0
    first = budget.account(used=0, holding=budget.reserved_bytes + 5)
    second = budget.account(used=0, holding=budget.reserved_bytes + 7)
    assert (first, second, budget.pool_used_bytes) == (5, 7, 12)
    first = budget.account(used=first, holding=budget.reserved_bytes + 1)
    assert budget.pool_used_bytes == 8
    budget.account(used=first, holding=0)
    budget.account(used=second, holding=0)
    assert budget.pool_used_bytes == 0


def test_new_streams_start_at_the_reservation_once_a_quarter_of_the_pool_is_used() -> None:
    budget = Budget(total_bytes=4 * MIB, max_streams=64)
    assert budget.initial_window() == WINDOW_INITIAL
    budget.account(used=0, holding=budget.reserved_bytes + budget.pool_bytes // 4)
    assert budget.initial_window() == budget.reserved_bytes == 16 * KIB


def test_readers_that_stop_early_leave_some_of_the_pool_to_those_that_go_on() -> None:
    budget = Budget(total_bytes=1024 * MIB, max_streams=4000)
    for tier, most in zip(TIERS, (1 / 2, 3 / 4, 7 / 8), strict=True):
        for _ in range(1000):  # a thousand stop just before the next tier, with all that they can get
            held = 0
            for _ in range(20):
                held = budget.account(used=held, holding=budget.allowance(held, moved=tier - 1))
        assert budget.pool_used_bytes <= budget.pool_bytes * most
        assert budget.allowance(0, moved=tier) >= min(tier // 2, 12 * MIB)


def test_a_direction_uses_at_most_half_of_what_it_moved() -> None:
    budget = Budget(total_bytes=1024 * MIB, max_streams=100)
    assert budget.allowance(0, moved=0) == budget.reserved_bytes + WINDOW_INITIAL
    assert budget.allowance(0, moved=MIB) == budget.reserved_bytes + WINDOW_INITIAL + MIB // 2


def test_the_last_bytes_of_the_pool_can_be_used() -> None:
    budget = Budget(total_bytes=10 * MIB, max_streams=64)
    assert budget.allowance(0, moved=MUCH) == budget.reserved_bytes + MIB
    budget.account(used=0, holding=budget.reserved_bytes + budget.pool_bytes - 5)
    assert budget.allowance(0, moved=MUCH) == budget.reserved_bytes + 1


def test_new_streams_get_an_initial_window_until_a_quarter_of_the_pool_is_used() -> None:
    budget = Budget(total_bytes=4 * MIB, max_streams=64)
    budget.account(used=0, holding=budget.reserved_bytes + budget.pool_bytes // 4 - 1)
    assert budget.initial_window() == WINDOW_INITIAL


def test_what_peers_were_told_by_an_earlier_process_holds() -> None:
    budget = Budget(total_bytes=4 * MIB, max_streams=64)
    budget.take_over(told_bytes=32 * KIB, max_streams=100)
    budget.account(used=0, holding=budget.reserved_bytes + budget.pool_bytes // 4)
    assert (budget.initial_window(), budget.max_streams) == (32 * KIB, 100)
    budget.take_over(told_bytes=1, max_streams=1)
    assert (budget.initial_window(), budget.max_streams) == (32 * KIB, 100)
