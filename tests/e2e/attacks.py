"""What somebody with a key does to a server, in a process of its own: libzmq aborts some of those who misuse it so."""

import asyncio
import contextlib
import itertools
import os
from collections.abc import AsyncIterator, Sequence
from typing import Final

import zmq

from brokers import Buffer
from brokers.envelope import CONTROL, Announce, Control, Hello, control
from brokers.peers import NONCE_BYTES, PeerName, Role
from brokers.sockets import secure_link
from goreprox.keys.join import Join
from tests.support.relay import Relay
from tests.support.sockets import HOST
from tests.support.waiting import eventually

FLOOD = 20_000
"""Messages, twenty times what a pipe holds by default."""


class Hostile:
    """Raw peers with a key of `role` for the port of a server, each behind a relay that ends it."""

    def __init__(self, role: Role, join: Join, port: int) -> None:
        self.role, self.join, self.port = role, join, port
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.peer = PeerName(role, join.name, os.urandom(16))
        self._numbers = itertools.count(1)

    async def connect(self, routing_id: bytes, *, ping_ms: int = 0) -> tuple["zmq.Socket[bytes]", Relay]:
        relay = Relay(self.port)
        await relay.start()
        dealer = self.context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.ROUTING_ID, routing_id)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.SNDHWM, 0)
        if ping_ms:
            dealer.setsockopt(zmq.HEARTBEAT_IVL, ping_ms)
        secure_link(dealer, self.join.security.keys, self.join.server_keys[0])
        dealer.connect(f"tcp://{HOST}:{relay.port}")
        return dealer, relay

    def routing_id(self, name: str | None = None) -> bytes:
        peer = self.peer if name is None else PeerName(self.role, name, os.urandom(16))
        return peer.routing_id(os.urandom(NONCE_BYTES))

    def hello(self) -> Control:
        return Hello(1, 1, next(self._numbers), {"protocol": [1, 1], "services": ["default"]})


def push(dealer: "zmq.Socket[bytes]", frames: Sequence[Buffer]) -> None:
    """Send, unless the server has ended the connection already."""
    with contextlib.suppress(zmq.Again):
        dealer.send_multipart(frames, zmq.NOBLOCK)


def say(dealer: "zmq.Socket[bytes]", message: Control) -> None:
    push(dealer, control(message))


async def passed(relay: Relay, dealer: "zmq.Socket[bytes]") -> None:
    """Wait until the server has taken the connection: it responds, or it has hung up."""
    await eventually(lambda: relay.connections > 0, "the hostile peer is connected")
    for _ in range(100):
        if dealer.poll(0):
            return
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def greeted(hostile: Hostile, *, fin: bool) -> AsyncIterator["zmq.Socket[bytes]"]:
    """A connection that has said hello, and is cut at the end of the context."""
    dealer, relay = await hostile.connect(hostile.routing_id(), ping_ms=1)
    say(dealer, hostile.hello())
    await passed(relay, dealer)
    yield dealer
    relay.cut(fin=fin)
    dealer.close()


async def flood_then_end(hostile: Hostile, *, fin: bool) -> None:
    """More than a pipe holds, heartbeats among it, and an end in the middle."""
    async with greeted(hostile, fin=fin) as dealer:
        for index in range(FLOOD):
            push(dealer, [b"e" + bytes(16), b"x" * (index % 300)])
            if index % 1000 == 0:
                await asyncio.sleep(0)


async def rename(hostile: Hostile, *, fin: bool) -> None:
    """Hello under the name of somebody else, with messages behind it."""
    dealer, relay = await hostile.connect(hostile.routing_id("somebody"), ping_ms=1)
    say(dealer, hostile.hello())
    for _ in range(2000):
        push(dealer, [b"e" + bytes(16), bytes(100)])
    await passed(relay, dealer)
    relay.cut(fin=fin)
    dealer.close()


async def take_over(hostile: Hostile, *, fin: bool) -> None:
    """Two connections of one routing id, both talking."""
    routing_id = hostile.routing_id()
    pairs = [await hostile.connect(routing_id, ping_ms=1) for _ in range(2)]
    for dealer, relay in pairs:
        say(dealer, hostile.hello())
        await passed(relay, dealer)
        for other, _ in pairs:
            for _ in range(1000):
                push(other, [b"e" + bytes(16), bytes(100)])
    for dealer, relay in pairs:
        relay.cut(fin=fin)
        dealer.close()


async def announce(hostile: Hostile, *, fin: bool) -> None:
    """A flood of attributes, some of them not allowed, some no attributes at all."""
    async with greeted(hostile, fin=fin) as dealer:
        for index in range(1000):
            say(dealer, Announce({"services": [f"s{index}"], "more": "x" * (index % 1000)}))
            push(dealer, [CONTROL, os.urandom(64)])


async def half_a_message(hostile: Hostile, *, fin: bool) -> None:
    """The beginning of a message without an end."""
    async with greeted(hostile, fin=fin) as dealer:
        for _ in range(5000):
            with contextlib.suppress(zmq.Again):
                dealer.send(bytes(200), zmq.SNDMORE | zmq.NOBLOCK)


ATTACKS: Final = {each.__name__: each for each in (flood_then_end, rename, take_over, announce, half_a_message)}


def attack(kind: str, role: Role, join: str, port: int, fin: bool) -> None:
    """Do one of `ATTACKS` with the key of a join string, its connections ended by FIN or RST."""
    asyncio.run(ATTACKS[kind](Hostile(role, Join.parse(join), port), fin=fin))
    os._exit(0)  # libzmq would wait for what is not sent
