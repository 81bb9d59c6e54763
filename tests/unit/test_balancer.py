"""Which provider gets a stream."""

import random
from collections import Counter

import pytest

from goreprox.roles.balancer import BACKOFF_MAX_S, BACKOFF_MIN_S, FORGET_S, UNANSWERED, Balancer, Candidate

A, B, C = b"a", b"b", b"c"


@pytest.fixture
def balancer() -> Balancer:
    return Balancer(random.Random(1))


def idle(*ids: bytes) -> list[Candidate]:
    return [Candidate(each, 0, 1.0) for each in ids]


def chosen(balancer: Balancer, candidates: list[Candidate], *, now: float = 0.0, count: int = 100) -> set[bytes | None]:
    return {balancer.choose("s", candidates, now) for _ in range(count)}


def test_no_provider_is_chosen_without_candidates(balancer: Balancer) -> None:
    assert balancer.choose("s", [], 0) is None


def test_the_provider_with_the_fewest_streams_is_chosen(balancer: Balancer) -> None:
    assert chosen(balancer, [Candidate(A, 2, 1.0), Candidate(B, 1, 1.0), Candidate(C, 3, 1.0)]) == {B}


def test_ties_are_broken_at_random(balancer: Balancer) -> None:
    assert chosen(balancer, [Candidate(A, 1, 1.0), Candidate(B, 1, 1.0), Candidate(C, 2, 1.0)]) == {A, B}


def test_streams_count_by_weight(balancer: Balancer) -> None:
    assert chosen(balancer, [Candidate(A, 5, 3.0), Candidate(B, 2, 1.0)]) == {A}
    assert chosen(balancer, [Candidate(A, 7, 3.0), Candidate(B, 2, 1.0)]) == {B}


def test_short_streams_are_shared_by_weight_though_all_providers_are_idle(balancer: Balancer) -> None:
    candidates = [Candidate(A, 0, 3.0), Candidate(B, 0, 1.0)]
    counts = Counter(balancer.choose("s", candidates, 0) for _ in range(4000))
    assert 2700 < counts[A] < 3300  # 3,000 expected, standard deviation 27


def test_a_failed_provider_is_avoided_during_its_backoff_though_it_is_idle(balancer: Balancer) -> None:
    balancer.failed(A, "s", 10.0)
    both = [Candidate(A, 0, 1.0), Candidate(B, 9, 1.0)]
    assert chosen(balancer, both, now=10 + BACKOFF_MIN_S - 0.01) == {B}
    assert chosen(balancer, both, now=10 + BACKOFF_MIN_S) == {A}


def test_a_provider_is_well_while_there_is_no_reason_to_avoid_it(balancer: Balancer) -> None:
    idle_one = Candidate(A, 0, 1.0)
    assert balancer.well("s", idle_one, 0.0)
    assert not balancer.well("s", idle_one._replace(stalled=True), 0.0)
    assert not balancer.well("s", idle_one._replace(streams=UNANSWERED + 1, unanswered=UNANSWERED + 1), 0.0)
    balancer.failed(A, "s", 10.0)
    assert not balancer.well("s", idle_one, 10.5) and balancer.well("other", idle_one, 10.5)
    balancer.accepted(A, "s")
    assert balancer.well("s", idle_one, 10.5)
    balancer.full(A, 10.0)
    assert not balancer.well("s", idle_one, 10.5)
    balancer.ended(A)
    assert balancer.well("s", idle_one, 10.5)


def test_all_providers_are_candidates_if_all_have_failed(balancer: Balancer) -> None:
    balancer.failed(A, "s", 10.0)
    balancer.failed(B, "s", 10.0)
    assert chosen(balancer, idle(A, B), now=10.5) == {A, B}


def test_a_failure_counts_for_one_service_of_a_provider(balancer: Balancer) -> None:
    balancer.failed(A, "s", 10.0)
    assert balancer.choose("other", [Candidate(A, 0, 1.0), Candidate(B, 1, 1.0)], 10.0) == A


def test_the_backoff_doubles_up_to_its_bound(balancer: Balancer) -> None:
    now, lengths = 0.0, []
    for _ in range(7):
        balancer.failed(A, "s", now)
        began = now
        while balancer.choose("s", idle(A, B), now) != A:  # in steps of a power of two, so that sums are exact
            now += 1 / 16
        lengths.append(round(now - began))
    assert lengths == [1, 2, 4, 8, 16, BACKOFF_MAX_S, BACKOFF_MAX_S]


def test_failures_during_a_backoff_do_not_prolong_it(balancer: Balancer) -> None:
    for now in (10.0, 10.1, 10.2, 10.9):
        balancer.failed(A, "s", now)
    assert chosen(balancer, [Candidate(A, 0, 1.0), Candidate(B, 1, 1.0)], now=11.0) == {A}


def test_an_accepted_stream_ends_the_backoff_and_its_doubling(balancer: Balancer) -> None:
    balancer.failed(A, "s", 10.0)
    balancer.failed(A, "s", 11.0)
    balancer.accepted(A, "s")
    both = [Candidate(A, 0, 1.0), Candidate(B, 1, 1.0)]
    assert chosen(balancer, both, now=11.0) == {A}
    balancer.failed(A, "s", 12.0)
    assert chosen(balancer, both, now=13.0) == {A}


def test_old_failures_are_forgotten(balancer: Balancer) -> None:
    for index in range(1000):
        balancer.failed(b"%d" % index, "s", float(index))
    assert len(balancer._backoffs) <= BACKOFF_MIN_S + FORGET_S + 1


def test_a_provider_with_a_stalled_path_is_avoided_while_another_responds(balancer: Balancer) -> None:
    silent, busy = Candidate(A, 0, 1000.0, stalled=True), Candidate(B, 500, 1.0)
    assert chosen(balancer, [silent, busy]) == {B}
    balancer.failed(B, "s", 0.0)
    assert chosen(balancer, [silent, busy]) == {B}, "who fails says so; who is silent does not"
    assert chosen(balancer, [silent]) == {A}


def test_a_provider_that_never_responds_holds_a_bounded_number_of_streams_whatever_its_weight(
    balancer: Balancer,
) -> None:
    held = streams = 0
    for _ in range(10_000):
        silent = Candidate(A, held, 1000.0, unanswered=held)
        honest = Candidate(B, streams, 1.0, unanswered=1)
        if balancer.choose("s", [silent, honest], 0.0) == A:
            held += 1
        else:
            streams += 1
    assert held <= UNANSWERED + 1


def test_unanswered_streams_are_allowed_in_proportion_to_accepted_ones(balancer: Balancer) -> None:
    assert chosen(balancer, [Candidate(A, 200, 100.0, unanswered=100), Candidate(B, 3, 1.0)]) == {A}


def test_a_full_provider_gets_one_stream_for_each_that_ends(balancer: Balancer) -> None:
    balancer.full(A, 10.0)
    assert balancer.choose("s", idle(A), 10.0) is None
    assert chosen(balancer, [Candidate(A, 0, 1000.0), Candidate(B, 9, 1.0)], now=10.0) == {B}
    assert balancer.ended(A) and balancer.any_full
    assert balancer.choose("s", idle(A), 10.0) == A
    assert balancer.choose("s", idle(A), 10.0) is None
    assert not balancer.ended(B), "who was never full is none of its business"


def test_a_full_provider_is_tried_again_with_twice_as_many_streams_each_second(balancer: Balancer) -> None:
    balancer.full(A, 0.0)
    given = [sum(balancer.choose("s", idle(A), second) is not None for _ in range(3000)) for second in range(1, 12)]
    assert given[:6] == [1, 2, 4, 8, 16, 32]
    assert given[-1] == 3000 and not balancer.any_full
    balancer.full(A, 20.0)
    balancer.gone(A)
    assert not balancer.any_full
