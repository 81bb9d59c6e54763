"""What a provider or a server tells systemd from its start to its end, through reloads and upgrades."""

import asyncio
import signal
import socket
from pathlib import Path

import pytest

from tests.e2e.roles import echoed
from tests.e2e.upgrading import run, upgradable
from tests.support.processes import nothing_yet
from tests.support.traffic import echo
from tests.support.waiting import DEADLINE_S, eventually

WATCHDOG_S = 0.2


class Supervisor:
    """Hears a process, as systemd does."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        sock.setblocking(False)

    async def heard(self) -> dict[str, str]:
        """Return the next message but those for the watchdog."""
        while True:
            async with asyncio.timeout(DEADLINE_S):
                data = await asyncio.get_running_loop().sock_recv(self._sock, 4096)
            if data != b"WATCHDOG=1":
                return dict(line.split("=", 1) for line in data.decode().splitlines())

    async def heard_with(self, key: str) -> dict[str, str]:
        """Return the next message that has this key; those before it say nothing but the status."""
        while key not in (said := await self.heard()):
            assert not said.keys() & {"READY", "RELOADING", "STOPPING"}, said
        return said

    async def fed(self) -> None:
        """Wait for the watchdog's food, in messages that say nothing else of importance."""
        async with asyncio.timeout(DEADLINE_S):
            while await asyncio.get_running_loop().sock_recv(self._sock, 4096) != b"WATCHDOG=1":
                pass


async def test_a_supervisor_hears_of_start_reload_upgrade_and_end_and_its_watchdog_is_fed(tmp: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp / "notify"))
        supervisor = Supervisor(sock)
        env = {"NOTIFY_SOCKET": str(tmp / "notify"), "WATCHDOG_USEC": str(round(WATCHDOG_S * 1e6))}
        async with nothing_yet(tmp) as made:
            await run(made, echo, env=env)
            client = await made.connect()
            await echoed(client, b"before")
            ready = await supervisor.heard_with("READY")
            assert ready["STATUS"].startswith("offering default")
            for text, event in (("", "reloaded"), ("x = 1", "reload_failed")):
                (tmp / "goreprox.toml").write_text(text)
                made.provider.signal(signal.SIGHUP)
                began = await supervisor.heard_with("RELOADING")
                assert int(began["MONOTONIC_USEC"]) > 0 and began["STATUS"] == "reloading"
                assert await supervisor.heard_with("READY") == ready
                await made.provider.logged(event)
            await supervisor.fed()
            made.provider.signal(signal.SIGUSR2)  # fails, as the file is wrong: the supervisor need not know
            await made.provider.logged("upgrade_failed")
            (tmp / "goreprox.toml").unlink()
            for away in (False, True):
                if away:
                    made.relay.silence()
                made.provider.signal(signal.SIGUSR2)
                assert (await supervisor.heard_with("RELOADING"))["STATUS"] == "upgrading"
                # At once, as systemd takes no reload, which may name another server, before that.
                assert (await supervisor.heard_with("READY"))["STATUS"].startswith("connecting to ")
                if not away:
                    assert await supervisor.heard_with("READY") == ready
                await supervisor.fed()
            made.relay.resume()
            await eventually(lambda: made.provider.events("upgraded") == 2, "both have ended")
            await echoed(client, b"after")
            client[1].close()
            made.provider.signal(signal.SIGTERM)
            while "STOPPING" not in (said := await supervisor.heard()):
                assert "RELOADING" not in said
            assert int((await supervisor.heard_with("EXTEND_TIMEOUT_USEC"))["EXTEND_TIMEOUT_USEC"]) == 90_000_000
            assert await made.provider.wait() == 0


@pytest.mark.long
async def test_a_supervisor_of_a_server_hears_of_its_upgrade(tmp: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp / "notify"))
        supervisor = Supervisor(sock)
        env = {"NOTIFY_SOCKET": str(tmp / "notify"), "WATCHDOG_USEC": str(round(WATCHDOG_S * 1e6))}
        async with upgradable(tmp, "server", echo, env=env) as made:
            client = await made.connect()
            await echoed(client, b"before")
            ready = await supervisor.heard_with("READY")
            assert ready["STATUS"].startswith("clients on ")
            made.process.signal(signal.SIGUSR2)
            assert (await supervisor.heard_with("RELOADING"))["STATUS"] == "upgrading"
            assert await supervisor.heard_with("READY") == ready
            await supervisor.fed()
            await made.process.logged("upgraded")
            await echoed(client, b"after")
            client[1].close()
            made.process.signal(signal.SIGTERM)
            await supervisor.heard_with("STOPPING")
            assert await made.process.wait() == 0
