"""Targets that are Unix sockets, between real processes."""

import asyncio
import contextlib
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.e2e import upgrading
from tests.e2e.roles import echoed, whole
from tests.support.processes import Process, Tunnel, nothing_yet
from tests.support.sockets import HOST, abort, stop_accepting
from tests.support.traffic import echo
from tests.support.waiting import DEADLINE_S, eventually


@pytest.fixture
def tmp() -> Iterator[Path]:
    """A directory whose path leaves room for the name of a socket."""
    with tempfile.TemporaryDirectory(prefix="gp", dir="/tmp") as path:
        yield Path(path)


@contextlib.asynccontextmanager
async def listening(path: Path) -> AsyncIterator[None]:
    """Echo at a Unix socket."""
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(OSError):
            await echo(reader, writer)

    server = await asyncio.start_unix_server(serve, path)
    try:
        yield
    finally:
        await stop_accepting(server)
        for writer in writers:
            abort(writer)
        await asyncio.sleep(0)


async def provide(made: Tunnel, path: Path) -> Process:
    """Start a provider that can be upgraded."""
    made.provider = await upgrading.start(made, "provider", f"unix:{path}", "--server", f"{HOST}:{made.relay.port}")
    await eventually(lambda: made.server.events("peer_up"), "the server knows it")
    return made.provider


@pytest.mark.long
async def test_connections_to_a_unix_socket_survive_outages_and_upgrades(tmp: Path) -> None:
    async with listening(tmp / "s"), nothing_yet(tmp) as made:
        await made.serve()
        await provide(made, tmp / "s")
        client = await made.connect()
        await echoed(client, b"before")
        made.relay.cut()
        await echoed(client, b"after an outage")
        await upgrading.upgraded(tmp, 1)
        await echoed(client, b"after an upgrade")
        await whole(made, made.port)  # its end of file comes back, too
        client[1].write_eof()
        assert not await asyncio.wait_for(client[0].read(), DEADLINE_S)


async def test_a_unix_socket_that_is_not_there_is_reported_and_found_once_it_is(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        await made.serve()
        await provide(made, tmp / "s")
        reader, _ = await made.connect()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), DEADLINE_S)
        text = await made.provider.logged("target_failed")
        assert f"cannot reach the target unix:{tmp}/s" in text and "No such file or directory" in text
        async with listening(tmp / "s"):
            await whole(made, made.port, blocks=2)


async def test_the_doctor_connects_to_a_unix_socket(tmp: Path) -> None:
    async with listening(tmp / "s"):
        for path, state in (("s", "ok"), ("other", "failed")):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "goreprox", "doctor", "provider", f"unix:{tmp}/{path}"),
                *("--insecure", "--server", f"{HOST}:1", "--runtime-dir", str(tmp / "run"), "--json"),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                cwd=tmp,
            )
            output, _ = await process.communicate()
            checks = {each["check"]: each["state"] for each in json.loads(output)["checks"]}
            assert checks["target"] == state
