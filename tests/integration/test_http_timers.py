"""How long HTTP clients and their streams are waited for: an edge on a clock that tests put forward."""

import asyncio
import contextlib
import select
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from goreprox.config.addresses import Listener
from goreprox.config.routes import Route
from goreprox.http.client import HEAD_S, IDLE_S, LINGER_S, ClientConnection
from goreprox.http.phases import Phase
from goreprox.http.provider_stream import CLOSING_S, REUSED_FOR_S
from goreprox.net import sockets
from goreprox.net.tls import TlsSocket
from goreprox.process.clock import clock
from tests.support.events import Events
from tests.support.sockets import HOST
from tests.support.tls import Authority, Client
from tests.support.tunnel import End, Tunnel
from tests.support.waiting import eventually

GET = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
ELSEWHERE = GET.replace(b"here", b"elsewhere")
SHORT_S = 0.5
"""So long before its time nothing happens, and so long after it something does, whatever sums of floats come to; more
than a test takes meanwhile does not matter: the clock is ours."""


class Clock:
    """A clock that only tests put forward."""

    def __init__(self) -> None:
        self.now = clock()

    def __call__(self) -> float:
        return self.now


class Web(Tunnel):
    """A tunnel with an HTTP port, where one host is known."""

    def __init__(self, authority: Authority | None = None) -> None:
        """With an authority the port is one for TLS."""
        scheme, tls = "http", {}
        if authority is not None:
            scheme, tls = "https", {"certs": (authority.cert,), "keys": (authority.key,)}
        super().__init__(listeners=(Listener.parse(f"{scheme}://{HOST}:0"),), routes=(Route("here", "default"),), **tls)
        self.clock = self.edge.bridges.clock = Clock()

    def later(self, seconds: float) -> None:
        """Put the clock forward, and let the edge look at it."""
        self.clock.now += seconds
        for connection in list(self.edge.http_clients.live):
            connection.check(self.clock.now)

    @property
    def connections(self) -> list[ClientConnection]:
        """Those of clients."""
        return [each for each in self.edge.http_clients.live if isinstance(each, ClientConnection)]


@contextlib.asynccontextmanager
async def web(authority: Authority | None = None) -> AsyncIterator[Web]:
    async with Web(authority) as made:
        yield made


def silent(end: End) -> bool:
    """Whether there is nothing to be read, not even an end."""
    try:
        end.sock.recv(1)
    except BlockingIOError:
        return True
    return False


async def response_head(end: End) -> bytes:
    """Read a response with a length; return its header section."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += await end.receive(1)
    head = data.lower()
    await end.receive(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
    return data


async def test_a_slow_header_section_is_408() -> None:
    async with web() as it:
        client = await it.client()
        await client.send(GET[:1])
        await eventually(lambda: it.edge.http_clients.live)
        (connection,) = it.connections
        for size in range(2, 12):  # a byte each second
            await client.send(GET[size - 1 : size])
            await eventually(lambda size=size: len(connection.gateway.reader._raw) == size)  # type: ignore[misc]
            it.later((HEAD_S - SHORT_S) / 10)
        assert silent(client)
        it.clock.now += 2 * SHORT_S  # the edge looks by itself
        response = await client.receive_all()
        assert response.startswith(b"HTTP/1.1 408 ")
        assert b"Connection: close\r\n" in response
        assert it.edge.http_clients.live == {connection}
        it.later(LINGER_S)  # the client does not leave
        assert not it.edge.http_clients.live


async def test_a_header_section_after_a_response_has_a_timeout_of_its_own() -> None:
    async with web() as it:
        client = await it.client()
        await client.send(ELSEWHERE)
        assert (await response_head(client)).startswith(b"HTTP/1.1 404 ")
        it.later(IDLE_S - SHORT_S)
        await client.send(GET[:9])
        await eventually(lambda: any(connection.gateway.reader.in_head for connection in it.connections))
        it.later(HEAD_S - SHORT_S)
        assert silent(client)
        it.later(2 * SHORT_S)
        assert (await client.receive_all()).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("first", [b"", ELSEWHERE])
async def test_an_idle_client_is_closed_without_a_response(first: bytes) -> None:
    async with web() as it:
        client = await it.client()
        await client.send(first)
        if first:
            await response_head(client)
        await eventually(lambda: it.edge.http_clients.live)
        it.later(IDLE_S - SHORT_S)
        assert silent(client)
        it.later(2 * SHORT_S)
        assert await client.receive_all() == b""


async def test_a_client_that_sends_empty_lines_alone_is_idle() -> None:
    async with web() as it:
        client = await it.client()
        await eventually(lambda: it.edge.http_clients.live)
        (connection,) = it.connections
        it.later(IDLE_S - SHORT_S)
        for _ in range(2):
            await client.send(b"\r\n")
            await eventually(lambda: not sockets.unsent_bytes(client.sock))
            await eventually(lambda: not select.select([connection.sock], [], [], 0)[0])
        assert connection.gateway.idle
        it.later(2 * SHORT_S)
        assert await client.receive_all() == b""


async def test_an_idle_stream_is_reused_until_its_timeout() -> None:
    async with web() as it:
        await it.provide()
        client = await it.client()

        async def exchange(target: End) -> None:
            data = b""
            while not data.endswith(b"\r\n\r\n"):
                data += await target.receive(1)
            await target.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            assert (await response_head(client)).startswith(b"HTTP/1.1 200 ")

        await client.send(GET)
        first = await it.targets.accept()
        await exchange(first)
        it.later(REUSED_FOR_S - SHORT_S)
        await client.send(GET)
        await exchange(first)
        assert it.targets.nobody_waits
        it.later(REUSED_FOR_S)
        assert await first.receive_all() == b""
        first.sock.close()
        await client.send(GET)
        second = await it.targets.accept()
        await exchange(second)
        it.clock.now += REUSED_FOR_S  # and the edge has not looked since
        await client.send(GET)
        await exchange(await it.targets.accept())
        assert await second.receive_all() == b""


async def head_at(end: End) -> bytes:
    """Read a head."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        data += await end.receive(1)
    return data


async def half_closed(it: Web) -> tuple[End, End]:
    """Return a client that has half-closed its connection after a request, and the target, which was told so."""
    client = await it.client()
    await client.send(GET)
    client.half_close()
    target = await it.targets.accept()
    await head_at(target)
    assert await target.receive(1) == b""
    return client, target


async def test_a_half_closed_client_waits_for_its_response_until_the_closing_timeout() -> None:
    async with web() as it:
        provider = await it.provide()
        client, target = await half_closed(it)
        it.later(CLOSING_S - SHORT_S)
        await target.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
        assert (await head_at(client)).startswith(b"HTTP/1.1 200 ")
        it.later(CLOSING_S - SHORT_S)
        assert len(it.edge.http_clients.live) == 1
        await target.send(b"ok")
        assert (await client.receive_all()).endswith(b"ok")

        client, target = await half_closed(it)
        it.later(CLOSING_S)
        assert (await client.receive_all()).startswith(b"HTTP/1.1 504 ")
        await eventually(lambda: not provider.bridges.connections)


async def test_an_outage_does_not_count_towards_the_timeout_of_a_half_closed_client() -> None:
    async with web() as it:
        await it.provide()
        client, target = await half_closed(it)
        it.relay.refusing = True
        it.relay.cut()
        peer = next(iter(it.edge.driver.peers.values()))
        await eventually(lambda: not peer.session.established)
        it.later(2 * CLOSING_S)
        it.relay.refusing = False
        await eventually(lambda: peer.session.established)
        it.later(CLOSING_S - SHORT_S)
        await target.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        assert (await client.receive_all()).endswith(b"ok")


async def test_the_duration_of_a_request_that_is_sent_again_begins_with_its_arrival(events: Events) -> None:
    async with web() as it:
        await it.provide()
        client = await it.client()
        await client.send(GET)
        first = await it.targets.accept()
        await head_at(first)
        it.clock.now += 3.0
        first.reset()
        second = await it.targets.accept()
        await head_at(second)
        await second.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        assert (await response_head(client)).startswith(b"HTTP/1.1 200 ")
        (entry,) = [each for each in events if each.get("event") == "access"]
        duration_s = entry["duration_s"]
        assert isinstance(duration_s, float) and duration_s >= 3.0


LAST = ELSEWHERE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")


async def told_goodbye(it: Web, authority: Authority) -> Client:
    """Connect a client by TLS, and let it read the response to the close_notify after it."""
    reader, writer = await asyncio.open_connection(HOST, it.edge.listeners.ports[0])

    async def hang_up() -> None:
        writer.transport.abort()
        await asyncio.sleep(0)

    it.stack.push_async_callback(hang_up)
    client = await Client(reader, writer, authority.trusting()).shake_hands()
    await client.write(LAST)
    assert (await client.read_all()).startswith(b"HTTP/1.1 404 ")
    return client


@pytest.mark.parametrize("then", ["says_it_too", "says_something_else", "says_nothing"])
async def test_a_tls_client_has_time_to_send_close_notify_after_ours(tmp_path: Path, then: str) -> None:
    authority = Authority(tmp_path)
    async with web(authority) as it:
        client = await told_goodbye(it, authority)
        assert len(it.edge.http_clients.live) == 1
        if then == "says_something_else":
            await client.write(GET)
        it.later(LINGER_S - SHORT_S)
        assert len(it.edge.http_clients.live) == 1
        if then == "says_it_too":
            await client.say_goodbye()
            await eventually(lambda: not it.edge.http_clients.live)
        else:
            it.later(2 * SHORT_S)
            assert not it.edge.http_clients.live


async def test_close_notify_is_sent_once_the_socket_has_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutdown = TlsSocket.shutdown
    tries = 0

    def without_room_at_first(self: TlsSocket, how: int) -> None:
        nonlocal tries
        tries += 1
        if tries <= 3:
            raise BlockingIOError
        shutdown(self, how)

    monkeypatch.setattr(TlsSocket, "shutdown", without_room_at_first)
    authority = Authority(tmp_path)
    async with web(authority) as it:
        client = await told_goodbye(it, authority)
        await eventually(lambda: all(connection._phase is Phase.LINGERING for connection in it.connections))
        assert tries == 4
        await client.say_goodbye()
        await eventually(lambda: not it.edge.http_clients.live)
