"""The memory budget: floors, loans and the window of new streams."""

import pytest

from goreprox.protocol.budget import FLOOR_MAX, TIERS, Budget
from goreprox.protocol.limits import KIB, MIB, WINDOW_INITIAL, WINDOW_MAX

MUCH = TIERS[-1]


def test_half_of_the_total_is_floors_and_half_is_loans() -> None:
    budget = Budget(total_bytes=4 * MIB, max_streams=64)
    assert budget.floor_bytes == 2 * MIB // (2 * 64)
    assert budget.loan_bytes == 2 * MIB
    assert budget.borrowed_bytes == 0


def test_the_floor_is_never_more_than_an_initial_window() -> None:
    assert Budget(total_bytes=100 * MIB, max_streams=1).floor_bytes == FLOOR_MAX == WINDOW_INITIAL


def test_the_least_total_is_accepted_and_one_byte_less_is_refused() -> None:
    assert Budget(total_bytes=8 * KIB * 10, max_streams=10).floor_bytes == 2 * KIB
    with pytest.raises(ValueError, match="81919 bytes for 10 streams, expected at least 81920"):
        Budget(total_bytes=8 * KIB * 10 - 1, max_streams=10)


def test_a_half_may_borrow_a_fifth_of_what_is_free_to_it() -> None:
    budget = Budget(total_bytes=4 * MIB, max_streams=64)
    assert budget.allowance(0, moved=MUCH) == budget.floor_bytes + 2 * MIB // 5
    held = budget.account(held=0, holding=budget.floor_bytes + MIB)
    assert held == MIB
    assert budget.allowance(0, moved=MUCH) == budget.floor_bytes + MIB // 5, "another one's share"
    assert budget.allowance(held, moved=MUCH) == budget.floor_bytes + 2 * MIB // 5, "its own loan counts as free to it"


def test_the_allowance_ends_at_the_largest_window() -> None:
    assert Budget(total_bytes=1024 * MIB, max_streams=1).allowance(0, moved=MUCH) == WINDOW_MAX


def test_the_floor_stays_when_nothing_is_left_to_lend() -> None:
    budget = Budget(total_bytes=4 * MIB, max_streams=64)
    budget.account(held=0, holding=budget.floor_bytes + budget.loan_bytes + 1)
    assert budget.allowance(0, moved=MUCH) == budget.floor_bytes


def test_accounts_sum_up_and_return_to_zero() -> None:
    budget = Budget(total_bytes=4 * MIB, max_streams=64)
    assert budget.account(held=0, holding=budget.floor_bytes) == 0
    first = budget.account(held=0, holding=budget.floor_bytes + 5)
    second = budget.account(held=0, holding=budget.floor_bytes + 7)
    assert (first, second, budget.borrowed_bytes) == (5, 7, 12)
    first = budget.account(held=first, holding=budget.floor_bytes + 1)
    assert budget.borrowed_bytes == 8
    budget.account(held=first, holding=0)
    budget.account(held=second, holding=0)
    assert budget.borrowed_bytes == 0


def test_new_streams_start_at_the_floor_once_a_quarter_is_lent() -> None:
    budget = Budget(total_bytes=4 * MIB, max_streams=64)
    assert budget.initial_window() == WINDOW_INITIAL
    budget.account(held=0, holding=budget.floor_bytes + budget.loan_bytes // 4)
    assert budget.initial_window() == budget.floor_bytes == 16 * KIB


def test_who_stops_early_leaves_something_to_those_that_go_on() -> None:
    budget = Budget(total_bytes=1024 * MIB, max_streams=4000)
    for tier, most in zip(TIERS, (1 / 2, 3 / 4, 7 / 8), strict=True):
        for _ in range(1000):  # a thousand stop just before the next tier, with all that they can get
            held = 0
            for _ in range(20):
                held = budget.account(held=held, holding=budget.allowance(held, moved=tier - 1))
        assert budget.borrowed_bytes <= budget.loan_bytes * most
        assert budget.allowance(0, moved=tier) >= min(tier // 2, 12 * MIB)


def test_a_loan_is_at_most_half_of_what_was_moved() -> None:
    budget = Budget(total_bytes=1024 * MIB, max_streams=100)
    assert budget.allowance(0, moved=0) == budget.floor_bytes + WINDOW_INITIAL
    assert budget.allowance(0, moved=MIB) == budget.floor_bytes + WINDOW_INITIAL + MIB // 2
