"""A process's last signals are shown by tests/e2e; here, whom it tells that it is ready."""

import asyncio
import os
import socket
from pathlib import Path

import pytest

from goreprox.lifetime import Lifetime


async def be_ready() -> None:
    Lifetime().ready("here")


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    if abstract and not Path("/proc/net/unix").exists():
        pytest.skip("abstract addresses are Linux's")
    address = f"@goreprox-{os.getpid()}-{os.urandom(8).hex()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(address.replace("@", "\0"))
        supervisor.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        asyncio.run(be_ready())
        assert supervisor.recv(64) == b"READY=1"


def test_a_supervisor_that_cannot_be_told_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    asyncio.run(be_ready())
    assert [line for line in warnings if "NOTIFY_SOCKET" in line and "No such file" in line]
