"""Requests are kept, listed and sent once more by an edge, over real sockets in one process."""

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Awaitable
from typing import Any

import pytest

from goreprox.config.addresses import Address, Listener
from goreprox.config.http import HttpConfig
from goreprox.config.roles import ServerConfig
from goreprox.control.message import Request
from goreprox.errors import ControlError
from goreprox.inspector import replay
from tests.support.configs import configured
from tests.support.sockets import HOST
from tests.support.tunnel import End, Tunnel
from tests.support.waiting import DEADLINE_S, eventually

LISTENER = Listener.parse(f"http://{HOST}:0")
HTTP: dict[str, Any] = {"listeners": (LISTENER,), "inspect": ("*",)}
POST = (
    b"POST /a?token=hidden-4711 HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer hidden-4711\r\n"
    b"Content-Length: 4\r\n\r\nsome"
)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def ask(tunnel: Tunnel, command: str, **options: object) -> Any:
    """Return a result, or all pages."""
    work = tunnel.edge.inspection.commands[command](Request(command, options))
    async with asyncio.timeout(DEADLINE_S):
        if isinstance(work, AsyncGenerator):
            return [page async for page in work]
        assert isinstance(work, Awaitable)
        return await work


async def rows(tunnel: Tunnel) -> list[dict[str, Any]]:
    return [row for page in await ask(tunnel, "requests") for row in page["requests"]]


async def head_of(target: End) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += await target.receive(1)
    return data


async def asked(tunnel: Tunnel, client: End, request: bytes = POST, response: bytes = OK) -> End:
    """Send a request, and receive the response of a target, which is returned."""
    await client.send(request)
    target = await tunnel.targets.accept()
    await head_of(target)
    await target.receive(4)
    await target.send(response)
    assert await client.receive(len(response)) == response
    return target


async def test_a_request_is_sent_once_more_with_its_secrets_and_marked() -> None:
    async with Tunnel(**HTTP) as tunnel:
        await tunnel.provide()
        await asked(tunnel, await tunnel.client())
        (first,) = await rows(tunnel)
        assert (first["path"], first["status"], first["provider"]) == ("/a?token=***", 200, "provider")
        again = asyncio.create_task(ask(tunnel, "replay", id=first["id"]))
        target = await tunnel.targets.accept()
        head = await head_of(target)
        assert await target.receive(4) == b"some"
        assert head.startswith(b"POST /a?token=hidden-4711 HTTP/1.1\r\n")
        for field in (b"Authorization: Bearer hidden-4711", b"Goreprox-Replay: " + first["id"].encode()):
            assert field + b"\r\n" in head
        assert b"X-Forwarded-For: 127.0.0.1\r\n" in head
        await target.send(OK.replace(b"200", b"201"))
        second = await again
        assert (second["status"], second["replay_of"], second["over"]) == (201, first["id"], True)
        assert [row["id"] for row in await rows(tunnel)] == [first["id"], second["id"]]
        third = asyncio.create_task(ask(tunnel, "replay", id=second["id"]))  # and so is that one
        target = await tunnel.targets.accept()
        assert b"Goreprox-Replay: " + second["id"].encode() in await head_of(target)
        await target.send(OK)
        assert (await third)["replay_of"] == second["id"]
        await eventually(lambda: not tunnel.edge.http_clients.live or len(tunnel.edge.http_clients.live) == 1)


async def test_the_wait_for_a_provider_is_told_apart() -> None:
    async with Tunnel(**HTTP) as tunnel:
        client = await tunnel.client()
        await client.send(POST)
        await eventually(lambda: tunnel.edge.assignment.pending)
        (waiting,) = await rows(tunnel)
        assert (waiting["over"], waiting["status"]) == (False, None)
        await tunnel.provide()
        target = await tunnel.targets.accept()
        await target.send(OK)
        await client.receive(len(OK))
        found = await ask(tunnel, "request", id=waiting["id"])
        assert found["timing"]["queue_s"] > 0
        assert sum(found["timing"].values()) == pytest.approx(found["duration_s"], abs=0.001)


async def test_one_who_follows_gets_what_changes_and_nothing_twice() -> None:
    async with Tunnel(**HTTP) as tunnel:
        await tunnel.provide()
        following = tunnel.edge.inspection.commands["requests"](Request("requests", {"follow": True}))
        assert isinstance(following, AsyncGenerator)
        first: Any = await anext(following)
        assert (first["inspecting"], first["requests"]) == (True, [])
        await asked(tunnel, await tunnel.client())
        page, seen = first, list[Any]()
        async with asyncio.timeout(DEADLINE_S):
            while not (seen and seen[-1]["over"]):
                page = await anext(following)
                seen += page["requests"]
        assert len({row["id"] for row in seen}) == 1
        (only,) = await ask(tunnel, "requests", after=page["after"])
        assert only["requests"] == []
        await following.aclose()


async def test_what_is_not_here_or_not_whole_is_not_sent() -> None:
    async with Tunnel(**HTTP) as tunnel:
        await tunnel.provide()
        for id_ in ("000000-1", "", "abc"):
            assert await ask(tunnel, "request", id=id_) is None
            assert await ask(tunnel, "replay", id=id_) is None
        for wrong in (None, 7):
            with pytest.raises(ControlError, match="expected the id"):
                await ask(tunnel, "replay", id=wrong)
        client = await tunnel.client()
        await client.send(POST[:-1])
        await eventually(lambda: len(tunnel.edge.inspection.records))
        (row,) = await rows(tunnel)
        with pytest.raises(ControlError, match="its body has not come to its end"):
            await ask(tunnel, "replay", id=row["id"])
        client.reset()
        await eventually(lambda: all(record.is_over for record in tunnel.edge.inspection.records))
        with pytest.raises(ControlError, match="its body never came to its end"):
            await ask(tunnel, "replay", id=row["id"])


async def test_few_are_sent_at_a_time_and_none_while_the_edge_ends() -> None:
    async with Tunnel(**HTTP) as tunnel:
        await tunnel.provide()
        await asked(tunnel, await tunnel.client())
        (row,) = await rows(tunnel)
        running = [asyncio.create_task(ask(tunnel, "replay", id=row["id"])) for _ in range(replay.MOST)]
        targets = [await tunnel.targets.accept() for _ in running]
        with pytest.raises(ControlError, match="8 requests are being sent once more"):
            await ask(tunnel, "replay", id=row["id"])
        for target in targets:
            await target.send(OK)
        assert [(await each)["status"] for each in running] == [200] * replay.MOST
        tunnel.edge.http_clients.pause()
        with pytest.raises(ControlError, match="draining or being upgraded"):
            await ask(tunnel, "replay", id=row["id"])


async def test_a_target_that_never_ends_its_response_costs_no_more_than_what_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replay, "REPLAY_S", 0.5)
    async with Tunnel(**HTTP) as tunnel:
        await tunnel.provide()
        await asked(tunnel, await tunnel.client())
        (row,) = await rows(tunnel)
        again = asyncio.create_task(ask(tunnel, "replay", id=row["id"]))
        target = await tunnel.targets.accept()
        await target.send(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1_000_000)
        second = await again
        assert (second["status"], second["response_bytes"] > 65536) == (200, True)
        assert tunnel.edge.inspection.records.held < 100_000
        assert (await target.receive_all()).endswith(b"some")
        await target.send(b"more")  # to a client that has left
        await eventually(lambda: all(record.is_over for record in tunnel.edge.inspection.records))


async def test_a_reload_begins_and_ends_it() -> None:
    where: dict[str, Any] = {"listeners": (LISTENER,), "providers": Address(HOST, 0)}
    async with Tunnel(**where) as tunnel:
        await tunnel.provide()
        client = await tunnel.client()
        target = await asked(tunnel, client)
        (page,) = await ask(tunnel, "requests")
        assert (page["inspecting"], page["requests"]) == (False, [])

        async def reload(http: HttpConfig) -> None:
            config = configured(ServerConfig, **where)
            await tunnel.edge.reconfigure(
                dataclasses.replace(config, clients=dataclasses.replace(config.clients, http=http))
            )

        async def again() -> None:
            await client.send(POST)
            await head_of(target)
            await target.receive(4)
            await target.send(OK)
            await client.receive(len(OK))

        await reload(HttpConfig(inspect=("*",)))
        await again()  # on the connection that was there before
        (row,) = await rows(tunnel)
        await reload(HttpConfig(inspect=("default",)))
        assert [each["id"] for each in await rows(tunnel)] == [row["id"]]
        await reload(HttpConfig())
        await again()
        (page,) = await ask(tunnel, "requests")
        assert (page["inspecting"], page["requests"]) == (False, [])
        assert tunnel.edge.inspection.records.held == 0
