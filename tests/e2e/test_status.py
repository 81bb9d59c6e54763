"""`goreprox status` against real processes: the right numbers, on every output, whatever state they are in."""

import asyncio
import json
import os
import pty
import signal
import socket
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.forks import run_command
from tests.support.processes import Process, Tunnel, tunnel
from tests.support.sockets import HOST, reset_now
from tests.support.traffic import echo, read_digest
from tests.support.waiting import DEADLINE_S

KIB = 1024


@pytest.fixture
def tmp() -> Iterator[Path]:
    """A directory whose path leaves room for the name of a socket."""
    with tempfile.TemporaryDirectory(prefix="gp", dir="/tmp") as path:
        yield Path(path)


async def status(tmp: Path, *args: str) -> tuple[int, str, str]:
    """Run the command; return its exit code, output and errors."""
    return await run_command(tmp, "status", "--runtime-dir", str(tmp / "run"), *args)


async def printed(tmp: Path, *args: str) -> str:
    """Return what the command prints once all processes respond in time: the machine may be busy."""
    code, err = 1, ""
    try:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                code, out, err = await status(tmp, *args)
                if (code, err) == (0, ""):
                    return out
    except TimeoutError:
        pytest.fail(f"exit code {code}: {err}")


async def told(tmp: Path) -> dict[str, dict[str, Any]]:
    """Return what each role says."""
    documents = json.loads(await printed(tmp, "--json"))
    assert len(documents) == len({document["role"] for document in documents})
    return {document["role"]: document for document in documents}


Told = dict[str, dict[str, Any]]


async def until(tmp: Path, condition: Callable[[Told], bool]) -> Told:
    """Ask until the document fulfils `condition`; return it."""
    now: Told = {}
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not condition(now := await told(tmp)):
                pass
    except TimeoutError:
        pytest.fail(f"not within {DEADLINE_S} s; at last: {json.dumps(now)}")
    return now


async def test_the_status_of_both_ends_agrees_on_streams_bytes_epochs_and_paths(tmp: Path) -> None:
    async with tunnel(tmp, echo, server=("--name", "front"), provider=("--name", "back")) as made:
        clients = [await made.connect() for _ in range(3)]
        for reader, writer in clients:
            writer.write(bytes(KIB))
            await reader.readexactly(KIB)
        reader, writer = clients[0]
        writer.write_eof()
        assert await reader.read() == b""
        now = await until(tmp, lambda now: all(process["streams"]["open"] == 2 for process in now.values()))
        server, provider = now["server"], now["provider"]
        for process, running in ((server, made.server), (provider, made.provider)):
            streams = process["streams"]
            assert process["pid"] == running.process.pid
            assert process["up_s"] > 0
            assert (streams["total"], streams["limit"]) == (3, 10_000)
            assert streams["sent_bytes"] == streams["received_bytes"] == 3 * KIB
            assert 0 <= streams["borrowed_bytes"] <= streams["lendable_bytes"] == 128 * KIB * KIB
            assert (streams["waiting_clients"], streams["dialing"]) == (0, 0)
            (peer,) = process["peers"]
            assert (peer["state"], peer["down_s"], peer["outages"], peer["replayed_bytes"]) == ("up", None, 0, 0)
            assert (peer["streams_open"], peer["streams_total"]) == (2, 3)
            assert peer["sent_bytes"] == peer["received_bytes"] == 3 * KIB
            (path,) = peer["paths"]
            assert path["in_use"]
            assert 0 < path["round_trip_s"] < DEADLINE_S
            (end,) = process["ends"]
            assert (end["sent_bytes"], end["received_bytes"], end["reason"]) == (KIB, KIB, "done")
        to_back, to_front = server["peers"][0], provider["peers"][0]
        assert (to_back["name"], to_back["role"], to_back["services"]) == ("back", "provider", ["default"])
        assert (to_front["name"], to_front["role"]) == ("front", "edge")
        assert to_back["epoch"] == to_front["epoch"] > 0
        assert to_back["incarnation"] == provider["incarnation"] != server["incarnation"]
        assert to_front["paths"][0]["label"] == f"{HOST}:{made.relay.port}"
        (link,) = provider["links"]
        assert (link["label"], link["state"], link["problem"]) == (f"{HOST}:{made.relay.port}", "up", None)
        assert server["ports"] == {"clients": [made.port], "providers": [made.relay.target]}
        assert server["services"] == {"default": [f"{HOST}:{made.port}"]}
        assert provider["services"] == {"default": [f"{HOST}:{made.target_port}"]}
        assert {member["name"] for member in server["broker"]["members"]} == {"front", "back"}
        assert server["broker"]["messages"] > 0
        assert provider["broker"] is None
        assert server["ends"][0]["peer"] == "back"
        assert server["ends"][0]["client"] == provider["ends"][0]["client"]


async def test_outages_and_resent_bytes_are_counted(tmp: Path) -> None:
    async def endless(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(bytes(64 * KIB))
            await writer.drain()

    async with tunnel(tmp, endless) as made:
        reader, _ = await made.connect()
        reading = asyncio.create_task(read_digest(reader), name="reader")
        now: Told = {}
        replayed = cuts = 0
        while not replayed:
            made.relay.cut()
            cuts += 1
            now = await until(
                tmp,
                lambda now, cuts=cuts: all(  # type: ignore[misc]
                    peer["state"] == "up" and peer["outages"] >= cuts
                    for process in now.values()
                    for peer in process["peers"]
                ),
            )
            replayed = now["provider"]["peers"][0]["replayed_bytes"]
        assert now["provider"]["peers"][0]["sent_bytes"] > replayed
        assert now["server"]["peers"][0]["replayed_bytes"] == 0
        reading.cancel()


async def test_an_unreachable_peer_is_shown_as_down_and_its_streams_are_kept(tmp: Path) -> None:
    async with tunnel(tmp, echo) as made:
        reader, writer = await made.connect()
        writer.write(b"x")
        await reader.readexactly(1)
        made.relay.refusing = True
        made.relay.cut()
        now = await until(tmp, lambda now: all(p["peers"][0]["state"] == "down" for p in now.values()))
        for process in now.values():
            (peer,) = process["peers"]
            assert peer["down_s"] > 0
            assert (peer["streams_open"], peer["paths"], peer["outages"]) == (1, [], 1)
        assert now["provider"]["links"][0]["state"] == "down"


async def test_the_last_ended_streams_are_listed_with_their_reasons(tmp: Path) -> None:
    async with tunnel(tmp, echo, provider=("--name", "back")) as made:
        reader, writer = await made.connect()
        writer.write(b"x")
        await reader.readexactly(1)
        reset_now(writer)
        await until(tmp, lambda now: all(len(process["ends"]) == 1 for process in now.values()))
        reader, writer = await made.connect()
        writer.write(b"x")
        await reader.readexactly(1)
        made.provider.signal(signal.SIGKILL)
        await made.provider.wait()
        await made.provide("--name", "back")
        now = await until(tmp, lambda now: len(now["server"]["ends"]) == 2)
        reset, killed = now["server"]["ends"]
        assert reset["reason"] == "Connection reset by peer"
        assert killed["reason"] == "the process that owned the connection died"
        assert (reset["peer"], killed["peer"]) == ("back", "back")
        assert now["provider"]["ends"] == []


async def test_a_refusing_target_is_the_reason_shown_at_both_ends(tmp: Path) -> None:
    made = Tunnel(tmp)
    async with made._stack:
        await made.serve()
        await made.provide(target=1)
        reader, _ = await made.connect()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        now = await until(tmp, lambda now: all(len(process["ends"]) == 1 for process in now.values()))
        for process in now.values():
            assert process["ends"][0]["reason"] == f"target {HOST}:1: Connection refused"
            assert (process["streams"]["open"], process["streams"]["total"]) == (0, 1)


async def test_waiting_clients_are_counted(tmp: Path) -> None:
    made = Tunnel(tmp)
    async with made._stack:
        await made.serve()
        await made.connect()
        await made.connect()
        now = await until(tmp, lambda now: now["server"]["streams"]["waiting_clients"] == 2)
        assert now["server"]["streams"]["open"] == 2
        assert now["server"]["peers"] == []


async def test_every_role_reports_its_status_and_one_of_two_brokers_is_in_use(tmp: Path) -> None:
    made = Tunnel(tmp)
    async with made._stack:
        await made.target(echo)
        processes: list[Process] = []
        ports: list[dict[str, Any]] = []

        async def start(command: str, *args: str) -> dict[str, Any]:
            processes.append(await Process.start(tmp, command, *args))
            made._stack.push_async_callback(processes[-1].stop)
            return await processes[-1].ready()

        for name in ("left", "right"):
            free = f"{HOST}:0"
            ports.append(await start("broker", "--name", name, "--providers", free, "--edges", free))
        edges = [f"{HOST}:{port['edges']}" for port in ports]
        brokers = [argument for label in edges for argument in ("--broker", label)]
        listen = ("--listen", f"{HOST}:{shared_port(made)}", "--name", "front", "--workers", "2")
        made.port = (await start("edge", *listen, *brokers))["clients"][0]
        servers = [argument for port in ports for argument in ("--server", f"{HOST}:{port['providers']}")]
        await start("provider", str(made.target_port), "--name", "back", *servers)

        def both_ways(documents: list[dict[str, Any]]) -> bool:
            members = [document for document in documents if document["role"] in ("edge", "provider")]
            peers = [peer for document in members for peer in document["peers"]]
            return len(peers) == 4 and all(
                peer["state"] == "up" and len(peer["paths"]) == 2 and any(path["in_use"] for path in peer["paths"])
                for peer in peers
            )

        documents: list[dict[str, Any]] = []
        async with asyncio.timeout(DEADLINE_S):
            while not both_ways(documents):
                documents = json.loads(await printed(tmp, "--json"))
        found = sorted((document["role"], document["name"]) for document in documents)
        workers = [("edge", "front")] * 2
        assert found == [("broker", "left"), ("broker", "right"), *workers, ("provider", "back")]
        assert len({document["pid"] for document in documents}) == 5
        for document in documents:
            if document["role"] == "broker":
                (port,) = (port for port in ports if document["ports"]["edges"] == [port["edges"]])
                assert document["ports"] == {"edges": [port["edges"]], "providers": [port["providers"]]}
                assert document["streams"] is None
                assert sorted(member["name"] for member in document["broker"]["members"]) == [
                    "back",
                    "front",
                    "front",
                ]
                continue
            assert document["broker"] is None
            assert [link["state"] for link in document["links"]] == ["up", "up"]
            for peer in document["peers"]:
                assert sorted(path["in_use"] for path in peer["paths"]) == [False, True]
                if document["role"] == "edge":
                    assert peer["name"] == "back"
                    assert {path["label"] for path in peer["paths"]} == set(edges)
                    assert document["services"] == {"default": [f"{HOST}:{made.port}"]}
        for process in reversed(processes):
            process.signal(signal.SIGTERM)
            assert await process.wait() == 0
        assert list((tmp / "run").glob("*.sock")) == []


def shared_port(made: Tunnel) -> int:
    """Return a free port that several processes can listen on, and nobody else can take meanwhile."""
    sock = made._stack.enter_context(socket.socket())
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((HOST, 0))
    return int(sock.getsockname()[1])


async def test_tables_have_colours_on_a_terminal_and_none_in_a_pipe(tmp: Path) -> None:
    async with tunnel(tmp, echo, server=("--name", "front"), provider=("--name", "back")) as made:
        short = [line.split() for line in (await printed(tmp)).splitlines()]
        assert any(line[:2] == ["server", "front:"] for line in short)
        assert any(line[:2] == ["provider", "back"] and "up" in line and line[-1] == "open" for line in short)
        out = await printed(tmp, "--verbose")
        assert "\x1b" not in out
        lines = [line.split() for line in out.splitlines()]
        for title in ("Peers", "Paths", "Links"):
            assert [title] in lines
        assert any(line[:2] == ["server", "front"] for line in lines)
        assert any(line[:2] == ["provider", "back"] and line[3:5] == ["up", "2"] for line in lines)
        assert [f"{HOST}:{made.relay.port}", "up"] in lines
        one = await printed(tmp, "--verbose", "--role", "server", "--name", "front")
        lines = [line.split() for line in one.splitlines()]
        assert [line[:2] for line in lines if "pid" in line] == [["server", "front"]]
        coloured = await on_a_terminal(tmp)
        assert "\x1b[1mserver front: up " in coloured


async def test_watching_shows_it_again_until_it_is_interrupted(tmp: Path) -> None:
    made = Tunnel(tmp)
    async with made._stack:
        await made.serve("--name", "front")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", "-m", "goreprox", "status", "--runtime-dir", str(tmp / "run")),
            *("--watch", "--json"),
            stdout=asyncio.subprocess.PIPE,
            cwd=tmp,
        )
        assert process.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            first, second = [json.loads(await process.stdout.readline())[0] for _ in range(2)]
            process.terminate()
            await process.wait()
        assert first["name"] == second["name"] == "front"
        assert second["up_s"] > first["up_s"]


async def on_a_terminal(tmp: Path) -> str:
    """Return what the command prints on a terminal."""
    ours, theirs = pty.openpty()
    env = {key: value for key, value in os.environ.items() if key != "NO_COLOR"} | {"TERM": "xterm", "COLUMNS": "200"}
    command = (sys.executable, "-W", "error", "-m", "goreprox", "status", "--runtime-dir", str(tmp / "run"))
    process = await asyncio.create_subprocess_exec(*command, stdout=theirs, cwd=tmp, env=env)
    os.close(theirs)
    chunks = []
    try:
        while chunk := await asyncio.to_thread(os.read, ours, 1 << 16):
            chunks.append(chunk)
    except OSError:  # EIO: the other end is closed
        pass
    os.close(ours)
    assert await process.wait() == 0
    return b"".join(chunks).decode()


async def test_without_a_process_one_line_names_the_directories_that_were_searched(tmp: Path) -> None:
    code, out, err = await status(tmp)
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert err.startswith(f"goreprox: no process runs in {tmp}/run; start one, or name")
    code, out, _ = await status(tmp, "--json")
    assert (code, out) == (1, "")


async def test_a_killed_process_is_not_shown_and_its_successor_takes_over_the_socket(tmp: Path) -> None:
    made = Tunnel(tmp)
    async with made._stack:
        first = await made.serve()
        first.signal(signal.SIGKILL)
        await first.wait()
        (left,) = (tmp / "run").glob("*.sock")
        code, _, err = await status(tmp)
        assert code == 1
        assert "no process runs" in err
        second = await made.serve()
        assert list((tmp / "run").glob("*.sock")) == [left]
        assert (await told(tmp))["server"]["pid"] == second.process.pid
        second.signal(signal.SIGTERM)
        assert await second.wait() == 0
        assert list((tmp / "run").glob("*.sock")) == []


async def test_a_stopped_process_is_named_and_the_others_are_shown(tmp: Path) -> None:
    async with tunnel(tmp, echo, provider=("--name", "back")) as made:
        made.provider.signal(signal.SIGSTOP)
        documents: list[dict[str, Any]] = []
        err = ""
        while not documents:  # the server, too, may take its time
            code, out, err = await status(tmp, "--json")
            assert code == 1
            documents = json.loads(out)
        made.provider.signal(signal.SIGCONT)
        assert [document["role"] for document in documents] == ["server"]
        assert err == "goreprox: provider-back.0 does not respond within 2 s; is it stopped or overloaded?\n"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_the_control_socket_is_in_the_file_system_and_private_to_its_owner(tmp: Path) -> None:
    made = Tunnel(tmp)
    async with made._stack:
        server = await made.serve()
        (path,) = (tmp / "run").glob("*.sock")
        mode = path.lstat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600
        assert listening_ports(server) == {made.port, made.relay.target}


def listening_ports(process: Process) -> set[int]:
    """Return the TCP ports that a process listens on, and make sure that it has no UDP socket."""
    proc = Path(f"/proc/{process.process.pid}")
    own = {str(entry.readlink()) for entry in (proc / "fd").iterdir()}
    ports = set()
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in (proc / "net" / table).read_text().splitlines()[1:]:
            fields = line.split()
            if f"socket:[{fields[9]}]" in own and (fields[3] == "0A" or table.startswith("udp")):
                assert table.startswith("tcp"), "no UDP is spoken here"
                ports.add(int(fields[1].rpartition(":")[2], 16))
    return ports
