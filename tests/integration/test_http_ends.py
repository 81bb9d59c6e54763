"""What the target's socket sees of how an HTTP client's socket ended, by real sockets in one process."""

import pytest

from goreprox.config.addresses import Listener
from goreprox.protocol.limits import ACKS_BEFORE_EOF
from goreprox.protocol.state import State
from goreprox.roles.provider import Provider
from tests.support.sockets import HOST
from tests.support.tunnel import End, Tunnel
from tests.support.waiting import eventually

TELLING = {ACKS_BEFORE_EOF: True}
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
HTTP = {"listeners": (Listener.parse(f"http://{HOST}:0"),)}
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nsome\r\n"
LENGTH = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nsome"
WHOLE = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nsome"


@pytest.mark.parametrize("request_", [CHUNKED, LENGTH, WHOLE], ids=["chunks", "a length", "a whole request"])
@pytest.mark.parametrize("how", ["reset", "half-closed"])
async def test_a_target_is_reset_without_an_end_of_file_when_its_client_breaks_off(request_: bytes, how: str) -> None:
    async with Tunnel(**HTTP) as tunnel:
        await tunnel.provide()
        client = await tunnel.client()
        await client.send(request_)
        target = await tunnel.targets.accept()
        seen = b""
        while b"some" not in seen:
            seen += await target.receive(1)
        if how == "reset":
            client.reset()
        else:
            client.half_close()
        if request_ is WHOLE and how == "half-closed":
            assert await target.receive_all() == b""
        else:
            assert await target.receive_to_reset() in (b"", b"\r\n")


async def received(end: End, last: bytes) -> bytes:
    """Read up to some bytes."""
    data = b""
    while not data.endswith(last):
        more = await end.receive(1)
        assert more, data
        data += more
    return data


async def kept_alive(tunnel: Tunnel) -> tuple[End, End]:
    """Return a client and a target after a request and its response."""
    client = await tunnel.client()
    await client.send(GET)
    target = await tunnel.targets.accept()
    await received(target, b"\r\n\r\n")
    await target.send(OK)
    assert await client.receive(len(OK)) == OK
    return client, target


async def closes_as_it_comes(
    tunnel: Tunnel, provider: Provider, client: End, target: End, request: bytes, *, how: str = "closed"
) -> None:
    """Have the target close or reset its connection, and then the request meet that on the link."""
    tunnel.relay.silence()
    (bridge,) = provider.bridges.connections
    if how == "reset":
        target.reset()
        await eventually(lambda: bridge.stream.state is State.RESETTING)
    else:
        target.sock.close()
        await eventually(lambda: bridge.stream.send.eof)
    (provider_stream,) = tunnel.edge.bridges.connections
    before = provider_stream.stream.send.end
    await client.send(request)
    await eventually(lambda: provider_stream.stream.send.end > before)
    tunnel.relay.unsilence()


@pytest.mark.parametrize("how", ["closed", "reset"])
@pytest.mark.parametrize("rest", [b"", b"4\r\nmore\r\n0\r\n\r\n"], ids=["whole", "begun"])
async def test_any_request_that_meets_the_close_of_an_idle_target_is_resent(rest: bytes, how: str) -> None:
    async with Tunnel(**HTTP) as tunnel:
        provider = await tunnel.provide(more=TELLING)
        client, target = await kept_alive(tunnel)
        first = CHUNKED if rest else WHOLE
        await closes_as_it_comes(tunnel, provider, client, target, first, how=how)
        target = await tunnel.targets.accept()
        assert (await received(target, b"some")).startswith(b"POST / ")
        if rest:
            await client.send(rest)
            assert await received(target, b"0\r\n\r\n") == b"\r\n" + rest
        await target.send(OK)
        assert await client.receive(len(OK)) == OK
        await client.send(GET)
        assert (await received(target, b"\r\n\r\n")).startswith(b"GET / ")
        assert len(tunnel.edge.http_clients.attached) == 1


async def test_a_request_is_resent_only_once() -> None:
    async with Tunnel(**HTTP) as tunnel:
        provider = await tunnel.provide(more=TELLING)
        client, target = await kept_alive(tunnel)
        await closes_as_it_comes(tunnel, provider, client, target, WHOLE)
        target = await tunnel.targets.accept()
        target.half_close()
        assert (await client.receive(12)) == b"HTTP/1.1 502"
        assert tunnel.targets.nobody_waits


@pytest.mark.parametrize("how", ["closed", "reset"])
async def test_a_request_is_not_resent_when_the_provider_does_not_report_deliveries(how: str) -> None:
    """As one of an earlier release."""
    async with Tunnel(**HTTP) as tunnel:
        provider = await tunnel.provide()
        client, target = await kept_alive(tunnel)
        await closes_as_it_comes(tunnel, provider, client, target, WHOLE, how=how)
        assert (await client.receive(12)) == b"HTTP/1.1 502"
        assert tunnel.targets.nobody_waits


@pytest.mark.parametrize("how", ["closed", "reset"])
@pytest.mark.parametrize("read", [True, False], ids=["read", "not read"])
async def test_a_request_written_to_its_target_is_not_resent(read: bool, how: str) -> None:
    async with Tunnel(**HTTP) as tunnel:
        provider = await tunnel.provide(more=TELLING)
        client, target = await kept_alive(tunnel)
        (bridge,) = provider.bridges.connections
        before = bridge.stream.receive.delivered
        await client.send(WHOLE)
        if read:
            await received(target, b"some")
        else:
            await eventually(lambda: bridge.stream.receive.delivered > before)
        if how == "reset":
            target.reset()
        else:
            target.half_close()
        assert (await client.receive(12)) == b"HTTP/1.1 502"
        assert tunnel.targets.nobody_waits


async def test_a_target_sees_the_end_after_the_last_response_though_the_client_stays() -> None:
    async with Tunnel(**HTTP) as tunnel:
        await tunnel.provide()
        client = await tunnel.client()
        await client.send(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        target = await tunnel.targets.accept()
        await received(target, b"\r\n\r\n")
        await target.send(OK)
        assert (await client.receive_all()).endswith(b"ok")
        assert await target.receive_all() == b""
        assert tunnel.edge.http_clients.live
