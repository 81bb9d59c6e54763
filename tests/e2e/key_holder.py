"""A provider's key in the wrong hands, in a process of its own: libzmq aborts some of those who misuse it so."""

import asyncio
import contextlib
import os
import random
from collections.abc import Callable, Coroutine

import zmq

from brokers import Buffer, Role
from brokers.envelope import Announce, Hello, Leave, Renew, control
from brokers.peers import INCARNATION_BYTES, NONCE_BYTES, PeerName
from brokers.sockets import secure_link
from goreprox.keys.join import Join
from tests.support.sockets import HOST

MESSAGES = 4000
"""A flood: four times what a pipe of libzmq holds by default."""
PARTS = 20_000


class KeyHolder:
    """DEALERs that say what they like to the server at a port."""

    def __init__(self, join: Join, port: int, dice: random.Random) -> None:
        self.name = join.name
        self._join, self._port, self._dice = join, port, dice
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._incarnation = dice.randbytes(INCARNATION_BYTES)

    def identity(self, name: str) -> bytes:
        return PeerName(Role.PROVIDER, name, self._incarnation).routing_id(bytes(NONCE_BYTES))

    def connect(self, identity: bytes) -> "zmq.Socket[bytes]":
        sock = self._context.socket(zmq.DEALER)
        options = {zmq.LINGER: 0, zmq.HEARTBEAT_IVL: 20, zmq.RECONNECT_IVL: 50, zmq.SNDHWM: 0, zmq.RCVHWM: 0}
        for option, value in options.items():
            sock.setsockopt(option, value)
        if identity:
            sock.setsockopt(zmq.ROUTING_ID, identity)
        secure_link(sock, self._join.security.keys, self._join.server_keys[0])
        sock.connect(f"tcp://{HOST}:{self._port}")
        return sock

    def greet(self, sock: "zmq.Socket[bytes]", services: list[str]) -> None:
        sock.send_multipart(control(Hello(1, 1, 1, {"protocol": [1, 1], "services": services})))

    async def flood(self, socks: "list[zmq.Socket[bytes]]", make: Callable[[], list[Buffer]], count: int) -> None:
        """Send so many messages over these, in turns, and let everybody else have theirs."""
        for index in range(count):
            with contextlib.suppress(zmq.Again):
                socks[index % len(socks)].send_multipart(make(), zmq.NOBLOCK)
            if index % 100 == 0:
                await asyncio.sleep(self._dice.choice((0, 0.01)))


async def _announce(holder: KeyHolder) -> None:
    sock = holder.connect(holder.identity(holder.name))
    holder.greet(sock, ["theirs"])
    turns = iter(range(1 << 30))
    await holder.flood([sock], lambda: control(Announce({"services": ["theirs"], "turn": next(turns)})), MESSAGES)


async def _more_than_allowed(holder: KeyHolder) -> None:
    sock = holder.connect(holder.identity(holder.name))
    holder.greet(sock, ["theirs"])
    await holder.flood([sock], lambda: control(Announce({"services": ["default"]})), MESSAGES // 10)


async def _as_another(holder: KeyHolder) -> None:
    sock = holder.connect(holder.identity(f"not-{holder.name}"))
    holder.greet(sock, ["theirs"])
    await holder.flood([sock], lambda: control(Renew()), MESSAGES)


async def _without_a_name(holder: KeyHolder) -> None:
    socks = [holder.connect(identity) for identity in (b"\0\0\0\0\1", b"\0" + os.urandom(4), b"", b"")]
    await holder.flood(socks, lambda: control(Leave()), MESSAGES // 10)


async def _to_nobody(holder: KeyHolder) -> None:
    sock = holder.connect(holder.identity(holder.name))
    holder.greet(sock, ["theirs"])
    await holder.flood([sock], lambda: [b"e" + os.urandom(16), bytes(1000)], MESSAGES)


async def _twins(holder: KeyHolder) -> None:
    socks = [holder.connect(holder.identity(holder.name)) for _ in range(2)]
    holder.greet(socks[0], ["theirs"])
    await holder.flood(socks, lambda: control(Renew()), MESSAGES // 10)


async def _many_parts(holder: KeyHolder) -> None:
    sock = holder.connect(holder.identity(holder.name))
    holder.greet(sock, ["theirs"])
    await holder.flood([sock], lambda: [b""] * PARTS, 3)


async def _garbage(holder: KeyHolder) -> None:
    sock = holder.connect(holder.identity(holder.name))
    await holder.flood([sock], lambda: [b"", os.urandom(300)], MESSAGES)


DEEDS: dict[str, Callable[[KeyHolder], Coroutine[object, object, None]]] = {
    "announce": _announce,
    "more than allowed": _more_than_allowed,
    "as another": _as_another,
    "without a name": _without_a_name,
    "to nobody": _to_nobody,
    "twins": _twins,
    "many parts": _many_parts,
    "garbage": _garbage,
}


def act(kind: str, join: str, port: int, seed: float) -> None:
    """Do one of `DEEDS` with the key of a join string, then end without a word."""
    asyncio.run(DEEDS[kind](KeyHolder(Join.parse(join), port, random.Random(seed))))
    os._exit(0)  # libzmq would wait for what is not sent
