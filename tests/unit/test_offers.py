"""The index of offered services: the cost of an update and of a choice is counted, not timed."""

import os
import random
from collections.abc import Sequence

import pytest

from brokers import PeerInfo, PeerName, Role
from goreprox.protocol.budget import Budget
from goreprox.protocol.events import Drain
from goreprox.protocol.session import Session
from goreprox.roles import offers as module
from goreprox.roles.balancer import Balancer, Candidate
from goreprox.roles.offers import LARGE_SAMPLE, SAMPLE, Offers
from goreprox.tunnel.peer import Peer
from tests.support.peer import establish

BUDGET = Budget(total_bytes=1 << 24, max_streams=64)


def provider(services: Sequence[str], *, weight: float = 1.0, targets: bytes = b"") -> Peer:
    session = Session(opener=True, version=1, budget=BUDGET, grace_s=1, wake=lambda: None, now=0.0)
    establish(session)
    attributes = {"services": list(services), "weight": weight, "targets": targets}
    return Peer(PeerInfo(PeerName(Role.PROVIDER, "web", os.urandom(16)), 1, attributes), session)


def say(peer: Peer, services: Sequence[str]) -> None:
    peer.info = PeerInfo(peer.info.name, 1, {**peer.info.attributes, "services": list(services)})


@pytest.fixture
def offers() -> Offers:
    return Offers(random.Random(1))


def ids(offers: Offers, service: str, *without: Peer) -> set[bytes]:
    return {each.id for each in offers.candidates(service, without={peer.id for peer in without}, well=any_one)}


def any_one(_candidate: Candidate) -> bool:
    return True


def test_an_update_returns_the_services_gained_and_lost(offers: Offers) -> None:
    peer = provider(["a", "b"])
    assert offers.update(peer) == ({"a", "b"}, set(), set())
    assert offers.update(peer) == (set(), set(), set()), "nothing has changed"
    say(peer, ["b", "c"])
    assert offers.update(peer) == ({"c"}, {"a"}, {"a"})
    assert (ids(offers, "a"), ids(offers, "b"), set(offers.known)) == (set(), {peer.id}, {"b", "c"})


def test_a_draining_or_unreachable_provider_is_known_and_no_candidate(offers: Offers) -> None:
    draining, away = provider(["a"]), provider(["a"])
    for peer in (draining, away):
        offers.update(peer)
    establish(draining.session, Drain())
    away.session.path_down("a", 0.0)
    for peer in (draining, away):
        assert offers.update(peer) == (set(), {"a"}, set())
    assert not ids(offers, "a") and set(offers.known_for("a")) == {draining.id, away.id}


def test_a_provider_that_said_goodbye_offers_nothing(offers: Offers) -> None:
    peer = provider(["a"])
    offers.update(peer)
    peer.gone = True
    assert offers.update(peer) == (set(), {"a"}, {"a"})
    assert not offers.known and not offers._services, "nothing of it is kept"


def test_all_services_are_gained_again_in_a_new_epoch(offers: Offers) -> None:
    """Between two epochs it took no streams, so somebody may wait for each of its services."""
    peer = provider(["a"])
    offers.update(peer)
    establish(peer.session)
    assert offers.update(peer).gained == {"a"}


def test_providers_that_have_refused_are_no_candidates(offers: Offers) -> None:
    peers = [provider(["a"]) for _ in range(3)]
    for peer in peers:
        offers.update(peer)
    assert ids(offers, "a", peers[0]) == {peers[1].id, peers[2].id}


def test_a_choice_looks_at_a_bounded_number_of_providers(offers: Offers, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = 0
    plain = module._candidates

    def counting(peers: Sequence[Peer], without: Sequence[bytes], *, drawn: bool) -> list[Candidate]:
        nonlocal looked_at
        looked_at += len(peers)
        return plain(peers, without, drawn=drawn)

    monkeypatch.setattr(module, "_candidates", counting)
    for number in range(1000):
        offers.update(provider(["a"] if number % 2 else ["b"]))
    for _ in range(100):
        assert offers.candidates("a", without=(), well=any_one)
    assert looked_at == 100 * SAMPLE
    for _ in range(100):
        assert offers.candidates("a", without=(), well=lambda _candidate: False)
    assert looked_at == 100 * (SAMPLE + SAMPLE + LARGE_SAMPLE)


def test_more_are_drawn_if_none_of_a_few_is_well(offers: Offers) -> None:
    peers = [provider(["a"]) for _ in range(640)]
    for peer in peers:
        offers.update(peer)
    rare = {peer.id for peer in peers[::32]}
    found = sum(
        any(each.id in rare for each in offers.candidates("a", without=(), well=lambda each: each.id in rare))
        for _ in range(1000)
    )
    assert 640 < found < 790, "1 - (31 / 32) ** 40 of 1,000 are 719; the standard deviation is 14"


def test_sampling_reaches_all_of_many_providers_by_weight(offers: Offers) -> None:
    light = [provider(["a"]) for _ in range(100)]
    heavy = provider(["a"], weight=100.0)
    for peer in (*light, heavy):
        offers.update(peer)
    balancer = Balancer(random.Random(2))
    counts = dict.fromkeys((peer.id for peer in (*light, heavy)), 0)
    for _ in range(2000):
        best = balancer.choose("a", offers.candidates("a", without=(), well=any_one), 0.0)
        assert best is not None
        counts[best] += 1
    assert 700 < counts[heavy.id] < 1300, "half of all"
    assert sum(counts[peer.id] > 0 for peer in light) > 90


def test_all_providers_are_candidates_if_the_whole_sample_has_refused(offers: Offers) -> None:
    peers = [provider(["a"], weight=1000.0) for _ in range(2 * LARGE_SAMPLE)]
    last = provider(["a"], weight=0.01)
    for peer in (*peers, last):
        offers.update(peer)
    assert ids(offers, "a", *peers) == {last.id}


def test_providers_whose_targets_differ_are_found(offers: Offers) -> None:
    same = [provider(["a", "b"], targets=b"1111" + bytes([number]) * 4) for number in range(3)]
    for peer in same:
        offers.update(peer)
    assert offers.differing("a") == [] and len(offers.differing("b")) == 2
    other = provider(["a"], targets=b"2222")
    offers.update(other)
    assert other in offers.differing("a")
    other.gone = True
    offers.update(other)
    assert offers.differing("a") == []
    assert offers.differing("nothing") == []
