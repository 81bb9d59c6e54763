"""What cannot change in an upgrade is refused by its check, which names the option."""

import errno
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from goreprox.config.addresses import Address
from goreprox.config.process import ProcessConfig
from goreprox.config.roles import EdgeConfig
from goreprox.errors import ControlError, StartError
from goreprox.monitor.health import Report
from goreprox.process import handover
from goreprox.process.handover import Inherited, write
from goreprox.process.instance import Instance
from goreprox.process.lifetime import Lifetime
from goreprox.roles.health import Health
from goreprox.roles.upgrade import Before, Moved, Upgrade
from goreprox.roles.workers import Parent
from tests.support.configs import configured
from tests.support.sockets import HOST

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


class Owner:
    """Has connections that cannot be handed over."""

    connections = 0
    ended = False

    async def end_what_stays(self) -> None:
        self.ended = True

    def leave(self) -> list[int]:
        return []

    def export(self, *, payload: bool) -> Iterator[object]:
        yield from ()

    async def resumed(self) -> Moved | None:
        return None


async def is_ready() -> Report:
    return Report(None, [])


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Instance:
    """One whose new code passes its check."""

    async def preflight(_state: int, _command: object) -> str:
        return "1.1"

    monkeypatch.setattr(handover, "preflight", preflight)
    return Instance.acquire(tmp_path / "run", "server", "a", bytes(16))


@pytest.mark.pure
async def test_without_descriptors_for_all_ports_nothing_is_ended(instance: Instance) -> None:
    def ports() -> Iterator[tuple[str, str, int]]:
        yield "providers", "127.0.0.1:1", os.dup(instance.descriptor)
        raise OSError(errno.EMFILE, "Too many open files")

    life, owner = Lifetime(), Owner()
    upgrade = Upgrade(life, owner, instance, Health(None, is_ready), ports=ports)
    descriptors = set(Path("/proc/self/fd").iterdir())
    with pytest.raises(ControlError, match="no descriptor for a port: Too many open files"):
        await upgrade.prepare()
    assert not owner.ended and not life.replaced
    assert set(Path("/proc/self/fd").iterdir()) == descriptors
    instance.release()


@pytest.mark.pure
async def test_the_ports_are_those_that_are_open_once_what_stays_has_ended(instance: Instance) -> None:
    life, owner = Lifetime(), Owner()
    with socket.create_server((HOST, 0)) as before_it, socket.create_server((HOST, 0)) as after:

        def ports() -> list[tuple[str, str, int]]:
            return [("providers", "127.0.0.1:1", os.dup((after if owner.ended else before_it).fileno()))]

        upgrade = Upgrade(life, owner, instance, Health(None, is_ready), ports=ports)
        await upgrade.prepare()
        handed = upgrade.handover()
        assert handed is not None
        lock, port = handed.descriptors
        assert os.path.sameopenfile(port, after.fileno())
    for descriptor in (handed.state, lock, port):
        os.close(descriptor)
