"""A client that has left HTTP, at a real socket, with a stream that the test plays."""

import asyncio
import socket
from typing import Final

import pytest

from goreprox.endpoint import Endpoint
from goreprox.http.client import ClientConnection
from goreprox.http.clients import ClientConnections
from goreprox.http.exchange import Site
from goreprox.http.provider_stream import ProviderStream
from goreprox.net import sockets
from goreprox.net.poller import Poller
from goreprox.process.clock import clock
from goreprox.protocol.budget import Budget
from goreprox.protocol.epochs import Epochs
from goreprox.protocol.events import Abort, Refuse
from goreprox.protocol.limits import KIB, MIB
from goreprox.protocol.notices import Kind
from goreprox.protocol.state import Step
from goreprox.protocol.stream import Stream
from goreprox.protocol.totals import Counters, EndCode
from goreprox.tunnel.bridge import Bridge, Bridges
from tests.support.sockets import HOST
from tests.support.waiting import eventually

UPGRADE = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"
EARLY = bytes(60 * KIB)
"""More than the kernel takes for a client with small buffers, and less than a window."""


class Session:
    """A host for whatever streams say."""

    epochs = Epochs(opener=True, grace_s=60.0, now=0.0)
    counters = Counters()

    def stream_ready(self, stream: Stream) -> None: ...

    def stream_acks(self, stream: Stream, *, urgent: bool, now: float) -> None: ...

    def stream_accepted(self, stream: Stream) -> None: ...

    def stream_resetting(self, stream: Stream, now: float) -> None: ...

    def stream_closed(self, stream: Stream, last_word: Refuse | Abort | None) -> None: ...


class Providers:
    """Has every request accepted at once."""

    def __init__(self) -> None:
        self.provider_streams: list[ProviderStream] = []

    def connect(self, provider_stream: ProviderStream) -> None:
        self.provider_streams.append(provider_stream)
        provider_stream.stream.host = Session()
        provider_stream.stream.step(Step.RECEIVE_ACCEPT)

    def reachable(self, stream: Stream) -> bool:
        return True

    def reusable(self, stream: Stream) -> bool:
        return True

    def provider_of(self, stream: Stream) -> tuple[str | None, int | None]:
        return "web", 0

    def tells_delivery(self, stream: Stream) -> bool:
        return False

    def provider_stream_ended(self, provider_stream: ProviderStream) -> None: ...

    def client_ended(self, client: Endpoint) -> None: ...

    def bridge_ended(self, client: Endpoint, bridge: Bridge) -> None: ...


def with_small_buffers() -> tuple[socket.socket, socket.socket]:
    """Return both ends of a connection, ours prepared."""
    theirs = socket.socket()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * KIB)
    with socket.create_server((HOST, 0)) as listening:
        sockets.prepare(listening)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * KIB)
        theirs.connect(listening.getsockname())
        ours = listening.accept()[0]
    sockets.adopt(ours)
    theirs.setblocking(False)
    return ours, theirs


async def read_to_the_end(sock: socket.socket, received: bytearray) -> None:
    """Read all there is, until the end or a reset."""
    while data := await asyncio.get_running_loop().sock_recv(sock, MIB):
        received += data


@pytest.mark.parametrize("end", ["reset", "aborted"])
async def test_a_client_that_does_not_read_is_reset_when_its_upgraded_stream_is_lost(end: str) -> None:
    bridges = Bridges(Poller(lambda work: work()), clock=clock, half_closed_timeout_s=None)
    providers = Providers()
    budget = Budget(total_bytes=64 * MIB, max_streams=8192)
    clients = ClientConnections(bridges, providers, budget)
    ours, client = with_small_buffers()
    with client:
        connection = ClientConnection(clients, ours, Endpoint("192.0.2.9", 1), Endpoint("192.0.2.1", 80), Site("web"))
        client.send(UPGRADE)
        await eventually(lambda: providers.provider_streams)
        (provider_stream,) = providers.provider_streams
        stream = provider_stream.stream
        stream.receive_data(0, SWITCHING + EARLY)
        provider_stream.notice(Kind.READABLE)
        assert connection.out and not stream.receive.chunks and provider_stream._user is connection
        assert connection.out._held

        if end == "reset":
            stream.receive_reset(len(SWITCHING + EARLY), "the target was reset")
            provider_stream.notice(Kind.RESET)
        else:
            stream.receive_abort("the provider is gone")
            provider_stream.notice(Kind.ABORTED)
        assert not clients.live and not bridges.connections
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(read_to_the_end(client, bytearray()), 30)
        assert not budget.pool_used_bytes


async def test_an_upgraded_client_gets_what_came_before_a_reset_of_its_target() -> None:
    bridges = Bridges(Poller(lambda work: work()), clock=clock, half_closed_timeout_s=None)
    providers = Providers()
    clients = ClientConnections(bridges, providers, Budget(total_bytes=64 * MIB, max_streams=16))
    ours, client = with_small_buffers()
    with client:
        ClientConnection(clients, ours, Endpoint("192.0.2.9", 1), Endpoint("192.0.2.1", 80), Site("web"))
        client.send(UPGRADE)
        await eventually(lambda: providers.provider_streams)
        (provider_stream,) = providers.provider_streams
        stream = provider_stream.stream
        head, last = SWITCHING + EARLY, b"last words"
        stream.receive_data(0, head)
        provider_stream.notice(Kind.READABLE)
        stream.receive_data(len(head), last)
        provider_stream.notice(Kind.READABLE)
        stream.receive_reset(len(head + last), "the target was reset")
        provider_stream.notice(Kind.RESET)
        received = bytearray()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(read_to_the_end(client, received), 30)
        assert received.endswith(last) and len(received) >= len(EARLY + last)


class StreamUser:
    """Does not read."""

    def readable(self) -> None: ...

    def writable(self) -> None: ...

    facts: Final[dict[str, str]] = {}

    def lost(self, provider_stream: ProviderStream, status: int, reason: str, *, again: bool) -> None: ...


async def test_what_a_target_sent_is_dropped_when_its_stream_is_finished() -> None:
    stream = Stream(opener=True, service="web", client="192.0.2.9:1", budget=Budget(total_bytes=MIB, max_streams=4))
    stream.host = Session()
    stream.step(Step.RECEIVE_ACCEPT)
    provider_stream = ProviderStream(stream, StreamUser(), clock=clock, on_end=lambda _: None)
    stream.receive_data(0, b"more than was asked for")
    provider_stream.notice(Kind.READABLE)
    assert stream.receive.chunks
    provider_stream.finish()
    assert not stream.receive.chunks and stream.send.eof
    provider_stream.reset("the test is over", EndCode.INCOMPLETE)
