"""Clusters from seeds that nobody has tried, for a bounded time; a failure names its seed."""

import random
import time

import pytest

from tests.sim.plan import draw, report, run

pytestmark = pytest.mark.no_cover  # being traced, clusters take five times as long

SECONDS = 20.0


def test_fresh_seeds_keep_the_promise() -> None:
    first = seed = random.SystemRandom().randrange(10**9)
    checked = 0
    give_up = time.monotonic() + SECONDS
    while time.monotonic() < give_up:
        plan = draw(seed)
        print(f"seed {seed}")  # noqa: T201 -- which seeds were tried: `pytest -rP` shows it, a failure always
        try:
            checked += run(plan).oracle.bytes_checked
        except Exception as exc:
            raise AssertionError(f"{report(plan, exc)}\nreplay: python -m tests.sim {seed}") from exc
        seed += 1
    assert seed > first and checked > 0
