"""Fleets in small: pairs are spread evenly, each peer hears of those that it needs, and losses cost a share."""

from collections import Counter

import pytest

from tests.sim import fleet as sim
from tests.sim.fleet import SETTLED_S, Fleet, Shape

SMALL = Shape(brokers=6, edges=20, providers=600, services=40, listens=4, regions=3)


def test_pairs_are_spread_evenly_before_and_after_each_of_a_rolling_restart() -> None:
    least, most, away, changes = sim.rolling(60, 60, 4)
    assert 0.9 < least <= most < 1.1
    assert away < 1.45, "those of one broker go to the three others evenly"
    assert changes == 2.0, "each pair leaves its broker once, and returns"


@pytest.fixture(scope="module")
def fleet() -> Fleet:
    made = Fleet(SMALL)
    made.settle()
    return made


def test_each_pair_with_a_common_service_has_paths_over_all_common_brokers(fleet: Fleet) -> None:
    for edge in fleet.edges:
        for provider in fleet.providers:
            if set(edge.services) & set(provider.services):
                assert set(edge.paths[provider.name.id]) == set(provider.brokers)


def test_an_edge_hears_of_few_others(fleet: Fleet) -> None:
    strangers = [
        sum(1 for each in fleet.providers if each.name.id in edge.paths and not set(each.services) & set(edge.services))
        for edge in fleet.edges
    ]
    assert sum(strangers) / len(strangers) < 2 * 600 * SMALL.listens / 256


def test_what_an_edge_is_told_does_not_grow_with_providers_of_other_services() -> None:
    """Each Up at the end is of a provider that was known before, or shares a bucket by chance."""
    told = []
    for times in (1, 4):
        shape = Shape(brokers=2, edges=10, providers=300 * times, services=30 * times, listens=2, regions=2)
        told.append([edge.bytes for edge in Fleet(shape).edges])
    growth = sum(told[1]) / sum(told[0])
    assert growth < 1.6, growth


def test_the_loss_of_a_broker_or_a_region_leaves_each_pair_a_path_and_moves_a_share(fleet: Fleet) -> None:
    before = fleet.used()
    for lost in ([0], [1, 4]):
        assert len({fleet.region(broker) for broker in lost}) == 1
        fleet.stop(*lost)
        after = fleet.used()
        assert after.keys() == before.keys()
        resumed = [pair for pair in before if after[pair] != before[pair]]
        assert all(before[pair] in lost for pair in resumed)
        assert len(resumed) == sum(broker in lost for broker in before.values())
        for broker in lost:
            fleet.start(broker)
        assert fleet.used() == after, "nobody moves before a path has settled"
        fleet.now += SETTLED_S
        assert fleet.used() == before
    shares = Counter(before.values())
    assert max(shares.values()) < 1.6 * len(before) / SMALL.brokers
