"""Links through a proxy of our own, whatever it does."""

import asyncio
import contextlib
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from brokers import Link, OpenError, Proxy, Role
from brokers.carrier import LinkCondition
from brokers.relay import Relay
from brokers.transport import Plain
from goreprox.config.proxy import ProxyUrl
from goreprox.net import proxy_client
from goreprox.net.proxy_client import ProxyClient
from goreprox.roles.member import advice
from tests.support.events import Events, matching
from tests.support.fabric import SLOW, Fabric, Recorder, name
from tests.support.proxies import OwnProxy
from tests.support.sockets import HOST, closed_port, read_to_end, stop_accepting
from tests.support.waiting import eventually

SCHEMES = ("socks5", "socks5h", "http")
OK = "HTTP/1.1 200 Connection established\r\n\r\n"
LINKS, FAULTS = 10, 500
"""Faults of each scheme: a thousand together, each followed by a connection that is cut."""


def client(scheme: str, port: int, login: str = "") -> ProxyClient:
    return ProxyClient(ProxyUrl.parse(f"{scheme}://{login}{HOST}:{port}"))


def link_through(fabric: Fabric, proxy: Proxy, host: str = HOST, port: int | None = None) -> tuple[Link, Recorder]:
    recorder = Recorder()
    where = port or fabric.ports[Role.PROVIDER]
    link = Link(
        *(name(Role.PROVIDER), {}, host, where, recorder),
        timings=SLOW,
        advise=advice(Role.PROVIDER, where),
        proxy=proxy,
    )
    fabric.adopt(link)
    link.start()
    return link, recorder


async def opened(proxy: ProxyClient, port: int, host: str = HOST) -> str:
    """Open a connection; return why there is none, or ""."""
    try:
        sock = await proxy.open((socket.AF_INET, (host, port)))
    except OpenError as exc:
        return f"{exc.cause.value}: {exc}"
    sock.close()
    return ""


@pytest.mark.parametrize("login", ["", "us%3Aer:p%40ss@"])
@pytest.mark.parametrize("scheme", SCHEMES)
async def test_messages_pass_in_both_directions(scheme: str, login: str) -> None:
    if scheme == "http":
        login = login.replace("us%3Aer", "user")
    async with Fabric() as fabric, OwnProxy().serving() as own:
        own.login = None if not login else ("us:er" if scheme != "http" else "user", "p@ss")
        own.byte_by_byte = True  # whatever follows the response of the proxy is the broker's
        far, far_recorder = fabric.link(name(Role.EDGE))
        link, recorder = link_through(fabric, client(scheme, own.port, login), "localhost")
        await eventually(lambda: recorder.peers and far_recorder.peers)
        (edge,), (provider,) = recorder.peers, far_recorder.peers
        assert link.send(edge, [b"x" * 1_000_000]) and far.send(provider, [b"y" * 1_000_000])
        await eventually(lambda: recorder.messages and far_recorder.messages)
        assert far_recorder.messages == [(provider, [b"x" * 1_000_000])]
        assert recorder.messages == [(edge, [b"y" * 1_000_000])]
        resolved_here = scheme == "socks5"
        assert {each.rpartition(":")[0] == "localhost" for each in own.asked} == {not resolved_here}


@pytest.mark.parametrize(
    ("scheme", "change", "cause", "text"),
    [
        *((each, {"login": ("a", "b")}, "proxy password", "wants a password") for each in SCHEMES),
        ("socks5", {"socks_reply": 2}, "proxy refused", "not allowed by its rules"),
        ("socks5", {"socks_reply": 1}, "unreached", "it does not say why"),
        ("socks5", {"socks_reply": 4}, "unreached", "No route to host"),
        ("socks5", {"socks_reply": 99}, "unreached", "reply 99"),
        ("http", {"http_response": "HTTP/1.1 403 Forbidden\r\n\r\n"}, "proxy refused", "403 Forbidden"),
        ("http", {"http_response": "HTTP/1.0 503 \r\n\r\n"}, "unreached", ": 503"),
        ("http", {"http_response": "HTTP/1.1 504\n\n"}, "unreached", ": 504"),
        ("http", {"http_response": "HTTP/1.1 100 On\r\n\r\n" * 9}, "proxy failed", "interim responses only"),
        ("http", {"http_response": f"HTTP/1.1 200 {'x' * 20_000}"}, "proxy failed", "endless header section"),
        ("http", {"http_response": "HTTP/1.1 2000 OK\r\n\r\n"}, "proxy failed", "does not speak HTTP"),
        ("http", {"http_response": "SSH-2.0-x"}, "proxy failed", "does not speak HTTP"),
        (
            "http",
            {"http_response": "HTTP/1.1 407 x\r\nProxy-Authenticate: NTLM\r\nproxy-authenticate: Negotiate\r\n\r\n"},
            "proxy password",
            "wants a password by negotiate, ntlm, and we know Basic alone",
        ),
        ("http", {"http_response": "HTTP/1.1 403 \x1b[31m\r\n\r\n"}, "proxy refused", r"403 \x1b[31m"),
    ],
)
async def test_the_error_says_which_hop_has_failed(
    scheme: str, change: dict[str, object], cause: str, text: str
) -> None:
    async with OwnProxy().serving() as own:
        for key, value in change.items():
            setattr(own, key, value)
        with closed_port() as port:
            said = await opened(client(scheme, own.port), port)
            assert said.startswith(f"{cause}: the proxy {scheme}://{HOST}:{own.port} ")
            assert text in said


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_wrong_password_is_told_from_a_missing_one(scheme: str) -> None:
    async with OwnProxy().serving() as own:
        own.login = ("user", "right")
        said = await opened(client(scheme, own.port, "user:wrong@"), 1)
        assert "rejects our user or password" in said and "wrong" not in said


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_proxy_that_is_down_is_told_from_a_broker_that_is(scheme: str) -> None:
    with closed_port() as port:
        said = await opened(client(scheme, port), 1)
    assert said == f"proxy unreached: cannot reach the proxy {scheme}://{HOST}:{port}: Connection refused"


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_proxy_that_says_nothing_has_a_deadline(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_client, "RESPOND_S", 0.2)
    async with OwnProxy().serving() as own:
        own.silent = True
        said = await opened(client(scheme, own.port), 9887)
        assert f"has not connected us to {HOST}:9887 within 0.2 s" in said


@pytest.mark.parametrize("host", ["::1", "2001:db8::1", "fe80::1%1"])
async def test_ipv6_addresses_are_told_to_a_socks_proxy_in_binary(host: str) -> None:
    async with OwnProxy().serving() as own:
        own.socks_reply = 4
        assert await opened(client("socks5", own.port), 9887, host)
        assert own.asked == [f"{host.partition('%')[0]}:9887"]


async def test_ipv6_addresses_are_told_to_an_http_proxy_in_brackets() -> None:
    async with OwnProxy().serving() as own:
        own.http_response = "HTTP/1.1 503 x\r\n\r\n"
        assert await opened(client("http", own.port), 9887, "::1")
        assert own.asked == ["[::1]:9887"]


@pytest.mark.parametrize(("mine", "theirs"), [("http", "socks5"), ("socks5", "http")])
async def test_a_proxy_of_the_other_kind_is_recognised(mine: str, theirs: str) -> None:
    async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"\x05\xff" if theirs == "socks5" else b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(other, HOST, 0)
    try:
        said = await opened(client(mine, server.sockets[0].getsockname()[1]), 1)
        assert said.startswith("proxy failed") and "does not speak" in said
    finally:
        await stop_accepting(server)


def down(events: Events) -> list[tuple[object, object]]:
    return [(entry["cause"], entry["message"]) for entry in matching(events, "link_down")]


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_link_says_at_which_hop_it_fails_and_comes_up_once_that_is_mended(scheme: str, events: Events) -> None:
    async with Fabric() as fabric:
        own = OwnProxy()
        own.login = ("user", "secret")
        with closed_port() as own.port:
            link, _ = link_through(fabric, client(scheme, own.port, "user:secret@"))
            await eventually(lambda: down(events))
            ((cause, message),) = down(events)
            assert cause == "proxy unreached" and "is it running, and is --proxy its address?" in str(message)
            assert link.problem is not None and link.problem in str(message) and "secret" not in str(message)
        async with own.serving():
            await eventually(lambda: link.up)
            assert link.problem is None
            own.login = ("user", "changed")
            own.cut()
            await eventually(lambda: [cause for cause, _ in down(events)] == ["proxy unreached", "proxy password"])
            assert not link.up
            own.login = ("user", "secret")
            await eventually(lambda: link.up)


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_link_whose_broker_is_down_behind_its_proxy_says_so(scheme: str, events: Events) -> None:
    async with Fabric() as fabric, OwnProxy().serving() as own:
        own.socks_reply, own.http_response = 5, "HTTP/1.1 502 Bad Gateway\r\n\r\n"
        link_through(fabric, client(scheme, own.port))
        await eventually(lambda: down(events))
        cause, message = down(events)[0]
        assert cause == "unreached" and "does a firewall let this through?" in str(message)


async def test_another_program_behind_a_proxy_is_not_taken_for_the_proxy(events: Events) -> None:
    async def web_server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(web_server, HOST, 0)
    async with Fabric() as fabric, OwnProxy().serving() as own:
        link_through(fabric, client("http", own.port), port=server.sockets[0].getsockname()[1])
        await eventually(lambda: down(events))
        assert down(events)[0][0] == "other protocol"
        await stop_accepting(server)


async def test_another_process_that_connects_to_the_relay_gets_nothing() -> None:
    near, far = socket.socketpair()
    near.setblocking(False)
    relay = Relay(Plain(near))
    port = int(relay.endpoint.rpartition(":")[2])
    with far, socket.create_connection((HOST, port)) as stranger, socket.create_connection((HOST, port)) as dealer:
        assert relay.start(dealer.getsockname()[1])
        dealer.setblocking(False)
        far.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(dealer, b"mine")
        assert await loop.sock_recv(far, 100) == b"mine"
        assert not stranger.recv(1)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((HOST, port))
        await loop.sock_sendall(dealer, b"last")
        dealer.close()
        await relay.finish(30)
        assert await loop.sock_recv(far, 100) == b"last" and not await loop.sock_recv(far, 100)


async def test_a_relay_that_is_closed_as_it_starts_closes_both_ends() -> None:
    near, far = socket.socketpair()
    near.setblocking(False)
    relay = Relay(Plain(near))
    with far, socket.create_connection((HOST, int(relay.endpoint.rpartition(":")[2]))) as dealer:
        assert relay.start(dealer.getsockname()[1])
        relay.close()
        for each in (far, dealer):
            assert await read_to_end(each) == b""


async def test_a_link_whose_connection_is_not_the_dealers_dials_again(monkeypatch: pytest.MonkeyPatch) -> None:
    start, tries = Relay.start, 0

    def other_port_at_first(relay: Relay, port: int) -> bool:
        nonlocal tries
        tries += 1
        return start(relay, port if tries > 3 else port + 1)

    monkeypatch.setattr(Relay, "start", other_port_at_first)
    async with Fabric() as fabric, OwnProxy().serving() as own:
        link, _ = link_through(fabric, client("socks5", own.port))
        await eventually(lambda: link.up)
        assert len(own.asked) >= 4


async def test_what_waits_in_the_relay_counts_as_unsent() -> None:
    async with Fabric() as fabric, OwnProxy().serving() as own:
        _, far_recorder = fabric.link(name(Role.EDGE))
        link, recorder = link_through(fabric, client("http", own.port))
        await eventually(lambda: recorder.peers and far_recorder.peers)
        (edge,) = recorder.peers
        condition = link.link_condition(edge)
        assert condition is not None and condition.unsent_bytes == 0 and condition.round_trip_s > 0
        own.stop_reading()
        sent = 0
        while sent < 24 << 20 and link.send(edge, [bytes(1 << 16)]):
            sent += 1 << 16
        # In the kernel between the relay and the proxy is what has been sent; the rest waits.
        await eventually(lambda: unsent(link.link_condition(edge)) > 1 << 20)
        relay = link._dialer._relay
        assert relay is not None and relay._copying is not None
        copying = relay._copying
        await eventually(lambda: relay.unsent_bytes > copying._held > 0, "it holds some, and the kernel more")
        own.go_on_reading()
        await eventually(lambda: sum(len(frames[0]) for _, frames in far_recorder.messages) == sent)
        await eventually(lambda: unsent(link.link_condition(edge)) == 0)


def unsent(condition: LinkCondition | None) -> int:
    assert condition is not None
    return condition.unsent_bytes


async def test_a_link_that_is_rerouted_leaves_its_proxy() -> None:
    async with Fabric() as fabric, OwnProxy().serving() as first, OwnProxy().serving() as second:
        link, recorder = link_through(fabric, client("socks5", first.port))
        await eventually(lambda: link.up)
        for proxy, used in ((client("http", second.port), second), (None, None), (client("http", first.port), first)):
            ups, before = recorder.ups, {own: len(own.asked) for own in (first, second)}
            link.reroute(proxy)
            await eventually(lambda: recorder.ups > ups)  # noqa: B023 -- awaited in this round
            # A handshake that takes long on a busy machine is examined, by a further connection through the proxy.
            assert {own for own in before if len(own.asked) > before[own]} == ({used} if used else set())


def open_sockets() -> int:
    return sum("socket:" in str(each.readlink()) for each in Path("/proc/self/fd").iterdir() if each.is_symlink())


async def torment(own: OwnProxy, link: tuple[Link, Recorder], cuts: Iterator[int], dice: random.Random) -> None:
    """Let the proxy fail in one way or another each time the link has come up, and end at each of these bytes."""
    its, recorder = link
    for cut in cuts:
        fault = dice.choice(("cut", "cut", "cut", "cut", "silence", "refusal", "password"))
        own.reset, own.byte_by_byte = dice.random() < 0.5, dice.random() < 0.5
        own.cut_after = cut if fault == "cut" else None
        own.silent = fault == "silence"
        own.socks_reply, own.http_response = (2, "HTTP/1.1 403 No\r\n\r\n") if fault == "refusal" else (0, OK)
        own.login = ("user", "other") if fault == "password" else ("user", "secret")
        ended, ups = own.ended, recorder.ups
        own.cut()
        # One that is to be cut may have come up with fewer bytes.
        await eventually(lambda: own.ended > ended + 1 or recorder.ups > ups, f"{fault} at {cut}")  # noqa: B023
        own.cut_after, own.silent, own.socks_reply, own.http_response = None, False, 0, OK
        own.login = ("user", "secret")
        await eventually(lambda: its.up, f"up after {fault} at {cut}")


@pytest.mark.long
@pytest.mark.parametrize("scheme", ["socks5", "http"])
async def test_links_survive_a_proxy_that_fails_at_any_byte(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_client, "RESPOND_S", 0.5)
    async with Fabric() as fabric, contextlib.AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(OwnProxy().serving()) for _ in range(LINKS)]
        sockets, tasks = open_sockets(), len(asyncio.all_tasks())
        links = [link_through(fabric, client(scheme, each.port, "user:secret@")) for each in proxies]
        await eventually(lambda: all(link.up for link, _ in links))
        proxies[0].cut()
        await eventually(lambda: proxies[0].longest)
        # Up to the welcome: whatever is cut there is cut while the link is down.
        async with asyncio.TaskGroup() as group:
            for number, (own, each) in enumerate(zip(proxies, links, strict=True)):
                cuts = (turn * proxies[0].longest // FAULTS for turn in range(number, FAULTS, LINKS))
                group.create_task(torment(own, each, cuts, random.Random(f"{scheme} {number}")))
        assert sum(len(each.asked) for each in proxies) > FAULTS
        for own, (link, _) in zip(proxies, links, strict=True):
            await fabric.close(link, linger_s=0)
            own.cut()
        await eventually(lambda: open_sockets() <= sockets and len(asyncio.all_tasks()) <= tasks)
