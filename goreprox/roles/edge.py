"""The edge: gives each client to a provider of its service, at once or when one comes. Of a server or on its own."""

import functools
import socket
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from typing import Final

from loguru import logger

from brokers import LimitedLog, Role
from goreprox.config.addresses import Address, Listener, Scheme
from goreprox.config.networks import parse_client
from goreprox.config.roles import AcceptingConfig, EdgeConfig, ServerConfig
from goreprox.config.routes import Routes
from goreprox.http.auth import Auth
from goreprox.http.client import Front, Fronts
from goreprox.http.exchange import Site
from goreprox.http.forwarding import Forwarding
from goreprox.http.provider_stream import Upstream
from goreprox.http.writer import refusal
from goreprox.net import sockets
from goreprox.net.access import Doors
from goreprox.net.certificates import Certificates, Identity, reason
from goreprox.net.handshakes import Handshakes
from goreprox.net.listeners import Listeners
from goreprox.net.poller import Poller
from goreprox.net.proxies import Proxies
from goreprox.net.sockets import Socket
from goreprox.net.tls import TlsSocket
from goreprox.process.clock import clock
from goreprox.process.lifetime import Lifetime
from goreprox.process.log import listing
from goreprox.protocol.budget import Budget
from goreprox.protocol.events import Code
from goreprox.protocol.limits import ACKS_BEFORE_EOF
from goreprox.protocol.stream import Stream
from goreprox.roles.dispatch import Dispatcher
from goreprox.roles.member import Member
from goreprox.status.document import answering
from goreprox.status.snapshot import Ends, Gauges, Subject
from goreprox.tunnel.attributes import Port, ports
from goreprox.tunnel.bridge import Bridge, Bridges
from goreprox.tunnel.connections import StreamOwner
from goreprox.tunnel.driver import Driver, wait_until
from goreprox.tunnel.peer import Peer

_NOT_HTTPS: Final = refusal(HTTPStatus.BAD_REQUEST, "this port speaks HTTPS; write https://")


class Edge:
    """Owns the client connections (driver.Application, http.front.Providers)."""

    def __init__(self, config: AcceptingConfig) -> None:
        """Listen on all addresses of `config`; `listeners.start` begins to accept.

        Raises:
            StartError: an address cannot be listened on, or the file of tokens or a certificate not be used.
        """
        self._config = config
        self._process = "server" if isinstance(config, ServerConfig) else "edge"
        self._budget = Budget(total_bytes=config.memory_bytes, max_streams=config.max_connections)
        self.driver = Driver(self, role=Role.EDGE, budget=self._budget, grace_s=config.grace_s)
        poller = Poller(self.driver.batch)
        self.bridges = Bridges(poller, clock=clock, half_closed_timeout_s=config.half_closed_timeout_s)
        self.fronts = Fronts(self.bridges, self, self._budget)
        self.ends = Ends(self.driver)
        self.listeners = Listeners(
            config.listeners, poller, reuse_port=config.reuse_port, welcome=self._welcome, has_room=self._has_room
        )
        self.proxies = Proxies(poller, welcome=self._admit, left=self.listeners.start)
        self.doors = Doors(config.allow, config.deny, *config.address_limit)
        self._sites = _sites(config, self.doors)
        self._certificates = None
        if config.tls_cert is not None and config.tls_key is not None:
            self._certificates = Certificates(
                config.tls_cert, config.tls_key, config.tls_client_ca, alpn=config.tls_alpn
            )
        self._handshakes = Handshakes(poller)
        self._log = LimitedLog()
        self.dispatcher = Dispatcher(
            self.driver,
            self._log,
            services=config.services,
            patience_s=config.grace_s,
            queue_timeout_s=config.queue_timeout_s,
            lost=self.fronts.providers_changed,
        )

    # Clients.

    @property
    def connections(self) -> int:
        """Client connections, and streams of HTTP clients that have gone."""
        return len(self.bridges.connections) + self.fronts.idle + len(self.proxies) + len(self._handshakes)

    def _has_room(self) -> bool:
        most = self._config.max_connections
        if self.connections < most:
            return True
        self._log.say("full", f"{most} connections are open: new ones wait; raise --max-connections")
        return False

    def _welcome(self, sock: socket.socket, client: str, listener: Listener) -> None:
        try:
            sockets.adopt(sock)
            destination = str(Address(*sock.getsockname()[:2]))
        except OSError:  # the client is gone already
            sock.close()
            return
        rules = self._config.proxy_protocol_from
        if rules and any(rule.covers(parse_client(_host(client)), self._places(listener)) for rule in rules):
            self.proxies.hear(sock, client, destination, listener)
        else:
            self._admit(sock, client, destination, listener)

    def _places(self, listener: Listener) -> tuple[str, str]:
        routed = listener.scheme.is_http and self._config.routes
        return str(listener.address.port), "" if routed else listener.service

    def _admit(self, sock: socket.socket, client: str, destination: str, listener: Listener) -> None:
        """Serve a client whose address is known, unless it may not come in."""
        host, places = _host(client), self._places(listener)
        if self.doors.guarded and not self.doors.enter(host, *places):
            text = f"client {client} is reset: {self.doors.objection(host, *places)}"
            self._log.say("client_denied", text, client=client)
            sock.close()  # and so the client sees a reset
            return
        if not listener.scheme.is_tls:
            self._serve(client, destination, listener, sock)
            return
        assert self._certificates is not None
        self._handshakes.begin(
            sock,
            self._certificates.context(listener.scheme),
            admit=functools.partial(self._greeted, client, destination, listener),
            lose=functools.partial(self._not_greeted, client),
            plaintext=_NOT_HTTPS if listener.scheme.is_http else b"",
        )

    def _serve(
        self, client: str, destination: str, listener: Listener, sock: Socket, certificate: Identity | None = None
    ) -> None:
        if listener.scheme.is_http:
            Front(self.fronts, sock, client, destination, self._sites[listener], certificate=certificate)
            return
        stream = Stream(
            opener=True, service=listener.service, client=client, destination=destination, budget=self._budget
        )
        self.connect(Bridge(self.bridges, sock, stream, self.bridge_ended))

    def _greeted(self, client: str, destination: str, listener: Listener, sock: TlsSocket) -> None:
        certificate = sock.identity
        if certificate is not None:
            logger.debug("client {} has the certificate of {}", client, certificate.name, event="client_certificate")
        self._serve(client, destination, listener, sock, certificate)

    def _not_greeted(self, client: str, exc: OSError) -> None:
        why = reason(exc)
        logger.debug("no TLS with client {}: {}", client, why, event="tls_ended")
        if not isinstance(exc, ConnectionError):
            self.doors.refused += 1
            self._log.say("tls_failed", f"the TLS handshake with client {client} failed: {why}")
        self.client_ended(client)

    def connect(self, joint: StreamOwner) -> None:
        """Open its stream at a provider, now or when one comes."""
        self.dispatcher.connect(joint)

    def reusable(self, stream: Stream) -> bool:
        """Whether the provider of a stream is there, and takes requests."""
        peer = self.driver.peer_of(stream)
        return peer is not None and peer.available

    def provider_of(self, stream: Stream) -> tuple[str | None, int | None]:
        """Return the name of a stream's provider and how many outages there were so far, if it has one."""
        peer = self.driver.peer_of(stream)
        return (None, None) if peer is None else (peer.info.name.name, peer.session.counters.outages)

    def tells_delivery(self, stream: Stream) -> bool:
        """Whether the provider of a stream has acknowledged all it delivered before it told of an end or a reset."""
        peer = self.driver.peer_of(stream)
        return peer is not None and peer.info.attributes.get(ACKS_BEFORE_EOF) is True

    def bridge_ended(self, bridge: Bridge) -> None:
        """A client is gone, and its stream is over."""
        self._stream_ended(bridge)
        self.client_ended(bridge.stream.client)

    def upstream_ended(self, upstream: Upstream) -> None:
        """A stream of an HTTP client is over."""
        self._stream_ended(upstream)
        self.listeners.start()

    def client_ended(self, client: str) -> None:
        """A client is gone."""
        if self.doors.guarded:
            self.doors.leave(_host(client))
        self.listeners.start()

    def _stream_ended(self, joint: StreamOwner) -> None:
        stream = joint.stream
        self.dispatcher.ended(joint)
        self.ends.note(stream, stream.end_reason or "done")
        reason = stream.end_reason or "done"
        logger.debug("stream {} of {} ended: {}", stream.id, stream.client, reason, event="stream_ended", reason=reason)

    # What the driver tells.

    def peer_changed(self, peer: Peer) -> None:
        """Take note of what a provider is and offers now."""
        self.dispatcher.peer_changed(peer)

    def stream_opened(self, peer: Peer, stream: Stream) -> None:
        """Providers open no streams; the session refuses them before this."""
        stream.abort("edges take no streams")

    def stream_accepted(self, peer: Peer, stream: Stream) -> None:
        """The target is well."""
        self.dispatcher.accepted(peer, stream)

    def stream_refused(self, peer: Peer, stream: Stream, code: Code, reason: str) -> None:
        """Another provider may take it."""
        self.dispatcher.refused(peer, stream, code, reason)

    def stream_unsent(self, stream: Stream) -> None:
        """It has never left this process: any provider may have it."""
        self.dispatcher.connect(stream.owner)

    def stream_dropped(self, stream: Stream) -> None:
        """Every stream here has an owner."""

    async def close(self, *, drain_s: float) -> int:
        """Stop accepting, let streams end for `drain_s`, reset the rest; return how many."""
        self.listeners.drain()
        self.fronts.drain()
        self.driver.drain()
        await wait_until(self._is_drained, deadline_s=drain_s)
        reset = self.connections
        self.proxies.close()
        self._handshakes.close()
        for front in list(self.fronts.live):
            front.abort()
        for joint in self.bridges.connections:
            joint.abort("the edge is shutting down")
        await self.driver.goodbye(f"the {self._process} was shut down", deadline_s=1.0)
        return reset

    def _is_drained(self) -> bool:
        """Whether all clients are gone; those that wait for a provider, and have sent all they had, wait no longer."""
        self.dispatcher.drain("the edge is shutting down")
        return not any((self.bridges.connections, self.fronts.live, self.proxies, self._handshakes))

    def introduce(self, member: Member) -> None:
        """Let the roster say where clients come in, now and when there is more to tell."""
        member.attributes |= ports(self._ports())
        self.dispatcher.attributes = member.attributes

    def _ports(self) -> Iterator[Port]:
        """Yield where clients come in; several addresses of one listener only once, requests by their hosts."""
        for listener, address in dict(self.listeners.addresses).items():
            scheme, host, port = listener.scheme, listener.address.host or "", int(address.rpartition(":")[2])
            if not (scheme.is_http and self._config.routes):
                yield Port(listener.service, scheme.value, host, port)
                continue
            for route in self._config.routes:
                yield Port(route.service, scheme.value, host if "*" in route.host else route.host, port)

    def gauges(self) -> Gauges:
        """Return what the status shows of us (snapshot.Owner)."""
        services: dict[str, list[str]] = {}
        for listener, address in self.listeners.addresses:
            for service in self._config.services_of(listener):
                services.setdefault(service, []).append(address)
        return Gauges(
            services,
            self._config.max_connections,
            waiting_clients=self.dispatcher.waiting_clients,
            refused_clients=self.doors.refused,
        )


def entrances(config: AcceptingConfig, found: Iterable[tuple[Listener, int]]) -> str:
    """Say for people which services clients find at which ports."""
    places = (
        f"{'' if listener.scheme is Scheme.TCP else f'{listener.scheme.value}://'}:{port} "
        f"({listing(config.services_of(listener))})"
        for listener, port in found
    )
    return f"clients on {', '.join(dict.fromkeys(places))}"


def _sites(config: AcceptingConfig, doors: Doors) -> dict[Listener, Site]:
    """Return what HTTP listeners know.

    Raises:
        StartError: the file of tokens cannot be used.
    """
    listeners = [listener for listener in config.listeners if listener.scheme.is_http]
    auth = None
    if config.auth_tokens is not None:
        auth = Auth(config.auth_tokens, config.auth_header, clock=clock)
        plain = [listener.address for listener in listeners if listener.scheme is Scheme.HTTP]
        exposed = [str(address) for address in plain if not address.is_loopback]
        if exposed:
            logger.bind(event="plaintext_tokens").warning(
                "tokens arrive unencrypted on {}; listen with https://", ", ".join(exposed)
            )
    routes = Routes(config.routes) if config.routes else None
    closed = doors.closed_to if doors.has_rules else None
    return {
        listener: Site(
            listener.service,
            auth,
            Forwarding(config.trusted_proxies, listener.scheme.value.encode(), config.http.via),
            routes,
            closed,
            config.http,
            logs=config.access_log,
        )
        for listener in listeners
    }


def _host(client: str) -> str:
    """Return the address of a client without its port."""
    return client.rpartition(":")[0].strip("[]")


async def run(config: EdgeConfig, life: Lifetime | None = None) -> None:
    """Be an edge of its own until a signal ends it.

    Raises:
        StartError: a port cannot be had, or the runtime directory not be used.
    """
    member = Member(config, "edge", Role.EDGE, services=config.services)
    edge = Edge(config)
    edge.introduce(member)
    links = member.link(config.brokers, edge.driver, config.security)
    edge.listeners.start()
    brokers = ", ".join(map(str, config.brokers))
    subject = Subject(member.instance, {"clients": edge.listeners.ports}, owner=edge, links=links.all)
    async with answering(member.instance, subject.document):
        await (life or Lifetime()).serve(
            edge,
            links.all,
            drain_s=config.drain_s,
            ready=f"{entrances(config, edge.listeners.found)}, brokers at {brokers}",
            connection=links,
            **subject.ports,
        )
