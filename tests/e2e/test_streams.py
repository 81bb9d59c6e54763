"""`goreprox streams` and `goreprox end` against real processes."""

import asyncio
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from goreprox.control import client
from goreprox.errors import ControlError
from tests.support.forks import run_command
from tests.support.processes import Tunnel, nothing_yet, tunnel
from tests.support.sockets import HOST
from tests.support.tls import Authority
from tests.support.traffic import echo
from tests.support.waiting import DEADLINE_S, eventually

NOBODY = 65534


@pytest.fixture
def tmp() -> Iterator[Path]:
    """A directory whose path leaves room for the name of a socket."""
    with tempfile.TemporaryDirectory(prefix="gp", dir="/tmp") as path:
        yield Path(path)


async def command(tmp: Path, *args: str) -> tuple[int, str, str]:
    """Run a command; return its exit code, output and errors."""
    name, *more = args
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "goreprox", name, "--runtime-dir", str(tmp / "run"), *more),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=tmp,
    )
    async with asyncio.timeout(DEADLINE_S):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def listed(tmp: Path, *args: str) -> dict[str, list[dict[str, Any]]]:
    """Return the streams of each process, by its role."""
    code, out, err = await command(tmp, "streams", "--json", *args)
    assert (code, err) == (0, "")
    return {each["process"].partition("-")[0]: each["streams"] for each in json.loads(out)}


async def connected(made: Tunnel, count: int) -> list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect clients, each of which has sent and received a byte."""
    clients = [await made.connect() for _ in range(count)]
    for reader, writer in clients:
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
    return clients


async def test_every_stream_is_listed_at_both_ends_and_each_id_ends_one(tmp: Path) -> None:
    async with tunnel(tmp, echo, server=("--name", "front"), provider=("--name", "back")) as made:
        clients = await connected(made, 3)
        made.relay.cut()
        await eventually(lambda: made.server.events("peer_up") > 1, "resumed")
        both = await listed(tmp)
        names = ["{}:{}".format(*writer.get_extra_info("sockname")) for _, writer in clients]
        for role, peer in (("server", "back"), ("provider", "front")):
            rows = both[role]
            assert sorted(row["client"] for row in rows) == sorted(names)
            assert len({row["id"] for row in rows}) == 3
            for row in rows:
                assert (row["service"], row["peer"], row["state"], row["outages"]) == ("default", peer, "open", 1)
                assert row["sent_bytes"] == row["received_bytes"] == 1
                assert row["sent_bytes_per_s"] == 0 and row["open_s"] > 0
        assert both["provider"][0]["target"] == f"{HOST}:{made.target_port}"
        assert not {row["id"] for row in both["server"]} & {row["id"] for row in both["provider"]}
        other = next(row for row in both["provider"] if row["client"] != both["server"][1]["client"])
        code, out, err = await command(tmp, "end", both["server"][1]["id"], other["id"])
        assert (code, out, err) == (0, "ended 2 connections\n", "")
        ended = {both["server"][1]["client"], other["client"]}
        for name, (reader, _) in zip(names, clients, strict=True):
            if name in ended:
                with pytest.raises(ConnectionResetError):
                    await reader.read()
        await eventually(lambda: made.server.events("stream_ended") == 2, "both ends know")
        assert made.server.events("stream_ended", code="on_request") == 1
        assert made.server.events("stream_ended", code="aborted", reason="ended by `goreprox end`") == 1
        assert made.server.events("ended_on_request", streams=1) == 1
        reader, writer = next(each for name, each in zip(names, clients, strict=True) if name not in ended)
        writer.write(b"still")
        assert await reader.readexactly(5) == b"still"
        code, out, err = await command(tmp, "end", both["server"][1]["id"])
        assert (code, out) == (1, "ended 0 connections\n")
        assert err.startswith(f"goreprox: not open: {both['server'][1]['id']}; ")


async def test_streams_are_selected_by_service_client_and_provider(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        await made.target(echo)
        await made.serve("--listen", f"{HOST}:0=web", "--name", "front")
        await made.provide(f"web={HOST}:{made.target_port}", "--name", "back")
        await connected(made, 2)
        ports = (await made.server.ready())["clients"]
        assert isinstance(ports, list)
        reader, writer = await made.connect(ports[1])
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        for options, found in (
            (["--service", "web"], 1),
            (["--service", "none"], 0),
            (["--provider", "back"], 3),
            (["--provider", "front"], 0),
            (["--client", "127.0.0.0/8"], 3),
            (["--client", "192.0.2.1"], 0),
            (["--client", "127.0.0.1", "--service", "default"], 2),
        ):
            both = await listed(tmp, *options)
            assert {role: len(rows) for role, rows in both.items()} == {"server": found, "provider": found}, options
        code, out, _ = await command(tmp, "end", "--service", "web", "--role", "server")
        assert (code, out) == (0, "ended 1 connection\n")
        with pytest.raises(ConnectionResetError):
            await reader.read()
        assert len((await listed(tmp, "--role", "server"))["server"]) == 2


async def test_clients_that_wait_and_targets_that_are_dialled_are_listed_and_can_be_ended(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        await made.serve()
        reader, _ = await made.connect()
        rows: list[dict[str, Any]] = []
        while not rows:
            rows = (await listed(tmp))["server"]
        assert (rows[0]["peer"], rows[0]["state"]) == (None, "opening")
        assert (await command(tmp, "end", "--client", HOST))[:2] == (0, "ended 1 connection\n")
        with pytest.raises(ConnectionResetError):
            await reader.read()
        await made.target(silent)  # which says nothing of TLS
        where = (f"tls://{HOST}:{made.target_port}", "--target-insecure", "--server", f"{HOST}:{made.relay.port}")
        await made.start("provider", *where, "--dial-timeout", str(DEADLINE_S))
        await eventually(lambda: made.server.events("peer_up"), "connected")
        reader, _ = await made.connect()
        rows = []
        while not rows:
            rows = (await listed(tmp, "--role", "provider"))["provider"]
        assert rows[0]["state"] == "dialing"
        assert (await command(tmp, "end", rows[0]["id"]))[:2] == (0, "ended 1 connection\n")
        with pytest.raises(ConnectionResetError):
            await reader.read()


async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read()


async def test_what_an_http_request_is_for_and_who_asks_is_listed(tmp: Path) -> None:
    authority = Authority(tmp)
    code, token, err = await run_command(tmp, "token", "new", "alice", "--auth-tokens", str(tmp / "tokens.toml"))
    assert code == 0, err
    async with nothing_yet(tmp) as made:
        made.scheme = "https"
        await made.target(silent)
        await made.serve(
            *authority.options,
            *("--tls-client-ca", str(authority.ca_file), "--auth-tokens", str(tmp / "tokens.toml")),
        )
        await made.provide()
        context = authority.trusting(name="laptop")
        reader, writer = await asyncio.open_connection(HOST, made.port, ssl=context, server_hostname=HOST)
        lines = ("GET / HTTP/1.1", "Host: app.example.org", f"X-Goreprox-Auth: {token.strip()}", "", "")
        writer.write("\r\n".join(lines).encode())
        rows: list[dict[str, Any]] = []
        while not rows or rows[0]["state"] != "open":
            rows = (await listed(tmp, "--role", "server"))["server"]
        assert {"host": "app.example.org", "token": "alice", "certificate": "laptop"}.items() <= rows[0].items()
        assert (await command(tmp, "end", rows[0]["id"]))[0] == 0
        assert (await reader.readline()).startswith(b"HTTP/1.1 502 ")
        writer.close()


async def test_following_lists_again_until_it_is_interrupted(tmp: Path) -> None:
    async with tunnel(tmp, echo) as made:
        await connected(made, 1)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", "-m", "goreprox", "streams", "--follow", "--json"),
            *("--runtime-dir", str(tmp / "run"), "--role", "server"),
            stdout=asyncio.subprocess.PIPE,
            cwd=tmp,
        )
        assert process.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            assert len(json.loads(await process.stdout.readline())[0]["streams"]) == 1
            await connected(made, 1)
            while len(json.loads(await process.stdout.readline())[0]["streams"]) != 2:
                pass
            process.terminate()
            await process.wait()


async def test_a_table_has_a_line_for_each_stream(tmp: Path) -> None:
    async with tunnel(tmp, echo, server=("--name", "front"), provider=("--name", "back")) as made:
        await connected(made, 2)
        code, out, err = await command(tmp, "streams", "--role", "server")
        assert (code, err) == (0, "")
        title, header, *rows = out.splitlines()
        assert title == "server-front.0: 2 open connections"
        assert header.split()[:3] == ["id", "client", "service"]
        assert [row.split()[2:5] for row in rows] == [["default", "back", "open"]] * 2


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("end",), 2, "end: give ids, which"),
        (("end", "--client", "example.org"), 2, "client 'example.org'"),
        (("end", "nonsense"), 1, "not open: nonsense; "),
        (("streams", "--client", "1.2.3.4/8"), 2, "client '1.2.3.4/8'"),
    ],
)
async def test_wrong_arguments_are_one_line(tmp: Path, args: tuple[str, ...], code: int, message: str) -> None:
    async with nothing_yet(tmp) as made:
        await made.serve()
        returned, _, err = await command(tmp, *args)
        assert returned == code
        assert err.startswith(f"goreprox: {message}")
        assert err.count("\n") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
@pytest.mark.parametrize("what", ["streams", "end", "events"])
async def test_another_local_user_is_refused(tmp: Path, what: str) -> None:
    async with nothing_yet(tmp) as made:
        await made.serve()
        tmp.chmod(0o755)
        with somebody_else(), pytest.raises(ControlError, match="it is another user's"):
            await client.ask([tmp / "run"], what, options={"client": HOST})
        (tmp / "run").chmod(0o755)  # the socket alone keeps them out, too
        with somebody_else():
            (reply,) = await client.ask([tmp / "run"], what, options={"client": HOST})
        assert "cannot be asked: Permission denied" in str(reply.problem)


@contextlib.contextmanager
def somebody_else() -> Iterator[None]:
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
