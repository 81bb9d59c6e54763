"""NATS on virtual time: the real carrier, on an engine of servers that lose, double, delay and cut off messages.

`SimServer` stands for a nats-server, and all of them are one cluster, whose routes are broken as the network is.
Messages of one publisher keep their order; those of several may overtake each other, as each has a delay of its own.
"""

import asyncio
from collections.abc import Sequence

from brokers import Buffer, OpenError, PeerName, Receiver
from brokers.causes import Cause
from brokers.nats import NatsCarrier
from brokers.nats.engine import Listener
from goreprox.keys.claims import NoClaims
from tests.sim.fabric import TIMINGS, Network, Wire
from tests.sim.world import Process
from tests.support.nats import matches

PUBLISH = b"publish"
"""The first frame of a message to a server, and of one from it."""
ROUND_TRIPS = 2
"""Until a connection is made: TCP's, and NATS's greeting."""


class SimServer:
    """A server: passes messages on to those who have subscribed, here or at the others that it reaches."""

    def __init__(self, net: Network, process: Process) -> None:
        self.process = process
        self._net = net
        self._wires: dict[Wire, tuple[str, ...]] = {}
        """What each connection has subscribed to."""
        net.brokers[process.slot] = self

    def subscribe(self, wire: Wire, subjects: Sequence[str]) -> None:
        self._wires[wire] = tuple(subjects)

    def disconnected(self, wire: Wire) -> None:
        self._wires.pop(wire, None)

    def receive(self, wire: Wire, frames: list[Buffer]) -> None:
        _, subject, reply, *parts = (bytes(frame) for frame in frames)
        net, world = self._net, self._net.world
        heard = self.deliver(subject, parts)
        for other in net.brokers.values():
            if other is self or not isinstance(other, SimServer) or not other.process.running:
                continue
            if not net.reachable(self.process.slot, other.process.slot) or not other.has_interest(subject):
                continue
            heard = True
            if net.lossy.get(self.process.slot) and world.random.random() < 0.05:
                continue
            delay = net.latency * (1 + int(wire.link.process.slot[1:]) % 3)
            for _ in range(2 if net.doubling.get(self.process.slot) and world.random.random() < 0.2 else 1):
                world.after(delay, self._route, other, subject, parts)
        if not heard and reply:
            self._send(wire, reply, [])

    def _route(self, other: "SimServer", subject: bytes, parts: list[bytes]) -> None:
        if other.process.running and self._net.reachable(self.process.slot, other.process.slot):
            other.process.run(other.deliver, subject, parts)

    def deliver(self, subject: bytes, parts: list[bytes]) -> bool:
        """Pass a message on to the connections here; return whether there were any."""
        found = [wire for wire in self._wires if self._wants(wire, subject)]
        for wire in found:
            self._send(wire, subject, parts)
        return bool(found)

    def has_interest(self, subject: bytes) -> bool:
        return any(self._wants(wire, subject) for wire in self._wires)

    def _wants(self, wire: Wire, subject: bytes) -> bool:
        return "broker" not in wire.closed and any(
            matches(pattern, subject.decode()) for pattern in self._wires.get(wire, ())
        )

    def _send(self, wire: Wire, subject: bytes, parts: list[bytes]) -> None:
        if not wire.down.send([PUBLISH, subject, *parts]):
            self._net.world.note(f"{self.process.slot} drops a slow consumer")
            wire.close("broker")


class SimConnection:
    """A connection of a carrier to a server (brokers.nats.Connection)."""

    def __init__(self, engine: "SimEngine", server: SimServer, listener: Listener) -> None:
        self.at = server.process.slot
        self.process = engine.process
        self.wire = Wire(engine.net, self, server)
        self._listener = listener
        self.forgotten = False
        """Whether other code has replaced that which made it."""

    def publish(self, subject: str, parts: Sequence[Buffer], *, reply: str = "") -> bool:
        return self.wire.up.send([PUBLISH, subject.encode(), reply.encode(), b"".join(parts)])

    async def allowed(self) -> Sequence[str] | None:
        return None

    async def check(self, timeout_s: float) -> None:
        """Leave it to the heartbeats of the wire."""

    async def close(self, *, linger_s: float) -> None:
        self.wire.close("link")

    def receive(self, wire: Wire, frames: list[Buffer]) -> None:
        _, subject, *parts = (bytes(frame) for frame in frames)
        if "link" not in wire.closed and not self.forgotten:
            self._listener.received(subject.decode(), b"".join(parts))

    def disconnected(self, wire: Wire) -> None:
        if not self.forgotten:
            self._listener.lost("the connection was lost")


class SimEngine:
    """Connects a process to the servers in turn (brokers.nats.Engine)."""

    def __init__(self, net: Network, process: Process, servers: Sequence[str]) -> None:
        self.label = ",".join(servers)
        self.net = net
        self.process = process
        self._servers = list(servers)
        net.world.random.shuffle(self._servers)

    async def connect(self, subscriptions: Sequence[str], inbox: str, listener: Listener) -> SimConnection:
        """Raises: OpenError: no server is there."""
        for _ in self._servers:
            slot = self._servers.pop(0)
            self._servers.append(slot)
            server = self.net.brokers.get(slot)
            await self._pause(ROUND_TRIPS * 2 * self.net.latency)
            if isinstance(server, SimServer) and server.process.running and self.net.reachable(self.process.slot, slot):
                connection = SimConnection(self, server, listener)
                server.subscribe(connection.wire, subscriptions)
                return connection
        raise OpenError(Cause.UNREACHABLE, "no server is there")

    async def _pause(self, seconds: float) -> None:
        done = self.process.create_future()
        self.process.call_later(seconds, _finish, done)
        await done


def _finish(done: "asyncio.Future[None]") -> None:
    if not done.done():
        done.set_result(None)


class SimNatsLink:
    """The carrier of one process, and that of the code that replaces it."""

    def __init__(
        self,
        net: Network,
        process: Process,
        name: PeerName,
        *,
        attributes: dict[str, object],
        servers: Sequence[str],
        receiver: Receiver,
    ) -> None:
        self._made = net, process, name, attributes, servers
        engine = SimEngine(net, process, servers)
        self.carrier: NatsCarrier = process.run(
            lambda: NatsCarrier(name, attributes, engine, receiver, NoClaims(), timings=TIMINGS)
        )
        process.run(self.carrier.start)

    def again(self, receiver: Receiver) -> "SimNatsLink":
        net, process, name, attributes, servers = self._made
        connection = self.carrier._connection
        if isinstance(connection, SimConnection):
            connection.forgotten = True
            connection.wire.close("link")
        return SimNatsLink(net, process, name, attributes=attributes, servers=servers, receiver=receiver)

    async def close(self, *, linger_s: float) -> None:
        await self.carrier.close(linger_s=linger_s)
