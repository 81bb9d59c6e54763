"""The memory budget: floors, loans and the window of new streams."""

import pytest

from goreprox.protocol.budget import FLOOR_MAX, PROVEN_BYTES, Budget
from goreprox.protocol.limits import KIB, MIB, WINDOW_INITIAL, WINDOW_MAX


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
    assert budget.allowance(0) == budget.floor_bytes + 2 * MIB // 5
    held = budget.account(held=0, holding=budget.floor_bytes + MIB)
    assert held == MIB
    assert budget.allowance(0) == budget.floor_bytes + MIB // 5, "another one's share"
    assert budget.allowance(held) == budget.floor_bytes + 2 * MIB // 5, "its own loan counts as free to it"


def test_the_allowance_ends_at_the_largest_window() -> None:
    assert Budget(total_bytes=1024 * MIB, max_streams=1).allowance(0) == WINDOW_MAX


def test_the_floor_stays_when_nothing_is_left_to_lend() -> None:
    budget = Budget(total_bytes=4 * MIB, max_streams=64)
    budget.account(held=0, holding=budget.floor_bytes + budget.loan_bytes + 1)
    assert budget.allowance(0) == budget.floor_bytes


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


def test_half_of_the_loans_is_for_those_that_have_moved_much() -> None:
    budget = Budget(total_bytes=64 * MIB, max_streams=1000)
    held = [0] * 1000
    for _ in range(50):  # a thousand stop early, with all that they can get
        for index, borrowed in enumerate(held):
            held[index] = budget.account(held=borrowed, holding=budget.allowance(borrowed, moved=0))
    assert budget.borrowed_bytes <= budget.loan_bytes // 2
    assert budget.allowance(0, moved=PROVEN_BYTES) >= 3 * MIB
