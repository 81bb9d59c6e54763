"""An upgrade in place: real processes are replaced by the code that is installed, and no connection notices."""

import asyncio
import shutil
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from goreprox.control import client as control
from tests.e2e.roles import echoed, whole
from tests.e2e.upgrading import NO_EXECVE, run, upgrade, upgraded
from tests.support.processes import nothing_yet
from tests.support.traffic import echo
from tests.support.waiting import DEADLINE_S, eventually

pytestmark = pytest.mark.long


async def test_code_that_does_not_start_changes_nothing(tmp: Path) -> None:
    broken = tmp / "modules"
    broken.mkdir()
    async with nothing_yet(tmp) as made:
        await run(made, echo, path=str(broken))
        client = await made.connect()
        await echoed(client, b"before")
        (broken / "goreprox").mkdir()
        (broken / "goreprox/__init__.py").write_text("raise RuntimeError('half installed')")
        for _ in range(2):
            code, out, err = await upgrade(tmp, "--role", "provider")
            assert (code, out) == (1, "")
            assert err == (
                f"goreprox: provider-{socket.gethostname()}.0: the new code cannot take over: "
                "RuntimeError: half installed; nothing has changed\n"
            )
        await echoed(client, b"after")
        shutil.rmtree(broken / "goreprox")
        await upgraded(tmp, 1)
        await echoed(client, b"later")
        client[1].close()


async def counted(tmp: Path) -> dict[str, Any]:
    (reply,) = await control.ask([tmp / "run"], "status", roles=("provider",), deadline_s=DEADLINE_S)
    assert isinstance(reply.result, dict), reply.problem
    found: dict[str, Any] = reply.result["counters"]
    return found


async def test_a_signal_upgrades_too_counters_go_on_and_the_end_of_a_provider_is_clean(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        await run(made, echo)
        client = await made.connect()
        await echoed(client, b"first")
        client[1].close()
        await made.provider.logged("stream_ended")
        client = await made.connect()
        await echoed(client, b"before")
        made.relay.cut()
        await echoed(client, b"again")
        before = await counted(tmp)
        assert (before["streams"], before["ends"]) == (2, {"done": 1})
        assert before["outages"] == before["resumes"] > 0 < before["resume_s"]
        made.provider.signal(signal.SIGUSR2)
        await made.provider.logged("upgraded", connections=1)
        await echoed(client, b"after")
        after = await counted(tmp)
        assert (after["streams"], after["ends"]) == (2, {"done": 1})
        assert after["sent_bytes"] == after["received_bytes"] == before["sent_bytes"] + len(b"after")
        assert after["outages"] == after["resumes"] > before["outages"]
        assert after["resume_s"] > before["resume_s"]
        client[1].close()
        made.provider.signal(signal.SIGTERM)
        assert await made.provider.wait() == 0


async def test_an_upgrade_during_an_outage(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        await run(made, echo)
        client = await made.connect()
        await echoed(client, b"before")
        made.relay.silence()
        made.provider.signal(signal.SIGUSR2)
        await eventually(lambda: made.provider.events("starting") == 2, "the new code has started")
        client[1].write(b"meanwhile")
        made.relay.resume()
        assert await asyncio.wait_for(client[0].readexactly(9), DEADLINE_S) == b"meanwhile"
        client[1].close()


async def test_code_that_goes_missing_after_the_check_leaves_the_old_code_at_work(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        await run(made, echo, program=("-c", NO_EXECVE))
        client = await made.connect()
        for word in (b"one", b"two"):
            await echoed(client, word)
            code, out, err = await upgrade(tmp, "--role", "provider")
            assert (code, out) == (1, "")
            assert err.endswith(" could not be started: No such file or directory; the code before it goes on\n")
        await echoed(client, b"three")
        await whole(made, made.port)
        client[1].close()
        made.provider.signal(signal.SIGTERM)
        assert await made.provider.wait() == 0


NO_RESTORE = """
import sys
from goreprox.roles.provider import Provider

restore = Provider.restore

def restore_trials(self, items, *, trial):
    if not trial:
        raise ValueError("a bug")
    restore(self, items, trial=trial)

Provider.restore = restore_trials
from goreprox.cli.main import main
sys.exit(main())
"""


async def test_code_that_cannot_restore_the_state_starts_anew_and_resets_its_connections(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        await run(made, echo, program=("-c", NO_RESTORE))
        client = await made.connect()
        await echoed(client, b"before")
        made.provider.signal(signal.SIGUSR2)
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(client[0].read(), DEADLINE_S)
        await made.server.logged("peer_restarted")
        await whole(made, made.port)
        assert made.provider.events("restore_failed") == 1 and made.provider.process.returncode is None


async def test_a_signal_to_end_that_comes_in_the_midst_of_an_upgrade_is_not_lost(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        await run(made, echo)
        made.provider.signal(signal.SIGUSR2)
        await made.provider.logged("upgrading")
        made.provider.signal(signal.SIGTERM)
        assert await made.provider.wait() == 0


async def test_an_option_that_a_reload_does_not_apply_is_in_force_after_an_upgrade(tmp: Path) -> None:
    def wait(seconds: int) -> None:
        (tmp / "goreprox.toml").write_text(f"[provider]\nlink-timeout = {seconds}")

    async with nothing_yet(tmp) as made:
        wait(3600)
        await run(made, echo)
        client = await made.connect()
        await echoed(client, b"before")
        wait(1)
        made.provider.signal(signal.SIGHUP)
        assert "~ link-timeout: 3600 -> 1 (needs an upgrade)" in await made.provider.logged("reload_kept")
        await upgraded(tmp, 1)
        await echoed(client, b"after")
        made.provider.signal(signal.SIGHUP)
        await eventually(lambda: made.provider.events("reloaded") == 2, "it has reloaded again")
        assert made.provider.events("reload_kept") == 1
        made.relay.half_open = True  # so that the server, which gives up sooner, is not heard
        made.relay.silence()
        await made.provider.logged("link_lost")
        made.relay.half_open = False
        made.relay.resume()
        await echoed(client, b"again")
        client[1].close()
