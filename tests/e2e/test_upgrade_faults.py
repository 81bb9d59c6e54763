"""What may happen in the middle of an upgrade in place of a provider or a server, at each of its steps."""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest

import brokers
import goreprox
from tests.e2e.roles import Client, echoed, whole
from tests.e2e.upgrading import Gate, Refusal, Upgradable, run, upgradable, upgrade, upgraded
from tests.support.processes import WAIT_S, Tunnel, nothing_yet
from tests.support.programs import program
from tests.support.traffic import echo, echo_until, read_digest, send_until
from tests.support.waiting import DEADLINE_S, eventually

pytestmark = pytest.mark.long
TRIAL = {
    "provider": "trial goreprox.roles.provider Provider.restore",
    "server": "trial goreprox.roles.edge_state EdgeState.restore",
}
"""In the child that proves that the new code starts; the process itself goes on meanwhile."""
RESTORING = {
    "provider": "real goreprox.roles.provider restored",
    "server": "real goreprox.roles.edge_state EdgeState.restore",
}
EXECVE = "real os execve"


def steps(role: str) -> tuple[str, ...]:
    """Return them in their order, by what is about to be called; the first five are in the code before the upgrade."""
    return (
        "real goreprox.process.handover preflight",
        TRIAL[role],
        "real goreprox.process.instance Instance.detach",
        "real goreprox.process.handover execute",
        EXECVE,
        "real goreprox.roles.upgrade Before.read",
        RESTORING[role],
        "real goreprox.roles.upgrade Upgrade.took_over",
    )


EVERY_STEP = [(role, step) for role in ("provider", "server") for step in steps(role)]


class Held(NamedTuple):
    """A process that waits at a step of its upgrade, and a client whose connection goes through it."""

    made: Upgradable
    gate: Gate
    client: Client
    ended: asyncio.Future[str]
    """How the client's connection has ended at the target."""

    async def is_reset_at(self, end: str) -> None:
        """Wait until the connection is reset at the client or at the target, and not ended otherwise."""
        if end == "target":
            assert await asyncio.wait_for(asyncio.shield(self.ended), DEADLINE_S) == "reset"
            return
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(self.client[0].read(), DEADLINE_S)


@pytest.fixture
async def held(tmp: Path, role: str, step: str) -> AsyncIterator[Held]:
    gate, ended = Gate(tmp, step), asyncio.get_running_loop().create_future()
    async with upgradable(tmp, role, echo_until(ended), program=gate.program) as made:
        client = await made.connect()
        await echoed(client, b"before")
        made.process.signal(signal.SIGUSR2)
        await gate.reached()
        yield Held(made, gate, client, ended)


@pytest.mark.parametrize(("role", "step"), EVERY_STEP)
async def test_a_kill_at_any_step_resets_connections_and_one_death_is_proved(held: Held) -> None:
    made, gate, *_ = held
    near, far = ("target", "client") if made.role == "provider" else ("client", "target")
    made.process.signal(signal.SIGKILL)
    assert await made.process.process.wait() == -signal.SIGKILL
    await held.is_reset_at(near)
    await made.start_again()  # while the child, if there is one, still runs
    await held.is_reset_at(far)
    gate.open()
    await made.other.logged("peer_restarted")
    another = await made.connect()
    await echoed(another, b"after")
    assert made.other.events("peer_restarted") == 1


@pytest.mark.parametrize(
    ("role", "step", "number"), [(*each, number) for each in EVERY_STEP for number in (signal.SIGHUP, signal.SIGTERM)]
)
async def test_a_signal_at_any_step_is_obeyed_and_connections_go_on(held: Held, number: signal.Signals) -> None:
    made, gate, client, _ = held
    made.process.signal(number)
    gate.open()
    if number is signal.SIGHUP:
        await made.process.logged("reloaded")
        await made.process.logged("upgraded")
    else:
        await made.process.logged("draining")
    await echoed(client, b"after")
    client[1].close()
    if number is signal.SIGHUP:
        made.process.signal(signal.SIGTERM)
    assert await made.process.wait() == 0
    assert not made.other.events("peer_restarted")


@pytest.mark.parametrize(("role", "step"), [(role, step) for role in RESTORING for step in steps(role)[2:]])
async def test_another_process_of_that_name_that_starts_meanwhile_declares_nobody_dead(held: Held) -> None:
    made, gate, client, _ = held
    await made.start_another()
    gate.open()
    await made.process.logged("upgraded")
    await echoed(client, b"after")
    assert not made.other.events("peer_restarted")
    assert len(list((made.tmp / "run").glob(f"{made.role}-*[0-9]"))) == 2
    client[1].close()


@pytest.mark.parametrize(("role", "step"), [("provider", TRIAL["provider"])])
async def test_an_upgrade_during_another_one_is_refused(held: Held) -> None:
    made, gate, client, _ = held
    code, out, err = await upgrade(made.tmp, "--role", "provider")
    assert (code, out) == (1, "") and "an upgrade is in progress" in err
    made.process.signal(signal.SIGUSR2)
    await eventually(lambda: made.process.events("upgrade_failed") == 2, "the signal is refused, too")
    gate.open()
    await made.process.logged("upgraded")
    await echoed(client, b"after")
    assert made.process.events("upgraded") == 1
    client[1].close()


async def test_an_upgrade_during_a_drain_is_refused_and_the_drain_goes_on(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        await run(made, echo)
        client = await made.connect()
        await echoed(client, b"before")
        made.provider.signal(signal.SIGTERM)
        await made.provider.logged("draining")
        code, out, err = await upgrade(tmp, "--role", "provider")
        assert (code, out) == (1, "") and "it is shutting down" in err
        await echoed(client, b"after")
        client[1].close()
        assert await made.provider.wait() == 0


CHECK = 1
"""Each upgrade writes two states, one for the check of the new code and the real one."""
REAL = 2


async def test_memory_that_is_refused_at_any_step_leaves_the_code_before_at_work(tmp: Path) -> None:
    refusal = Refusal(
        tmp,
        f"os memfd_create {CHECK}",
        f"goreprox.tunnel.bridge Bridge.export {CHECK}",
        "goreprox.process.handover preflight 1",
        f"os memfd_create {REAL}",
        f"goreprox.protocol.sender SendHalf.export {REAL}",
        f"goreprox.tunnel.bridge Bridge.export {REAL}",
        f"os pwrite {REAL}",
        "os execve 1",
    )
    async with nothing_yet(tmp) as made:
        await run(made, echo, program=refusal.program)
        for step in refusal.steps:
            reader, writer = await made.connect()
            await echoed((reader, writer), b"before")
            over = asyncio.Event()
            sending = asyncio.create_task(send_until(over, writer))  # nobody reads it, so all buffers fill
            refusal.at(step)
            code, out, err = await upgrade(tmp, "--role", "provider")
            assert (code, out) == (1, "") and "memory" in err, step
            over.set()
            assert await asyncio.wait_for(read_digest(reader), WAIT_S) == await sending
            writer.close()
        assert made.provider.events("upgrade_failed") == len(refusal.steps)
        assert not made.provider.events("restore_failed")
        assert not made.server.events("peer_restarted")
        refusal.over()
        await upgraded(tmp, 0)
        await whole(made, made.port, blocks=1)


async def test_a_broker_that_has_not_noticed_the_end_of_the_old_link_takes_the_new_one(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        await run(made, echo)
        client = await made.connect()
        await echoed(client, b"before")
        made.relay.half_open = True
        await upgraded(tmp, 1)
        await echoed(client, b"after")
        assert not made.server.events("peer_restarted")
        made.relay.half_open = False
        client[1].close()


def child_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())


@pytest.mark.programs
@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes namespaces of process ids everywhere")
async def test_process_1_of_a_container_is_upgraded(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        contained = (program("unshare"), "--pid", "--fork", "--mount-proc", "--kill-child")
        await run(made, echo, before=contained)
        client = await made.connect()
        await echoed(client, b"before")
        first = child_of(made.provider.process.pid)
        for _ in range(2):
            await upgraded(tmp, 1)
            await echoed(client, b"after")
        assert child_of(made.provider.process.pid) == first
        assert not Path(f"/proc/{first}/task/{first}/children").read_text(), "a child was not reaped"
        client[1].close()
        os.kill(first, signal.SIGTERM)
        assert await made.provider.wait() == 0


async def reload(made: Tunnel, text: str) -> None:
    (made.tmp / "goreprox.toml").write_text(text)
    made.provider.signal(signal.SIGHUP)


async def test_a_provider_goes_on_whose_package_was_replaced_by_one_that_cannot_be_imported(tmp: Path) -> None:
    modules = tmp / "modules"
    packages = [Path(package.__file__).parent for package in (goreprox, brokers) if package.__file__]
    for package in packages:
        shutil.copytree(package, modules / package.name)
    async with nothing_yet(tmp) as made:
        await run(made, echo, path=str(modules))
        client = await made.connect()
        await echoed(client, b"before")
        for package in packages:
            shutil.rmtree(modules / package.name)
            (modules / package.name).mkdir()
            (modules / package.name / "__init__.py").write_text("raise RuntimeError('another version')")
        await reload(made, "[provider]\nweight = 2\ndrain = 20")
        await made.provider.logged("reloaded", applied=2)
        await reload(made, "[provider]\nweight = 0")
        await made.provider.logged("reload_failed")
        made.provider.signal(signal.SIGUSR2)
        assert "another version" in await made.provider.logged("upgrade_failed")
        made.relay.cut()
        await echoed(client, b"after")
        another = await made.connect()
        await echoed(another, b"after")
        made.provider.signal(signal.SIGTERM)
        await made.provider.logged("draining")
        await echoed(client, b"on")
        for each in (client, another):
            each[1].close()
        assert await made.provider.wait() == 0
        assert not any("Traceback" in str(entry) for entry in made.provider.log)
