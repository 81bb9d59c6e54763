"""A broker, links to it, and what stands between them, in the process of the test."""

import asyncio
import contextlib
import dataclasses
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

import zmq

from brokers import (
    BrokerSecurity,
    Buffer,
    Carrier,
    Link,
    LinkSecurity,
    PeerInfo,
    PeerName,
    Role,
    Router,
    Timings,
)
from tests.support.sockets import HOST, abort, stop_accepting
from tests.support.waiting import eventually

SLOW = Timings(link_timeout_s=60.0, reconnect_min_s=0.02, reconnect_max_s=0.1)
"""No machine is too slow for these, and a peer that a test plays itself need not renew its lease."""
FAST = dataclasses.replace(SLOW, link_timeout_s=1.5, connect_timeout_s=0.5)
"""For tests of what the timeout of a link is for."""
STEADY = dataclasses.replace(FAST, link_timeout_s=4.5)
"""For links that a busy machine must not lose."""
MIB = 1024 * 1024


def name(role: Role, text: str = "web") -> PeerName:
    return PeerName(role, text, os.urandom(16))


@dataclass
class Recorder:
    """A receiver that writes down what it is told."""

    ups: int = 0
    downs: list[str] = field(default_factory=list)
    peers: dict[bytes, PeerInfo] = field(default_factory=dict)
    seen: list[PeerInfo] = field(default_factory=list)
    gone: list[tuple[bytes, str]] = field(default_factory=list)
    messages: list[tuple[bytes, list[bytes]]] = field(default_factory=list)
    on_message: Callable[[Carrier, bytes, list[Buffer]], object] | None = None

    def carrier_up(self, carrier: Carrier) -> None:
        self.ups += 1

    def carrier_down(self, carrier: Carrier, reason: str) -> None:
        self.downs.append(reason)
        self.peers.clear()

    def peer_up(self, carrier: Carrier, peer: PeerInfo) -> None:
        self.peers[peer.name.id] = peer
        self.seen.append(peer)

    def peer_down(self, carrier: Carrier, peer_id: bytes, reason: str) -> None:
        self.peers.pop(peer_id, None)
        self.gone.append((peer_id, reason))

    def message(self, carrier: Carrier, peer_id: bytes, frames: list[Buffer]) -> None:
        self.messages.append((peer_id, [bytes(frame) for frame in frames]))
        if self.on_message is not None:
            self.on_message(carrier, peer_id, frames)


class Relay:
    """Stands between a link and its broker, and does to the connection what networks do."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.flowing = asyncio.Event()
        """Cleared: bytes are held back, connections stay."""
        self.flowing.set()
        self.accepted = 0
        self.port = 0

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._accept, HOST, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def refuse(self) -> None:
        """Stop listening; `open` goes on at the same port."""
        assert self._server is not None
        self._server.close()

    def cut(self) -> None:
        """Reset all connections."""
        for writer in self._writers:
            sock: socket.socket = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):  # closed already
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            abort(writer)
        self._writers.clear()

    def inject(self, data: bytes) -> None:
        """Say something to both ends of all connections that nobody said."""
        for writer in self._writers:
            writer.write(data)

    def forget(self) -> None:
        """Let the present connections fall silent for ever, and carry new ones."""
        self.flowing = asyncio.Event()
        self.flowing.set()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self._writers.append(writer)
        task = asyncio.get_running_loop().create_task(self._carry(reader, writer, self.flowing))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flowing: asyncio.Event) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(HOST, self._target)
            self._writers.append(far_writer)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._copy(reader, far_writer, flowing))
                group.create_task(self._copy(far_reader, writer, flowing))
        except* OSError:
            abort(writer)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flowing: asyncio.Event) -> None:
        while data := await reader.read(MIB):
            await flowing.wait()
            writer.write(data)
            await writer.drain()
        writer.close()

    async def close(self) -> None:
        assert self._server is not None
        await stop_accepting(self._server)
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Fabric:
    """A broker with whatever a test connects to it; all is closed at the end."""

    def __init__(self, timings: Timings = SLOW, security: BrokerSecurity | None = None) -> None:
        self.timings = timings
        self.router = Router(timings=timings, security=security)
        self.ports = {role: self.router.bind(role, HOST, 0) for role in Role}
        self.stack = contextlib.AsyncExitStack()
        self.stack.push_async_callback(self.router.close, linger_s=0)
        self._open: set[Link] = set()
        self.stack.push_async_callback(self._close_links)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stack.aclose()

    def link(
        self,
        who: PeerName,
        *,
        port: int | None = None,
        attributes: dict[str, object] | None = None,
        security: LinkSecurity | None = None,
    ) -> tuple[Link, Recorder]:
        return self.link_to(HOST, port or self.ports[who.role], who, attributes=attributes, security=security)

    def link_to(
        self,
        host: str,
        port: int,
        who: PeerName,
        *,
        attributes: dict[str, object] | None = None,
        security: LinkSecurity | None = None,
    ) -> tuple[Link, Recorder]:
        recorder = Recorder()
        link = Link(who, attributes or {}, host, port, recorder, timings=self.timings, security=security)
        self.adopt(link)
        link.start()
        return link, recorder

    def adopt(self, link: Link) -> None:
        """Close a link at the end."""
        self._open.add(link)

    async def close(self, link: Link, *, linger_s: float) -> None:
        self._open.discard(link)
        await link.close(linger_s=linger_s)

    async def _close_links(self) -> None:
        for link in self._open:
            await link.close(linger_s=0)

    async def relay(self, role: Role) -> Relay:
        relay = Relay(self.ports[role])
        await relay.open()
        self.stack.push_async_callback(relay.close)
        return relay

    def raw(self, role: Role, routing_id: bytes, **options: int) -> "zmq.Socket[bytes]":
        """Return a DEALER that says what a test wants it to."""
        dealer = self.socket(zmq.DEALER)
        dealer.setsockopt(zmq.ROUTING_ID, routing_id)
        for option, value in options.items():
            dealer.setsockopt(getattr(zmq, option), value)
        dealer.connect(f"tcp://{HOST}:{self.ports[role]}")
        return dealer

    def broker(self) -> tuple["zmq.Socket[bytes]", int]:
        """Return a ROUTER that says what a test wants it to, and its port."""
        router = self.socket(zmq.ROUTER)
        return router, router.bind_to_random_port(f"tcp://{HOST}")

    def socket(self, kind: int) -> "zmq.Socket[bytes]":
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.stack.callback(context.term)
        it = context.socket(kind)
        self.stack.callback(it.close, linger=0)
        return it


async def receive(dealer: "zmq.Socket[bytes]") -> list[bytes]:
    """Return the next message of a raw dealer that is no sign of life."""
    found: list[list[bytes]] = []

    def poll() -> bool:
        with contextlib.suppress(zmq.Again):
            found.append(dealer.recv_multipart(zmq.NOBLOCK))
        return bool(found)

    await eventually(poll)
    return found[0]
