"""The fabric on virtual time: the real switch and inboxes, joined by simulated connections.

`SimLink` stands for `brokers.link.Link`, `SimBroker` for `brokers.router.Router`. A `Wire` stands for ZeroMQ and TCP:
it is ordered and lossless until it is lost, notices by its own heartbeats when it is, and holds a bounded backlog.
"""

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any

from brokers import Buffer, LinkCondition, PeerName, Receiver, Timings
from brokers.envelope import (
    CONTROL,
    FABRIC_VERSION,
    FABRIC_VERSION_LEAST,
    Announce,
    Hello,
    Leave,
    Renew,
    Welcome,
    control,
    parse_control,
)
from brokers.inbox import Inbox
from brokers.link import GREET_MAX_S, GREET_S
from brokers.outboxes import Outboxes
from brokers.peers import NONCE_BYTES
from brokers.switch import Output, Switch
from tests.sim.world import Process, World

TIMINGS = Timings()
PIPE_MESSAGES = 1000
PIPE_BYTES = 4 << 20
"""The capacity of one direction; more waits in an outbox of the broker, or is dropped by a link."""
HEARTBEAT_S = TIMINGS.link_timeout_s / 3
SILENCE_S = TIMINGS.link_timeout_s * 2 / 3
POLL_S = 0.1
"""The interval at which a blocked lane tries again."""


class Network:
    """The network between machines: how fast it is, and what is broken. Faults are counted, since they may overlap."""

    def __init__(self, world: World, *, latency: float, rate: float) -> None:
        self.world = world
        self.latency = latency
        self.rate = rate
        """Bytes per second of each direction of a wire."""
        self.blocked: Counter[tuple[str, str]] = Counter()
        """(from slot, to slot). Read with `get`: a Counter calls Python code for a missing key."""
        self.slow: Counter[tuple[str, str]] = Counter()
        """Ways that have a hundredth of the rate."""
        self.lossy: Counter[str] = Counter()
        """Slots whose messages are sometimes lost silently."""
        self.doubling: Counter[str] = Counter()
        self.disordering: Counter[str] = Counter()
        """Slots whose messages sometimes overtake each other."""
        self.brokers: dict[str, Any] = {}
        """SimBroker, or nats.SimServer."""
        self.wires: list[Wire] = []

    def died(self, process: Process) -> None:
        """Close the connections of a process that died, as its kernel does."""
        for wire in list(self.wires):
            for side, end in (("link", wire.link), ("broker", wire.broker)):
                if end.process is process:
                    wire.close(side)

    def faithful(self, slot: str) -> bool:
        """Whether everything that a slot sends arrives, in order."""
        return not self.lossy.get(slot) and not self.disordering.get(slot)

    def reachable(self, a: str, b: str) -> bool:
        return not self.blocked.get((a, b)) and not self.blocked.get((b, a))


class Lane:
    """One direction of a wire."""

    def __init__(self, wire: "Wire", source: Any, target: Any) -> None:
        self.wire = wire
        self.net = wire.net
        self.ends = source.process.slot, target.process.slot
        self.target = target
        self.queue: deque[tuple[float, int, list[Buffer]]] = deque()
        self.size = 0
        self.busy_until = 0.0
        self._pumping = False

    def send(self, frames: list[Buffer]) -> bool:
        """Take a message; return False if the lane is full."""
        net, world = self.net, self.net.world
        if self.wire.closed:
            return True  # the kernel took it, and it was lost with the connection
        if len(self.queue) >= PIPE_MESSAGES or self.size > PIPE_BYTES:
            return False
        source, data = self.ends[0], frames[0] != CONTROL
        if net.lossy.get(source) and (data or _may_be_lost(frames)) and world.random.random() < 0.05:
            return True
        size = sum(map(len, frames))
        twice = data and net.doubling.get(source) and world.random.random() < 0.2
        for _ in range(2 if twice else 1):
            self.busy_until = max(self.busy_until, world.now) + size / self._rate
            self.size += size
            self.queue.append((self.busy_until + net.latency, size, frames))
        if data and net.disordering.get(source) and len(self.queue) > 1 and world.random.random() < 0.1:
            self._overtake()
        self._pump_later(self.queue[0][0])
        return True

    @property
    def condition(self) -> LinkCondition:
        """What a kernel would say of it."""
        return LinkCondition(
            unsent_bytes=round(max(self.busy_until - self.net.world.now, 0.0) * self._rate),
            round_trip_s=2 * self.net.latency,
        )

    @property
    def _rate(self) -> float:
        return self.net.rate / 100 if self.net.slow.get(self.ends) else self.net.rate

    def _overtake(self) -> None:
        """Swap the last two messages; control messages keep their place."""
        before, last = self.queue[-2], self.queue[-1]
        if before[2][0] != CONTROL:
            self.queue[-2], self.queue[-1] = (before[0], *last[1:]), (last[0], *before[1:])

    def _pump_later(self, when: float) -> None:
        if not self._pumping:
            self._pumping = True
            self.net.world.at(when, self._pump)

    def _pump(self) -> None:
        self._pumping = False
        now, queue, process = self.net.world.now, self.queue, self.target.process
        while queue:
            if self.net.blocked.get(self.ends) or not process.running:
                self._pump_later(now + POLL_S)
                return
            when, size, frames = queue[0]
            if when > now:
                self._pump_later(when)
                return
            queue.popleft()
            self.size -= size
            self._deliver(size, frames)

    def _deliver(self, size: int, frames: list[Buffer]) -> None:
        process = self.target.process
        if process.running:
            self.net.world.note(f"{self.ends[0]}>{self.ends[1]} {size}")
            process.run(self.target.receive, self.wire, [bytes(frame) for frame in frames])

    def lose(self) -> None:
        """Lose what is on its way with the connection, or deliver some of it late, when a new connection may be up."""
        world = self.net.world
        queue, self.queue = self.queue, deque()
        if world.random.random() < 0.3:
            delay = world.random.choice([0.0, 0.3, 2.0])
            for _, size, frames in queue:
                if frames[0] != CONTROL:
                    world.after(delay, self._deliver, size, frames)


class Wire:
    """One connection between a link and a broker."""

    def __init__(self, net: Network, link: Any, broker: Any) -> None:
        self.net = net
        self.link = link
        self.broker = broker
        self.up = Lane(self, link, broker)
        self.down = Lane(self, broker, link)
        self.closed: set[str] = set()
        """The sides (`link`, `broker`) that know of its end."""
        self._heard = dict.fromkeys(("link", "broker"), net.world.now)
        net.wires.append(self)
        net.world.after(HEARTBEAT_S, self._beat)

    def _beat(self) -> None:
        """Exchange heartbeats like the threads of libzmq: also while a loop hangs, not while its process is frozen."""
        now = self.net.world.now
        sides = (("link", self.link, self.down, self.broker), ("broker", self.broker, self.up, self.link))
        for side, end, lane, other in sides:
            works = not self.net.blocked.get(lane.ends) and lane.busy_until - now < SILENCE_S
            if works and not self.closed and other.process.alive and other.process.state != "frozen":
                self._heard[side] = now
            if end.process.alive and end.process.state == "frozen":
                continue
            if now - self._heard[side] > SILENCE_S:
                self.close(side)
        if len(self.closed) < 2:
            self.net.world.after(HEARTBEAT_S, self._beat)

    def close(self, side: str) -> None:
        """End it on one side; the other side learns of that unless this direction is blocked."""
        if side in self.closed:
            return
        if not self.closed:
            self.up.lose()
            self.down.lose()
        self.closed.add(side)
        if len(self.closed) == 2:
            self.net.wires.remove(self)
        end, lane = (self.link, self.up) if side == "link" else (self.broker, self.down)
        self.net.world.note(f"{end.process.slot} lost its connection {'-'.join(self.up.ends)}")
        end.process.call_soon(end.disconnected, self)
        other = "broker" if side == "link" else "link"
        if not self.net.blocked.get(lane.ends):
            self.net.world.after(self.net.latency, self.close, other)


class SimLink:
    """A carrier: says hello, renews its lease, says hello again after silence, reconnects."""

    def __init__(
        self,
        net: Network,
        process: Process,
        name: PeerName,
        *,
        attributes: Mapping[str, object],
        broker: str,
        receiver: Receiver,
    ) -> None:
        self.label = broker
        self.process = process
        self.name = name
        self.key = name.routing_id(net.world.random.randbytes(NONCE_BYTES))
        self.state = "down"
        self.wire: Wire | None = None
        self._net = net
        self._attributes = attributes
        self._inbox = Inbox(self, receiver)
        self._attempt = 0
        self._greet_s = GREET_S
        self._greeted_at = self._heard_at = 0.0
        self._retry_s = TIMINGS.reconnect_min_s
        process.call_soon(self._connect)
        process.call_later(GREET_S, self._keep)

    def again(self, receiver: Receiver) -> "SimLink":
        """Return the link of the code that replaces the one that this link belonged to."""
        self.state = "closed"
        if self.wire is not None:
            self.wire.close("link")
        new = SimLink(
            self._net,
            self.process,
            self.name,
            attributes=self._attributes,
            broker=self.label,
            receiver=receiver,
        )
        new.key, new._attempt = self.key, self._attempt
        return new

    def send(self, peer_id: bytes, frames: Sequence[Buffer]) -> bool:
        return self.state == "up" and self._send([peer_id, *frames])

    def link_condition(self, peer_id: bytes) -> LinkCondition | None:
        return self.wire.up.condition if self.wire is not None else None

    def announce(self, attributes: Mapping[str, object]) -> None:
        self._attributes = attributes
        if self.state == "up":
            self._send(control(Announce(attributes)))

    async def close(self, *, linger_s: float) -> None:
        if self.state == "up":
            self._send(control(Leave()))
        self.state = "closed"

    def _send(self, frames: list[Buffer]) -> bool:
        return self.wire is not None and self.wire.up.send(frames)

    def _connect(self) -> None:
        broker = self._net.brokers.get(self.label)
        if self.state == "closed":
            return
        if broker is None or not broker.process.running or not self._net.reachable(self.process.slot, self.label):
            self._retry_s = min(2 * self._retry_s, TIMINGS.reconnect_max_s)
            self.process.call_later(self._retry_s, self._connect)
            return
        self._retry_s = TIMINGS.reconnect_min_s * self._net.world.random.uniform(1.0, 1.5)
        self.wire = Wire(self._net, self, broker)
        self._inbox.down("connected anew")
        self._greet()

    def disconnected(self, wire: Wire) -> None:
        if wire is self.wire and self.state != "closed":
            self.wire = None
            self.state = "down"
            self._inbox.down("the connection was lost")
            self.process.call_later(self._retry_s, self._connect)

    def _greet(self) -> None:
        self.state = "greeting"
        self._attempt += 1
        self._greeted_at = self.process.time()
        self._send(control(Hello(FABRIC_VERSION, FABRIC_VERSION_LEAST, self._attempt, self._attributes)))

    def _keep(self) -> None:
        now = self.process.time()
        if self.state == "closed":
            return
        if self.state == "up" and now - self._heard_at > TIMINGS.link_timeout_s:
            self._inbox.down("the broker is silent")
            self._greet()
        elif self.state == "up":
            self._send(control(Renew()))
        elif self.state == "greeting" and now - self._greeted_at >= self._greet_s:
            self._greet_s = min(2 * self._greet_s, GREET_MAX_S)
            self._greet()
        pause = TIMINGS.renew_s if self.state == "up" else min(GREET_S, TIMINGS.renew_s)
        self.process.call_later(pause * self._net.world.random.uniform(0.8, 1.0), self._keep)

    def receive(self, wire: Wire, frames: list[Buffer]) -> None:
        self._heard_at = self.process.time()
        if self.state == "up":
            self._inbox.receive(frames)
        elif self.state == "greeting" and frames[0] == CONTROL:
            match parse_control(frames):
                case Welcome(_, attempt, _) if attempt == self._attempt:
                    self.state = "up"
                    self._greet_s = GREET_S
                    self._inbox.receive(frames)


class SimBroker:
    """A broker: the real switch and outboxes, a probe of all peers after a connection was lost."""

    def __init__(self, net: Network, process: Process) -> None:
        self.process = process
        self.switch = Switch(lease_s=TIMINGS.lease_s, max_peers=128)
        self._net = net
        self._wires: dict[bytes, Wire] = {}
        self._outboxes = Outboxes(transmit=self._transmit, overflowed=self._overflowed, call_later=process.call_later)
        self._pending: deque[Output] = deque()
        self._dispatching = False
        net.brokers[process.slot] = self
        process.call_later(TIMINGS.renew_s, self._tick)

    def receive(self, wire: Wire, frames: list[Buffer]) -> None:
        key = wire.link.key
        if "broker" not in wire.closed:
            self._wires[key] = wire
        self._dispatch(self.switch.receive(key, wire.link.name, frames, self.process.time()))

    def disconnected(self, wire: Wire) -> None:
        if self._wires.get(wire.link.key) is wire:
            del self._wires[wire.link.key]
        self._dispatch(self.switch.renewals())

    def _dispatch(self, outputs: Sequence[Output]) -> None:
        self._pending.extend(outputs)
        if self._dispatching:
            return
        self._dispatching = True
        try:
            while self._pending:
                key, frames = self._pending.popleft()
                assert isinstance(key, bytes)
                self._outboxes.send(key, frames)
        finally:
            self._dispatching = False

    def _transmit(self, key: bytes, frames: list[Buffer]) -> bool:
        wire = self._wires.get(key)
        if wire is None:
            self._dispatch(self.switch.lost(key, "lost"))
            return True
        return wire.down.send(frames)

    def _overflowed(self, key: bytes, _: int) -> None:
        self._net.world.note(f"{self.process.slot} drops an outbox")
        self._dispatch(self.switch.overflow(key, self.process.time()))

    def _tick(self) -> None:
        self.process.call_later(TIMINGS.renew_s, self._tick)
        self._dispatch(self.switch.renewals(self.process.time() - TIMINGS.renew_s))
        for key in self.switch.expired(self.process.time()):
            self._dispatch(self.switch.lost(key, "expired"))


def _may_be_lost(frames: Sequence[Buffer]) -> bool:
    """Whether a full pipe may drop a control message: those that a link repeats; a broker keeps its own in outboxes."""
    return isinstance(parse_control(frames), Hello | Renew)
