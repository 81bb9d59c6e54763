"""The edge: accepts clients, and gives each to a provider of its service. In a server, or a process of its own.

All that happens to clients, and what they need, meets here, hence so long.
"""

import functools
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

from brokers import LimitedLog, Role
from goreprox.config.addresses import Listener
from goreprox.config.published import is_published
from goreprox.config.reloads import Configuration
from goreprox.config.roles import EdgeConfig, ServerConfig
from goreprox.control.socket import Commands, serving
from goreprox.endpoint import Endpoint
from goreprox.errors import StartError
from goreprox.http.client import ClientConnection
from goreprox.http.clients import ClientConnections
from goreprox.http.exchange import Site
from goreprox.http.provider_stream import ProviderStream
from goreprox.inspector.commands import Inspection
from goreprox.net.access import Access
from goreprox.net.link_tls import Trust
from goreprox.net.listeners import Open
from goreprox.net.poller import Poller
from goreprox.process.clock import clock
from goreprox.process.handover import Handover, Inherited
from goreprox.process.lifetime import Lifetime
from goreprox.process.log import counted
from goreprox.protocol.budget import Budget
from goreprox.protocol.limits import ACKS_BEFORE_EOF
from goreprox.protocol.stream import Stream
from goreprox.protocol.totals import EndCode
from goreprox.roles.acme import Acme
from goreprox.roles.admission import Admission, Client
from goreprox.roles.assignment import Assignment
from goreprox.roles.cluster import check_installed as check_nats
from goreprox.roles.connection_log import ConnectionLog
from goreprox.roles.dashboard import Dashboard
from goreprox.roles.drain import Drain
from goreprox.roles.edge_state import EdgeState, restored_listeners
from goreprox.roles.entrances import announced, by_service, entrances
from goreprox.roles.former import FormerServices
from goreprox.roles.health import Health, Readiness, check_moved
from goreprox.roles.member import Member
from goreprox.roles.reload import Reload
from goreprox.roles.replays import connect
from goreprox.roles.sites import auth_of, requests_of, sites_of
from goreprox.roles.upgrade import Before, Upgrade
from goreprox.roles.whereabouts import opening_of, publication_of
from goreprox.status.snapshot import Metrics, Source
from goreprox.status.stream_log import StreamLog
from goreprox.tunnel.attributes import ports
from goreprox.tunnel.bridge import Bridge, Bridges
from goreprox.tunnel.connections import StreamOwner
from goreprox.tunnel.driver import wait_until
from goreprox.tunnel.pace import Paces

Apply = Callable[[EdgeConfig], Awaitable[None]]
"""Takes over a configuration; raises StartError if it cannot, and nothing has changed then."""
Control = Callable[[Apply, Health, Upgrade], Commands]
"""Gets what takes over a configuration, and what upgrades; returns commands."""


class Edge:
    """Joins clients to providers: admission, a bridge or an HTTP client, assignment (http.clients.Providers)."""

    def __init__(self, config: EdgeConfig | ServerConfig, inherited: Sequence[Open] = ()) -> None:
        """Listen on all addresses of `config`; `listeners.start` begins to accept.

        Listening sockets that are `inherited` are used where they fit.

        Raises:
            StartError: an address cannot be listened on, or the file of tokens or a certificate not be used.
        """
        clients, connections = config.clients, config.connections
        self._clients = clients
        self._max_connections = connections.max_connections
        self._process = "server" if isinstance(config, ServerConfig) else "edge"
        self._log = LimitedLog()
        self._connection_log = ConnectionLog()
        self._budget = Budget(total_bytes=connections.memory_bytes, max_streams=connections.max_connections)
        self.assignment = Assignment(
            self._budget,
            services=clients.services,
            grace_s=connections.grace_s,
            queue_timeout_s=clients.http.queue_timeout_s,
            most=clients.limits.most_connections,
            lost=self._providers_changed,
        )
        self.driver = self.assignment.driver
        poller = Poller(self.driver.batch)
        self.bridges = Bridges(poller, clock=clock, half_closed_timeout_s=connections.half_closed_timeout_s)
        self._paces = Paces(clock, clients.limits.bytes_per_s)
        self.bridges.pace_of = self._paces.of
        self.http_clients = ClientConnections(self.bridges, self, self._budget)
        self.stream_log = StreamLog(self.driver)
        self._access = Access(
            clients.allow,
            clients.deny,
            *clients.address_limit(connections.max_connections),
            refused=self._budget.totals.refused_clients,
        )
        self._auth = auth_of(clients.auth)
        self.drain_s = connections.drain_s
        self._services = FormerServices(clients.services, self._services_in_use)
        shared = not isinstance(config, ServerConfig) or config.edges is not None
        self.acme = Acme(clients, config.state_dir, lambda: self.publication.hosts, shared=shared)
        self.admission = Admission(
            clients,
            poller,
            self._access,
            has_room=self._has_room,
            admitted=self._admitted,
            inherited=inherited,
            shared=config.peers.providers if isinstance(config, ServerConfig) and config.shared else None,
            acme=self.acme,
        )
        self.acme.needed = self.admission.needs
        self.listeners = self.admission.listeners
        self.publication = publication_of(config, self.admission, self.assignment)
        self.publication.hosts_changed = self.acme.changed
        self.inspection = Inspection(clock, functools.partial(connect, self))
        self.inspection.selects = lambda: self._clients.http.inspect is not None
        self._sites_of = functools.partial(
            sites_of,
            secured=self.admission.secured,
            challenge=self.acme.response,
            inspector=self.inspection.records,
        )
        self.sites = self._sites_of(clients, self._access, self._auth, self.publication)

    async def reconfigure(self, config: EdgeConfig | ServerConfig) -> None:
        """Take over another configuration, in one turn of the loop.

        Raises:
            StartError: an address cannot be listened on, or a file not be used; nothing has changed.
        """
        clients, connections = config.clients, config.connections
        if self.driver.draining:
            raise StartError("it is draining")
        auth = self._auth if clients.auth == self._clients.auth else auth_of(clients.auth)
        readmit, reask = self.admission.reconfigured(clients), self.acme.reconfigured(clients)
        opened = self.listeners.open(clients.listeners)
        # From here on nothing can fail.
        self._max_connections, self.drain_s = connections.max_connections, connections.drain_s
        self._budget.resize(total_bytes=connections.memory_bytes, max_streams=connections.max_connections)
        self.bridges.half_closed_timeout_s = connections.half_closed_timeout_s
        self._paces.reconfigure(clients.limits.bytes_per_s)
        self._access.reconfigure(clients.allow, clients.deny, *clients.address_limit(connections.max_connections))
        self._auth = auth
        self.publication.reconfigure(opening_of(clients, self.admission.covers), grace_s=connections.grace_s)
        self._replace_sites(
            self._sites_of(clients, self._access, auth, self.publication), self.listeners.successors(opened)
        )
        self.listeners.switch(opened)  # those in the backlog of a removed listener are admitted as it was
        self._clients = clients
        readmit()
        reask()
        self.assignment.reconfigure(
            services=clients.services,
            grace_s=connections.grace_s,
            queue_timeout_s=clients.http.queue_timeout_s,
            most=clients.limits.most_connections,
        )
        self._services.replace(clients.services)
        self.listeners.start()  # there may be room now

    def _replace_sites(self, sites: dict[Listener, Site], successors: Mapping[Listener, Listener]) -> None:
        """Serve clients by these sites; those of a removed listener, which may still be admitted, as before."""
        before = {listener: self.sites[listener] for listener in self._clients.listeners if listener in self.sites}
        after = {listener: sites.get(successors.get(listener, listener), site) for listener, site in before.items()}
        replaced = {before[listener]: site for listener, site in after.items()}
        self.http_clients.replace(replaced)
        self.inspection.records.replace(replaced)
        self.sites = after | sites

    @property
    def connections(self) -> int:
        """Client connections, and streams of HTTP clients that have gone."""
        return len(self.bridges.connections) + self.http_clients.idle + len(self.admission)

    @property
    def is_full(self) -> bool:
        """Whether the limit of connections is reached."""
        return self.connections >= self._max_connections

    def _has_room(self, listener: Listener) -> bool:
        """Return whether another client may be accepted there; which service it is for is known but with HTTP."""
        most = self._max_connections
        if not self.is_full:
            service = self._service_of(listener)
            return listener.scheme.is_routed or not service or self.assignment.places.has_room(service)
        self._log.say(
            "full", f"the limit of {counted(most, 'connection')} is reached: new clients wait; raise --max-connections"
        )
        return False

    def _service_of(self, listener: Listener) -> str | None:
        """Return the service of a listener, unless requests decide; None: its published port is nobody's any more."""
        return self.publication.service_of_port(listener.address.port) if listener.is_published else listener.service

    def _admitted(self, client: Client) -> None:
        listener = client.listener
        if client.is_http:
            site = self.sites.get(listener)
            if site is None:  # it was removed two reloads ago
                self.admission.dismiss(client)
                return
            ClientConnection(
                self.http_clients, client.sock, client.address, client.destination, site, certificate=client.certificate
            )
            return
        service = client.service or self._service_of(listener)
        if service is None:
            self.admission.dismiss(client)
            return
        stream = Stream(
            opener=True,
            service=service,
            client=str(client.address),
            destination=str(client.destination),
            budget=self._budget,
        )
        self.connect(Bridge(self.bridges, client.sock, stream, functools.partial(self._connection_ended, client)))

    # What HTTP clients need.

    def connect(self, owner: StreamOwner) -> None:
        """Open its stream at a provider, now or when there is one."""
        self.stream_log.opened(owner.stream)
        self.assignment.connect(owner)

    def reachable(self, stream: Stream) -> bool:
        """Return whether the provider of a stream is reachable and accepts streams."""
        peer = self.driver.peer_of(stream)
        return peer is not None and peer.available

    def reusable(self, stream: Stream) -> bool:
        """Return whether the provider of a stream accepts streams of its service."""
        return (
            self.reachable(stream)
            and self.assignment.offered(stream)
            and not self.assignment.places.crowded(stream.service)
        )

    def provider_of(self, stream: Stream) -> tuple[str | None, int | None]:
        """Return the name of a stream's provider and how many outages there were so far, if it has one."""
        peer = self.driver.peer_of(stream)
        return (None, None) if peer is None else (peer.info.name.name, peer.session.counters.outages)

    def tells_delivery(self, stream: Stream) -> bool:
        """Whether the provider of a stream acknowledges all that was delivered before it reports an end of file."""
        peer = self.driver.peer_of(stream)
        return peer is not None and peer.info.attributes.get(ACKS_BEFORE_EOF) is True

    def _providers_changed(self) -> None:
        self.http_clients.providers_changed()

    # The end of clients and streams.

    def _connection_ended(self, client: Client, bridge: Bridge) -> None:
        """Note that a client that has never spoken HTTP has left, and its stream has ended."""
        if self._clients.http.access_log:
            certificate = None if client.certificate is None else client.certificate.name
            provider, _ = self.provider_of(bridge.stream)
            self._connection_log.write(bridge, certificate=certificate, provider=provider, now=clock())
        self.bridge_ended(client.address, bridge)

    def bridge_ended(self, client: Endpoint, bridge: Bridge) -> None:
        """Note that a client has left, and its stream has ended."""
        self._stream_ended(bridge)
        self.client_ended(client)

    def provider_stream_ended(self, provider_stream: ProviderStream) -> None:
        """Note that a stream of an HTTP client has ended."""
        self._stream_ended(provider_stream)
        self.listeners.start()

    def client_ended(self, client: Endpoint) -> None:
        """Note that a client has left."""
        self.admission.leave(client)

    def _stream_ended(self, owner: StreamOwner) -> None:
        self.assignment.ended(owner)
        self.stream_log.ended(owner.stream)

    def drain(self) -> None:
        """Stop accepting; those that are connected go on. Idempotent."""
        self.admission.drain()
        self.http_clients.drain()
        self.driver.drain()

    async def close(self, *, drain_s: float) -> int:
        """Stop accepting, wait `drain_s` for streams to end, reset the rest; return how many."""
        self.drain()
        await wait_until(self._is_drained, deadline_s=drain_s)
        reset = self.connections
        self.admission.close()
        for client in list(self.http_clients.live):
            client.abort()
        for owner in self.bridges.connections:
            owner.abort("the edge is shutting down", EndCode.SHUTDOWN)
        await self.driver.goodbye(f"the {self._process} was shut down", deadline_s=1.0)
        return reset

    def _is_drained(self) -> bool:
        """Return whether all clients have left; end those that are pending and have sent all they had."""
        self.assignment.drain("the edge is shutting down")
        return not any((self.bridges.connections, self.http_clients.live, self.admission))

    def introduce(self, member: Member) -> None:
        """Announce where clients are accepted, in the peer list."""
        self.driver.own_id = member.name.id
        member.attributes |= self._ports
        self.assignment.check.announce = member.announce
        self._services.announce = lambda services: member.announce({"services": services} | self._ports)

    def _services_in_use(self) -> Iterator[str]:
        """Yield the services of clients that will open a stream, or may; published names are not announced."""
        yield from (service for service in self.assignment.pending_services if not is_published(service))
        for site in self.http_clients.sites:
            yield from site.services

    @property
    def _ports(self) -> dict[str, object]:
        return ports(announced(self._clients, self.listeners.addresses)) | self.publication.attributes

    def owners(self) -> list[StreamOwner]:
        """Return the owners of all open streams (streams.Owner)."""
        return list(self.bridges.connections)

    def facts(self, owner: StreamOwner) -> Mapping[str, str]:
        """Return what is known of a stream's client."""
        return owner.facts if isinstance(owner, Bridge | ProviderStream) else {}

    def metrics(self) -> Metrics:
        """Return what the status shows of this edge (snapshot.Owner)."""
        return Metrics(
            by_service(self._clients, self.listeners.addresses),
            self._max_connections,
            waiting_clients=self.assignment.pending,
            http=requests_of(self.http_clients.counters),
            certificates=[*self.admission.certificates, *self.acme.certificates],
            acme=self.acme.status,
            published=self.publication.status,
        )


async def run(configuration: Configuration[EdgeConfig], inherited: Inherited | None = None) -> Handover | None:
    """Run an edge until a signal ends it, or other code is to take over.

    Raises:
        StartError: a port is not available, or the runtime directory cannot be used.
        ExportError: what was inherited is not the state of an edge.
    """
    life = Lifetime()

    def control(apply: Apply, health: Health, upgrade: Upgrade) -> Commands:
        life.upgrade_asked = upgrade.signalled
        return {**Reload(configuration, life, health, apply=apply).commands, **upgrade.commands}

    return await serve(configuration.current, life, control, inherited)


async def serve(
    config: EdgeConfig, life: Lifetime, control: Control, inherited: Inherited | None = None
) -> Handover | None:
    """Serve as an edge until `life` ends.

    Raises:
        StartError: a port is not available, or the runtime directory cannot be used.
        ExportError: what was inherited is not the state of an edge.
    """
    before = None if inherited is None else Before.read(inherited)
    member = Member(config.process, "edge", Role.EDGE, services=config.clients.services, before=before)
    trust = Trust(config.proxy.ca, config.brokers)
    edge, state = restored(config, member, before)
    if before is not None and before.inherited.trial:
        check_moved(config.process.health, before.health)
        return None
    readiness = Readiness(
        life,
        down_s=lambda: links.down_s,
        grace_s=lambda: edge.driver.grace_s,
        missing=lambda: edge.assignment.missing,
        draining=lambda: edge.driver.draining,
    )
    health = Health(config.process.health, readiness, None if before is None else before.health)
    links = member.link(config.brokers, config.proxy, trust, edge.driver, config.security)
    edge.listeners.start()
    brokers = ", ".join(map(str, config.brokers))
    source = Source(member.instance, lambda: {"clients": edge.listeners.ports}, owner=edge, links=links.all)

    async def apply(new: EdgeConfig) -> None:
        check_nats(new.brokers)
        trusting = trust.reconfigured(new.proxy.ca, new.brokers)
        await edge.reconfigure(new)
        trusting()
        links.reconfigure(new.brokers, new.proxy, edge.driver)

    upgrade = Upgrade(life, state, member.instance, health, links=links.all, feed=source.feed)
    commands = {**source.commands, **health.commands, **Drain(edge, life).commands, **control(apply, health, upgrade)}
    commands |= edge.inspection.commands
    if before is not None:
        upgrade.took_over(before)
    async with edge.acme, health, Dashboard(config.process), serving(member.instance, commands):
        await life.serve(
            edge,
            links.all,
            ready=f"{entrances(config.clients, edge.listeners.found)}, brokers at {brokers}",
            connection=links,
            **source.ports(),
        )
        return upgrade.handover()


def restored(config: EdgeConfig | ServerConfig, member: Member, before: Before | None) -> tuple[Edge, EdgeState]:
    """Return an edge, which goes on with the clients of the one `before`; after a trial it is closed.

    Raises:
        StartError: an address cannot be listened on, or the file of tokens or a certificate not be used.
        ExportError: what was inherited is not the state of an edge.
    """
    edge = Edge(config, () if before is None else restored_listeners(before.items))
    edge.introduce(member)
    state = EdgeState(edge)
    if before is not None:
        state.restore(before.items, trial=before.inherited.trial)
        if before.inherited.trial:
            edge.listeners.close()
        elif edge.driver.draining:
            edge.drain()
    return edge, state
