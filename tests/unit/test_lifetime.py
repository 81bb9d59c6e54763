"""A process's last signals are shown by tests/e2e; here, whom it tells that it is ready."""

import asyncio
import errno
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from goreprox.process.lifetime import Lifetime
from goreprox.process.supervisor import watchdog_s
from tests.support.events import Events, matching, message
from tests.support.waiting import DEADLINE_S


class Owner:
    """Has nothing to close."""

    connections = 0
    drain_s = 0.0

    async def close(self, *, drain_s: float) -> int:
        return 0


class Uplink:
    """A connection that a test makes."""

    def __init__(self) -> None:
        self.up = asyncio.Event()
        self.changed: Callable[[], None] = lambda: None
        self.text = "connecting to nobody"

    def describe(self) -> str:
        return self.text


@pytest.fixture
def supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield sock


async def test_a_supervisor_is_made_to_wait_until_there_is_a_connection_and_told_why(
    supervisor: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("goreprox.process.lifetime.EXTEND_S", 0.02)

    async def told() -> dict[str, str]:
        text = (await asyncio.to_thread(supervisor.recv, 4096)).decode()
        return dict(line.split("=", 1) for line in text.splitlines())

    life, uplink = Lifetime(), Uplink()
    serving = asyncio.create_task(life.serve(Owner(), [], ready="here", connection=uplink))
    for _ in range(3):
        assert await told() == {"STATUS": "connecting to nobody", "EXTEND_TIMEOUT_USEC": "20000"}
    uplink.text = "it is away"
    uplink.changed()
    statuses = [await told() for _ in range(3)]
    assert {"STATUS": "it is away"} in statuses
    assert not any("READY" in each for each in statuses)
    uplink.up.set()
    while (said := await told()) != {"READY": "1", "STATUS": "here"}:
        assert "READY" not in said
    uplink.text = "lost again"
    uplink.changed()
    assert await told() == {"STATUS": "lost again"}
    life.stop.set()
    await serving


async def test_a_reload_before_the_process_is_ready_or_after_a_signal_is_not_told(supervisor: socket.socket) -> None:
    life = Lifetime()
    with life.reloading():
        life.wait_for_ready("soon")
    assert b"STATUS=soon" in supervisor.recv(4096)
    with life:
        life.ready("here")
        assert supervisor.recv(4096) == b"READY=1\nSTATUS=here"
        with life.reloading():
            assert supervisor.recv(4096).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert supervisor.recv(4096) == b"READY=1\nSTATUS=here"
        with life.reloading():
            assert supervisor.recv(4096).startswith(b"RELOADING=1\n")
            signal.raise_signal(signal.SIGTERM)
            await life.stop.wait()
        with life.reloading():
            pass
    assert supervisor.recv(4096) == b"STOPPING=1\nSTATUS=shutting down"
    supervisor.setblocking(False)
    with pytest.raises(BlockingIOError):
        supervisor.recv(4096)


@pytest.mark.parametrize(
    ("interval", "pid", "found"),
    [
        ("3000000", "own", 3.0),
        ("3000000", None, 3.0),
        ("3000000", "1", None),  # meant for a parent
        (None, None, None),
        ("0", None, None),
        ("soon", None, None),
    ],
)
def test_a_watchdog_is_fed_where_it_waits_for_this_process(
    monkeypatch: pytest.MonkeyPatch, interval: str | None, pid: str | None, found: float | None
) -> None:
    for name, value in (("WATCHDOG_USEC", interval), ("WATCHDOG_PID", pid)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, str(os.getpid()) if value == "own" else value)
    assert watchdog_s() == found


async def test_a_watchdog_is_fed_as_long_as_the_loop_turns(
    supervisor: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    with Lifetime():
        for _ in range(3):
            assert await asyncio.to_thread(supervisor.recv, 4096) == b"WATCHDOG=1"


async def test_a_signal_ends_a_process_that_was_never_ready() -> None:
    life, uplink = Lifetime(), Uplink()
    serving = asyncio.create_task(life.serve(Owner(), [], ready="here", connection=uplink))
    life.stop.set()
    async with asyncio.timeout(DEADLINE_S):
        await serving


@pytest.mark.parametrize("abstract", [False, True])
async def test_systemd_is_notified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    if abstract and not Path("/proc/net/unix").exists():
        pytest.skip("abstract addresses are Linux's")
    address = f"@goreprox-{os.getpid()}-{os.urandom(8).hex()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(address.replace("@", "\0"))
        supervisor.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        Lifetime().ready("here")
        assert supervisor.recv(64) == b"READY=1\nSTATUS=here"


async def test_a_supervisor_that_cannot_be_notified_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events: Events
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    Lifetime().ready("here")
    (entry,) = matching(events, "notify_failed", address=str(tmp_path / "nobody"))
    assert os.strerror(errno.ENOENT) in message(entry)
