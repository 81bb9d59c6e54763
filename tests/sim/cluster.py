"""A whole cluster on virtual time: real edges and providers with their drivers, sessions and bridges, real switches.

It can break any part, and knows which client was joined with which target. The oracle checks it.
"""

import errno
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cbor2
from loguru import logger

import goreprox.net.listeners
import goreprox.net.names
import goreprox.net.poller
import goreprox.net.sockets
import goreprox.roles.dial
import goreprox.roles.provider
from brokers import PeerName, Role
from goreprox.config.addresses import Address, Listener, Target
from goreprox.config.published import Ports
from goreprox.config.roles import EdgeConfig, ProviderConfig
from goreprox.net.listeners import Open
from goreprox.process.clock import clock
from goreprox.process.handover import moved
from goreprox.protocol.limits import VERSION, VERSION_LEAST
from goreprox.roles.edge import Edge
from goreprox.roles.edge_state import EdgeState, restored_listeners
from goreprox.roles.provider import Provider
from goreprox.tunnel.driver import Driver
from tests.sim.fabric import Network, SimBroker, SimLink
from tests.sim.far import KIB, Far, Program
from tests.sim.nats import SimNatsLink, SimServer
from tests.sim.oracle import Oracle
from tests.sim.tcp import SimSocket, Sockets
from tests.sim.world import Process, Violation, World
from tests.support.configs import configured

_CLOCK = clock


class Node:
    """An edge or a provider, from start to death."""

    def __init__(self, cluster: "Cluster", slot: str, role: Role, predecessor: bytes | None) -> None:
        world = cluster.world
        self.process = Process(world, slot)
        self.role = role
        self.name = PeerName(role, slot, world.random.randbytes(16))
        self.started_at = world.now
        self.predecessor = predecessor
        self.closing_at: float | None = None
        self.full_at = float("-inf")
        """When it last had as many connections as it may have."""
        self.unchecked = 0
        """Events since its streams were last checked."""
        self.app: Any = self.process.run(cluster.edge if role is Role.EDGE else cluster.provider)
        self.driver.own_id = self.name.id
        if role is Role.EDGE:
            self.process.run(self.app.listeners.start)
        attributes: dict[str, object] = {"protocol": [VERSION_LEAST, VERSION]}
        if role is Role.PROVIDER:
            attributes["services"] = ["default"]
        if cluster.publishes and role is Role.PROVIDER:
            attributes["services"] = ["default", f"tcp://9000@{slot}", f"tcp://*/default@{slot}"]
            attributes["granted"] = [slot.encode(), [[9000, 9099]]]
        elif cluster.publishes:
            attributes |= {"publishes": True, "granted": True}
        if predecessor is not None:
            attributes["predecessor"] = predecessor
        to = {"attributes": attributes, "receiver": self.app.driver}
        self.links: list[Any] = (
            [SimNatsLink(cluster.net, self.process, self.name, servers=cluster.broker_slots, **to)]
            if cluster.nats
            else [SimLink(cluster.net, self.process, self.name, broker=broker, **to) for broker in cluster.broker_slots]
        )

    @property
    def driver(self) -> Driver:
        driver: Driver = self.app.driver
        return driver


def _state_of(node: Node) -> Any:
    """Return what is handed over in an upgrade (upgrade.Portable)."""
    return EdgeState(node.app) if node.role is Role.EDGE else node.app


class Client(Far):
    """A client, and where it was served."""

    def __init__(self, cluster: "Cluster", program: Program, target: Program, edge: str, buffer: int) -> None:
        super().__init__(cluster.world, program, f"client{program.seed}", buffer)
        self.edge_slot = edge
        self.host = "10.1.0.1"
        self.target_program = target
        self.edge: Node | None = None
        self.began_at = 0.0
        self.provider: Node | None = None
        """The provider that connected to its target for it."""
        self.refused_by: set[str] = set()
        """Slots of providers whose target did not accept the connection."""


class Cluster:
    """Edges, brokers and providers by slot (`e0`, `b0`, `p0`), clients and targets, and the network between them."""

    def __init__(
        self,
        seed: int,
        *,
        edges: int,
        brokers: int,
        providers: int,
        grace_s: float = 60.0,
        provider_grace_s: float | None = None,
        memory: int = 64 * KIB * KIB,
        max_connections: int = 256,
        latency: float = 0.005,
        rate: float = 20e6,
        buffer: int = 64 * KIB,
        publishes: bool = False,
        nats: bool = False,
    ) -> None:
        self.nats = nats
        """Whether brokers are the servers of a NATS cluster."""
        self.publishes = publishes
        """Whether each provider publishes a port of its own choice, and one that all of them want."""
        self.world = World(seed)
        self.net = Network(self.world, latency=latency, rate=rate)
        self.sockets = Sockets(self.world, rate=rate)
        self.sockets.dial = self._dial
        self.edge_grace_s = grace_s
        self.provider_grace_s = grace_s if provider_grace_s is None else provider_grace_s
        self.grace_s = min(self.edge_grace_s, self.provider_grace_s)
        self.memory = memory
        self.max_connections = max_connections
        self.buffer = buffer
        self.edge_slots = [f"e{i}" for i in range(edges)]
        self.broker_slots = [f"b{i}" for i in range(brokers)]
        self.provider_slots = [f"p{i}" for i in range(providers)]
        self.nodes: dict[str, Node] = {}
        self.dead: list[Node] = []
        self.gone: set[str] = set()
        """Slots that no successor takes."""
        self.clients: list[Client] = []
        self.targets: list[Far] = []
        self.by_address: dict[str, Client] = {}
        self.dial_failure: dict[str, str] = {}
        """By slot of a provider, what happens to its dials: `refuse` or `hang`."""
        self.moved = 0
        """Sockets that were handed over in upgrades."""
        self.oracle = Oracle(self)

    # Running.

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Take the place of the operating system, and of chance, for the code under test."""
        dice = random.getstate()
        random.seed(self.world.random.random())
        with ExitStack() as stack:
            for module, name in (
                (goreprox.net.listeners, "socket"),
                (goreprox.roles.dial, "socket"),
                (goreprox.net.sockets, "fcntl"),
                (goreprox.net.sockets, "select"),
                (goreprox.net.sockets, "os"),
            ):
                stack.enter_context(patch.object(module, name, self.sockets))
            stack.enter_context(patch.object(goreprox.net.names, "resolve", self.sockets.resolve))
            for module in (goreprox.net.sockets, goreprox.roles.provider):
                stack.enter_context(patch.object(module, "restored", self.sockets.restored))
            stack.enter_context(patch.object(goreprox.net.poller, "Epoll", self.sockets.epoll))
            for module in [module for name, module in sys.modules.items() if name.startswith("goreprox.")]:
                if getattr(module, "clock", None) is _CLOCK:
                    stack.enter_context(patch.object(module, "clock", self._clock))
            for package in ("goreprox", "brokers"):
                logger.disable(package)
            try:
                yield
            finally:
                for package in ("goreprox", "brokers"):
                    logger.enable(package)
                random.setstate(dice)
                for node in self.nodes.values():
                    node.process.kill()

    def _clock(self) -> float:
        assert self.world.running is not None, "the clock was read outside of any process"
        return self.world.running.boot_time()

    def start(self) -> None:
        self.world.on_event = self.oracle.after_event
        for slot in self.broker_slots:
            self.start_broker(slot)
        for slot in self.edge_slots:
            self.start_node(slot)
        for slot in self.provider_slots:
            self.start_node(slot)
        self.world.after(0.5, self.oracle.start)

    def start_broker(self, slot: str) -> None:
        process = Process(self.world, slot)
        process.run(SimServer if self.nats else SimBroker, self.net, process)

    def start_node(self, slot: str, predecessor: bytes | None = None) -> None:
        self.nodes[slot] = Node(self, slot, Role.EDGE if slot[0] == "e" else Role.PROVIDER, predecessor)
        self.oracle.forget(slot)

    def edge(self, inherited: Sequence[Open] = ()) -> Edge:
        """Return a new edge; called as code of its process."""
        edge = Edge(
            configured(
                EdgeConfig,
                name="e",
                brokers=(Address("10.0.0.3", 9888),),
                listeners=(Listener(Address("10.0.0.1", 8080)),),
                publish_ports=(Ports(9000, 9099),) if self.publishes else (),
                addresses=(Address("tunnel", 1),),
                grace_s=self.edge_grace_s,
                memory_bytes=self.memory,
                max_connections=self.max_connections,
                max_connections_per_address=0,  # most clients come from one
                runtime_dir=Path("/"),
            ),
            inherited,
        )
        edge.assignment._balancer._rng = random.Random(self.world.random.random())
        return edge

    def provider(self) -> Provider:
        """Return a new provider; called as code of its process."""
        return Provider(
            configured(
                ProviderConfig,
                name="p",
                targets=(Target("default", Address("10.0.0.2", 80)),),
                servers=(Address("10.0.0.3", 9887),),
                grace_s=self.provider_grace_s,
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
        """Start a successor that has its predecessor's lock."""
        if self.process(slot).alive or slot in self.gone:
            return
        if slot[0] == "b":
            self.start_broker(slot)
        else:
            self.start_node(slot, self.nodes[slot].name.incarnation)

    def shut_down(self, slot: str, drain_s: float) -> None:
        """Shut a provider or an edge down; it is killed once that is done."""
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

    def upgrade(self, slot: str) -> None:
        """Replace the code of an edge, or of a provider once it knows of all connections that targets have accepted."""
        node = self.nodes[slot]
        if not node.process.running or node.closing_at is not None:
            return
        if node.role is Role.PROVIDER and any(
            sock.far is not None for dial in node.app.dialer.dials for sock in dial._attempts
        ):
            self.world.after(0.001, self.upgrade, slot)
            return
        node.process.run(self._upgrade, node)
        self.oracle.look()

    def _upgrade(self, node: Node) -> None:
        state = _state_of(node)
        kept = set(state.leave())
        self.moved += len(kept)
        written = [cbor2.dumps(item) for item in moved(state.export(payload=True))]
        listening = [file for file in node.process.files.values() if isinstance(file, SimSocket) and file.listening]
        backlog = {sock.fd for file in listening for sock, _ in file.backlog}  # the kernel's, not the process's
        node.process.execve(kept | backlog)
        items = map(cbor2.loads, written)
        node.app = self.edge(restored_listeners(items)) if node.role is Role.EDGE else self.provider()
        node.driver.own_id = node.name.id
        _state_of(node).restore(items, trial=False)
        node.links = [link.again(node.driver) for link in node.links]
        if node.role is Role.EDGE:
            node.app.listeners.start()

    # Sockets.

    def connect(self, client: Client) -> None:
        """Connect a client to its edge."""
        node = self.nodes[client.edge_slot]
        if not node.process.alive:
            return
        listening = [file for file in node.process.files.values() if isinstance(file, SimSocket) and file.listening]
        if not listening:
            return
        address = (client.host, client.program.seed)
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
        self.world.after(0.001, self._respond, sock)

    def _respond(self, sock: SimSocket) -> None:
        """Decide a dial: the target accepts it, refuses it or does not respond."""
        process = sock.process
        if sock.closed or not process.alive:
            return
        node = self.nodes[process.slot]
        (client,) = (
            self.by_address[dial.stream.client] for dial in node.app.dialer.dials if sock in dial._attempts
        )  # the socket does not tell for whom it is
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

    # Ends.

    def _client_reset(self, far: Far) -> None:
        assert isinstance(far, Client)
        self.oracle.judge(far, far, far.other)

    def _target_reset(self, far: Far) -> None:
        client = far.other
        assert isinstance(client, Client)
        self.oracle.judge(client, far, client)
