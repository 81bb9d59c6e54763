"""`goreprox requests` and `goreprox replay` against real processes."""

import asyncio
import contextlib
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.roles import start_broker, start_edge, start_provider
from tests.e2e.upgrading import upgradable
from tests.support.forks import run_command
from tests.support.processes import Tunnel, nothing_yet
from tests.support.programs import output_of, running
from tests.support.sockets import HOST, abort, closed_port
from tests.support.waiting import DEADLINE_S, eventually
from tests.support.web import curl, fetch, head_of

WORKERS = 2


async def telling(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Respond to each request with its header section, as JSON."""
    while True:
        text = json.dumps({"head": await head_of(reader), "password": "hidden-4711"}).encode()
        fields = b"Content-Type: application/json\r\nContent-Length: %d" % len(text)
        writer.write(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n%b" % (fields, text))


async def command(tmp: Path, name: str, *args: str, code: int = 0) -> str:
    """Run a command; return its output, or its errors if it is to end with such a code."""
    ended, out, err = await run_command(tmp, name, "--runtime-dir", str(tmp / "run"), *args)
    assert ended == code, (out, err)
    return err if code else out


async def listed(tmp: Path, *args: str) -> list[dict[str, Any]]:
    """Return the requests of all processes, once all are over."""
    found: list[dict[str, Any]] = []

    async def are_over() -> bool:
        found[:] = map(json.loads, (await command(tmp, "requests", "--json", *args)).splitlines())
        return all(row["over"] for row in found)

    while not await are_over():
        pass
    return found


async def test_requests_are_listed_shown_copied_and_sent_once_more_until_an_upgrade(tmp: Path) -> None:
    listen = ("--listen", f"http://{HOST}:0", "--inspect")
    async with upgradable(tmp, "server", telling, *listen) as made:
        fields = ("Host: a", "Cookie: id=hidden-4711", "Connection: close")
        status, body = await fetch(made.web, "/a?token=hidden-4711", *fields)
        assert status == 200 and "id=hidden-4711" in body
        await fetch(made.web, "/b", "Host: a", "Connection: close")
        first, second = await listed(tmp)
        assert (first["path"], first["status"], first["host"]) == ("/a?token=***", 200, "a")
        assert [row["id"] for row in await listed(tmp, "--path", "/b", "--status", "2")] == [second["id"]]
        assert await listed(tmp, "--method", "POST") == []
        assert first["id"] in await command(tmp, "requests")

        shown = await command(tmp, "requests", first["id"])
        assert '  "password": "***"' in shown and "Cookie: id=***" in shown
        detail = json.loads(await command(tmp, "requests", first["id"], "--json"))
        assert detail["request"]["fields"] == [["Host", "a"], ["Cookie", "id=***"], ["Connection", "close"]]
        copied = await command(tmp, "requests", first["id"], "--curl")
        assert "hidden" not in shown + json.dumps(detail) + copied

        again = await command(tmp, "replay", first["id"])
        await made.entrance.logged("replay", request=first["id"])
        assert f"replay of {first['id']}" in again and "200" in again
        replayed = (await listed(tmp))[-1]
        response = json.loads(await command(tmp, "requests", replayed["id"], "--json"))["response"]["body"]["text"]
        assert f"Goreprox-Replay: {first['id']}\r\n" in json.loads(response)["head"]

        await made.upgraded()
        assert await listed(tmp) == []
        for name in ("requests", "replay"):
            assert f"request {first['id']} is not kept here" in await command(tmp, name, first["id"], code=1)
        await fetch(made.web, "/c", "Host: a", "Connection: close")
        assert [row["path"] for row in await listed(tmp)] == ["/c"]


async def workers(made: Tunnel) -> int:
    """Start an edge with workers that keep requests; return its port."""
    broker = await start_broker(made)
    await start_provider(made, broker, target=await made.target(telling))
    with closed_port() as port:
        edge = await start_edge(
            made, broker, listen=f"http://{HOST}:{port}", args=("--inspect", "--workers", str(WORKERS))
        )
    await eventually(lambda: edge.events("peer_up") >= WORKERS, "each worker knows the provider")
    return port


@pytest.mark.long
async def test_each_worker_has_its_own_and_commands_ask_all_of_them(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        port = await workers(made)
        for number in range(40):  # each over a connection of its own: one worker gets them all once in 2**39
            await fetch(port, f"/{number}", "Host: a", "Connection: close")
        rows = await listed(tmp)
        assert [row["path"] for row in rows] == [f"/{number}" for number in range(40)]
        assert len({row["process"] for row in rows}) == len({row["id"].partition("-")[0] for row in rows}) == WORKERS
        for row in (rows[0], next(row for row in rows if row["process"] != rows[0]["process"])):
            assert f"replay of {row['id']}" in await command(tmp, "replay", row["id"])
        again = [row for row in await listed(tmp) if row["replay_of"]]
        assert {row["path"] for row in again} >= {"/0"} and len({row["process"] for row in again}) == WORKERS


@pytest.mark.programs
async def test_curl_sends_what_was_copied(tmp: Path) -> None:
    body = tmp / "body"
    body.write_bytes(b"@/etc/hostname it's \\ \x1b[31m\n")
    async with upgradable(tmp, "server", telling, "--listen", f"http://{HOST}:0", "--inspect") as made:
        fields = ("-H", 'X-It\'s: "1" $HOME', "-H", "X-Empty;", "-H", f"Host: a:{made.web}")
        where = f"http://{HOST}:{made.web}/a/../b?c='d'&e=[1-3]{{f}}"
        await output_of(*curl("-X", "PUT", "-g", "--path-as-is", "--data-binary", f"@{body}", *fields, where))
        (first,) = await listed(tmp)
        copied = (await command(tmp, "requests", first["id"], "--curl")).removeprefix("curl ")
        options = shlex.join(curl("--resolve", f"a:{made.web}:{HOST}"))
        await output_of("bash", "-c", f"{options} {copied}")
        both = [json.loads(await command(tmp, "requests", row["id"], "--json")) for row in await listed(tmp)]
        before, after = ((row["path"], sorted(row["request"]["fields"]), row["request"]["body"]) for row in both)
        assert before == after


async def test_one_who_follows_sees_requests_once_they_are_over(tmp: Path) -> None:
    async with upgradable(tmp, "server", telling, "--listen", f"http://{HOST}:0", "--inspect") as made:
        follow = (sys.executable, "-m", "goreprox", "requests", "--runtime-dir", str(tmp / "run"))
        async with running(*follow, "--follow", "--json", "--path", "/seen") as (_, output):
            for path in ("/a", "/seen"):
                await fetch(made.web, path, "Host: a", "Connection: close")
            async with asyncio.timeout(DEADLINE_S):
                row = json.loads(await output.readline())
        assert (row["path"], row["status"], row["process"]) == ("/seen", 200, (await listed(tmp))[0]["process"])


@pytest.mark.long
async def test_hostile_clients_and_targets_cost_no_more_than_the_bound(tmp: Path) -> None:
    """Long heads, bodies without end and in single bytes, and requests that never end, thrice as many as are kept."""

    async def target(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n%bTransfer-Encoding: chunked\r\n\r\n" % (b"X-Y: %b\r\n" % (b"y" * 700) * 80))
        for _ in range(70):
            writer.write(b"400\r\n%b\r\n" % (b"z" * 1024))
        await writer.drain()
        await reader.read()

    async with upgradable(tmp, "server", target, "--listen", f"http://{HOST}:0", "--inspect", web=target) as made:
        fields = b"".join(b"a%d:\r\n" % number for number in range(90)) + b"X: %b\r\n" % (b"x" * 14_000)

        async def attack(number: int) -> None:
            reader, writer = await made.connect(made.web)
            writer.write(b"POST /%d HTTP/1.1\r\nHost: a\r\n%bContent-Length: 90000\r\n\r\n" % (number, fields))
            if number % 3:
                writer.write(b"b" * (90_000 if number % 3 == 1 else 70_000))
            else:
                for _ in range(100):
                    writer.write(b"b")
                    await writer.drain()
            async with asyncio.timeout(DEADLINE_S):
                with contextlib.suppress(asyncio.IncompleteReadError):
                    await reader.readexactly(66_000)
            abort(writer)

        await attack(0)
        before = made.process.rss_kib
        for first in range(0, 1500, 10):
            await asyncio.gather(*map(attack, range(first, first + 10)))
        rows = await listed(tmp)
        grown = made.process.rss_kib - before
        assert 300 < len(rows) < 500
        assert grown < 200 * 1024, (
            f"{grown / 1024:.0f} MiB"
        )  # 154 measured, of which 38 are taken without --inspect, too


async def test_without_it_nothing_is_kept(tmp: Path) -> None:
    async with upgradable(tmp, "server", telling, "--listen", f"http://{HOST}:0") as made:
        await fetch(made.web, "/", "Host: a", "Connection: close")
        assert "no process here keeps requests; start one with --inspect" in await command(tmp, "requests", code=1)
