"""The edge: gives each client to a provider of its service, at once or when one comes. Of a server or on its own."""

import random
import socket
from dataclasses import dataclass, field

from loguru import logger

from brokers import Role
from goreprox import sockets
from goreprox.balancer import Balancer, Candidate
from goreprox.bridge import Bridge, Bridges
from goreprox.config import MAX_WEIGHT, MIN_WEIGHT, AcceptingConfig, EdgeConfig
from goreprox.doors import Doors
from goreprox.driver import Driver, Peer, clock
from goreprox.lifetime import Lifetime
from goreprox.listeners import Listeners
from goreprox.log import listing
from goreprox.member import Member
from goreprox.poller import Poller
from goreprox.protocol.budget import Budget
from goreprox.protocol.events import Code
from goreprox.protocol.stream import Stream
from goreprox.snapshot import Ends, Gauges, Subject
from goreprox.status import answering
from goreprox.waiting import WaitingRoom


@dataclass(slots=True)
class _Tries:
    """Who has refused a stream; whether one of them did because it was about to end."""

    peers: set[bytes] = field(default_factory=set)
    draining: bool = False


class Edge:
    """Owns the client connections (driver.Application)."""

    def __init__(self, config: AcceptingConfig) -> None:
        """Listen on all addresses of `config`; `listeners.start` begins to accept.

        Raises:
            StartError: an address cannot be listened on.
        """
        self._config = config
        self._budget = Budget(total_bytes=config.memory_bytes, max_streams=config.max_connections)
        self.driver = Driver(self, role=Role.EDGE, budget=self._budget, grace_s=config.grace_s)
        poller = Poller(self.driver.batch)
        self.bridges = Bridges(poller, clock=clock, half_closed_timeout_s=config.half_closed_timeout_s)
        self.ends = Ends(self.driver)
        self.listeners = Listeners(
            config.listeners, poller, reuse_port=config.reuse_port, welcome=self._welcome, has_room=self._has_room
        )
        self.doors = Doors(config.allow, config.deny, config.max_connections_per_address)
        self._balancer = Balancer(random.Random())
        self._waiting = WaitingRoom(patience_s=config.grace_s, clock=clock)
        self._tries: dict[Stream, _Tries] = {}
        self._warned: set[str] = set()

    # Clients.

    def _has_room(self) -> bool:
        most = self._config.max_connections
        if len(self.bridges.live) < most:
            return True
        self._warn_once("max connections", f"{most} connections are open: new ones wait; raise --max-connections")
        return False

    def _welcome(self, sock: socket.socket, client: str, service: str) -> None:
        try:
            sockets.adopt(sock)
        except OSError:  # the client is gone already
            sock.close()
            return
        if self.doors.guarded and not self.doors.enter(_host(client), service):
            self._warn_once("doors", f"clients that may not come in are reset; the first of them: {client}")
            sock.close()  # and so the client sees a reset
            return
        stream = Stream(opener=True, service=service, client=client, budget=self._budget)
        bridge = Bridge(self.bridges, sock, stream, self._ended)
        if not self._assign(stream):
            self._wait(bridge)

    def _ended(self, bridge: Bridge) -> None:
        stream = bridge.stream
        if self.doors.guarded:
            self.doors.leave(_host(stream.client))
        self._tries.pop(stream, None)
        self._waiting.leave(bridge)
        self.ends.note(stream, stream.end_reason or "done")
        logger.debug("stream {} of {} ended: {}", stream.id, stream.client, stream.end_reason or "done")
        self.listeners.start()

    # Providers.

    def _assign(self, stream: Stream) -> bool:
        """Open `stream` at the best provider that has not refused it; return whether there is one."""
        tries = self._tries.get(stream)
        candidates = [
            Candidate(peer.info.name.id, len(peer.session.streams), _weight(peer))
            for peer in self.driver.peers.values()
            if peer.session.established
            and not peer.session.peer_draining
            and stream.service in peer.services
            and (tries is None or peer.info.name.id not in tries.peers)
        ]
        best = self._balancer.choose(stream.service, candidates, clock())
        if best is None:
            return False
        self.driver.peers[best].session.open(stream)
        return True

    def _wait(self, bridge: Bridge) -> None:
        if not self._waiting:
            logger.info("no provider for {}: clients wait up to {:g} s", bridge.stream.service, self._config.grace_s)
        self._waiting.enter(bridge)
        self._warn_of_unknown(bridge.stream.service)

    def _warn_of_unknown(self, service: str) -> None:
        """Say, once, that providers are there but none of them offers what a client came for."""
        if service in self._warned:
            return
        offered = {name for peer in self.driver.peers.values() if peer.session.established for name in peer.services}
        if offered and service not in offered:
            self._warn_once(
                service,
                f"clients come for the service {service}, which no provider offers; "
                f"offered: {listing(offered)}; is one of the names misspelt?",
            )

    def _warn_once(self, about: str, text: str) -> None:
        if about not in self._warned:
            self._warned.add(about)
            logger.warning("{}", text)

    # What the driver tells.

    def peers_changed(self) -> None:
        """Give waiting clients to whoever is there now."""
        for bridge in self._waiting.bridges:
            if self._assign(bridge.stream):
                self._waiting.leave(bridge)
        for service in {bridge.stream.service for bridge in self._waiting.bridges}:
            self._warn_of_unknown(service)

    def stream_opened(self, peer: Peer, stream: Stream) -> None:
        """Providers open no streams; the session refuses them before this."""
        stream.abort("edges take no streams")

    def stream_accepted(self, peer: Peer, stream: Stream) -> None:
        """The target is well; nobody else will get this stream."""
        self._balancer.accepted(peer.info.name.id, stream.service)
        self._tries.pop(stream, None)

    def stream_refused(self, peer: Peer, stream: Stream, code: Code, reason: str) -> None:
        """Try the next provider with the bytes so far, none of which has reached a target; reset when all refused.

        One that drains or is full is not avoided for it. One that drains is about to be replaced: wait for that.
        """
        tries = self._tries.setdefault(stream, _Tries())
        tries.peers.add(peer.info.name.id)
        logger.debug("{} refuses client {}: {}", peer.info.name.name, stream.client, reason)
        if code is Code.DRAINING:
            tries.draining = True
        elif code is not Code.FULL:
            self._balancer.failed(peer.info.name.id, stream.service, clock())
        if self._assign(stream):
            return
        bridge: Bridge = stream.owner
        if tries.draining or self._resuming(stream.service, tries):
            self._wait(bridge)
        else:
            logger.warning("client {} is reset: {}", stream.client, reason)
            bridge.abort(reason)

    def _resuming(self, service: str, tries: _Tries) -> bool:
        """Whether a provider that has not refused is there, by the roster, and only between two epochs."""
        return any(
            peer.epochs and service in peer.services and not peer.session.peer_draining
            for peer_id, peer in self.driver.peers.items()
            if peer_id not in tries.peers
        )

    def stream_dropped(self, stream: Stream) -> None:
        """Every stream here has an owner."""

    async def close(self, *, drain_s: float) -> None:
        """Stop accepting, let streams end for `drain_s`, reset the rest."""
        self.listeners.drain()
        self.driver.drain()
        await self.driver.wait_empty(lambda: not self.bridges.live, deadline_s=drain_s)
        for bridge in list(self.bridges.live):
            bridge.abort("the edge is shutting down")
        await self.driver.goodbye("the edge was shut down", deadline_s=1.0)

    def gauges(self) -> Gauges:
        """Return what the status shows of us (snapshot.Owner)."""
        return Gauges(self.listeners.services, self._config.max_connections, waiting_clients=len(self._waiting))


def _host(client: str) -> str:
    """Return the address of a client without its port."""
    return client.rpartition(":")[0].strip("[]")


def _weight(peer: Peer) -> float:
    """Return the share that a provider asks for; whatever is no weight counts as 1."""
    weight = peer.info.attributes.get("weight")
    return float(weight) if isinstance(weight, int | float) and MIN_WEIGHT <= weight <= MAX_WEIGHT else 1.0


async def run(config: EdgeConfig, life: Lifetime | None = None) -> None:
    """Be an edge of its own until a signal ends it.

    Raises:
        StartError: a port cannot be had, or the runtime directory not be used.
    """
    member = Member(config, "edge", Role.EDGE, services=config.services)
    edge = Edge(config)
    links = member.link(config.brokers, edge.driver, config.security)
    edge.listeners.start()
    brokers = ", ".join(map(str, config.brokers))
    subject = Subject(member.instance, {"clients": edge.listeners.ports}, owner=edge, links=links)
    async with answering(member.instance, subject.document):
        await (life or Lifetime()).serve(
            edge, links, drain_s=config.drain_s, ready=f"{edge.listeners}, brokers at {brokers}", **subject.ports
        )
