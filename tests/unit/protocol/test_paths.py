"""Which path a session prefers, when it moves there, and that it does not follow a path that comes and goes."""

import hashlib

import pytest

from goreprox.protocol.events import Data, Goodbye, Open, Probe, Resume
from goreprox.protocol.limits import RESTART_MIN_S, SETTLE_MAX_S, SETTLE_MIN_S, STEADY_S
from goreprox.protocol.notices import Kind
from goreprox.protocol.paths import SPREAD, Paths, rank
from tests.support.peer import Peer, hello, live, opened

GOOD, BAD = 2 * SPREAD, SPREAD
"""Ranks of paths that settle after `SETTLE_MIN_S`."""


def paths(**ranks: int) -> Paths:
    made = Paths()
    for name, each in ranks.items():
        made.add(name, each, 0.0)
    return made


def test_pairs_are_spread_over_brokers_and_only_those_of_a_lost_one_prefer_another() -> None:
    brokers = ["a:9888", "b:9888", "c:9888", "d:9888"]

    def best(brokers: list[str]) -> list[str]:
        pairs = [(b"e%d" % edge, b"p%d" % provider) for edge in range(20) for provider in range(50)]
        return [max(brokers, key=lambda each: rank(*pair, each)) for pair in pairs]

    before, after = best(brokers), best(brokers[1:])
    assert all(200 < before.count(each) < 300 for each in brokers)
    assert all(old == new for old, new in zip(before, after, strict=True) if old != brokers[0])


def test_the_best_of_the_settled_paths_is_next() -> None:
    made = paths(bad=BAD, good=GOOD)
    assert made.next(SETTLE_MIN_S - 0.1) == "bad"
    assert made.next(SETTLE_MIN_S) == "good"
    made.add("good", GOOD, 1.0)  # it came up anew
    assert made.next(SETTLE_MIN_S) == "bad"


def test_of_equal_paths_the_first_is_next_and_a_lost_one_goes_last() -> None:
    made = paths(a=0, b=0, c=0)
    assert made.next(SETTLE_MIN_S) == "a"
    made.lost("a", SETTLE_MIN_S, used_s=1.0, moved=False)
    assert (made.next(SETTLE_MIN_S), list(made)) == ("b", ["b", "c", "a"])


def test_only_the_best_path_is_better() -> None:
    made = paths(worst=0, bad=BAD, good=GOOD)
    assert made.better("worst") == made.better("bad") == ("good", SETTLE_MIN_S)
    assert made.better("good") is None
    assert paths(a=0, b=0).better("a") is None
    assert paths(a=0).better("a") is None


def test_sessions_do_not_all_move_at_the_same_moment() -> None:
    ranks = [int.from_bytes(hashlib.blake2b(bytes([i]), digest_size=8).digest()) for i in range(256)]
    times = []
    for each in ranks:
        better = paths(old=-1, new=each).better("old")
        assert better is not None
        times.append(better[1])
    assert SETTLE_MIN_S <= min(times) < SETTLE_MIN_S * 1.05 and SETTLE_MIN_S * 1.45 < max(times) < SETTLE_MIN_S * 1.5


def settles(made: Paths) -> float:
    made.add("new", GOOD, 0.0)
    better = made.better("old")
    assert better is not None
    return better[1]


def test_a_path_that_is_lost_soon_after_a_move_has_to_be_up_for_longer_the_next_time() -> None:
    made = paths(old=0)
    waits = []
    for _ in range(8):
        waits.append(settles(made))
        made.lost("new", 0.0, used_s=1.0, moved=True)
    assert waits == [SETTLE_MIN_S * 2**i for i in range(6)] + [SETTLE_MAX_S] * 2
    made.lost("new", 0.0, used_s=1.0, moved=False)
    assert settles(made) == SETTLE_MAX_S
    made.lost("old", 0.0, used_s=STEADY_S, moved=False)
    assert settles(made) == SETTLE_MIN_S


# In a session.


def moving() -> Peer:
    """Give the peer of an opener with a stream, which has just begun to move from path a to b."""
    peer, stream = opened()
    stream.write(b"abcdef")
    peer.heard()
    peer.now = 1.0
    peer.session.path_up("b", peer.now, rank=GOOD)
    peer.say(Probe())  # acknowledges all, so that nothing is due but the move
    peer.heard()
    assert peer.session.deadline() == 1.0 + SETTLE_MIN_S
    peer.notices()
    peer.now += SETTLE_MIN_S
    peer.session.tick(peer.now)
    return peer


def test_a_session_moves_to_the_better_path_once_it_has_settled_and_that_is_no_outage() -> None:
    peer = moving()
    outages = peer.session.counters.outages
    (page,) = peer.heard()
    assert isinstance(page, Resume) and (peer.path, peer.path_in_use) == ("b", "b")
    assert peer.session.uses("b") and not peer.session.uses("a")
    assert not peer.session.established
    peer.say(hello(live(1, received=4), next_id=2), path="b")
    assert peer.session.established and peer.session.epochs.moved
    assert Kind.ESTABLISHED in peer.kinds()
    assert [bytes(event.payload) for event in peer.heard() if isinstance(event, Data)] == [b"ef"]
    assert peer.session.counters.outages == outages
    assert peer.session.multiplexer.resumption.outage_s is None
    assert peer.session.epochs.better is None


def test_a_stream_whose_open_was_not_sent_yet_stays_with_its_provider_in_a_move() -> None:
    peer, _ = opened()
    peer.session.epochs._paths.add("b", GOOD, peer.now)
    peer.notices()
    peer.now += SETTLE_MIN_S
    unsent = peer.open()
    peer.session.tick(peer.now)
    peer.heard()
    peer.say(hello(live(1), next_id=2), path="b")
    assert Kind.UNSENT not in peer.kinds()
    assert [event.stream for event in peer.heard() if isinstance(event, Open)] == [unsent.id]


def test_a_session_that_moved_to_a_path_which_does_not_carry_goes_back_before_that_counts_as_lost() -> None:
    peer = moving()
    outages, began = peer.session.counters.outages, peer.now
    while peer.path_in_use == "b":
        peer.heard()
        due = peer.session.deadline()
        assert due is not None
        peer.now = due
        peer.session.tick(peer.now)
    assert peer.now - began == pytest.approx(1.75)
    assert peer.session.counters.outages == outages + 1
    peer.now += 2 * RESTART_MIN_S
    peer.session.tick(peer.now)
    peer.heard()
    assert peer.path == "a"
    peer.say(hello(live(1, received=6), next_id=2))
    assert peer.session.established and not peer.session.epochs.moved
    assert peer.session.epochs.better == ("b", pytest.approx(began + 1.75 + 2 * SETTLE_MIN_S))


def test_an_acceptor_has_no_preference_and_goes_where_its_peer_moves() -> None:
    peer = Peer(opener=False)
    peer.connect()
    peer.session.path_up("b", 0.0)
    peer.session.tick(100.0)
    assert peer.path_in_use == "a" and peer.session.epochs.better is None
    peer.now = 100.0
    peer.say(Probe())
    peer.heard()
    peer.begin(hello(), epoch=2, path="b")
    assert peer.path_in_use == "b" and peer.session.established
    assert peer.session.counters.outages == 0


def test_an_acceptor_whose_path_is_silent_counts_the_epoch_on_another_as_an_outage() -> None:
    peer = Peer(opener=False)
    peer.connect()
    peer.session.path_up("b", 0.0)
    peer.session.drain()
    peer.heard()
    peer.session.tick(0.25)
    assert peer.session.stalled
    peer.begin(hello(), epoch=2, path="b")
    assert peer.path_in_use == "b" and peer.session.counters.outages == 1


def test_of_two_epochs_begun_at_once_the_one_of_the_end_with_the_preference_is_higher() -> None:
    for number in range(1, 5):
        begun = {}
        for opener in (True, False):
            peer = Peer(opener=opener)
            peer.session.path_up("a", 0.0)
            peer.heard()
            peer.begin(hello(), epoch=max(number, peer.epoch))
            peer.session.epochs.number = number
            peer.session.path_up("a", 1.0)
            peer.heard()
            begun[opener] = peer.epoch
        assert begun[True] > begun[False] > number


def test_a_session_that_says_goodbye_moves_with_it() -> None:
    peer = moving()
    peer.session.goodbye("the end")
    peer.heard()
    peer.say(hello(), path="b")
    assert Goodbye("the end") in peer.heard()
