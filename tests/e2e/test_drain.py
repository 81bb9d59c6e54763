"""`goreprox drain` against real processes."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from goreprox.control import client
from goreprox.errors import ControlError
from tests.e2e.upgrading import run, start, upgrade
from tests.support.processes import nothing_yet, tunnel
from tests.support.sockets import HOST
from tests.support.traffic import echo
from tests.support.waiting import DEADLINE_S, eventually


@pytest.fixture
def tmp() -> Iterator[Path]:
    """A directory whose path leaves room for the name of a socket."""
    with tempfile.TemporaryDirectory(prefix="gp", dir="/tmp") as path:
        yield Path(path)


async def drain(tmp: Path, role: str) -> object:
    (reply,) = await client.ask([tmp / "run"], "drain", roles=(role,), deadline_s=DEADLINE_S)
    assert reply.problem is None
    return reply.result


async def test_a_drained_server_takes_no_clients_and_serves_those_it_has(tmp: Path) -> None:
    async with tunnel(tmp, echo) as made:
        reader, writer = await made.connect()
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        assert await drain(tmp, "server") == {"connections": 1}
        with pytest.raises(ConnectionRefusedError):
            await made.connect()
        writer.write(b"still")
        assert await reader.readexactly(5) == b"still"
        (status,) = await client.ask([tmp / "run"], "status", roles=("server",), deadline_s=DEADLINE_S)
        assert isinstance(status.result, dict) and status.result["draining"] is True
        (ready,) = await client.ask([tmp / "run"], "ready", roles=("server",), deadline_s=DEADLINE_S)
        assert isinstance(ready.result, dict)
        assert (ready.result["ready"], ready.result["reason"]) == (False, "it is draining")
        assert await drain(tmp, "server") == {"connections": 1}
        await eventually(lambda: made.server.events("drain_asked") == 2)
        writer.write_eof()
        assert await reader.read() == b""
        made.server.signal(signal.SIGTERM)
        assert await made.server.wait() == 0


@pytest.mark.long
async def test_new_clients_of_a_drained_provider_wait_for_the_next_one_also_after_an_upgrade(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        await run(made, echo)
        reader, writer = await made.connect()
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        assert await drain(tmp, "provider") == {"connections": 1}
        await made.server.logged("peer_draining")
        code, _, err = await upgrade(tmp, "--role", "provider")
        assert (code, err) == (0, "")
        late, late_writer = await made.connect()
        late_writer.write(b"y")
        await eventually(lambda: made.server.events("no_provider"), "it waits")
        writer.write(b"still")
        assert await reader.readexactly(5) == b"still"
        (status,) = await client.ask([tmp / "run"], "status", roles=("provider",), deadline_s=DEADLINE_S)
        assert isinstance(status.result, dict) and status.result["draining"] is True
        await made.provide("--name", "next")
        assert await late.readexactly(1) == b"y"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
async def test_another_local_user_is_refused(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        await made.serve()
        tmp.chmod(0o755)
        os.seteuid(65534)
        try:
            with pytest.raises(ControlError, match="it is another user's"):
                await client.ask([tmp / "run"], "drain")
        finally:
            os.seteuid(0)
        await made.connect()


@pytest.mark.long
async def test_a_drained_server_stays_so_through_an_upgrade(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        await made.target(echo)
        made.server = await start(made, "server", "--listen", f"{HOST}:0", "--providers", f"{HOST}:0")
        made.port = await made.server.port("clients")
        where = f"{HOST}:{await made.server.port('providers')}"
        await made.start("provider", f"{HOST}:{made.target_port}", "--server", where)
        reader, writer = await made.connect()
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        assert await drain(tmp, "server") == {"connections": 1}
        code, _, err = await upgrade(tmp, "--role", "server")
        assert (code, err) == (0, "")
        with pytest.raises(ConnectionRefusedError):
            await made.connect()
        writer.write(b"still")
        assert await reader.readexactly(5) == b"still"
