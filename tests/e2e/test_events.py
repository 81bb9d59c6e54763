"""`goreprox events` against real processes."""

import asyncio
import json
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.forks import Fork, run_command
from tests.support.processes import Tunnel, nothing_yet, tunnel
from tests.support.sockets import HOST, closed_port
from tests.support.traffic import echo
from tests.support.waiting import DEADLINE_S, eventually


@pytest.fixture
def tmp() -> Iterator[Path]:
    """A directory whose path leaves room for the name of a socket."""
    with tempfile.TemporaryDirectory(prefix="gp", dir="/tmp") as path:
        yield Path(path)


class Followed:
    """The lines of `goreprox events --follow --json`."""

    def __init__(self, process: Fork) -> None:
        self._process = process

    async def next(self, event: str, **fields: object) -> dict[str, Any]:
        """Return the next line of this event with these fields."""
        wanted = {"event": event, **fields}
        assert self._process.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            while line := await self._process.stdout.readline():
                found: dict[str, Any] = json.loads(line)
                if wanted.items() <= found.items():
                    return found
        raise AssertionError((await self._process.stderr.read()).decode())


@asynccontextmanager
async def following(tmp: Path, *options: str) -> AsyncIterator[Followed]:
    arguments = ("events", "--follow", "--json", "--runtime-dir", str(tmp / "run"), *options)
    process = await Fork.start(*arguments, env=dict(os.environ), cwd=tmp, stdout=True)
    try:
        yield Followed(process)
    finally:
        process.kill()
        await process.wait()


async def echoed(made: Tunnel) -> asyncio.StreamWriter:
    reader, writer = await made.connect()
    writer.write(b"x")
    assert await reader.readexactly(1) == b"x"
    return writer


async def test_what_happens_is_followed_through_an_outage_and_a_restart(tmp: Path) -> None:
    ends = {"server": ("--name", "front"), "provider": ("--name", "back")}
    async with tunnel(tmp, echo, **ends) as made, following(tmp) as followed:
        await followed.next("peer_up", process="server-front.0", peer="back")
        writer = await echoed(made)
        opened = await followed.next("stream_opened", process="server-front.0", service="default")
        made.relay.cut()
        up = await followed.next("peer_up", process="server-front.0", peer="back", streams=1)
        assert up["outage_s"] > 0 and up["replayed_bytes"] == 0
        writer.close()
        ended = await followed.next("stream_ended", id=opened["id"])
        assert (ended["code"], ended["peer"], ended["sent_bytes"]) == ("done", "back", 1)
        await echoed(made)
        await followed.next("stream_opened", process="provider-back.0")
        await made.provider.stop()
        await made.provide("--name", "back")
        await followed.next("peer_up", process="provider-back.0", peer="front")


async def test_recent_events_of_all_processes_are_listed_in_their_order(tmp: Path) -> None:
    async with tunnel(tmp, echo, server=("--name", "front"), provider=("--name", "back")) as made:
        (await echoed(made)).close()
        await eventually(lambda: made.server.events("stream_ended") and made.provider.events("stream_ended"))
        code, out, err = await run_command(tmp, "events", "--runtime-dir", str(tmp / "run"))
        assert (code, err) == (0, "")
        lines = [line.split(" ", 2) for line in out.splitlines()]
        times = [at for at, *_ in lines]
        assert times == sorted(times)
        for process in ("server-front.0:", "provider-back.0:"):
            texts = [text for _, who, text in lines if who == process]
            assert any(text.startswith("connected to ") for text in texts)
            assert any(text.endswith(" to default ended: done") for text in texts)
        code, out, err = await run_command(tmp, "events", "--runtime-dir", str(tmp / "run"), "--role", "edge")
        assert (code, out) == (1, "")
        assert err.startswith("goreprox: no edge runs in ")


async def test_all_workers_are_followed(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        broker = await made.start("broker", "--providers", f"{HOST}:0", "--edges", f"{HOST}:0")
        where = ("--broker", f"{HOST}:{await broker.port('edges')}", "--name", "front")
        with closed_port() as listen:
            await made.start("edge", "--listen", f"{HOST}:{listen}", "--workers", "2", *where)
        async with following(tmp, "--role", "edge") as followed:
            found = {(await followed.next("link_up"))["process"] for _ in range(2)}
        assert found == {"edge-front.0", "edge-front.1"}
