"""Deficit round robin, new flows first within their share; clients before their flows."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from goreprox.protocol.fair import FairQueue, Place, client_key

QUANTUM = 100


@dataclass(eq=False)
class Source:
    """A flow that has so many bytes to send."""

    name: str
    left: int
    client_key: str = ""
    place: Place | None = None
    deficit: int = 0
    sent: int = 0
    share: float = 0.0
    """What it would have sent by now if all could send at once, each client alike, and each flow of a client alike."""


def run(queue: FairQueue[Source], *, piece: int, turns: int) -> str:
    """Let flows send pieces, one a turn; return whose turns these were."""
    order = ""
    for _ in range(turns):
        flow = queue.turn(QUANTUM)
        if flow is None:
            break
        order += flow.name
        count = min(piece, flow.left)
        flow.left -= count
        queue.done(flow, count, more=flow.left > 0)
    return order


def test_a_new_queue_is_empty() -> None:
    queue: FairQueue[Source] = FairQueue()
    assert len(queue) == 0
    assert queue.turn(QUANTUM) is None


def test_adding_a_flow_twice_has_no_effect() -> None:
    queue: FairQueue[Source] = FairQueue()
    flow = Source("a", 10)
    queue.add(flow)
    queue.add(flow)
    assert len(queue) == 1


def test_a_flow_with_nothing_more_to_send_leaves_the_queue() -> None:
    queue: FairQueue[Source] = FairQueue()
    flow = Source("a", 10)
    queue.add(flow)
    assert run(queue, piece=10, turns=5) == "a"
    assert flow.place is None
    assert len(queue) == 0


def test_flows_take_turns() -> None:
    queue: FairQueue[Source] = FairQueue()
    for name in "abc":
        queue.add(Source(name, 300))
    assert run(queue, piece=100, turns=20) == "abcabcabc"


def test_a_flow_keeps_its_turn_while_it_has_credit() -> None:
    queue: FairQueue[Source] = FairQueue()
    for name in "ab":
        queue.add(Source(name, 200))
    assert run(queue, piece=50, turns=2) == "ab", "new flows first"
    assert run(queue, piece=50, turns=20) == "babbaa"


def test_a_flow_that_exceeded_its_credit_waits_longer() -> None:
    queue: FairQueue[Source] = FairQueue()
    big, small = Source("b", 1000), Source("s", 400)
    queue.add(big)
    queue.add(small)
    flow = queue.turn(QUANTUM)
    assert flow is big
    queue.done(big, 300, more=True)
    assert run(queue, piece=100, turns=4) == "sssb"


def test_a_flow_that_exceeded_its_credit_and_left_returns_without_a_debt() -> None:
    queue: FairQueue[Source] = FairQueue()
    back = Source("b", 100)
    queue.add(back)
    assert queue.turn(QUANTUM) is back
    queue.done(back, 300, more=False)
    queue.add(back)
    queue.add(Source("o", 100))
    assert run(queue, piece=100, turns=2) == "bo"


def test_a_new_flow_goes_before_those_that_have_been_sending() -> None:
    queue: FairQueue[Source] = FairQueue()
    for name in "ab":
        queue.add(Source(name, 1000))
    assert run(queue, piece=100, turns=3) == "aba"
    queue.add(Source("n", 100))
    assert run(queue, piece=100, turns=3) == "nba"


@pytest.mark.parametrize("client", ["", "another"])
def test_a_removed_flow_gets_no_turn(client: str) -> None:
    queue: FairQueue[Source] = FairQueue()
    gone, here = Source("g", 10), Source("h", 10, client_key=client)
    queue.add(gone)
    queue.add(here)
    queue.remove(gone)
    queue.remove(gone)  # one that is not there stays so
    assert run(queue, piece=10, turns=5) == "h"


@pytest.mark.parametrize("client", ["", "another"])
def test_a_flow_that_waits_behind_others_can_be_removed(client: str) -> None:
    queue: FairQueue[Source] = FairQueue()
    gone, here = Source("g", 1000), Source("h", 1000, client_key=client)
    queue.add(gone)
    queue.add(here)
    assert run(queue, piece=100, turns=2) == "gh"
    queue.remove(gone)
    assert run(queue, piece=100, turns=2) == "hh"


@pytest.mark.parametrize("client", ["", "another"])
def test_clear_forgets_new_and_old_flows(client: str) -> None:
    queue: FairQueue[Source] = FairQueue()
    old, new = Source("o", 1000), Source("n", 10, client_key=client)
    queue.add(old)
    run(queue, piece=100, turns=1)
    queue.add(new)
    assert len(queue) == 2
    queue.clear()
    assert len(queue) == 0
    assert old.place is None
    assert new.place is None
    assert queue.turn(QUANTUM) is None
    assert not queue._clients, "nothing is kept of them"
    queue.add(old)
    assert run(queue, piece=100, turns=1) == "o"


def test_new_flows_go_first_only_as_far_as_they_have_their_share() -> None:
    queue: FairQueue[Source] = FairQueue()
    queue.add(Source("d", 1000))
    assert run(queue, piece=100, turns=1) == "d"
    order = "n"
    for _ in range(12):
        if order.endswith("n"):  # each comes as soon as the one before it has gone
            queue.add(Source("n", 100))
        order += run(queue, piece=100, turns=1)
    assert order == "n" + "nd" * 6


def test_a_flow_that_keeps_returning_gets_one_share() -> None:
    queue: FairQueue[Source] = FairQueue()
    for name in "abc":
        queue.add(Source(name, 10_000))
    assert run(queue, piece=100, turns=3) == "abc"
    back = Source("n", 0)
    order = ""
    for _ in range(40):
        back.left = back.left or 100
        queue.add(back)
        order += run(queue, piece=100, turns=1)
    assert {name: order.count(name) for name in "abc"} == pytest.approx(dict.fromkeys("abc", 10), abs=2)


def test_flows_of_one_client_share_what_one_flow_of_another_gets() -> None:
    queue: FairQueue[Source] = FairQueue()
    for name in "abcd":
        queue.add(Source(name, 10_000, client_key="many"))
    queue.add(Source("x", 10_000, client_key="one"))
    assert Counter(run(queue, piece=100, turns=80)) == pytest.approx({"x": 40} | dict.fromkeys("abcd", 10), abs=1)


def test_a_new_flow_goes_first_though_its_client_has_been_sending() -> None:
    queue: FairQueue[Source] = FairQueue()
    for name in "abcdef":
        queue.add(Source(name, 10_000, client_key=name))
    run(queue, piece=100, turns=7)
    queue.add(Source("n", 10, client_key="c"))
    assert run(queue, piece=100, turns=1) == "n"


def test_removing_a_new_flow_keeps_the_other_flows_of_its_client() -> None:
    queue: FairQueue[Source] = FairQueue()
    old, other, new = Source("o", 300), Source("x", 300, client_key="2"), Source("n", 100)
    queue.add(old)
    queue.add(other)
    assert run(queue, piece=100, turns=2) == "ox"
    queue.add(new)
    queue.remove(new)
    assert len(queue) == 2
    assert sorted(run(queue, piece=100, turns=9)) == list("ooxx")


Arrivals = Callable[[random.Random, int], list[Source]]
"""What comes before a turn, given how many wait."""


def _fresh(dice: random.Random, waiting: int) -> list[Source]:
    """More than fits, each a flow of its own."""
    count = dice.randint(0, 3) if waiting < 40 else 0
    return [Source("", dice.choice([1, 20, 80, 100]), client_key=dice.choice("ab")) for _ in range(count)]


def _bursts(dice: random.Random, _: int) -> list[Source]:
    return [Source("", 90, client_key="a") for _ in range(60)] if dice.random() < 0.01 else []


def _few(dice: random.Random, _: int) -> list[Source]:
    return [Source("", 10, client_key=dice.choice("abcdef"))] if dice.random() < 0.1 else []


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("clients", ["a", "ab", "abcdef"])
@pytest.mark.parametrize("arrivals", [_fresh, _bursts, _few])
def test_every_flow_gets_its_share_whatever_joins(arrivals: Arrivals, clients: str, seed: int) -> None:
    """A flow is at most a few turns behind, and one part in five."""
    dice = random.Random(seed)
    queue: FairQueue[Source] = FairQueue()
    waiting = [Source("", 10**9, client_key=dice.choice(clients)) for _ in range(dice.choice([1, 3, 10]))]
    for flow in waiting:
        queue.add(flow)
    for _ in range(1500):
        for new in arrivals(dice, len(waiting)):
            waiting.append(new)
            queue.add(new)
        turn = queue.turn(QUANTUM)
        assert turn is not None
        count = min(turn.left, QUANTUM)
        flows = Counter(other.client_key for other in waiting)
        for other in waiting:
            other.share += count / len(flows) / flows[other.client_key]
        turn.left -= count
        turn.sent += count
        behind = [other.share - 6 * QUANTUM - other.sent * 5 / 4 for other in waiting]
        assert max(behind) <= 0, (max(behind), waiting[behind.index(max(behind))])
        queue.done(turn, count, more=turn.left > 0)
        if not turn.left:
            waiting.remove(turn)
        assert len(queue) == len(waiting)


@pytest.mark.parametrize(
    ("client", "other", "same"),
    [
        ("192.0.2.1:1", "192.0.2.1:2", True),
        ("192.0.2.1:1", "192.0.2.2:1", False),
        ("[2001:db8::1]:1", "[2001:db8::2:3:4:5]:1", True),
        ("[2001:db8::1]:1", "[2001:db8:0:1::1]:1", False),
        ("[::ffff:192.0.2.1]:1", "192.0.2.1:1", True),
        ("[fe80::1%eth0]:1", "[fe80::2%eth0]:2", True),
        ("[no address]:1", "[none either]:1", False),
        ("", "192.0.2.1:1", False),
        ("not an address:1", "not an address:2", True),
    ],
)
def test_addresses_that_count_as_one_client(client: str, other: str, *, same: bool) -> None:
    assert (client_key(client) == client_key(other)) is same
