"""The provider: dials the target for every stream that an edge opens."""

import asyncio
import errno
import functools
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any

from loguru import logger

from brokers import Endpoint, LimitedLog, Role, resolve
from goreprox.config.addresses import Address
from goreprox.config.roles import ProviderConfig
from goreprox.net import sockets
from goreprox.net.certificates import reason
from goreprox.net.poller import WRITE, Poller
from goreprox.net.proxy_protocol import write
from goreprox.net.sockets import Socket
from goreprox.net.target_tls import TargetTls
from goreprox.process.clock import clock
from goreprox.process.lifetime import Lifetime
from goreprox.process.log import quoted
from goreprox.protocol.budget import Budget
from goreprox.protocol.events import Code
from goreprox.protocol.session import Kind
from goreprox.protocol.state import State
from goreprox.protocol.stream import Stream
from goreprox.roles.loops import HOPS, Loops
from goreprox.roles.member import Member
from goreprox.roles.reachable import Reachable
from goreprox.status.document import answering
from goreprox.status.snapshot import Ends, Gauges, Subject
from goreprox.tunnel import attributes
from goreprox.tunnel.bridge import Bridge, Bridges
from goreprox.tunnel.driver import Driver, wait_until
from goreprox.tunnel.peer import Peer

RESOLVED_FOR_S = 5.0
"""A target's name is looked up again after this."""
MAX_ENDPOINTS = 16
"""Of one name: by default each may then take 0.6 s of a dial's time. A DNS message has room for thousands."""
_CONNECTING = (errno.EINPROGRESS, errno.EALREADY)
_CONNECTED = (0, errno.EISCONN)


class Targets:
    """Where the targets are: addresses as they are, names resolved in a thread and kept for a moment."""

    def __init__(self, targets: dict[str, Address]) -> None:
        """Know the address of each service."""
        self.targets = targets
        self._found: dict[str, tuple[float, list[Endpoint]]] = {}
        self._lookups: dict[str, asyncio.Task[list[Endpoint]]] = {}

    def known(self, service: str) -> list[Endpoint] | None:
        """Return the endpoints of a service, or None if they are to be resolved first."""
        at, endpoints = self._found.get(service, (0.0, []))
        return endpoints if endpoints and clock() - at < RESOLVED_FOR_S else None

    async def resolve(self, service: str) -> list[Endpoint]:
        """Look the target's name up: once for all who ask, as each lookup has a thread.

        Raises:
            OSError: it has no address.
        """
        lookup = self._lookups.get(service)
        if lookup is None:
            lookup = asyncio.get_running_loop().create_task(self._look_up(service), name=f"look up {service}")
            lookup.add_done_callback(functools.partial(self._looked_up, service))
            self._lookups[service] = lookup
        return await asyncio.shield(lookup)

    def _looked_up(self, service: str, lookup: "asyncio.Task[list[Endpoint]]") -> None:
        del self._lookups[service]
        if not lookup.cancelled():
            lookup.exception()  # whoever asked may be gone

    async def _look_up(self, service: str) -> list[Endpoint]:
        address = self.targets[service]
        endpoints = (await resolve(address.host, address.port))[:MAX_ENDPOINTS]
        self._found[service] = (clock(), endpoints)
        return endpoints


class Dial:
    """One attempt to reach a target: its addresses in turn, within the dial timeout. Owner of the stream until then."""

    def __init__(self, provider: "Provider", stream: Stream) -> None:
        """Be ready to `start`."""
        self._provider = provider
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._sock: socket.socket | None = None
        self._watched = False
        self._address: Any = None
        """The present attempt's."""
        self._rest: list[Endpoint] = []
        self._over = False
        self._task: asyncio.Task[None] | None = None
        self._give_up: Callable[[], None] | None = None
        """Ends the TLS handshake with the target."""
        self._attempt: asyncio.TimerHandle | None = None
        """Ends the attempt at one address, so that there is time for the rest."""
        stream.owner = self
        timeout_s = provider.config.dial_timeout_s
        self._timer = self._loop.call_later(timeout_s, self._refuse, f"no answer within {timeout_s:g} s")

    def start(self) -> None:
        """Begin; it may be over at once."""
        endpoints = self._provider.targets.known(self._stream.service)
        if endpoints is not None:
            self._try(endpoints)
        else:
            self._task = self._loop.create_task(self._resolve(), name=f"resolve {self._stream.service}")

    def notice(self, kind: Kind) -> None:
        """Give up when the stream does; everything else waits for the socket."""
        if kind is Kind.ABORTED:
            self._provider.ends.note(self._stream, self._stream.end_reason)
            self._abandon()

    def hand_back(self) -> None:
        """Give up, and leave the stream to another provider: nothing of it has reached a target."""
        self._abandon()
        self._stream.refuse(Code.DRAINING, "the provider is shutting down")

    async def _resolve(self) -> None:
        try:
            endpoints = await self._provider.targets.resolve(self._stream.service)
        except (OSError, UnicodeError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else "no host can have it"
            self._refuse(f"the name cannot be resolved: {reason}")
            return
        if not self._over:
            self._try(endpoints)

    def _try(self, endpoints: Sequence[Endpoint]) -> None:
        (family, self._address), *self._rest = endpoints
        try:
            sock = self._sock = socket.socket(family, socket.SOCK_STREAM)
            if sockets.taken_from_spare(sock.fileno()):
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            sockets.prepare(sock)
            code = sock.connect_ex(self._address)
            if code == errno.EINPROGRESS:
                code = sock.connect_ex(self._address)  # on the same machine it is done by now
            self._provider.loops.add(self._stream, sock.getsockname()[:2], self._address[:2])
        except OSError as exc:
            code = exc.errno or errno.EIO
        if code in _CONNECTING and self._sock is not None:
            self._watched = True
            self._provider.poller.watch(self._sock.fileno(), WRITE, self._connected)
            if self._rest:
                time_s = (self._timer.when() - self._loop.time()) / (len(self._rest) + 1)
                self._attempt = self._loop.call_later(time_s, self._tried, errno.ETIMEDOUT)
        else:
            self._tried(code)

    def _connected(self, _: int) -> None:
        if self._sock is not None:
            self._tried(self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def _tried(self, code: int) -> None:
        sock = self._release()
        if sock is not None and code in _CONNECTED:
            try:
                self._check_other_end(sock)
                self._introduce(sock)
            except OSError as exc:
                code = exc.errno or errno.EIO
            else:
                self._reached(sock)
                return
        if sock is not None:
            sock.close()
        if self._rest:
            self._try(self._rest)
        else:
            self._refuse(os.strerror(code))

    def _reached(self, sock: socket.socket) -> None:
        """Join the target to its stream, after the handshake if it speaks TLS."""
        service, tls = self._stream.service, self._provider.tls
        if tls.speaks(service):
            self._give_up = tls.begin(service, sock, admit=self._join, lose=self._not_greeted)
        else:
            self._join(sock)

    def _join(self, sock: Socket) -> None:
        self._finish()
        self._provider.connected(self._stream, sock)

    def _not_greeted(self, exc: OSError) -> None:
        if self._over:
            return
        if self._rest:
            self._try(self._rest)
        else:
            hint = "; --target-ca names who signs it" if isinstance(exc, ssl.SSLCertVerificationError) else ""
            self._refuse(f"TLS: {reason(exc)}{hint}")

    def _check_other_end(self, sock: socket.socket) -> None:
        """See that somebody listened.

        Raises:
            OSError: nobody did. The port is among those that the kernel gives to whoever connects, and it gave just
                that one: so TCP joined the socket to itself (RFC 9293, 3.5, figure 7), and no target could listen.
        """
        if sock.getsockname() == self._address:
            raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))

    def _introduce(self, sock: socket.socket) -> None:
        """Tell the target who the client is, if it is to know.

        Raises:
            OSError: it was not told, so the client must not be either: what came next would be taken for it.
        """
        version = self._provider.config.proxy_protocol
        if version is not None:
            header = write(version, self._stream.client, self._stream.destination)
            if sock.send(header) < len(header):  # never, of 104 bytes, with an empty send queue
                raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

    def _refuse(self, why: str) -> None:
        if self._over:
            return
        self._abandon()
        address = self._provider.targets.targets[self._stream.service]
        hint = ""
        if why == os.strerror(errno.ECONNREFUSED) and address.host == "127.0.0.1":
            hint = f"; if it listens on [::1] alone, give the target as localhost:{address.port}"
        self._provider.log.say(
            "target_failed",
            f"cannot reach the target {address} for {self._stream.client}: {why}{hint}",
            service=self._stream.service,
            target=str(address),
        )
        self._provider.ends.note(self._stream, f"target {address}: {why}")
        self._stream.refuse(Code.TARGET, f"target {address}: {why}")

    def _abandon(self) -> None:
        self._finish()
        self._provider.loops.discard(self._stream)

    def _finish(self) -> None:
        self._over = True
        self._timer.cancel()
        if self._give_up is not None:
            self._give_up()
        self._provider.dials.discard(self)
        if self._task is not None:
            self._task.cancel()
        sock = self._release()
        if sock is not None:
            sock.close()

    def _release(self) -> socket.socket | None:
        sock, self._sock = self._sock, None
        if sock is not None and self._watched:
            self._provider.poller.forget(sock.fileno())
        self._watched = False
        if self._attempt is not None:
            self._attempt.cancel()
            self._attempt = None
        return sock


class Provider:
    """Owns the target connections (driver.Application)."""

    def __init__(self, config: ProviderConfig) -> None:
        """Be ready for streams.

        Raises:
            StartError: the certificates that targets are checked by cannot be used.
        """
        self.config = config
        self.targets = Targets({target.service: target.address for target in config.targets})
        self.dials: set[Dial] = set()
        self._draining = False
        self.log = LimitedLog()
        self.loops = Loops()
        budget = Budget(total_bytes=config.memory_bytes, max_streams=config.max_connections)
        self.driver = Driver(self, role=Role.PROVIDER, budget=budget, grace_s=config.grace_s)
        self.poller = Poller(self.driver.batch)
        self.bridges = Bridges(self.poller, clock=clock, half_closed_timeout_s=config.half_closed_timeout_s)
        self.ends = Ends(self.driver)
        self.tls = TargetTls(
            config.targets,
            self.poller,
            ca=config.target_ca,
            insecure=config.target_insecure,
            timeout_s=config.dial_timeout_s,
        )
        self._reachable = Reachable(self.driver, self.targets.targets, self.log)

    def stream_opened(self, peer: Peer, stream: Stream) -> None:
        """Dial the target."""
        if not attributes.may_open(peer.info.attributes, stream.service):
            self._refuse_ungranted(peer, stream)
        elif stream.service not in self.targets.targets:
            stream.refuse(Code.SERVICE, f"service {stream.service} is not offered here")
        elif self._draining:
            stream.refuse(Code.DRAINING, "the provider is draining")
        elif self.connections >= self.config.max_connections:
            stream.refuse(Code.FULL, "the provider has all the connections that it may have")
        elif self.loops.hops(stream) >= HOPS:
            self._refuse_loop(stream)
        else:
            dial = Dial(self, stream)
            self.dials.add(dial)
            dial.start()

    def _refuse_ungranted(self, peer: Peer, stream: Stream) -> None:
        service = quoted(stream.service)
        self.log.say(
            "service_denied",
            f"refused {peer.title}: it asks for the service {service}, which is not among those that it announced and "
            "its key was checked for; no edge of ours does so: if it goes on, revoke its key",
            peer=peer.info.name.name,
            service=service,
        )
        stream.refuse(Code.SERVICE, f"service {service} is not among those that this edge announced")

    def _refuse_loop(self, stream: Stream) -> None:
        address = self.targets.targets[stream.service]
        reason = f"target {address} leads back to this provider"
        self.log.say(
            "loop",
            f"{reason}: it is a port of the server or of an edge; give that of the application",
            service=stream.service,
        )
        self.ends.note(stream, reason)
        stream.refuse(Code.TARGET, reason)

    def connected(self, stream: Stream, sock: Socket) -> None:
        """Join a target connection to its stream, bytes that came early included."""
        stream.accept()
        bridge = Bridge(self.bridges, sock, stream, self._ended)
        bridge.notice(Kind.RESET if stream.state is State.RESET else Kind.READABLE)

    def _ended(self, bridge: Bridge) -> None:
        stream = bridge.stream
        self.loops.discard(stream)
        self.ends.note(stream, stream.end_reason or "done")
        reason = stream.end_reason or "done"
        logger.debug("stream {} of {} ended: {}", stream.id, stream.client, reason, event="stream_ended", reason=reason)

    def stream_accepted(self, peer: Peer, stream: Stream) -> None:
        """Only openers are answered."""

    def stream_refused(self, peer: Peer, stream: Stream, code: Code, reason: str) -> None:
        """Only openers are refused."""

    def stream_unsent(self, stream: Stream) -> None:
        """Only openers open streams."""

    def stream_dropped(self, stream: Stream) -> None:
        """Every stream here has an owner, or was refused."""

    def peer_changed(self, peer: Peer) -> None:
        """Tell people, once they are all there, what edges make of what is offered here."""
        self._reachable.changed()

    @property
    def connections(self) -> int:
        """Connections to targets, and those about to be made."""
        return len(self.bridges.connections) + len(self.dials)

    async def close(self, *, drain_s: float) -> int:
        """Take no new streams, let those here end for `drain_s`, reset the rest, but hand back what still dials.

        Return how many were reset.
        """
        self._draining = True
        self.driver.drain()
        # Settled: the edges know of the drain, so no stream is on its way that the goodbye would end.
        await wait_until(
            lambda: not self.bridges.connections and not self.dials and self.driver.settled, deadline_s=drain_s
        )
        reset = len(self.bridges.connections)
        for bridge in self.bridges.connections:
            bridge.abort("the provider is shutting down")
        for dial in list(self.dials):
            dial.hand_back()
        await self.driver.goodbye("the provider was shut down", deadline_s=1.0)
        return reset

    def gauges(self) -> Gauges:
        """Return what the status shows of us (snapshot.Owner)."""
        services = {service: [str(address)] for service, address in self.targets.targets.items()}
        return Gauges(services, self.config.max_connections, dialing=len(self.dials))


async def run(config: ProviderConfig) -> None:
    """Be a provider until a signal ends it.

    Raises:
        StartError: the runtime directory cannot be used.
    """
    member = Member(config, "provider", Role.PROVIDER, services=config.services, weight=config.weight)
    provider = Provider(config)
    member.attributes |= attributes.targets([str(target.address) for target in config.targets])
    links = member.link(config.servers, provider.driver, config.security)
    offered = ", ".join(f"{target.service} = {target.address}" for target in config.targets)
    servers = ", ".join(map(str, config.servers))
    subject = Subject(member.instance, owner=provider, links=links.all)
    async with answering(member.instance, subject.document):
        await Lifetime().serve(
            provider,
            links.all,
            drain_s=config.drain_s,
            ready=f"offering {offered} at {servers}",
            connection=links,
        )
