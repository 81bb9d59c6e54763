"""Clusters whose brokers are the servers of a NATS cluster keep the same promise, whatever happens to those."""

import random
from dataclasses import replace

import pytest

from tests.sim.plan import Fault, Plan, draw, report, run, shrink

SEEDS = 8
FEW = (1, 2)
"""Others are for `make test-long`."""


def drawn(seed: int) -> Plan:
    """Return the plan of a seed, at NATS; its servers cannot always reach each other."""
    plan = draw(seed)
    dice = random.Random(f"{seed} nats")
    end = max((arrival.at for arrival in plan.arrivals), default=1.0)
    servers = [f"b{number}" for number in range(plan.topology["brokers"])]
    faults = list(plan.faults)
    for one in servers[1:]:
        for kind, where in (("partition", (servers[0], one)), ("lose messages", (one,)), ("double messages", (one,))):
            faults.append(Fault(end * dice.random(), dice.choice([0.05, 1.0, 5.0, 10.0]), kind, where))
    return replace(
        plan, topology=plan.topology | {"nats": True}, faults=tuple(sorted(faults, key=lambda each: each.at))
    )


@pytest.mark.parametrize(
    "seed", [seed if seed in FEW else pytest.param(seed, marks=pytest.mark.long) for seed in range(SEEDS)]
)
def test_clusters_at_nats_keep_the_promise(seed: int) -> None:
    plan = drawn(seed)
    try:
        cluster = run(plan)
    except Exception:  # noqa: BLE001 -- whatever a plan brings about
        smaller = shrink(plan, runs=20)
        try:
            run(smaller)
        except Exception as exc:
            raise AssertionError(f"{report(smaller, exc)}\nseed {seed} of tests/sim/test_nats.py") from exc
        pytest.fail(f"seed {seed} failed, a second run did not")
    assert cluster.oracle.bytes_checked > 0 and cluster.targets


def test_a_seed_always_makes_the_same_history() -> None:
    assert len({run(drawn(1)).world.digest for _ in range(2)}) == 1
