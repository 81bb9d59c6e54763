"""Checks that a cluster keeps the promise: judges by what was done to the cluster, not by what it reports of itself."""

from typing import TYPE_CHECKING

from brokers import Role
from goreprox.protocol.limits import RESET_LINGER_S
from goreprox.protocol.state import State
from tests.sim.far import Far
from tests.sim.world import Process, Violation

if TYPE_CHECKING:
    from tests.sim.cluster import Client, Cluster, Node

RECOVERY_S = 12.0
"""An outage lasts until there was a healthy path for so long: links reconnect (3 s), repeat the hello (1, 2, 4 s), and
sessions resume."""
NOTICE_S = 25.0
"""The streams of a dead process are gone at most so long after its successor started."""
EXPIRY_S = 15.0
"""The streams with a peer are gone at most so long after the grace, which counts from the last moment at which anything
could reach the peer; for a process that was stopped since, from when it runs again."""
LATE_S = 2.5
"""What was lost with a connection may still arrive later; and the checks are 0.5 s apart."""
PROGRESS_S = 5.0
"""The interval at which it is checked that readers get on."""
STALL_S = 30.0
"""Where nothing was broken for so long, a reader for whom there is something gets some of it."""
LEASE_S = 12.5
"""A silent peer leaves the peer list within this: 4 s of lease, 2 s between checks, 6 s for delayed messages."""
EVENTS_PER_STREAM = 4
"""The streams of a process are checked after so many events for each: an event costs the same at any load."""


class Oracle:
    """Checks one cluster."""

    def __init__(self, cluster: "Cluster") -> None:
        self._cluster = cluster
        self.outages: dict[tuple[str, str], tuple[float, float]] = {}
        """By pair of edge and provider: when the current or last outage began, and when it was last observed."""
        self.worst: dict[tuple[str, str], float] = {}
        self._rough: dict[tuple[str, str], float] = {}
        """By pair: when anything was last broken between the two, even if there was another path."""
        self._moved: dict[Far, tuple[tuple[int, bool], float]] = {}
        """How far each far side has read, and since when it has not got further although there is more."""
        self._unreachable: dict[tuple[str, str], float] = {}
        """By pair: since when there has been no path."""
        self.bytes_checked = 0

    # Resets.

    def judge(self, client: "Client", far: Far, other: Far | None) -> None:
        """Check that what was done to the cluster explains why we reset a far side."""
        if any(node is not None and self._ended(node) for node in (client.edge, client.provider)):
            return
        assert client.edge is not None
        if client.provider is not None:
            pair = client.edge.process.slot, client.provider.process.slot
            if self.worst.get(pair, 0.0) >= self._cluster.grace_s:
                return
        elif self._nobody_left(client):
            return
        if other is not None and other.was_reset:
            return
        if other is not None and other.did_reset:
            self._check_delivery_before_reset(far, other)
            return
        why = {
            bridge.stream.end_reason
            for node in (client.edge, client.provider)
            if node is not None
            for bridge in node.app.bridges.connections
            if bridge._sock is far.sock
        }
        raise Violation(f"{far.who} was reset after {far.read} bytes, and nobody did that: {why}")

    def _check_delivery_before_reset(self, far: Far, other: Far) -> None:
        """Check that a reset discards bytes before it only if they have waited long enough."""
        assert far.sock is not None
        waited_s = self._cluster.world.now - other.reset_at
        if far.sock.out_arrived < other.written and waited_s < RESET_LINGER_S:
            raise Violation(
                f"{far.who} was reset after {far.sock.out_arrived} bytes, {other.who} wrote {other.written} before "
                f"its reset {waited_s:.3f} s ago"
            )

    def _ended(self, node: "Node") -> bool:
        """Whether a process is dead, or past the deadline of its shutdown."""
        closing_at = node.closing_at
        return not node.process.alive or (closing_at is not None and self._cluster.world.now > closing_at - 0.001)

    def _nobody_left(self, client: "Client") -> bool:
        """Whether every provider that the edge could choose has refused the client, or there was none in time."""
        assert client.edge is not None
        cluster = self._cluster
        waited_s = cluster.world.now - client.began_at
        if any(pair[0] == client.edge_slot and worst >= cluster.grace_s for pair, worst in self.worst.items()):
            return True
        if any(dead.role is Role.PROVIDER and _died_at(dead) > client.began_at - NOTICE_S for dead in cluster.dead):
            return True  # it may have been given to that one
        if waited_s >= cluster.grace_s or any(self._ended(cluster.nodes[slot]) for slot in cluster.provider_slots):
            return True
        there = {
            peer.info.name.name
            for peer in client.edge.driver.peers.values()
            if peer.epochs and not peer.session.peer_draining and not self._turns_away(peer.info.name.name)
        }
        return there <= client.refused_by

    def _turns_away(self, provider: str) -> bool:
        """Whether a provider may refuse streams without dialling: it is draining, or was full lately."""
        node = self._cluster.nodes[provider]
        return node.closing_at is not None or self._cluster.world.now - node.full_at < NOTICE_S

    def start(self) -> None:
        """Start the periodic checks."""
        self._watch()
        self._check_progress()

    def _watch(self) -> None:
        """Check what single events do not show."""
        self._cluster.world.after(0.5, self._watch)
        self._check_peer_lists()
        self.look()
        self._check_expiry()

    def look(self) -> None:
        """Record which pairs have a healthy path and which have none; to be called whenever that may have changed."""
        now = self._cluster.world.now
        for edge in self._cluster.edge_slots:
            for provider in self._cluster.provider_slots:
                pair = edge, provider
                if self._unreachable_now(edge, provider):
                    self._unreachable.setdefault(pair, now)
                else:
                    self._unreachable.pop(pair, None)
                if not self._calm(edge, provider):
                    self._rough[pair] = now
                if self._healthy(edge, provider):
                    continue
                since, last = self.outages.get(pair, (now - 0.5, now))
                if now - last > RECOVERY_S:
                    since = now - 0.5
                self.outages[pair] = since, now
                self.worst[pair] = max(self.worst.get(pair, 0.0), now - since + RECOVERY_S)

    def forget(self, slot: str) -> None:
        """Forget what was recorded of a slot: another process has taken it."""
        for pair in [pair for pair in self._unreachable if slot in pair]:
            del self._unreachable[pair]

    def _unreachable_now(self, edge: str, provider: str) -> bool:
        process, net = self._cluster.process, self._cluster.net
        near, far = (
            {each for each in self._cluster.broker_slots if process(each).running and net.reachable(slot, each)}
            for slot in (edge, provider)
        )
        joined = near & far or (self._cluster.nats and any(net.reachable(one, two) for one in near for two in far))
        return not all(process(slot).running for slot in (edge, provider)) or not joined

    def _calm(self, edge: str, provider: str) -> bool:
        net = self._cluster.net
        brokers = [slot for slot in self._cluster.broker_slots if slot not in self._cluster.gone]
        return all(
            self._cluster.process(slot).running and net.faithful(slot) for slot in (edge, provider, *brokers)
        ) and not any(
            net.blocked.get(way) or net.slow.get(way)
            for slot in (edge, provider, *(brokers if self._cluster.nats else ()))
            for broker in brokers
            for way in ((slot, broker), (broker, slot))
        )

    def _check_progress(self) -> None:
        """Check that every stream makes progress unless something is broken."""
        self._cluster.world.after(PROGRESS_S, self._check_progress)
        now = self._cluster.world.now
        for client in self._cluster.clients:
            target = client.other
            if target is None or client.over or target.over:
                continue
            assert client.edge is not None and client.provider is not None
            pair = client.edge.process.slot, client.provider.process.slot
            rough = self._rough.get(pair, 0.0)
            for writer, reader in ((client, target), (target, client)):
                read = reader.read, reader.fin_read
                if read == (writer.written, writer.fin_sent) or reader.stopped:
                    self._moved.pop(reader, None)
                    continue
                before, since = self._moved.get(reader, (None, now))
                if before != read:
                    self._moved[reader] = read, now
                elif now - max(since, rough) > STALL_S:
                    raise Violation(
                        f"{reader.who} has {reader.read} bytes since {since:.1f}, {writer.who} wrote {writer.written}"
                    )

    def _check_expiry(self) -> None:
        """Check that no stream outlives the grace."""
        now = self._cluster.world.now
        for pair, since in self._unreachable.items():
            for slot, other in (pair, pair[::-1]):
                node = self._cluster.nodes[slot]
                away_s = now - max(since, node.process.resumed_at)
                if not node.process.running or away_s < self._cluster.grace_s + EXPIRY_S + LATE_S:
                    continue
                peer = node.driver.peers.get(self._cluster.nodes[other].name.id)
                if peer is not None and peer.session.streams:
                    raise Violation(
                        f"{slot} keeps {peer.session.streams} with {other}, out of reach for {away_s:.1f} s"
                    )

    def _healthy(self, edge: str, provider: str) -> bool:
        net = self._cluster.net
        if self._cluster.nats:  # a process is at any of the servers, and stays there while it responds
            return self._calm(edge, provider)
        return all(self._cluster.process(slot).running and net.faithful(slot) for slot in (edge, provider)) and any(
            self._cluster.process(broker).running
            and net.faithful(broker)
            and all(
                net.reachable(slot, broker) and not net.slow.get((slot, broker)) and not net.slow.get((broker, slot))
                for slot in (edge, provider)
            )
            for broker in self._cluster.broker_slots
        )

    # What must hold after every step.

    def after_event(self, process: Process) -> None:
        node = self._cluster.nodes.get(process.slot)
        if node is None or node.process is not process:
            return
        budget = node.driver.budget
        if not 0 <= budget.pool_used_bytes <= budget.pool_bytes:
            raise Violation(f"{process.slot}: {budget.pool_used_bytes} bytes of the pool used, of {budget.pool_bytes}")
        live = node.app.bridges.connections
        if node.app.connections >= self._cluster.max_connections:
            node.full_at = self._cluster.world.now
        node.unchecked += 1
        if node.unchecked > EVENTS_PER_STREAM * len(live):
            node.unchecked = 0
            self.check_node(node)

    def check_node(self, node: "Node") -> None:
        """Check everything that a process holds."""
        slot, driver = node.process.slot, node.driver
        streams = {id(bridge.stream): bridge.stream for bridge in node.app.bridges.connections}
        for peer in driver.peers.values():
            if peer.session.failed is not None:
                raise Violation(f"{slot}: {peer.info.name.name} broke the protocol: {peer.session.failed}")
            streams |= {id(stream): stream for stream in peer.session.streams.values()}
        used = held = beyond = expected = 0
        reserved = driver.budget.reserved_bytes
        for stream in streams.values():
            send, receive = stream.send, stream.receive
            used += send.pool_used_bytes + receive.pool_used_bytes
            kept = sum(map(len, send._unacked)) + sum(map(len, send._unsent))
            waiting = sum(map(len, receive.chunks))
            held += kept + waiting
            if stream.state is State.CLOSED:
                continue
            beyond += max(kept - reserved, 0)
            if stream.state is not State.RESETTING:  # its window is void: what still arrives is dropped
                window = receive.limit - receive.received
                expected += window
                beyond += max(waiting + window - reserved, 0)
            if receive.received > receive.limit:
                raise Violation(f"{slot}: {stream} holds more than its window")
            if send.sent > send.limit:
                raise Violation(f"{slot}: {stream} sent more than the peer's window")
        budget = driver.budget
        if beyond > budget.pool_used_bytes:
            raise Violation(
                f"{slot}: streams hold or expect {beyond} bytes beyond reservations, "
                f"the budget counts {budget.pool_used_bytes}"
            )
        if used != budget.pool_used_bytes:
            raise Violation(
                f"{slot}: streams use {used} bytes of the shared pool, the budget counts {budget.pool_used_bytes}"
            )
        if held + expected > self._cluster.memory:
            raise Violation(f"{slot}: holds {held} bytes and expects {expected}, of {self._cluster.memory}")
        self._check_buried(node)

    def _check_buried(self, node: "Node") -> None:
        """Check that the streams of a dead process end soon after its successor has announced itself."""
        now = self._cluster.world.now
        for dead in self._cluster.dead:
            peer = node.driver.peers.get(dead.name.id)
            successor = self._cluster.nodes[dead.process.slot]
            if peer is None or not peer.session.streams or successor.predecessor != dead.name.incarnation:
                continue
            if not successor.process.alive:
                continue
            edge, provider = sorted((node.process.slot, dead.process.slot))
            last_bad = self.outages.get((edge, provider), (0.0, 0.0))[1]
            if now - max(last_bad, successor.started_at) > NOTICE_S:
                raise Violation(f"{node.process.slot} keeps {peer.session.streams} of a dead {dead.process.slot}")

    def _check_peer_lists(self) -> None:
        """Check that peer lists contain nobody whose lease must have expired."""
        now = self._cluster.world.now
        processes = {node.name.id: node.process for node in (*self._cluster.nodes.values(), *self._cluster.dead)}
        for broker in self._cluster.net.brokers.values():
            if not broker.process.running or self._cluster.nats:
                continue
            for info in broker.switch.peers:
                silent_since = processes[info.name.id].silent_since
                if silent_since is not None and now - max(silent_since, broker.process.resumed_at) > LEASE_S:
                    slot = broker.process.slot
                    raise Violation(f"{slot} still names {info.name.name}, silent since {silent_since:.1f}")

    # Rest.

    def at_rest(self) -> bool:
        """Whether every stream is over at both of its sockets and in every session."""
        return (
            all(far.over for far in (*self._cluster.clients, *self._cluster.targets) if far.sock is not None)
            and not any(node.app.bridges.connections for node in self._alive())
            and not any(peer.session.streams for node in self._alive() for peer in node.driver.peers.values())
        )

    def _alive(self) -> "list[Node]":
        return [node for node in self._cluster.nodes.values() if node.process.alive]

    def check_rest(self) -> None:
        """Check that all that was written was read or reset, and that nothing is left."""
        for node in self._alive():
            self.check_node(node)
            left = [stream for peer in node.driver.peers.values() for stream in peer.session.streams.values()]
            if left or node.app.bridges.connections:
                raise Violation(f"{node.process.slot} has streams left: {left or list(node.app.bridges.connections)}")
            if node.driver.budget.pool_used_bytes:
                raise Violation(
                    f"{node.process.slot}: {node.driver.budget.pool_used_bytes} bytes of the shared pool used at rest"
                )
        self._check_views()
        self._check_preferences()
        self._check_published()
        for far in (*self._cluster.clients, *self._cluster.targets):
            if not far.over:
                raise Violation(f"{far.who} has no end: {far.read} read, {far.written} of {far.program.total} written")
            self.bytes_checked += far.read

    def _check_views(self) -> None:
        """Check that all processes that run know each other over all brokers, and nobody else."""
        brokers = [broker for broker in self._cluster.net.brokers.values() if broker.process.alive]
        for node in self._alive():
            for other in self._alive():
                if other.role is node.role or not node.closing_at is other.closing_at is None:
                    continue
                peer = node.driver.peers.get(other.name.id)
                if peer is None or len(peer.epochs) != (1 if self._cluster.nats else len(brokers)):
                    raise Violation(f"{node.process.slot} does not know {other.process.slot} over all brokers")
        if self._cluster.nats:
            return
        peer_lists = {broker.process.slot: {p.name.id: p.epoch for p in broker.switch.peers} for broker in brokers}
        for node in self._alive():
            for peer in node.driver.peers.values():
                for carrier, epoch in peer.epochs.items():
                    if peer_lists[carrier.label].get(peer.id) != epoch:
                        raise Violation(f"{node.process.slot} knows a peer that {carrier.label} does not: {peer.info}")

    def _check_preferences(self) -> None:
        """Check that every session of an edge uses the path that the edge prefers, of those that have settled."""
        for node in (node for node in self._alive() if node.role is Role.EDGE and node.closing_at is None):
            now = node.process.boot_time()
            for peer in node.driver.peers.values():
                better = peer.session.epochs.better
                if better is not None and better[1] <= now:
                    raise Violation(f"{node.process.slot} has not moved its session with {peer.info.name.name}")

    def _check_published(self) -> None:
        """Check that the lowest key has the wanted port, and that each provider knows what edges say."""
        nodes = [node for node in self._alive() if node.closing_at is None]
        providers = [node for node in nodes if node.role is Role.PROVIDER]
        for edge in (node for node in nodes if node.role is Role.EDGE and self._cluster.publishes):
            status = edge.app.publication.status
            for provider in providers:
                names = [f"tcp://9000@{provider.process.slot}", f"tcp://*/default@{provider.process.slot}"]
                served = provider.driver.peers[edge.name.id].served
                told = {name: ([each.at] if each.at else [], each.reason or None) for name, each in served.items()}
                known = {name: (status[name]["at"], status[name]["problem"]) for name in names}
                if told != known:
                    raise Violation(f"{edge.process.slot} serves {known}, {provider.process.slot} knows {told}")
            owner = edge.app.publication.service_of_port(9000).rpartition("@")[2]
            if providers and owner > min(node.process.slot for node in providers):
                raise Violation(f"{edge.process.slot} has port 9000 for {owner}, whose key is not the lowest")


def _died_at(node: "Node") -> float:
    assert node.process.died_at is not None
    return node.process.died_at
