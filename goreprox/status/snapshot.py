"""Builds the status document from the counters of drivers, sessions and brokers, when it is asked for.

The work, like the document, does not grow with the number of streams: sums are kept as they change (`protocol.totals`),
and only the latest streams are listed.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol, TypedDict

from brokers import PeerName, RemoteCarrier, Router
from goreprox import __version__, build
from goreprox.control.message import Request
from goreprox.control.socket import Commands
from goreprox.process.clock import clock, iso
from goreprox.process.feed import Feed
from goreprox.process.instance import Instance
from goreprox.protocol.totals import Totals
from goreprox.status.document import (
    FORMAT,
    AcmeStatus,
    BrokerStatus,
    CertificateStatus,
    CheckStatus,
    ConnectionStatus,
    CountersStatus,
    Document,
    HttpStatus,
    LinkStatus,
    MemberStatus,
    PathStatus,
    PeerStatus,
    PublishedStatus,
    StreamsStatus,
)
from goreprox.status.events import EventList
from goreprox.status.ids import Ids
from goreprox.status.stream_log import StreamLog
from goreprox.status.streams import Owner as StreamsOwner
from goreprox.status.streams import StreamList
from goreprox.tunnel.attributes import machine_of, process_of
from goreprox.tunnel.bridge import Bridges
from goreprox.tunnel.connections import StreamOwner
from goreprox.tunnel.peer import Peer

LISTED: Final = 20
"""Open connections in the document; each takes at most 512 bytes."""


class Metrics(NamedTuple):
    """What only an edge or a provider knows."""

    services: dict[str, list[str]]
    """The addresses where clients of each are accepted (edge), or that are dialled for it (provider)."""
    limit: int
    """Connections at a time, at most."""
    waiting_clients: int = 0
    dialing: int = 0
    http: HttpStatus | None = None
    certificates: Sequence[CertificateStatus] = ()
    acme: Mapping[str, AcmeStatus] = MappingProxyType({})
    checks: Mapping[str, CheckStatus] = MappingProxyType({})
    """Of the services that are checked."""
    published: Mapping[str, PublishedStatus] = MappingProxyType({})


class Owner(StreamsOwner, Protocol):
    """An edge or a provider."""

    bridges: Bridges
    stream_log: StreamLog

    def metrics(self) -> Metrics:
        """Return the present values."""


@dataclass(frozen=True)
class Source:
    """A process, and those parts of it that the document is about."""

    instance: Instance
    ports: Callable[[], Mapping[str, int | Sequence[int]]] = dict
    """Returns where it listens for `clients`, `providers` and `edges`."""
    _: KW_ONLY
    owner: Owner | None = None
    router: Router | None = None
    links: Sequence[RemoteCarrier] = ()
    started_at: float = field(default_factory=time.time)
    started: float = field(default_factory=clock)
    own_feed: Feed = field(default_factory=Feed)
    """Of a process without an owner."""

    @property
    def feed(self) -> Feed:
        """What has happened in the process."""
        return self.own_feed if self.owner is None else self.owner.driver.feed

    @property
    def commands(self) -> Commands:
        """What the control socket serves."""
        ids = Ids(self.instance.incarnation)
        return {
            "status": self._status,
            **StreamList(ids, self.instance, self.owner).commands,
            **EventList(ids, self.feed).commands,
        }

    async def _status(self, _: Request) -> Document:
        return self.document()

    def document(self) -> Document:
        """Return a new document."""
        owner = self.owner
        driver = owner.driver if owner is not None else None
        metrics = owner.metrics() if owner is not None else Metrics({}, 0)
        return {
            "format": FORMAT,
            "version": __version__,
            "build": build(),
            "role": self.instance.role,
            "name": self.instance.name,
            "incarnation": _short(self.instance.incarnation),
            "pid": os.getpid(),
            "started_at": iso(self.started_at),
            "up_s": round(clock() - self.started, 3),
            "draining": driver is not None and driver.draining,
            "ports": {who: [ports] if isinstance(ports, int) else list(ports) for who, ports in self.ports().items()},
            "services": metrics.services,
            "checks": dict(metrics.checks),
            "published": dict(metrics.published),
            "streams": _streams(owner, metrics) if owner is not None else None,
            "peers": [_peer(peer) for peer in driver.peers.values() if not peer.gone] if driver is not None else [],
            "links": [_link(link) for link in self.links],
            "broker": _broker(self.router) if self.router is not None else None,
            "ends": owner.stream_log.last if owner is not None else [],
            "connections": _connections(owner) if owner is not None else [],
            "http": metrics.http,
            "certificates": list(metrics.certificates),
            "acme": dict(metrics.acme),
            "counters": _counters(owner.driver.budget.totals) if owner is not None else None,
        }


def _streams(owner: Owner, metrics: Metrics) -> StreamsStatus:
    budget = owner.driver.budget
    totals = budget.totals
    current = len(owner.bridges.connections) + metrics.dialing
    return {
        "open": current,
        "limit": metrics.limit,
        "total": owner.stream_log.count + current,
        "waiting_clients": metrics.waiting_clients,
        "refused_clients": totals.refused_clients.total(),
        "dialing": metrics.dialing,
        "sent_bytes": totals.sent_bytes,
        "received_bytes": totals.received_bytes,
        "borrowed_bytes": budget.pool_used_bytes,
        "lendable_bytes": budget.pool_bytes,
    }


def _counters(totals: Totals) -> CountersStatus:
    return {
        "streams": totals.streams,
        "sent_bytes": totals.sent_bytes,
        "received_bytes": totals.received_bytes,
        "outages": totals.outages,
        "replayed_bytes": totals.replayed_bytes,
        "resumes": totals.resumes,
        "resume_s": round(totals.resume_s, 3),
        "ends": dict(totals.ends),
        "refused_clients": dict(totals.refused_clients),
        "dial_failures": dict(totals.dial_failures),
    }


def _peer(peer: Peer) -> PeerStatus:
    session = peer.session
    counters = session.counters
    lost_at = session.epochs.lost_at
    down_s = None if lost_at is None else round(clock() - lost_at, 3)
    return {
        **_name(peer.info.name),
        "state": _state(peer),
        "down_s": down_s,
        "epoch": session.epochs.number,
        "services": list(peer.services),
        "paths": _paths(peer),
        "streams_open": len(session.streams),
        "streams_total": counters.opened,
        "sent_bytes": counters.sent_bytes,
        "received_bytes": counters.received_bytes,
        "scheduled_streams": session.scheduled_streams,
        "control_events": session.control_events,
        "outages": counters.outages,
        "replayed_bytes": counters.replayed_bytes,
        "process": process_of(peer.info.attributes),
        "machine": machine_of(peer.info.attributes),
        "up_s": round(clock() - peer.up_at, 3) if session.established and peer.up_at is not None else None,
    }


def _link(link: RemoteCarrier) -> LinkStatus:
    return {
        "label": link.label,
        "state": link.state.name.lower(),
        "since_s": round(link.since_s, 3),
        "problem": link.problem,
        "proxy": link.proxied,
    }


def _connections(owner: Owner) -> list[ConnectionStatus]:
    """Return some of the open ones, the latest first."""
    return [_connection(owner, each) for each in owner.bridges.connections.latest(LISTED)]


def _connection(owner: Owner, of: StreamOwner) -> ConnectionStatus:
    stream = of.stream
    peer = owner.driver.peer_of(stream)
    return {
        "client": stream.client,
        "service": stream.service,
        "peer": peer.info.name.name if peer is not None else None,
        "state": stream.state.value,
        "open_s": round(clock() - of.began_at, 3),
        "sent_bytes": stream.sent_bytes,
        "received_bytes": stream.received_bytes,
    }


def _state(peer: Peer) -> str:
    if peer.session.failed is not None:
        return "failed"
    if not peer.session.established:
        return "down"
    return "draining" if peer.session.peer_draining else "up"


def _paths(peer: Peer) -> list[PathStatus]:
    path = peer.session.path if peer.session.established else None
    paths: list[PathStatus] = []
    for carrier, epoch in peer.epochs.items():
        in_use = path is not None and path.path_id is carrier
        round_trip_s = path.srtt or None if path is not None and in_use else None
        paths.append(
            {"label": carrier.label, "in_use": in_use, "fabric_epoch": epoch, "round_trip_s": round_trip_s},
        )
    return paths


def _broker(router: Router) -> BrokerStatus:
    outboxes = router.outboxes
    members: list[MemberStatus] = []
    for peer in router.peers:
        messages, size = outboxes.get(peer.name.id, (0, 0))
        members.append(
            {**_name(peer.name), "fabric_epoch": peer.epoch, "outbox_messages": messages, "outbox_bytes": size}
        )
    return {"messages": router.messages, "dropped_messages": router.dropped, "members": members}


class _Name(TypedDict):
    name: str
    role: str
    incarnation: str


def _name(name: PeerName) -> _Name:
    return {"name": name.name, "role": str(name.role), "incarnation": _short(name.incarnation)}


def _short(incarnation: bytes) -> str:
    return incarnation.hex()[:8]
