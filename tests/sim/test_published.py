"""Published names in whole clusters on virtual time: after any faults, providers know what every edge serves."""

from dataclasses import replace

import pytest

from goreprox.roles.publication import Publication
from tests.sim.cluster import Cluster
from tests.sim.plan import draw, run
from tests.sim.world import Violation

SEEDS = 24
FEW = 8


def published(seed: int) -> Cluster:
    """Let all faults of a seed happen, with few clients."""
    plan = draw(seed)
    topology = plan.topology | {"edges": 3, "providers": 3, "publishes": True}
    return run(replace(plan, topology=topology, arrivals=plan.arrivals[:10]))


@pytest.mark.parametrize(
    "seed", [*range(1, FEW), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(FEW, SEEDS))]
)
def test_providers_know_what_edges_serve_whatever_has_failed(seed: int) -> None:
    cluster = published(seed)
    edges = [node for node in cluster.nodes.values() if node.process.alive and node.process.slot[0] == "e"]
    assert all(edge.app.publication.status for edge in edges)


def test_a_lost_word_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Say nothing again in a new epoch."""
    original = Publication._tell

    def tell(self: Publication) -> None:
        for provider in self._providers.values():
            provider.epoch = provider.peer.session.epochs.number
        original(self)

    monkeypatch.setattr(Publication, "_tell", tell)
    with pytest.raises(Violation, match="serves"):
        all(map(published, range(1, SEEDS)))


def test_a_name_of_a_higher_key_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("goreprox.roles.publish_rules._rank", lambda claim: [255 - byte for byte in claim.key])
    with pytest.raises(Violation, match="whose key is not the lowest"):
        published(1)
