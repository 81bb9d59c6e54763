"""What a dashboard says of processes, and to whom."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from goreprox.cli import main as cli
from goreprox.config.addresses import Address
from goreprox.config.dashboard import DashboardConfig
from goreprox.config.process import ProcessConfig
from goreprox.control.message import Request as Ask
from goreprox.control.socket import ControlSocket
from goreprox.errors import ConfigError, StartError
from goreprox.monitor import processes as module
from goreprox.monitor.dashboard import Dashboard
from goreprox.monitor.guard import Guard
from goreprox.monitor.processes import Processes
from tests.support.metrics import Scrape
from tests.support.sockets import HOST
from tests.support.web import fetch

TOKEN = "0123456789abcdef"
LOOPBACK = Address(HOST, 0)


class Role:
    """Responds on a control socket, as a process does."""

    def __init__(self) -> None:
        self.asked = 0
        self.reason: str | None = None
        self.silent = False

    async def ready(self, _: Ask) -> object:
        if self.silent:
            await asyncio.get_running_loop().create_future()
        return {"pid": 1, "ready": self.reason is None, "reason": self.reason, "missing": ["web"]}

    async def status(self, _: Ask) -> object:
        self.asked += 1
        return {"format": 2}  # another version's


@pytest.fixture
def role() -> Role:
    return Role()


@pytest.fixture
async def directory(tmp_path: Path, role: Role, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Path]:
    """A runtime directory with a server in it; nothing that is asked is kept for others."""
    monkeypatch.setattr(module, "FRESH_S", 0.0)
    control = await ControlSocket.open(tmp_path / "server-t.0", {"ready": role.ready, "status": role.status})
    yield tmp_path
    control.close()


def config(directory: Path, *, listen: Address = LOOPBACK, token: str | None = None) -> DashboardConfig:
    if token is None:
        return DashboardConfig(directory=directory, listen=listen)
    file = directory / "token"
    file.write_text(token)
    file.chmod(0o600)
    return DashboardConfig(directory=directory, listen=listen, token_file=file)


async def test_health_is_that_of_all_processes(directory: Path, role: Role, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Dashboard(config(directory)).at(LOOPBACK) as port:
        assert await fetch(port, "/live") == (200, "live\n")
        assert await fetch(port, "/ready") == (200, "ready\n")
        assert await fetch(port, "/ready?verbose") == (200, "ready\nno provider: web\n")
        role.reason = "it is shutting down"
        assert await fetch(port, "/live") == (200, "live\n")
        assert await fetch(port, "/ready") == (503, "not ready\n")
        wanted = "not ready\nreason: server-t.0: it is shutting down\nno provider: web\n"
        assert await fetch(port, "/ready?verbose") == (503, wanted)
        role.silent = True
        monkeypatch.setattr("goreprox.control.client.ASK_S", 0.2)
        assert await fetch(port, "/live") == (503, "not live\n")
        status, text = await fetch(port, "/ready?verbose")
        assert status == 503
        assert "server-t.0 does not respond within 0.2 s" in text
        assert (await fetch(port, "/other"))[0] == 404


async def test_without_processes_it_is_neither_live_nor_ready(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "missing"):
        async with Dashboard(config(directory)).at(LOOPBACK) as port:
            assert await fetch(port, "/live") == (503, "not live\n")
            status, text = await fetch(port, "/ready?verbose")
            assert (status, text.split("; ")[0]) == (503, f"not ready\nreason: no process runs in {directory}")
            assert not (await Scrape.of(port)).samples


async def test_a_process_of_another_version_is_down_and_ready_as_it_says(directory: Path) -> None:
    async with Dashboard(config(directory)).at(LOOPBACK) as port:
        found = await Scrape.of(port)
        assert found.value("goreprox_up", role="server", name="t", slot="0") == 0
        assert found.value("goreprox_ready", role="server") == 1
        assert len(found.samples) == 2


async def test_processes_are_asked_once_for_many_clients(
    directory: Path, role: Role, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FRESH_S", 3600.0)
    processes = Processes(directory)
    await asyncio.gather(*(processes.known() for _ in range(20)))
    await processes.known()
    assert role.asked == 1


@pytest.mark.parametrize("host", ["localhost", "localhost:9886", "127.0.0.1:1", "[::1]:9886", "192.0.2.1", "LOCALHOST"])
async def test_programs_of_this_machine_get_metrics(directory: Path, host: str) -> None:
    async with Dashboard(config(directory)).at(LOOPBACK) as port:
        assert (await fetch(port, "/metrics", f"Host: {host}"))[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:9886", "", "localhost.evil.example", "[", "a@localhost"]
)
async def test_pages_of_other_sites_get_no_data(directory: Path, host: str) -> None:
    async with Dashboard(config(directory)).at(LOOPBACK) as port:
        for target in ("/metrics", "/ready?verbose"):
            assert (await fetch(port, target, f"Host: {host}"))[0] == 421
        assert (await fetch(port, "/live", f"Host: {host}"))[0] == 200
        assert (await fetch(port, "/ready", f"Host: {host}"))[0] == 200


async def test_only_who_has_the_token_gets_data(directory: Path) -> None:
    made = config(directory, token=f"{TOKEN}\n")
    async with Dashboard(made).at(LOOPBACK) as port:
        for given in (
            "Bearer wrong",
            "Bearer",
            f"Basic {TOKEN}",
            f"Bearer {TOKEN}x",
            f"Bearer {TOKEN[:-1]}",
            "Bearer \xff",
        ):
            for target in ("/metrics", "/ready?verbose"):
                assert await fetch(port, target, "Host: localhost", f"Authorization: {given}") == (
                    401,
                    "a token is needed\n",
                )
        assert (await fetch(port, "/metrics"))[0] == 401
        assert (await fetch(port, "/ready"))[0] == 200
        for given in (f"Bearer {TOKEN}", f"bearer  {TOKEN} "):
            assert (await fetch(port, "/metrics", "Host: any.example", f"Authorization: {given}"))[0] == 200


async def test_a_token_is_read_again_and_none_is_valid_while_its_file_is_wrong(directory: Path) -> None:
    made = config(directory, token=TOKEN)
    file = made.token_file
    assert file is not None
    async with Dashboard(made).at(LOOPBACK) as port:

        async def status(token: str) -> int:
            return (await fetch(port, "/metrics", f"Authorization: Bearer {token}"))[0]

        assert await status(TOKEN) == 200
        file.write_text(TOKEN[::-1] + "new")
        assert (await status(TOKEN), await status(TOKEN[::-1] + "new")) == (401, 200)
        file.chmod(0o644)
        for _ in range(3):
            assert await status(TOKEN[::-1] + "new") == 401
            assert await status("") == 401
        file.chmod(0o600)
        assert await status(TOKEN[::-1] + "new") == 200
        file.unlink()
        assert await status(TOKEN[::-1] + "new") == 401


@pytest.mark.parametrize("token", ["", "short", "two words of a text", "0123456789abcde\x07f", "x" * 15])
def test_a_token_that_is_none_or_can_be_guessed_is_refused(tmp_path: Path, token: str) -> None:
    with pytest.raises(StartError, match="expected one word of at least 16 characters; "):
        Guard(config(tmp_path, token=token))


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_token_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    made = config(tmp_path, token=TOKEN)
    assert made.token_file is not None
    made.token_file.chmod(mode)
    with pytest.raises(StartError, match="others may read it; chmod 600"):
        Guard(made)


@pytest.mark.parametrize("host", [None, "0.0.0.0", "::", "192.0.2.1", "tunnel.example.org"])
def test_other_machines_need_a_token(tmp_path: Path, host: str | None) -> None:
    address = Address(host, 9886)
    with pytest.raises(ConfigError, match="name a file with a token by --token-file"):
        config(tmp_path, listen=address)
    assert config(tmp_path, listen=address, token=TOKEN).listen == address
    with pytest.raises(ConfigError, match="name a file with a token by --dashboard-token-file"):
        ProcessConfig(dashboard=address)
    assert ProcessConfig(dashboard=address, dashboard_token_file=tmp_path / "token").ports == [("dashboard", address)]


async def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    async with Dashboard(config(tmp_path)).at(LOOPBACK) as port:
        with pytest.raises(
            StartError, match=f"cannot listen for clients on {HOST}:{port}: .* choose another port with --listen"
        ):
            async with Dashboard(config(tmp_path)).at(Address(HOST, port)):
                pass


def test_what_a_dashboard_needs_is_named_where_it_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    install = "needs aiohttp and prometheus_client; pip install 'goreprox[dashboard]'"
    assert cli.main(["dashboard", "--runtime-dir", str(tmp_path)]) == 1
    assert install in capsys.readouterr().err
    role = ("broker", "--insecure", "--runtime-dir", str(tmp_path), "--dashboard", "127.0.0.1:9886")
    assert cli.main([*role]) == 1
    assert install in capsys.readouterr().err
    assert cli.main(["check", *role]) == 1
    assert f"dashboard: it {install}" in capsys.readouterr().out
