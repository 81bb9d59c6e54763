"""A reload: what has changed in the file is applied to real processes, and no connection notices."""

import asyncio
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from goreprox.cli import main as cli
from goreprox.control.client import ask_all
from tests.e2e.reloading import apply, configure
from tests.e2e.roles import ANY, Client, echoed, greeted, greeting, start_broker
from tests.support.forks import run_command
from tests.support.processes import FULL_LOAD, MIB_KIB, Process, Tunnel, descriptors, nothing_yet
from tests.support.sockets import HOST, closed_port
from tests.support.tls import Authority
from tests.support.tls import Client as TlsClient
from tests.support.traffic import echo
from tests.support.waiting import DEADLINE_S, eventually
from tests.support.web import head_of

RELOADS = 1000 if FULL_LOAD else 100


@pytest.fixture
def tmp() -> Iterator[Path]:
    """A directory whose path leaves room for the name of a socket."""
    with tempfile.TemporaryDirectory(prefix="gp", dir="/tmp") as path:
        yield Path(path)


async def reload(tmp: Path, *args: str) -> tuple[int, list[str], str]:
    """Run the command; return its exit code, the lines that it prints, and its errors."""
    code, out, err = await run_command(tmp, "reload", "--runtime-dir", str(tmp / "run"), *args)
    return code, out.splitlines(), err


async def port_of(tmp: Path, service: str) -> int:
    """Return the port where clients of a service are accepted, by the status."""
    replies = await asyncio.to_thread(ask_all, [tmp / "run"], "status", roles=("server", "edge"), deadline_s=DEADLINE_S)
    document: Any = replies[0].result
    return int(document["services"][service][0].rpartition(":")[2])


async def run(made: Tunnel, *targets: str, **options: object) -> None:
    """Start a server and a provider of these targets, each with a file of its own."""
    configure(made.tmp, "server", listen=[ANY], providers=ANY, **options)
    made.server = await made.start("server", "--config", "server.toml")
    made.port = await made.server.port("clients")
    where = f"{HOST}:{await made.server.port('providers')}"
    if targets:
        configure(made.tmp, "provider", target=list(targets))
        made.provider = await made.start("provider", "--config", "provider.toml", "--server", where)
        await eventually(lambda: made.server.events("peer_up"), "the server knows the provider")


async def refused(made: Tunnel, port: int) -> bool:
    try:
        _, writer = await made.connect(port)
    except ConnectionRefusedError:
        return True
    writer.close()
    return False


async def connected(made: Tunnel, port: int, greeting_: bytes = b"") -> Client:
    """Be a client that was served, and stays."""
    reader, writer = await made.connect(port)
    assert await asyncio.wait_for(reader.readexactly(len(greeting_)), DEADLINE_S) == greeting_
    await echoed((reader, writer), b"before")
    return reader, writer


async def test_the_command_lists_what_has_changed_and_a_client_of_a_removed_listener_goes_on(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        target = await made.target(echo)
        await run(made, f"{HOST}:{target}", f"web={HOST}:{target}")
        old = await connected(made, made.port)
        configure(tmp, "server", listen=[f"{ANY}=web", f"http://{ANY}=page"], providers=ANY, drain=5)
        code, lines, errors = await reload(tmp, "--role", "server")
        assert (code, errors) == (0, "")
        assert lines == ["~ drain: 30 -> 5", f"+ listen http://{ANY}=page", f"~ listen {ANY}: default -> web"]
        assert await port_of(tmp, "web") == made.port  # the same address: its socket stays, for another service
        await echoed(old, b"after")
        new = await connected(made, made.port)
        configure(tmp, "server", listen=[f"http://{ANY}=page"], providers=ANY, drain=5)
        assert (await reload(tmp, "--role", "server"))[:2] == (0, [f"- listen {ANY}=web"])
        await echoed(old, b"on")
        await echoed(new, b"on")
        assert await reload(tmp, "--role", "server") == (0, ["nothing has changed"], "")


async def test_clients_that_wait_at_a_removed_listener_are_served(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        target = await made.target(echo)
        await run(made, f"{HOST}:{target}", max_connections=1)
        first = await connected(made, made.port)
        waiting = await made.connect(made.port)
        await apply(tmp, "server", listen=[ANY], providers=ANY, max_connections=2)
        await echoed(waiting, b"there is room")
        await echoed(first, b"still")


@pytest.mark.parametrize("by", ["command", "signal"])
async def test_a_wrong_configuration_changes_nothing(tmp: Path, by: str) -> None:
    async with nothing_yet(tmp) as made:
        await run(made)
        with socket.create_server((HOST, 0)) as taken:
            port = taken.getsockname()[1]
            wrong: tuple[tuple[dict[str, object], str], ...] = (
                ({"listen": [ANY, "80x"]}, "file server.toml: listen: address '80x': the port is missing"),
                ({"listen": [ANY], "grase": 1}, "file server.toml: [server] grase is not an option"),
                ({"listen": [ANY], "memory": 1}, "file server.toml: memory 1 MiB: 10,000 connections need"),
                ({"listen": [f"{ANY}=a", f"{HOST}:{port}=b"]}, f"cannot listen for clients on {HOST}:{port}"),
                ({"listen": [f"http://{ANY}"], "auth_tokens": "none"}, "auth-tokens none: No such file"),
                ({"listen": [f"tls://{ANY}"], "tls_cert": "c", "tls_key": "k"}, "tls-cert c: No such file"),
            )
            for number, (options, error) in enumerate(wrong, 1):
                configure(tmp, "server", providers=ANY, drain=number, **options)
                if by == "command":
                    code, lines, errors = await reload(tmp)
                    assert (code, lines) == (1, [])
                    assert errors.startswith("goreprox: server-")
                    assert error in errors
                else:
                    made.server.signal(signal.SIGHUP)
                await eventually(lambda: made.server.events("reload_failed") == number, "it is logged")  # noqa: B023
                assert error in str(made.server.log[-1]["message"])
        assert await port_of(tmp, "default") == made.port
        assert not made.server.events("reloaded")
        assert (await apply(tmp, "server", listen=[ANY], providers=ANY))["applied"] == []


async def test_sighup_reloads_as_the_command_does(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        await run(made)
        configure(tmp, "server", listen=[ANY, f"{ANY}=web"], providers=f"{HOST}:1", log_level="info")
        made.server.signal(signal.SIGHUP)
        text = await made.server.logged("reloaded", applied=1)
        assert text == f"reloaded: + listen {ANY}=web"
        moved = f"~ providers: {ANY} -> {HOST}:1 (needs an upgrade)"
        assert await made.server.logged("reload_kept") == f"not applied: {moved}"
        assert (await reload(tmp))[:2] == (0, [f"! {moved}"])
        assert not await refused(made, await port_of(tmp, "web"))


async def test_flags_and_the_environment_of_the_start_still_take_precedence(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        configure(tmp, "server", providers=ANY)
        process = await Process.start(
            *(tmp, "server", "--config", "server.toml", "--listen", ANY), env={"GOREPROX_DRAIN": "7"}
        )
        made._stack.push_async_callback(process.stop)
        await process.ready()
        assert (await apply(tmp, "server", providers=ANY, listen=["1"], drain=8))["applied"] == []


async def test_new_connections_go_to_the_new_target_and_old_ones_stay(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        first, second = await made.target(greeting(b"first")), await made.target(greeting(b"second"))
        await run(made, f"{HOST}:{first}")
        old = await connected(made, made.port, b"first")
        found = await apply(tmp, "provider", target=[f"{HOST}:{second}", f"web={HOST}:{first}"], weight=3)
        assert found == {
            "applied": [
                f"+ target {HOST}:{second}",
                f"+ target web={HOST}:{first}",
                f"- target {HOST}:{first}",
                "~ weight: 1 -> 3",
            ],
            "kept": [],
        }
        assert await greeted(made) == b"second"
        await apply(tmp, "server", listen=[ANY, f"{ANY}=web"], providers=ANY)
        assert await greeted(made, await port_of(tmp, "web")) == b"first"
        await apply(tmp, "provider", target=[f"web={HOST}:{first}"])
        await echoed(old, b"after")


async def is_reset(made: Tunnel) -> bool:
    reader, _ = await made.connect()
    try:
        await asyncio.wait_for(reader.read(), DEADLINE_S)
    except ConnectionResetError:
        return True
    return False


async def test_access_rules_and_limits_hold_for_new_clients(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        target = await made.target(greeting(b"hello"))
        await run(made, f"{HOST}:{target}")
        old = await connected(made, made.port, b"hello")
        plain = {"listen": [ANY], "providers": ANY}
        await apply(tmp, "server", **plain, deny=[f"{HOST}/32"])
        assert await is_reset(made)
        await apply(tmp, "server", **plain, max_connections_per_address=1)
        assert await is_reset(made)  # the old one counts
        await apply(tmp, "server", **plain)
        assert await greeted(made) == b"hello"
        await apply(tmp, "provider", target=[f"{HOST}:{target}"], max_connections=1)
        waiting = await made.connect(made.port)
        old[1].close()
        assert await asyncio.wait_for(waiting[0].readexactly(5), DEADLINE_S) == b"hello"


async def page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say which host was asked for, and keep the connection."""
    while True:
        head = await head_of(reader)
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(head)}\r\n\r\n{head}".encode())


async def get(client: Client, *fields: str) -> tuple[int, str]:
    """Return the status and the body of a response."""
    reader, writer = client
    writer.write("\r\n".join(["GET / HTTP/1.1", "Host: a.example", *fields, "", ""]).encode())
    head = await asyncio.wait_for(head_of(reader), DEADLINE_S)
    length = next(int(line[15:]) for line in head.split("\r\n") if line.lower().startswith("content-length:"))
    return int(head[9:12]), (await reader.readexactly(length)).decode()


async def test_routes_and_tokens_hold_for_the_next_request_on_an_open_connection(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        target = await made.target(page)
        await run(made, f"web={HOST}:{target}", f"site={HOST}:{target}")
        plain = {"listen": [f"http://{ANY}"], "providers": ANY}
        found = await apply(tmp, "server", **plain, route=["a.example=web"], host_header=["web=w"])
        assert f"~ listen {ANY}" not in found["applied"]
        client = await made.connect(await port_of(tmp, "web"))
        status, body = await get(client)
        assert (status, "Host: w\r\n" in body) == (200, True)
        found = await apply(
            tmp, "server", **plain, route=["a.example=site"], host_header=["site=s"], via=True, queue_timeout=3
        )
        assert found["applied"] == [
            "~ route a.example: web -> site",
            "~ queue-timeout: 10 -> 3",
            "~ via: false -> true",
            "+ host-header site=s",
            "- host-header web=w",
        ]
        status, body = await get(client)
        assert (status, "Host: s\r\n" in body, "Via:" in body) == (200, True, True)
        assert cli.main(["token", "new", "t", "--auth-tokens", str(tmp / "tokens.toml")]) == 0
        await apply(tmp, "server", **plain, route=["*=site"], auth_tokens=str(tmp / "tokens.toml"))
        assert (await get(client))[0] == 401
        await apply(tmp, "server", **plain, route=["b.example=site"])
        assert (await get(client))[0] == 404


async def test_another_certificate_is_used_for_new_handshakes(tmp: Path) -> None:
    first, second = tmp / "first", tmp / "second"
    for directory in (first, second):
        directory.mkdir()
    old, new = Authority(first), Authority(second)

    def options(authority: Authority, *listen: str) -> dict[str, object]:
        return {"listen": listen, "providers": ANY, "tls_cert": str(authority.cert), "tls_key": str(authority.key)}

    async with nothing_yet(tmp) as made:
        target = await made.target(echo)
        await run(made, f"{HOST}:{target}")
        await apply(tmp, "server", **options(old, f"tls://{ANY}"))
        port = await port_of(tmp, "default")
        client = await TlsClient(*await made.connect(port), old.trusting()).shake_hands()
        await apply(tmp, "server", **options(new, f"tls://{ANY}"))
        another = await TlsClient(*await made.connect(port), new.trusting()).shake_hands()
        for each in (client, another):
            await each.write(b"still")
            assert await each.read(5) == b"still"
        await apply(tmp, "server", listen=[ANY], providers=ANY)
        await client.write(b"still")
        assert await client.read(5) == b"still"


async def test_an_edge_and_a_broker_reload_and_tell_what_they_have(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        target = await made.target(greeting(b"hello"))
        broker = await start_broker(made)
        edges, providers = [await broker.port(kind) for kind in ("edges", "providers")]
        configure(tmp, "edge", listen=[ANY])
        await made.start("edge", "--config", "edge.toml", "--broker", f"{HOST}:{edges}")
        provider = await made.start("provider", f"web={HOST}:{target}", "--server", f"{HOST}:{providers}")
        await provider.logged("not_listened", service="web")
        await apply(tmp, "edge", listen=[ANY, f"{ANY}=web"])
        await provider.logged("serving", service="web")
        assert await greeted(made, await port_of(tmp, "web")) == b"hello"
        code, lines, _ = await reload(tmp, "--role", "broker")
        assert (code, lines) == (0, ["nothing has changed"])
        code, lines, _ = await reload(tmp)
        assert code == 0
        assert sorted(line.partition("-")[0] for line in lines) == ["broker", "edge", "provider"]


async def test_the_log_changes_its_level_and_its_form(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        configure(tmp, "broker", providers=ANY, edges=ANY)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "goreprox", "broker", "--insecure", "--config", "broker.toml"),
            *("--runtime-dir", str(tmp / "run")),
            stderr=asyncio.subprocess.PIPE,
            cwd=tmp,
        )
        broker = Process(process)
        made._stack.push_async_callback(broker.stop)
        await eventually(lambda: any("ready" in str(line["message"]) for line in broker.log), "ready")
        found = await apply(tmp, "broker", providers=ANY, edges=ANY, log_json=True, log_level="debug")
        assert found["applied"] == ["~ log-level: info -> debug", "~ log-json: false -> true"]
        await broker.logged("reloaded", level="info")


@pytest.mark.long
async def test_many_reloads_under_load_leave_memory_and_descriptors_as_they_were(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        target = await made.target(echo)
        await run(made, f"{HOST}:{target}")
        kept = await connected(made, made.port)
        processes = (made.server, made.provider)

        async def visit() -> None:
            reader, writer = await connected(made, made.port)
            writer.write_eof()
            assert await asyncio.wait_for(reader.read(), DEADLINE_S) == b""
            writer.close()

        async def apply_under_load(role: str, **options: object) -> None:
            await asyncio.gather(apply(tmp, role, **options), *(visit() for _ in range(4)))

        async def churn(rounds: int) -> list[tuple[int, int]]:
            """Reload twice in each round; return how many descriptors, and how much memory, the processes have then."""
            for number in range(rounds):
                more = [f"{ANY}=s{number}", f"http://{ANY}"] if number % 2 else []
                server = {"listen": [ANY, *more], "providers": ANY, "deny": [f"192.0.2.{number % 250}"]}
                server |= {"route": [f"h{number}.example=web"]} if more else {}
                await apply_under_load("server", **server, max_connections=1000 + number)
                targets = [f"{HOST}:{target}", f"s{number}={HOST}:{target}"]
                await apply_under_load("provider", target=targets, weight=1 + number % 3)
            await apply(tmp, "server", listen=[ANY], providers=ANY)
            await apply(tmp, "provider", target=[f"{HOST}:{target}"])
            return [(len(descriptors(process)), process.rss_kib) for process in processes]

        before = await churn(RELOADS // 10)  # until all that is allocated once is
        after = await churn(RELOADS // 2)
        await echoed(kept, b"after")
        for (files, memory_kib), (more_files, more_memory_kib) in zip(before, after, strict=True):
            assert more_files <= files + 4  # of clients that have just left
            assert more_memory_kib - memory_kib < 4 * MIB_KIB


async def test_workers_reload_with_their_parent_all_or_none(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        target = await made.target(greeting(b"hello"))
        broker = await start_broker(made)
        edges, providers = [await broker.port(kind) for kind in ("edges", "providers")]
        await made.start("provider", f"web={HOST}:{target}", "--server", f"{HOST}:{providers}")
        with closed_port() as first, closed_port() as second, socket.create_server((HOST, 0)) as taken:
            configure(tmp, "edge", listen=[f"{HOST}:{first}=web"])
            parent = await made.start(
                *("edge", "--config", "edge.toml", "--broker", f"{HOST}:{edges}", "--workers", "2")
            )
            await parent.logged("ready")
            old = await connected(made, first, b"hello")
            configure(tmp, "edge", listen=[f"{HOST}:{second}=web"], drain=3)
            code, lines, errors = await reload(tmp, "--role", "edge")
            assert (code, errors) == (0, "")
            assert lines == ["~ drain: 30 -> 3", f"+ listen {HOST}:{second}=web", f"- listen {HOST}:{first}=web"]
            await echoed(old, b"after")
            assert await refused(made, first)
            assert {await greeted(made, second) for _ in range(20)} == {b"hello"}
            configure(tmp, "edge", listen=[f"{HOST}:{taken.getsockname()[1]}=web"])
            code, lines, errors = await reload(tmp)
            assert code == 1
            assert "Address already in use" in errors
            assert await greeted(made, second) == b"hello"
            victim = next(entry["pid"] for entry in parent.log if entry.get("event") == "worker_ready")
            os.kill(int(str(victim)), signal.SIGKILL)
            await eventually(lambda: parent.events("worker_ready") == 3, "it is replaced")
            await eventually_serving(made, second)
            assert await refused(made, first)  # the new one has the new configuration


async def eventually_serving(made: Tunnel, port: int) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while {await greeted(made, port) for _ in range(10)} != {b"hello"}:
            pass


async def test_peers_move_to_another_broker_and_their_connections_go_on(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        target = await made.target(greeting(b"hello"))
        first, second = await start_broker(made), await start_broker(made)
        at = {
            (broker, kind): f"{HOST}:{await broker.port(kind)}"
            for broker in (first, second)
            for kind in ("edges", "providers")
        }
        configure(tmp, "edge", listen=[f"{ANY}=web"], broker=[at[first, "edges"]])
        configure(tmp, "provider", target=[f"web={HOST}:{target}"], server=[at[first, "providers"]])
        edge = await made.start("edge", "--config", "edge.toml")
        provider = await made.start("provider", "--config", "provider.toml")
        port = await edge.port("clients")
        await eventually(lambda: edge.events("peer_up"), "they know each other")
        kept = await connected(made, port, b"hello")
        changes = await apply(tmp, "edge", listen=[f"{ANY}=web"], broker=[at[second, "edges"]])
        assert changes["applied"] == [f"+ broker {at[second, 'edges']}", f"- broker {at[first, 'edges']}"]
        await eventually(lambda: edge.events("link_up") == 2, "the new link is up")
        await echoed(kept, b"the provider is at the first alone")
        assert not edge.events("link_removed")
        await apply(tmp, "provider", target=[f"web={HOST}:{target}"], server=[at[second, "providers"]])
        for process in (edge, provider):
            await eventually(lambda: process.events("link_removed"), "the old link is gone")  # noqa: B023
        await echoed(kept, b"over the second")
        first.signal(signal.SIGTERM)
        assert await first.wait() == 0
        await echoed(kept, b"without the first")
        assert await greeted(made, port) == b"hello"
        assert not edge.events("peer_left")


async def test_a_link_stays_until_another_is_up_and_may_be_configured_again(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        target = await made.target(greeting(b"hello"))
        broker = await start_broker(made)
        edges, providers = [f"{HOST}:{await broker.port(kind)}" for kind in ("edges", "providers")]
        configure(tmp, "edge", listen=[ANY], broker=[edges])
        edge = await made.start("edge", "--config", "edge.toml")
        await made.start("provider", f"{HOST}:{target}", "--server", providers)
        port = await edge.port("clients")
        assert await greeted(made, port) == b"hello"
        with closed_port() as nobody:
            for where in (f"{HOST}:{nobody}", edges):
                await apply(tmp, "edge", listen=[ANY], broker=[where])
                assert await greeted(made, port) == b"hello"
            await edge.logged("link_removed", broker=f"{HOST}:{nobody}")
        assert edge.events("link_removed") == 1
        assert await greeted(made, port) == b"hello"


async def test_a_client_that_is_being_admitted_is_served_though_its_listener_was_removed(tmp: Path) -> None:
    async with nothing_yet(tmp) as made:
        target = await made.target(page)
        await run(made, f"{HOST}:{target}")
        plain = {"providers": ANY, "proxy_protocol_from": [f"{HOST}/32"]}
        header = b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"
        await apply(tmp, "server", **plain, listen=[f"http://{ANY}", f"{ANY}=raw"])
        port = await port_of(tmp, "default")
        clients = [await made.connect(port) for _ in range(3)]
        first, second, third = clients
        first[1].write(header)
        assert (await get(first))[0] == 200
        await apply(tmp, "server", **plain, listen=[f"{ANY}=raw"])
        assert await refused(made, port)
        second[1].write(header)
        assert (await get(second))[0] == 200
        await apply(tmp, "server", **plain, listen=[f"{ANY}=raw"], drain=5)
        third[1].write(header)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await get(third)
        for client in (first, second):
            assert (await get(client))[0] == 200
