"""Deficit round robin, new flows first."""

from dataclasses import dataclass

from goreprox.protocol.fair import FairQueue

QUANTUM = 100


@dataclass(eq=False)
class Source:
    """A flow that has so many bytes to send."""

    name: str
    left: int
    queued: bool = False
    deficit: int = 0


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
        flow.deficit -= count
        queue.done(flow, more=flow.left > 0)
    return order


def test_nobody_waits_at_first() -> None:
    queue: FairQueue[Source] = FairQueue()
    assert len(queue) == 0
    assert queue.turn(QUANTUM) is None


def test_a_flow_is_entered_once() -> None:
    queue: FairQueue[Source] = FairQueue()
    flow = Source("a", 10)
    queue.add(flow)
    queue.add(flow)
    assert len(queue) == 1


def test_a_flow_without_more_leaves() -> None:
    queue: FairQueue[Source] = FairQueue()
    flow = Source("a", 10)
    queue.add(flow)
    assert run(queue, piece=10, turns=5) == "a"
    assert not flow.queued
    assert len(queue) == 0


def test_flows_take_turns() -> None:
    queue: FairQueue[Source] = FairQueue()
    for name in "abc":
        queue.add(Source(name, 300))
    assert run(queue, piece=100, turns=20) == "abcabcabc"


def test_a_flow_goes_on_while_it_has_credit() -> None:
    queue: FairQueue[Source] = FairQueue()
    for name in "ab":
        queue.add(Source(name, 200))
    assert run(queue, piece=50, turns=2) == "ab", "new flows first"
    assert run(queue, piece=50, turns=20) == "babbaa"


def test_a_flow_that_overdrew_waits_longer() -> None:
    queue: FairQueue[Source] = FairQueue()
    big, small = Source("b", 1000), Source("s", 400)
    queue.add(big)
    queue.add(small)
    flow = queue.turn(QUANTUM)
    assert flow is big
    big.deficit -= 300
    queue.done(big, more=True)
    assert run(queue, piece=100, turns=4) == "ssbs"


def test_a_new_flow_goes_before_those_that_have_been_sending() -> None:
    queue: FairQueue[Source] = FairQueue()
    for name in "ab":
        queue.add(Source(name, 1000))
    assert run(queue, piece=100, turns=3) == "aba"
    queue.add(Source("n", 100))
    assert run(queue, piece=100, turns=3) == "nba"


def test_a_flow_that_is_removed_has_no_turn() -> None:
    queue: FairQueue[Source] = FairQueue()
    gone, here = Source("g", 10), Source("h", 10)
    queue.add(gone)
    queue.add(here)
    queue.remove(gone)
    queue.remove(gone)  # one that is not there stays so
    assert run(queue, piece=10, turns=5) == "h"


def test_a_flow_that_waits_behind_others_can_be_removed() -> None:
    queue: FairQueue[Source] = FairQueue()
    gone, here = Source("g", 1000), Source("h", 1000)
    queue.add(gone)
    queue.add(here)
    assert run(queue, piece=100, turns=2) == "gh"
    queue.remove(gone)
    assert run(queue, piece=100, turns=2) == "hh"


def test_clear_forgets_new_and_old_flows() -> None:
    queue: FairQueue[Source] = FairQueue()
    old, new = Source("o", 1000), Source("n", 10)
    queue.add(old)
    run(queue, piece=100, turns=1)
    queue.add(new)
    assert len(queue) == 2
    queue.clear()
    assert len(queue) == 0
    assert not old.queued
    assert not new.queued
    queue.add(old)
    assert run(queue, piece=100, turns=1) == "o"
