"""What cannot change in an upgrade is refused by its check, which names the option."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from goreprox.config.addresses import Address
from goreprox.config.process import ProcessConfig
from goreprox.config.roles import EdgeConfig
from goreprox.errors import StartError
from goreprox.process.handover import Inherited, write
from goreprox.roles.upgrade import Before
from goreprox.roles.workers import Parent
from tests.support.configs import configured

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has files in memory")
PROCESS: dict[str, Any] = {
    "version": "1.0",
    "name": "a",
    "incarnation": bytes(16),
    "predecessor": None,
    "lock": 0,
    "lock_path": "/run/edge-a.0",
    "links": [],
    "ports": [],
    "health": None,
    "client": None,
    "paused_at": 0.0,
    "was_ready": True,
    "connections": 0,
}


def before(**changes: object) -> Before:
    state = write([PROCESS | changes])
    try:
        return Before.read(Inherited(state, trial=True))
    finally:
        os.close(state)


def config(**options: object) -> ProcessConfig:
    return configured(ProcessConfig, **{"name": "a", "runtime_dir": Path("/run")} | options)


def test_the_lock_stays_that_of_the_same_role_name_and_directory() -> None:
    assert before().instance(config(), "edge").incarnation == bytes(16)


@pytest.mark.parametrize("options", [{"name": "b"}, {"runtime_dir": Path("/tmp")}])
def test_another_name_or_directory_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(StartError, match="--name and --runtime-dir were a and /run so far"):
        before().instance(config(**options), "edge")


def test_workers_for_an_edge_without_and_the_other_way_round_are_refused() -> None:
    for path, what in (("/run/edge-a.0", "workers"), ("/run/workers-a.0", "edge")):
        with pytest.raises(StartError, match="--workers cannot change in an upgrade"):
            before(lock_path=path).instance(config(), what)


async def test_another_number_of_workers_is_refused() -> None:
    def parent(workers: int) -> Parent:
        return Parent(configured(EdgeConfig, workers=workers, brokers=(Address("h", 1),)))

    state = list(parent(2).export(payload=True))
    parent(2).restore(iter(state), trial=True)
    with pytest.raises(StartError, match="--workers was 2 so far, and cannot change in an upgrade"):
        parent(3).restore(iter(state), trial=True)
