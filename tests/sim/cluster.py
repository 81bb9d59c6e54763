"""A whole cluster: real edges and providers with their drivers, sessions and bridges, real switches, on virtual time.

It knows what each far side did, and so which ends are allowed; `check` says what must hold after every step.
"""

import errno
import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from loguru import logger

import goreprox.listeners
import goreprox.provider
import goreprox.sockets
from brokers import PeerName, Role
from goreprox.config import Address, EdgeConfig, Listener, ProviderConfig, Target
from goreprox.driver import Driver, clock
from goreprox.edge import Edge
from goreprox.protocol.limits import VERSION, VERSION_LEAST
from goreprox.protocol.stream import State
from goreprox.provider import Provider
from tests.sim.fabric import Network, SimBroker, SimLink
from tests.sim.tcp import KIB, Far, Program, SimSocket, Sockets
from tests.sim.world import Process, Violation, World

_CLOCK = clock
RECOVERY_S = 12.0
"""An outage goes on until all has been well for so long: links reconnect (3 s), greet again (1, 2, 4 s), resume."""
NOTICE_S = 25.0
"""So long after a successor came up its predecessor's streams are gone."""
LEASE_S = 12.5
"""A silent peer leaves the roster within this: 4 s of lease, 2 s between looks, 6 s for what was late on its way."""
FULL_CHECK = 64
"""Events of a process between two looks at all its streams."""


class Node:
    """One life of an edge or a provider."""

    def __init__(self, cluster: "Cluster", slot: str, role: Role, predecessor: bytes | None) -> None:
        world = cluster.world
        self.process = Process(world, slot)
        self.role = role
        self.name = PeerName(role, slot, world.random.randbytes(16))
        self.started_at = world.now
        self.predecessor = predecessor
        self.closing_at: float | None = None
        self.full_at = -NOTICE_S
        """When it last had all its connections."""
        self.checked = 0
        self.app: Any = self.process.run(cluster.edge if role is Role.EDGE else cluster.provider)
        self.app.bridges.live = _OrderedSet()
        attributes: dict[str, object] = {"protocol": [VERSION_LEAST, VERSION]}
        if role is Role.PROVIDER:
            attributes["services"] = ["default"]
        if predecessor is not None:
            attributes["predecessor"] = predecessor
        self.links: list[SimLink] = [
            SimLink(
                cluster.net, self.process, self.name, attributes=attributes, broker=broker, receiver=self.app.driver
            )
            for broker in cluster.broker_slots
        ]

    @property
    def driver(self) -> Driver:
        driver: Driver = self.app.driver
        return driver


class _OrderedSet(dict[Any, None]):
    """Sets of objects are ordered by their addresses, which differ between runs."""

    def add(self, item: Any) -> None:
        self[item] = None

    def discard(self, item: Any) -> None:
        self.pop(item, None)


class Client(Far):
    """A client, and what became of it."""

    def __init__(self, cluster: "Cluster", program: Program, target: Program, edge: str, buffer: int) -> None:
        super().__init__(cluster.world, program, f"client{program.seed}", buffer)
        self.cluster = cluster
        self.edge_slot = edge
        self.target_program = target
        self.edge: Node | None = None
        self.began_at = 0.0
        self.provider: Node | None = None
        """Whose target answered."""
        self.refused_by: set[str] = set()
        """Slots whose target did not."""


def _died_at(node: Node) -> float:
    assert node.process.died_at is not None
    return node.process.died_at


class Cluster:
    """Edges, brokers and providers by slot (`e0`, `b0`, `p0`), clients and targets, and the network between."""

    def __init__(
        self,
        seed: int,
        *,
        edges: int,
        brokers: int,
        providers: int,
        grace_s: float = 60.0,
        memory: int = 64 * KIB * KIB,
        max_connections: int = 256,
        latency: float = 0.005,
        rate: float = 20e6,
        buffer: int = 64 * KIB,
    ) -> None:
        self.world = World(seed)
        self.net = Network(self.world, latency=latency, rate=rate)
        self.sockets = Sockets(self.world)
        self.sockets.dial = self._dial
        self.grace_s = grace_s
        self.memory = memory
        self.max_connections = max_connections
        self.buffer = buffer
        self.edge_slots = [f"e{i}" for i in range(edges)]
        self.broker_slots = [f"b{i}" for i in range(brokers)]
        self.provider_slots = [f"p{i}" for i in range(providers)]
        self.nodes: dict[str, Node] = {}
        self.dead: list[Node] = []
        self.gone_brokers: set[str] = set()
        """Dead for good."""
        self.clients: list[Client] = []
        self.targets: list[Far] = []
        self.by_address: dict[str, Client] = {}
        self.dial_failure: dict[str, str] = {}
        """What targets of a provider do to a dial: `refuse` or `hang`."""
        self.bad: dict[str, int] = {}
        """Slots with a fault of their own that stops them, and how many."""
        self.outages: dict[tuple[str, str], tuple[float, float]] = {}
        """Of each pair of edge and provider: when its present or last outage began, and when it was last seen bad."""
        self.worst: dict[tuple[str, str], float] = {}
        self.bytes_checked = 0

    # Running.

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Be the operating system of the code under test, and its dice."""
        dice = random.getstate()
        random.seed(self.world.random.random())
        with ExitStack() as stack:
            for module, name in (
                (goreprox.listeners, "socket"),
                (goreprox.provider, "socket"),
                (goreprox.sockets, "fcntl"),
                (goreprox.sockets, "select"),
            ):
                stack.enter_context(patch.object(module, name, self.sockets))
            for module in [module for name, module in sys.modules.items() if name.startswith("goreprox.")]:
                if getattr(module, "clock", None) is _CLOCK:
                    stack.enter_context(patch.object(module, "clock", self._clock))
            logger.disable("goreprox")
            try:
                yield
            finally:
                logger.enable("goreprox")
                random.setstate(dice)
                for node in self.nodes.values():
                    node.process.kill()

    def _clock(self) -> float:
        assert self.world.running is not None, "the time outside of any process"
        return self.world.running.boot_time()

    def start(self) -> None:
        self.world.on_event = self._after_event
        for slot in self.broker_slots:
            self.start_broker(slot)
        for slot in self.edge_slots:
            self.start_node(slot)
        for slot in self.provider_slots:
            self.start_node(slot)
        self.world.after(0.5, self._watch_outages)

    def start_broker(self, slot: str) -> None:
        process = Process(self.world, slot)
        process.run(SimBroker, self.net, process)

    def start_node(self, slot: str, predecessor: bytes | None = None) -> None:
        self.nodes[slot] = Node(self, slot, Role.EDGE if slot[0] == "e" else Role.PROVIDER, predecessor)

    def edge(self) -> Edge:
        """Make an edge; called as code of its process."""
        edge = Edge(
            EdgeConfig(
                name="e",
                brokers=(Address("10.0.0.3", 9888),),
                listeners=(Listener(Address("10.0.0.1", 8080)),),
                grace_s=self.grace_s,
                memory_bytes=self.memory,
                max_connections=self.max_connections,
                runtime_dir=Path("/"),
            )
        )
        edge._balancer._rng = random.Random(self.world.random.random())
        edge.listeners.start()
        return edge

    def provider(self) -> Provider:
        """Make a provider; called as code of its process."""
        return Provider(
            ProviderConfig(
                name="p",
                targets=(Target("default", Address("10.0.0.2", 80)),),
                servers=(Address("10.0.0.3", 9887),),
                grace_s=self.grace_s,
                memory_bytes=self.memory,
                max_connections=self.max_connections,
                runtime_dir=Path("/"),
            )
        )

    # Faults.

    def process(self, slot: str) -> Process:
        return self.net.brokers[slot].process if slot[0] == "b" else self.nodes[slot].process

    def kill(self, slot: str) -> None:
        process = self.process(slot)
        if not process.alive:
            return
        if slot[0] != "b":
            self.dead.append(self.nodes[slot])
        process.kill()
        self.net.died(process)

    def restart(self, slot: str) -> None:
        """Bring up a successor that holds its predecessor's lock."""
        if self.process(slot).alive or slot in self.gone_brokers:
            return
        if slot[0] == "b":
            self.start_broker(slot)
        else:
            self.start_node(slot, self.nodes[slot].name.incarnation)

    def shut_down(self, slot: str, drain_s: float) -> None:
        """End a provider or an edge politely; it is dead for good when that is done."""
        node = self.nodes[slot]
        if not node.process.running or node.closing_at is not None:
            return
        node.closing_at = self.world.now + drain_s

        async def close() -> None:
            await node.app.close(drain_s=drain_s)
            for link in node.links:
                await link.close(linger_s=1.0)
            self.world.after(0.5, self.kill, slot)

        node.process.run(node.process.create_task, close())

    # Sockets.

    def connect(self, client: Client) -> None:
        """Let a client reach its edge."""
        node = self.nodes[client.edge_slot]
        if not node.process.alive:
            return
        listening = [file for file in node.process.files.values() if file.listening]
        if not listening:
            return
        address = ("10.1.0.1", client.program.seed)
        sock = SimSocket(self.sockets, node.process)
        self.clients.append(client)
        self.by_address[f"{address[0]}:{address[1]}"] = client
        client.edge = node
        client.began_at = self.world.now
        client.on_reset = self._client_reset
        client.connected(sock)
        listening[0].backlog.append((sock, address))
        node.process.poke(listening[0].fd)
        self.world.note(f"{client.who} connects to {client.edge_slot}")

    def _dial(self, sock: SimSocket, address: tuple[str, int]) -> None:
        self.world.after(0.001, self._answer, sock)

    def _answer(self, sock: SimSocket) -> None:
        """A target answers a dial, or does not."""
        process = sock.process
        if sock.closed or not process.alive:
            return
        node = self.nodes[process.slot]
        (client,) = (
            self.by_address[dial._stream.client] for dial in node.app.dials if dial._sock is sock
        )  # the far side of a dial cannot know for whom it is
        failure = self.dial_failure.get(process.slot)
        self.world.note(f"{process.slot} dials for {client.who}: {failure or 'connected'}")
        if failure is not None:
            client.refused_by.add(process.slot)
        if failure == "hang":
            return
        sock.connect_code = errno.ECONNREFUSED if failure else 0
        if failure is None:
            if client.provider is not None:
                raise Violation(f"{client.who} reaches two targets: {client.provider.process.slot}, {process.slot}")
            client.provider = node
            target = Far(self.world, client.target_program, f"target{client.target_program.seed}", self.buffer)
            target.other, client.other = client, target
            target.on_reset = self._target_reset
            self.targets.append(target)
            target.connected(sock)
        process.poke(sock.fd)

    # Which ends are allowed.

    def _client_reset(self, far: Far) -> None:
        assert isinstance(far, Client)
        self._judge(far, far, far.other)

    def _target_reset(self, far: Far) -> None:
        client = far.other
        assert isinstance(client, Client)
        self._judge(client, far, client)

    def _judge(self, client: Client, far: Far, other: Far | None) -> None:
        """A reset needs a reason in what was done to the cluster."""
        if other is not None and (other.did_reset or other.was_reset):
            return
        if any(node is not None and self._ended(node) for node in (client.edge, client.provider)):
            return
        assert client.edge is not None
        if client.provider is not None:
            pair = client.edge.process.slot, client.provider.process.slot
            if self.worst.get(pair, 0.0) >= self.grace_s:
                return
        elif self._nobody_left(client):
            return
        why = {
            bridge.stream.end_reason
            for node in (client.edge, client.provider)
            if node is not None
            for bridge in node.app.bridges.live
            if bridge._sock is far.sock
        }
        raise Violation(f"{far.who} was reset after {far.read} bytes, and nobody did that: {why}")

    def _ended(self, node: Node) -> bool:
        """Whether a process is dead, or has waited for its connections as long as it was to."""
        closing_at = node.closing_at
        return not node.process.alive or (closing_at is not None and self.world.now > closing_at - 0.001)

    def _nobody_left(self, client: Client) -> bool:
        """Whether every provider that the edge could choose has refused, or none came in time."""
        assert client.edge is not None
        waited_s = self.world.now - client.began_at
        if any(pair[0] == client.edge_slot and worst >= self.grace_s for pair, worst in self.worst.items()):
            return True
        if any(dead.role is Role.PROVIDER and _died_at(dead) > client.began_at - NOTICE_S for dead in self.dead):
            return True  # it may have been given to that one
        if waited_s >= self.grace_s or any(self._ended(self.nodes[slot]) for slot in self.provider_slots):
            return True
        there = {
            peer.info.name.name
            for peer in client.edge.driver.peers.values()
            if peer.epochs and not peer.session.peer_draining and not self._turns_away(peer.info.name.name)
        }
        return there <= client.refused_by

    def _turns_away(self, provider: str) -> bool:
        """Whether a provider refuses streams without a dial: it is draining, or was full a moment ago."""
        node = self.nodes[provider]
        return node.closing_at is not None or self.world.now - node.full_at < NOTICE_S

    def _watch_outages(self) -> None:
        """Note for each pair how long no healthy way has been between them."""
        self.world.after(0.5, self._watch_outages)
        self._check_rosters()
        now = self.world.now
        for edge in self.edge_slots:
            for provider in self.provider_slots:
                pair = edge, provider
                if self._healthy(edge, provider):
                    continue
                since, last = self.outages.get(pair, (now - 0.5, now))
                if now - last > RECOVERY_S:
                    since = now - 0.5
                self.outages[pair] = since, now
                self.worst[pair] = max(self.worst.get(pair, 0.0), now - since + RECOVERY_S)

    def _healthy(self, edge: str, provider: str) -> bool:
        net = self.net
        return all(self.process(slot).running and not net.lossy[slot] for slot in (edge, provider)) and any(
            self.net.brokers[broker].process.running
            and not net.lossy[broker]
            and all(
                net.reachable(slot, broker) and not net.slow[slot, broker] and not net.slow[broker, slot]
                for slot in (edge, provider)
            )
            for broker in self.broker_slots
        )

    # What must hold after every step.

    def _after_event(self, process: Process) -> None:
        node = self.nodes.get(process.slot)
        if node is None or node.process is not process:
            return
        budget = node.driver._budget
        if not 0 <= budget.borrowed_bytes <= budget.loan_bytes:
            raise Violation(f"{process.slot}: {budget.borrowed_bytes} bytes lent of {budget.loan_bytes}")
        if len(node.app.bridges.live) + len(getattr(node.app, "dials", ())) >= self.max_connections:
            node.full_at = self.world.now
        node.checked += 1
        if node.checked % FULL_CHECK == 0:
            self.check_node(node)

    def check_node(self, node: Node) -> None:
        """Look at everything a process has."""
        slot, driver = node.process.slot, node.driver
        streams = {id(bridge.stream): bridge.stream for bridge in node.app.bridges.live}
        for peer in driver.peers.values():
            if peer.session.failed is not None:
                raise Violation(f"{slot}: {peer.info.name.name} broke the protocol: {peer.session.failed}")
            streams |= {id(stream): stream for stream in peer.session.streams.values()}
        borrowed = held = 0
        for stream in streams.values():
            send, receive = stream.send, stream.receive
            borrowed += send._borrowed + receive._borrowed
            held += send.end - send.acked
            if stream.state is State.CLOSED:
                continue
            held += receive.received - receive.delivered
            if receive.received > receive.limit:
                raise Violation(f"{slot}: {stream} holds more than its window")
            if send.sent > send.limit:
                raise Violation(f"{slot}: {stream} sent more than the peer's window")
        budget = driver._budget
        if borrowed != budget.borrowed_bytes:
            raise Violation(f"{slot}: streams have borrowed {borrowed} bytes, {budget.borrowed_bytes} are lent")
        if held > self.memory:
            raise Violation(f"{slot}: holds {held} bytes of {self.memory}")
        self._check_buried(node)

    def _check_buried(self, node: Node) -> None:
        """A successor's word ends its predecessor's streams long before the grace does."""
        now = self.world.now
        for dead in self.dead:
            peer = node.driver.peers.get(dead.name.id)
            successor = self.nodes[dead.process.slot]
            if peer is None or not peer.session.streams or successor.predecessor != dead.name.incarnation:
                continue
            if not successor.process.alive:
                continue
            edge, provider = sorted((node.process.slot, dead.process.slot))
            last_bad = self.outages.get((edge, provider), (0.0, 0.0))[1]
            if now - max(last_bad, successor.started_at) > NOTICE_S:
                raise Violation(f"{node.process.slot} keeps {peer.session.streams} of a dead {dead.process.slot}")

    def _check_rosters(self) -> None:
        """A broker names nobody whose loop has long been silent: leases end."""
        now = self.world.now
        processes = {node.name.id: node.process for node in (*self.nodes.values(), *self.dead)}
        for broker in self.net.brokers.values():
            if not broker.process.running:
                continue
            for info in broker.switch.peers:
                silent_since = processes[info.name.id].silent_since
                if silent_since is not None and now - max(silent_since, broker.process.resumed_at) > LEASE_S:
                    slot = broker.process.slot
                    raise Violation(f"{slot} still names {info.name.name}, silent since {silent_since:.1f}")

    # Rest.

    def at_rest(self) -> bool:
        """Whether every stream has ended at both of its sockets, and nobody holds anything of it."""
        return (
            all(far.over for far in (*self.clients, *self.targets) if far.sock is not None)
            and not any(node.app.bridges.live for node in self._alive())
            and not any(peer.session.streams for node in self._alive() for peer in node.driver.peers.values())
        )

    def _alive(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.process.alive]

    def check_rest(self) -> None:
        """Everything that was written has arrived, unless an end says otherwise; nothing is left."""
        for node in self._alive():
            self.check_node(node)
            left = [stream for peer in node.driver.peers.values() for stream in peer.session.streams.values()]
            if left or node.app.bridges.live:
                raise Violation(f"{node.process.slot} has streams left: {left or list(node.app.bridges.live)}")
            if node.driver._budget.borrowed_bytes:
                raise Violation(f"{node.process.slot}: {node.driver._budget.borrowed_bytes} bytes lent at rest")
        brokers = [broker for broker in self.net.brokers.values() if broker.process.alive]
        for node in self._alive():
            for other in self._alive():
                if other.role is node.role or not node.closing_at is other.closing_at is None:
                    continue
                peer = node.driver.peers.get(other.name.id)
                if peer is None or len(peer.epochs) != len(brokers):
                    raise Violation(f"{node.process.slot} does not see {other.process.slot} over all brokers")
        for far in (*self.clients, *self.targets):
            if not far.over:
                raise Violation(f"{far.who} has no end: {far.read} read, {far.written} of {far.program.total} written")
            self.bytes_checked += far.read
