"""The provider: connects each stream that an edge opens to the target of its service."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from brokers import LimitedLog, Role
from goreprox.config.addresses import TargetAddress
from goreprox.config.published import ANY_PORT, GRANTED
from goreprox.config.reloads import Configuration
from goreprox.config.roles import ProviderConfig
from goreprox.control.socket import serving
from goreprox.errors import StartError
from goreprox.net.link_tls import Trust
from goreprox.net.poller import Poller
from goreprox.net.sockets import Socket, restored
from goreprox.process.clock import clock
from goreprox.process.handover import Handover, Inherited
from goreprox.process.lifetime import Lifetime
from goreprox.process.log import quoted
from goreprox.protocol.budget import Budget
from goreprox.protocol.errors import ExportError
from goreprox.protocol.events import Code
from goreprox.protocol.fields import Fields
from goreprox.protocol.notices import Kind
from goreprox.protocol.state import State
from goreprox.protocol.stream import Stream
from goreprox.protocol.totals import EndCode
from goreprox.roles.cluster import check_installed as check_nats
from goreprox.roles.dashboard import Dashboard
from goreprox.roles.dial import Dialer
from goreprox.roles.drain import Drain
from goreprox.roles.health import Health, Readiness, check_moved
from goreprox.roles.loops import HOPS, Loops
from goreprox.roles.member import Member
from goreprox.roles.publishing import Publishing
from goreprox.roles.reachable import Reachable
from goreprox.roles.reload import Reload
from goreprox.roles.target_checks import TargetChecks
from goreprox.roles.upgrade import Before, Upgrade, sessions_resumed
from goreprox.status.snapshot import Metrics, Source
from goreprox.status.stream_log import StreamLog
from goreprox.tunnel import attributes
from goreprox.tunnel.bridge import Bridge, Bridges
from goreprox.tunnel.connections import StreamOwner
from goreprox.tunnel.driver import Driver, wait_until
from goreprox.tunnel.peer import Peer


class Provider:
    """Joins the streams that edges open to targets (driver.Application)."""

    def __init__(self, config: ProviderConfig) -> None:
        """Serve what `config` offers.

        Raises:
            StartError: the file of `--target-ca` cannot be used.
        """
        connections = config.connections
        self._config = config
        self._max_connections = connections.max_connections
        self.drain_s = connections.drain_s
        self._announce: Callable[[attributes.Attributes], None] = lambda _attributes: None
        self._draining = False
        self._log = LimitedLog()
        self._loops = Loops()
        budget = Budget(total_bytes=connections.memory_bytes, max_streams=connections.max_connections)
        self.driver = Driver(self, role=Role.PROVIDER, budget=budget, grace_s=connections.grace_s)
        self._poller = Poller(self.driver.batch)
        self.bridges = Bridges(self._poller, clock=clock, half_closed_timeout_s=connections.half_closed_timeout_s)
        self.stream_log = StreamLog(self.driver)
        self.dialer = self._dialer(config, None)
        self._targets = self.dialer.targets.by_service
        self.publishing = Publishing(self.driver, config.published)
        self.checks = TargetChecks(config.targets, config.checks, examine=self.dialer.examine)
        self.checks.changed = lambda: self._announce(self._offer)
        self._reachable = Reachable(self.driver, self._offered_targets, self._log, config.published.values())

    def _dialer(self, config: ProviderConfig, before: Dialer | None) -> Dialer:
        by_service = {target.service: target for target in config.targets}
        names = [replace(by_service[service], service=name.text) for name, service in config.published.items()]
        return Dialer(
            [*config.targets, *names],
            config.dial,
            self._poller,
            self._loops,
            self._log,
            connected=self._connected,
            failed=self._dial_failed,
            before=before,
        )

    def introduce(self, member: Member) -> None:
        """Announce what is offered, in the peer list, and begin to check targets."""
        member.attributes |= self._offer
        self._announce = member.announce
        self.checks.start()

    @property
    def _offer(self) -> dict[str, object]:
        targets = self._offered_targets
        offered = {name: service for name, service in self._config.announced.items() if service in self.checks.offered}
        hashed = attributes.targets([str(targets[name]) for name, service in offered.items() if name == service])
        offer = {"services": list(offered), "weight": self._config.weight} | hashed
        return offer | {GRANTED: [b"", ANY_PORT]} if self.publishing.names and self._config.security is None else offer

    @property
    def _offered_targets(self) -> dict[str, TargetAddress]:
        """The target of each service, without published names."""
        return {target.service: target.address for target in self._config.targets}

    async def reconfigure(self, config: ProviderConfig) -> None:
        """Take over another configuration, in one turn of the loop; connections to targets, and dials, go on.

        Raises:
            StartError: the file of `--target-ca` cannot be used; nothing has changed.
        """
        if self._draining:
            raise StartError("it is shutting down")
        dialer, connections = self._dialer(config, self.dialer), config.connections
        # From here on nothing can fail.
        self._config = config
        self._max_connections, self.drain_s = connections.max_connections, connections.drain_s
        self.driver.budget.resize(total_bytes=connections.memory_bytes, max_streams=connections.max_connections)
        self.driver.set_grace(connections.grace_s)
        self.bridges.half_closed_timeout_s = connections.half_closed_timeout_s
        self.dialer, self._targets = dialer, dialer.targets.by_service
        self._reachable.targets, self._reachable.published = self._offered_targets, config.published.values()
        self._reachable.changed()
        self.publishing.names = config.published
        self.publishing.changed()
        self.checks.reconfigure(config.targets, config.checks, examine=dialer.examine)
        self._announce(self._offer)

    def stream_opened(self, peer: Peer, stream: Stream) -> None:
        """Dial the target."""
        if not attributes.may_open(peer.info.attributes, stream.service):
            self._refuse_ungranted(peer, stream)
        elif stream.service not in self._targets:
            stream.refuse(Code.SERVICE, f"service {stream.service} is not offered here")
        elif self._draining:
            stream.refuse(Code.DRAINING, "the provider is draining")
        elif self.connections >= self._max_connections:
            stream.refuse(Code.FULL, "the provider has reached its --max-connections")
        elif self._loops.hops(stream) >= HOPS:
            self._refuse_loop(stream)
        else:
            self.stream_log.opened(stream)
            self.dialer.dial(stream)

    def _refuse_ungranted(self, peer: Peer, stream: Stream) -> None:
        service = quoted(stream.service)
        self._log.say(
            "service_denied",
            f"refused {peer.title}: it opened a stream of the service {service}, which it has not announced, so that "
            "its key was not checked for it; no edge of ours does so: if it happens again, revoke its key",
            peer=peer.info.name.name,
            service=service,
        )
        stream.refuse(Code.SERVICE, f"service {service} is not among those that this edge announced")

    def _refuse_loop(self, stream: Stream) -> None:
        address = self._targets[stream.service]
        reason = f"target {address} leads back to this provider"
        self._log.say(
            "loop",
            f"{reason}: it is a port of the server or of an edge; give the port of the application",
            service=stream.service,
        )
        self.stream_log.opened(stream)
        stream.refuse(Code.TARGET, reason)
        self.stream_log.ended(stream)

    def _dial_failed(self, stream: Stream) -> None:
        """Count a stream that has ended before its target accepted."""
        if stream.end_code is EndCode.REFUSED:
            self.driver.budget.totals.dial_failures[stream.service] += 1
        self.stream_log.ended(stream)

    def _connected(self, stream: Stream, sock: Socket) -> None:
        """Join a target's socket to its stream, of which bytes may have arrived already."""
        stream.accept()
        bridge = Bridge(self.bridges, sock, stream, self._ended)
        bridge.notice(Kind.RESET if stream.state is State.RESET else Kind.READABLE)

    def _ended(self, bridge: Bridge) -> None:
        stream = bridge.stream
        self._loops.discard(stream)
        self.stream_log.ended(stream)

    def stream_accepted(self, peer: Peer, stream: Stream) -> None:
        """Never called: only the edge's streams are accepted."""

    def stream_refused(self, peer: Peer, stream: Stream, code: Code, reason: str) -> None:
        """Never called: only the edge's streams are refused."""

    def stream_unsent(self, stream: Stream) -> None:
        """Never called: providers open no streams."""

    def stream_dropped(self, stream: Stream) -> None:
        """Ignore it: every stream here has an owner, or was refused."""

    def peer_changed(self, peer: Peer) -> None:
        """Log what the edges say of our services, once it has settled."""
        self._reachable.changed()
        self.publishing.changed()

    @property
    def connections(self) -> int:
        """Connections to targets, and dials."""
        return len(self.bridges.connections) + len(self.dialer.dials)

    def drain(self) -> None:
        """Take no new streams; the present ones go on. Idempotent."""
        self._draining = True
        self.checks.close()
        self.driver.drain()

    async def close(self, *, drain_s: float) -> int:
        """Take no new streams, wait `drain_s` for the present ones to end, reset the rest; return how many.

        Streams whose target has not been reached by then go to other providers.
        """
        self.drain()
        # Settled: the edges know of the drain, so no stream is on its way that the goodbye would end.
        await wait_until(lambda: not self.connections and self.driver.settled, deadline_s=drain_s)
        reset = len(self.bridges.connections)
        for bridge in self.bridges.connections:
            bridge.abort("the provider is shutting down", EndCode.SHUTDOWN)
        self.dialer.hand_back()
        await self.driver.goodbye("the provider was shut down", deadline_s=1.0)
        return reset

    # Upgrade (upgrade.Portable).

    async def end_what_stays(self) -> None:
        """Give connections that speak TLS time to end, then reset them. New streams wait at their edges."""

        def staying() -> list[Bridge]:
            return [bridge for bridge, _ in self._live_bridges if not bridge.portable]

        if staying():
            self._draining = True
            await wait_until(lambda: not staying(), deadline_s=self.drain_s)
            for bridge in staying():
                bridge.abort("the provider was upgraded, and TLS cannot be handed over", EndCode.SHUTDOWN)

    async def resumed(self) -> None:
        """Wait for the sessions."""
        await sessions_resumed(self.driver)

    def leave(self) -> list[int]:
        """Leave all paths; return the sockets of all connections to targets."""
        self.driver.leave("this process is being upgraded")
        return [bridge.descriptor for bridge, _ in self._live_bridges if bridge.descriptor is not None]

    def export(self, *, payload: bool) -> Iterator[object]:
        """Yield sessions, then sockets. Streams without one wait for their target, which is dialled anew."""
        yield from self.driver.export(payload=payload)
        bridges = self._live_bridges
        yield {"sockets": len(bridges), "offered": self.checks.offered}
        for bridge, peer in bridges:
            yield {"peer": peer.id, "stream": bridge.stream.id} | bridge.export(payload=payload)
        if payload:
            self._poller.close()

    def restore(self, items: Iterator[object], *, trial: bool) -> None:
        """Go on with what `export` has yielded; of a `trial` only look at it.

        Raises:
            ExportError: it is something else.
        """
        self.driver.restore(items)
        if self.driver.draining:
            self.drain()
        head = Fields(next(items, None))
        self.checks.restore(head.items_or_none("offered"))
        for _ in range(head.count("sockets")):
            fields = Fields(next(items, None))
            peer = self.driver.peers.get(fields.data("peer"))
            stream = peer and peer.session.streams.get(fields.count("stream"))
            if not stream:
                raise ExportError("a socket without a stream in the export")
            if not trial:
                sock = restored(fields.count_or_none("descriptor"))
                self._loops.found(stream, sock)
                Bridge.restore(self.bridges, sock, stream, self._ended, fields)
        if not trial:
            for peer in self.driver.peers.values():
                for stream in list(peer.session.streams.values()):
                    if stream.owner is None:
                        self.stream_opened(peer, stream)
        for _ in items:
            raise ExportError("more in the export than expected")

    @property
    def _live_bridges(self) -> list[tuple[Bridge, Peer]]:
        """Those whose stream has not ended, and the peers of these streams."""
        return [
            (bridge, peer)
            for bridge in self.bridges.connections
            if isinstance(bridge, Bridge) and (peer := self.driver.peer_of(bridge.stream)) is not None
            if bridge.stream.id in peer.session.streams
        ]

    def owners(self) -> list[StreamOwner]:
        """Return the owners of all open streams (streams.Owner)."""
        return [*self.bridges.connections, *self.dialer.dials]

    def facts(self, owner: StreamOwner) -> dict[str, str]:
        """Return the target of a stream."""
        target = self._targets.get(owner.stream.service)
        return {} if target is None else {"target": str(target)}

    def metrics(self) -> Metrics:
        """Return what the status shows of this provider (snapshot.Owner)."""
        return Metrics(
            {service: [str(address)] for service, address in self._offered_targets.items()},
            self._max_connections,
            dialing=len(self.dialer.dials),
            checks=self.checks.status,
            published=self.publishing.status,
        )


async def run(configuration: Configuration[ProviderConfig], inherited: Inherited | None = None) -> Handover | None:
    """Run a provider until a signal ends it, or other code is to take over.

    Raises:
        StartError: the runtime directory cannot be used.
        ExportError: what was inherited is not the state of a provider.
    """
    config = configuration.current
    before = None if inherited is None else Before.read(inherited)
    member = Member(config.process, "provider", Role.PROVIDER, services=config.services, before=before)
    provider = Provider(config)
    trust = Trust(config.proxy.ca, config.servers)
    if before is not None:
        provider.restore(before.items, trial=before.inherited.trial)
        if before.inherited.trial:
            check_moved(config.process.health, before.health)
            return None
    life = Lifetime()
    readiness = Readiness(life, down_s=lambda: links.down_s, grace_s=lambda: provider.driver.grace_s)
    health = Health(config.process.health, readiness, None if before is None else before.health)
    provider.introduce(member)
    links = member.link(config.servers, config.proxy, trust, provider.driver, config.security)
    offered = ", ".join(f"{target.service} = {target.address}" for target in config.targets)
    servers = ", ".join(map(str, config.servers))
    source = Source(member.instance, owner=provider, links=links.all)

    async def apply(new: ProviderConfig) -> None:
        check_nats(new.servers)
        trusting = trust.reconfigured(new.proxy.ca, new.servers)
        await provider.reconfigure(new)
        trusting()
        links.reconfigure(new.servers, new.proxy, provider.driver)

    reload = Reload(configuration, life, health, apply=apply)
    upgrade = Upgrade(life, provider, member.instance, health, links=links.all, feed=source.feed)
    life.upgrade_asked = upgrade.signalled
    if before is not None:
        upgrade.took_over(before)
    commands = {
        **source.commands,
        **health.commands,
        **Drain(provider, life).commands,
        **reload.commands,
        **upgrade.commands,
    }
    async with health, Dashboard(config.process), serving(member.instance, commands):
        await life.serve(
            provider,
            links.all,
            ready=f"offering {offered} at {servers}",
            connection=links,
        )
        return upgrade.handover()
