"""Fleets: `python -m tests.sim.fleet`, what they cost each process, and what the loss of a broker or a region costs.

Real parts without sockets: the switch of each broker, which gets the hellos of all peers, and whose messages are
counted; the inboxes of the edges; for each pair of an edge and a provider the choice of its path. What one session, one
resume and one stream cost is measured with real sessions, and multiplied: the larger fleet is arithmetic.

Services are spread evenly over providers, and edges listen for some of them. Brokers are in regions. Each edge has a
link to every broker, each provider to `USES` of them, in different regions.
"""

import gc
import random
import statistics
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import cyclopts

from brokers import Buffer, Carrier, PeerInfo, PeerName, Role
from brokers.envelope import FABRIC_VERSION, FABRIC_VERSION_LEAST, Hello, control
from brokers.inbox import Inbox
from brokers.interest import interest_attribute, interest_in
from brokers.switch import Output, Switch
from goreprox.protocol.budget import Budget
from goreprox.protocol.limits import MIB, SETTLE_MIN_S, STEADY_S, VERSION, VERSION_LEAST
from goreprox.protocol.paths import Paths, rank
from goreprox.protocol.session import Session
from goreprox.protocol.stream import Stream
from goreprox.roles.balancer import Balancer
from goreprox.roles.offers import Offers
from goreprox.tunnel.peer import Peer
from tests.support.peer import establish

USES = 2
SETTLED_S = 1.5 * SETTLE_MIN_S
REST_S = 2 * STEADY_S
"""Between two restarts of brokers."""
KIB = 1024


@dataclass(frozen=True)
class Shape:
    """How large a fleet is."""

    brokers: int = 10
    edges: int = 100
    providers: int = 10_000
    services: int = 200
    listens: int = 10
    """Services that an edge listens for."""
    regions: int = 5

    @property
    def pairs(self) -> float:
        """Edges and providers with a common service, on average."""
        return self.providers * self.edges * self.listens / self.services


class Member:
    """An edge or a provider: which services and brokers it has, and what it was told."""

    def __init__(
        self, fleet: "Fleet", role: Role, number: int, services: Sequence[str], brokers: Sequence[int]
    ) -> None:
        self.name = PeerName(role, f"{role}{number}", fleet.random.randbytes(16))
        self.services = services
        self.brokers = brokers
        self.messages = self.bytes = 0
        self.paths: dict[bytes, Paths] = {}
        """Of an edge: to each provider that it has heard of."""
        self._fleet = fleet
        self._inboxes: dict[int, Inbox] = {}

    def hello(self) -> list[Buffer]:
        attributes = {"protocol": [VERSION_LEAST, VERSION], "services": list(self.services), "weight": 1}
        attributes |= {"process": str(self.name.role), "machine": self.name.name}
        attributes |= interest_attribute(interest_in(self.services))
        return control(Hello(FABRIC_VERSION, FABRIC_VERSION_LEAST, 1, attributes))

    def hear(self, broker: int, frames: list[Buffer]) -> None:
        self.messages += 1
        self.bytes += sum(map(len, frames))
        if self.name.role is Role.EDGE:
            if broker not in self._inboxes:
                self._inboxes[broker] = Inbox(_Way(broker, self), self)
            self._inboxes[broker].receive(frames)

    # What an inbox tells (brokers.Receiver).

    def carrier_up(self, carrier: Carrier) -> None: ...

    def carrier_down(self, carrier: Carrier, reason: str) -> None:
        for paths in self.paths.values():
            paths.remove(int(carrier.label))

    def peer_up(self, carrier: Carrier, peer: PeerInfo) -> None:
        paths = self.paths.setdefault(peer.name.id, Paths())
        paths.add(int(carrier.label), rank(self.name.id, peer.name.id, carrier.label), self._fleet.now)

    def peer_down(self, carrier: Carrier, peer_id: bytes, reason: str) -> None:
        self.paths[peer_id].remove(int(carrier.label))
        if not self.paths[peer_id]:
            del self.paths[peer_id]

    def message(self, carrier: Carrier, peer_id: bytes, frames: list[Buffer]) -> None: ...

    def lose(self, broker: int) -> None:
        """Lose the link to a broker."""
        if broker in self._inboxes:
            self._inboxes[broker].down("lost")

    def used(self) -> Iterator[tuple[bytes, int]]:
        """Yield which broker the session with each provider uses that can be reached."""
        for peer_id, paths in self.paths.items():
            if len(paths):
                broker = paths.next(self._fleet.now)
                assert isinstance(broker, int)
                yield peer_id, broker


class _Way:
    """The carrier of an edge, for its inbox."""

    def __init__(self, broker: int, _: Member) -> None:
        self.label = str(broker)

    def send(self, peer_id: bytes, frames: Sequence[Buffer]) -> bool:
        raise AssertionError("nothing is sent")

    def link_condition(self, peer_id: bytes) -> None: ...

    def announce(self, attributes: object) -> None: ...

    async def close(self, *, linger_s: float) -> None: ...


class Fleet:
    """All brokers, edges and providers."""

    def __init__(self, shape: Shape, seed: int = 1) -> None:
        self.shape = shape
        self.random = random.Random(seed)
        self.now = 0.0
        self.hello_s: list[float] = []
        """CPU time of a broker for each hello, with what it sends because of it."""
        names = [f"service-{number}" for number in range(shape.services)]
        self.edges = [
            Member(self, Role.EDGE, number, self.random.sample(names, shape.listens), range(shape.brokers))
            for number in range(shape.edges)
        ]
        self.providers = [
            Member(self, Role.PROVIDER, number, [names[number % shape.services]], self._somewhere())
            for number in range(shape.providers)
        ]
        self.switches: dict[int, Switch] = {}
        for broker in range(shape.brokers):
            self.start(broker)

    def region(self, broker: int) -> int:
        return broker % self.shape.regions

    def _somewhere(self) -> list[int]:
        """Return brokers in different regions."""
        regions = self.random.sample(range(self.shape.regions), USES)
        return [self.random.choice(range(region, self.shape.brokers, self.shape.regions)) for region in regions]

    def start(self, broker: int) -> None:
        """Start a broker; all of its peers connect, in any order."""
        members = {each.name: each for each in (*self.edges, *self.providers) if broker in each.brokers}
        switch = self.switches[broker] = Switch(lease_s=4.0, max_peers=len(members))
        for member in self.random.sample(list(members.values()), len(members)):
            began = time.process_time()
            outputs = switch.receive(member.name, member.name, member.hello(), self.now)
            self.hello_s.append(time.process_time() - began)
            self._deliver(broker, outputs, members)

    def _deliver(self, broker: int, outputs: Sequence[Output], members: dict[PeerName, Member]) -> None:
        for key, frames in outputs:
            assert isinstance(key, PeerName)
            members[key].hear(broker, frames)

    def stop(self, *brokers: int) -> None:
        """Lose brokers."""
        for broker in brokers:
            del self.switches[broker]
            for edge in self.edges:
                edge.lose(broker)

    def settle(self) -> None:
        """Let all paths settle."""
        self.now += SETTLED_S

    def used(self) -> dict[tuple[bytes, bytes], int]:
        """Return by pair of an edge and a provider which broker it uses."""
        return {(edge.name.id, peer_id): broker for edge in self.edges for peer_id, broker in edge.used()}


def spread(where: dict[tuple[bytes, bytes], int], brokers: int) -> tuple[float, float]:
    """Return the least and the largest share of a broker, as parts of an even one."""
    shares = Counter(where.values())
    even = len(where) / brokers
    return min(shares[broker] for broker in shares) / even, max(shares.values()) / even


def rolling(edges: int, providers: int, brokers: int) -> tuple[float, float, float, float]:
    """Restart each of so many brokers, one pair of peers after the other.

    Return the least and the largest share of a broker, before or after any restart, the largest while one is away, and
    how many times a pair moves or resumes. All edges know all providers.
    """
    dice = random.Random(1)
    names = [[dice.randbytes(17) for _ in range(count)] for count in (edges, providers)]
    labels = [f"broker-{number}:9888" for number in range(brokers)]
    rest: list[Counter[object]] = [Counter() for _ in range(brokers + 1)]
    away: list[Counter[object]] = [Counter() for _ in range(brokers)]
    changes = 0
    for edge in names[0]:
        for provider in names[1]:
            ranks = {label: rank(edge, provider, label) for label in labels}
            paths, now = Paths(), 0.0
            for label in labels:
                paths.add(label, ranks[label], now)
            now += REST_S
            used = paths.next(now)
            rest[0][used] += 1
            for number, label in enumerate(labels):
                paths.remove(label)
                if used == label:
                    paths.lost(label, now, used_s=REST_S, moved=True)
                    used, changes = paths.next(now), changes + 1
                away[number][used] += 1
                paths.add(label, ranks[label], now)
                better = paths.better(used)
                if better is not None and better[1] <= now + SETTLED_S:
                    used, changes = better[0], changes + 1
                now += REST_S
                rest[number + 1][used] += 1
    even = edges * providers / brokers
    shares = [each[label] / even for each in rest for label in labels]
    most_away = max(max(each.values()) for each in away) / even
    return min(shares), max(shares), most_away, changes / edges / providers


# What one of each costs, by real sessions.


def _session(opener: bool, budget: Budget) -> Session:
    return Session(opener=opener, version=1, budget=budget, grace_s=60.0, wake=lambda: None, now=0.0)


def session_bytes(count: int = 500) -> float:
    """Return the memory of a session without streams, and of what is known of its peer."""
    budget = Budget(total_bytes=256 * MIB, max_streams=10_000)
    gc.collect()
    tracemalloc.start()
    kept = []
    for number in range(count):
        session = _session(True, budget)
        establish(session)
        session.notices.clear()
        name = PeerName(Role.PROVIDER, f"provider{number}", number.to_bytes(16))
        kept.append(Peer(PeerInfo(name, 1, {"services": [f"service{number}"], "machine": f"m{number}"}), session))
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return size / len(kept)


def resume_s(count: int = 200) -> float:
    """Return the CPU time, for both ends together, of a session that goes from one path to another."""
    budget = Budget(total_bytes=256 * MIB, max_streams=10_000)
    took = []
    for _ in range(count):
        ends = {True: _session(True, budget), False: _session(False, budget)}
        for session in ends.values():
            for path in "ab":
                session.path_up(path, 0.0)
        _exchange(ends)
        began = time.process_time()
        for session in ends.values():
            session.path_down("a", 1.0)
        _exchange(ends)
        took.append(time.process_time() - began)
        assert all(session.established and session.uses("b") for session in ends.values())
    return statistics.median(took)


def _exchange(ends: dict[bool, Session]) -> None:
    quiet = 0
    while quiet < 2:
        for opener, session in ends.items():
            messages = session.flush(1.0)
            quiet = 0 if messages else quiet + 1
            for path, frames in messages:
                ends[not opener].receive(path, frames, 1.0)


def stream_s(providers: int, count: int = 2000) -> float:
    """Return the CPU time of an edge to choose one of so many providers and to open a stream there."""
    budget = Budget(total_bytes=256 * MIB, max_streams=10_000)
    rng = random.Random(1)
    offers, balancer, peers = Offers(rng), Balancer(rng), {}
    for number in range(providers):
        session = _session(True, budget)
        establish(session)
        peer = Peer(PeerInfo(PeerName(Role.PROVIDER, "p", number.to_bytes(16)), 1, {"services": ["web"]}), session)
        peers[peer.id] = peer
        offers.update(peer)
        session.flush(0.0)
    gc.collect()
    began = time.process_time()
    for _ in range(count):
        candidates = offers.candidates("web", without=(), well=lambda each: balancer.well("web", each, 0.0))
        best = balancer.choose("web", candidates, 0.0)
        assert best is not None
        session = peers[best].session
        session.open(Stream(opener=True, service="web", client="test", budget=budget))
        session.flush(0.0)
    return (time.process_time() - began) / count


# The report.


def main(
    *, brokers: int = 10, edges: int = 100, providers: int = 10_000, services: int = 200, pairs: bool = True
) -> None:
    """Simulate a fleet, and print what is measured, and what follows for one that is ten times as large."""
    shape = Shape(brokers=brokers, edges=edges, providers=providers, services=services)
    if pairs:
        least, most, away, changes = rolling(1000, 1000, 4)
        say("1,000 edges × 1,000 providers × 4 brokers, each restarted")
        say(f"  share of a broker: {least:.3f} to {most:.3f} of even, at most {away:.3f} while one is away")
        say(f"  changes of path: {changes:.2f} a pair, for 4 restarts")
    per_session, per_resume = session_bytes(), resume_s()
    say(f"one session: {per_session / KIB:.1f} KiB; one resume: {per_resume * 1e6:.0f} us of CPU at both ends together")
    for count in (50, 500, 5000):
        say(f"  a stream to one of {count:,} providers: {stream_s(count) * 1e6:.0f} us of CPU at the edge")
    fleet = Fleet(shape)
    before = fleet_report(fleet, per_session)
    losses(fleet, before, per_resume, lambda: fleet.stop(0), "a broker")
    fleet.start(0)
    fleet.settle()
    say(f"    back where they were, once it is: {fleet.used() == before}")
    region = [broker for broker in fleet.switches if fleet.region(broker) == 1]
    losses(fleet, before, per_resume, lambda: fleet.stop(*region), f"a region with {len(region)} brokers")
    larger = Shape(
        brokers=10 * brokers, edges=10 * edges, providers=10 * providers, services=10 * services, listens=shape.listens
    )
    arithmetic(larger, fleet, per_session, per_resume)


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def fleet_report(fleet: Fleet, per_session: float) -> dict[tuple[bytes, bytes], int]:
    """Print what joining costs each process; return which broker each pair uses."""
    shape = fleet.shape
    say(f"{shape.brokers} brokers × {shape.edges} edges × {shape.providers:,} providers, simulated")
    peers = [len(switch.peers) for switch in fleet.switches.values()]
    say(f"  peers of a broker: {min(peers):,} to {max(peers):,}; CPU for a hello: {1e6 * mean(fleet.hello_s):.0f} us")
    for role, members in (("edge", fleet.edges), ("provider", fleet.providers)):
        heard = mean([each.messages for each in members])
        size = mean([each.bytes for each in members])
        say(f"  peer lists told to {role}s: {heard:,.0f} messages and {size / KIB:,.0f} KiB each, from all brokers")
    sessions = [len(edge.paths) for edge in fleet.edges]
    say(f"  sessions of an edge: {mean(sessions):,.0f}, {mean(sessions) * per_session / MIB:,.1f} MiB of memory")
    fleet.settle()
    used = fleet.used()
    shared = [sum(1 for each in fleet.providers if set(each.services) & set(edge.services)) for edge in fleet.edges]
    say(f"  of {mean(sessions):,.0f} providers that an edge knows, {mean(shared):,.0f} offer what it listens for")
    least, most = spread(used, shape.brokers)
    say(f"  share of a broker: {least:.2f} to {most:.2f} of even")
    return used


def losses(
    fleet: Fleet,
    before: dict[tuple[bytes, bytes], int],
    per_resume: float,
    lose: Callable[[], None],
    what: str,
) -> None:
    """Print what it costs to lose something."""
    lose()
    after = fleet.used()
    moved = Counter(pair[0] for pair, broker in after.items() if before[pair] != broker)
    worst = max(moved.values())
    say(f"  loss of {what}: {len(before) - len(after)} of {len(before):,} pairs have no path, {moved.total():,} resume")
    say(f"    at most {worst:,} of an edge: {worst * per_resume:.2f} s of CPU at both ends, most of it at the edge")


def arithmetic(shape: Shape, fleet: Fleet, per_session: float, per_resume: float) -> None:
    """Print what follows for a fleet in which each edge listens for as many services with as many providers."""
    small = fleet.shape
    say(f"{shape.brokers} brokers × {shape.edges:,} edges × {shape.providers:,} providers, arithmetic from the above")
    chance = shape.listens / 256
    offering = shape.providers * shape.listens / shape.services
    known = offering + (shape.providers - offering) * chance
    say(f"  peers of a broker: {shape.edges + shape.providers * USES / shape.brokers:,.0f}")
    say(f"  an edge knows {known:,.0f} providers, {offering:,.0f} of them by service and the others by chance")
    say(f"  sessions of an edge: {known * per_session / MIB:,.0f} MiB of memory")
    each = mean([member.bytes / max(member.messages, 1) for member in fleet.edges])
    say(f"  peer lists told to an edge: {known * USES:,.0f} messages, {known * USES * each / MIB:,.1f} MiB")
    lost = known / shape.brokers
    say(f"  loss of a broker: {lost:,.0f} resumes of an edge, {lost * per_resume:.3f} s of CPU at both ends")
    region = shape.brokers / small.regions
    say(f"  loss of a region: {lost * region:,.0f} resumes of an edge, {lost * region * per_resume:.2f} s")


def mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)


if __name__ == "__main__":
    cyclopts.run(main)
