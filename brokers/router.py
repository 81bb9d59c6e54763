"""The broker: ROUTER sockets around a switch, and peers in this very process.

Standalone and embedded brokers are this same code. libzmq limits: its high-water marks count messages, so
outboxes here count bytes; it cannot end one connection, so `connections` does.
"""

import asyncio
import contextlib
import errno
import functools
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import zmq
from loguru import logger

from brokers.carrier import Buffer, Receiver, Timings
from brokers.channel import Channel, Monitor
from brokers.connections import Connection, Connections
from brokers.envelope import (
    CONTROL,
    FABRIC_VERSION,
    FABRIC_VERSION_LEAST,
    MAX_FRAME,
    REVOKED,
    Announce,
    Hello,
    Leave,
    Refused,
    Renew,
    control,
)
from brokers.errors import BadMessage, BadName, BindError
from brokers.inbox import Inbox
from brokers.keys import BrokerSecurity, KeyPair
from brokers.limited_log import LimitedLog
from brokers.peers import ID_BYTES, PeerInfo, PeerName, Role
from brokers.sockets import draw_routing_ids, secure_broker, see_descriptors
from brokers.switch import Output, Switch
from brokers.zap import Gatekeeper

HIGH_WATER = 1000
"""Messages in a pipe to a peer. Sessions keep at most 32 MiB in flight, so bytes are bounded above us."""
OUTBOX_BYTES = 16 * 1024 * 1024
OUTBOX_MESSAGES = 4096
RETRY_S = 0.02
PROBE_AGAIN_S = 0.05
"""libzmq may tell of a disconnection a moment before it forgets the peer."""
PROBE_TURNS = 8
"""Turns of the loop in which last words are read, 8 MiB each: twice what a session keeps in flight."""
HANDSHAKE_MS = 5000
GREETING_S = 15.0
"""From the connection to the hello: the handshake, and a link that says hello every 8 s."""
ENFORCE_S = 0.05
ENFORCE_IDLE_S = 0.25
"""Between two looks at the bounds of connections: while some have not said hello or messages wait, and otherwise."""
STUCK_CONNECTIONS = 64
"""Two descriptors each; more are not left to those that libzmq cannot close."""
REFUSED_S = 0.5
"""What a peer has to read why it is refused, before its connection is ended."""
REBIND_S = 5.0
REBIND_PAUSE_S = 0.01
"""libzmq's I/O thread closes ports without telling when."""
NAMES = 4096
"""Parsed routing ids kept; each is a few hundred bytes."""
HANDSHAKES_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
    zmq.EVENT_HANDSHAKE_FAILED_AUTH,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
)
NOT_OURS = "protocol", "a peer speaks no protocol of ours"
HANDSHAKE_CAUSES: dict[int, tuple[str, str]] = {
    zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH: (
        "keys",
        "a peer without keys meets a broker with keys, or the reverse",
    ),
    zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC: (
        "server key",
        "a peer expects another server key; if it goes on so, it needs a new join",
    ),
}
"""By the value of HANDSHAKE_FAILED_PROTOCOL, for programs and for people. The two other events are not logged: the
gatekeeper has done it, or a connection merely ended."""


@dataclass(slots=True)
class _Outbox:
    messages: deque[list[Buffer]] = field(default_factory=deque)
    size: int = 0


@dataclass(frozen=True, slots=True)
class _Port:
    channel: Channel
    monitor: Monitor
    keys: KeyPair | None
    host: str | None
    number: int
    connections: Connections

    def close(self, linger_s: float) -> None:
        self.monitor.close()
        self.connections.close()
        self.channel.close(linger_s)


class LocalPeer:
    """The carrier of a peer inside the broker's own process."""

    def __init__(self, router: "Router", name: PeerName, receiver: Receiver) -> None:
        """Belong to `router`; use `Router.attach`."""
        self.label = "embedded broker"
        self.name = name
        self._router = router
        self._inbox = Inbox(self, receiver)
        self._queue: deque[list[Buffer]] = deque()
        self._loop = asyncio.get_running_loop()

    def send(self, peer_id: bytes, frames: Sequence[Buffer]) -> bool:
        """Send without blocking; what overflows is told by the roster."""
        self._router.from_local(self, [peer_id, *frames])
        return True

    def announce(self, attributes: Mapping[str, object]) -> None:
        """Replace what the roster says of us."""
        self._router.from_local(self, control(Announce(attributes)))

    async def close(self, *, linger_s: float) -> None:
        """Leave; nothing is queued here."""
        self._router.from_local(self, control(Leave()))

    def deliver(self, frames: list[Buffer], *, later: bool) -> None:
        """Hand over a message: at once, or in the next turn if we are inside a call of ours."""
        if later or self._queue:
            if not self._queue:
                self._loop.call_soon(self._deliver_queued)
            self._queue.append(frames)
        else:
            self._inbox.receive(frames)

    def _deliver_queued(self) -> None:
        """Everything that is queued by now; what these messages bring about has its own turn."""
        queue, self._queue = self._queue, deque()
        for frames in queue:
            self._inbox.receive(frames)


class Router:
    """A broker. All its methods belong to one event loop."""

    def __init__(
        self, *, timings: Timings | None = None, max_peers: int = 1024, security: BrokerSecurity | None = None
    ) -> None:
        """Start without ports; `max_peers` bounds memory: each may have an outbox of 16 MiB while it is slow.

        Without `security` links are in plaintext, and anyone who can reach a port is let in.
        """
        self._timings = timings or Timings()
        draw_routing_ids()
        self._context = zmq.Context()
        self._log = LimitedLog()
        self._switch = Switch(
            lease_s=self._timings.lease_s,
            max_peers=max_peers,
            objection=self._objection,
            complain=functools.partial(self._log.say, "peer_refused"),
        )
        self._ports: dict[bytes, _Port] = {}
        """By the first byte of the ids of the peers that connect there: their role."""
        self._local: list[LocalPeer] = []
        self._outboxes: dict[bytes, _Outbox] = {}
        self._names: dict[bytes, tuple[PeerName, str]] = {}
        """Whose routing ids these are, and the user id that may use them."""
        self._pending: deque[Output] = deque()
        self._dispatching = False
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(self._timings.renew_s, self._tick)
        self._retry: asyncio.TimerHandle | None = None
        self._probe_again: asyncio.TimerHandle | None = None
        self._disconnected_again = False
        self._reopening = asyncio.Lock()
        self._replacing: asyncio.Task[None] | None = None
        self._enforcing = self._loop.call_later(ENFORCE_IDLE_S, self._enforce)
        self._enforced_at = self._loop.time()
        self._closed = False
        self._security = security
        self._gatekeeper = Gatekeeper(self._context, security.authority, self._log) if security is not None else None

    @property
    def peers(self) -> list[PeerInfo]:
        """Who is up, local peers included."""
        return self._switch.peers

    def bind(self, role: Role, host: str | None, port: int) -> int:
        """Listen for peers of `role`; None is all interfaces, IPv4 and IPv6; port 0 any. Return the port.

        Raises:
            BindError: the address is taken, not allowed or not here.
        """
        assert role.value not in self._ports, "one port a role"
        self._ports[role.value] = self._open(role, host, port)
        return self._ports[role.value].number

    def _open(self, role: Role, host: str | None, port: int) -> _Port:
        where = f"[{host}]" if host is not None and ":" in host else host or "*"
        try:
            see_descriptors()
            socket: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        except (OSError, zmq.ZMQError) as exc:
            raise BindError(exc.errno, f"cannot listen on {where}:{port}: {exc.strerror}") from exc
        keys = self._security.keys if self._security is not None else None
        options: dict[int, int] = {
            zmq.ROUTER_MANDATORY: 1,
            zmq.ROUTER_HANDOVER: 1,
            zmq.IPV6: 1,
            zmq.LINGER: 0,
            zmq.MAXMSGSIZE: MAX_FRAME,
            zmq.SNDHWM: HIGH_WATER,
            zmq.RCVHWM: 0,  # see `connections`, which bounds what waits; as does the lack of heartbeats
            zmq.HANDSHAKE_IVL: HANDSHAKE_MS,
            zmq.BACKLOG: 1024,
        }
        for option, value in options.items():
            socket.setsockopt(option, value)
        if keys is not None:
            secure_broker(socket, keys, role)
        monitor: Monitor | None = None
        try:
            events = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | sum(HANDSHAKES_FAILED)
            monitor = Monitor(socket, events, lambda event, value: self._monitored(role, event, value))
            socket.bind(f"tcp://{where}:{port or '*'}")
        except zmq.ZMQError as exc:
            if monitor is not None:
                monitor.close()
            socket.close(linger=0)
            raise BindError(exc.errno, f"cannot listen on {where}:{port}: {exc.strerror}") from exc
        channel = Channel(
            socket,
            lambda frames: self._from_remote(role, channel.user_id, frames),
            authenticated=keys is not None,
        )
        channel.on_drained = self._retry_outboxes
        channel.on_behind = self._enforce_soon
        number = int(socket.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])
        connections = Connections(number, secure=keys is not None, greeting_s=GREETING_S)
        return _Port(channel, monitor, keys, host, number, connections)

    async def rekey(self, keys: KeyPair) -> None:
        """Demand that peers expect `keys` from now on: every link is cut and must come again, to the same ports.

        A libzmq socket has one key for life, so new ones take the places of the old. After an error, call it
        again: ports that have `keys` already are left alone.

        Raises:
            BindError: somebody else took a port in between.
        """
        assert self._security is not None, "there are no keys to replace"
        self._security = replace(self._security, keys=keys)
        for role, port in [(Role(byte), port) for byte, port in self._ports.items()]:
            if port.keys != keys:
                await self._reopen(role, port)
        self._probe()

    async def _reopen(self, role: Role, old: _Port) -> None:
        """Put a new socket in the place of `old`, unless that was done already: links are cut and come again.

        Raises:
            BindError: somebody else took the port in between; to be called again.
        """
        async with self._reopening:
            if self._ports[role.value] is not old:
                return
            endpoint = old.channel.socket.getsockopt_string(zmq.LAST_ENDPOINT)
            try:
                see_descriptors()  # as an unbound port has no links left, and there may be no other
            except OSError as exc:
                raise BindError(exc.errno, f"cannot listen on {endpoint} anew: {exc.strerror}") from exc
            with contextlib.suppress(zmq.ZMQError):  # unbound by an attempt that failed
                old.channel.socket.unbind(endpoint)
            self._ports[role.value] = await self._open_soon(role, old.host, old.number)
            old.close(0)

    async def _open_soon(self, role: Role, host: str | None, port: int) -> _Port:
        give_up = self._loop.time() + REBIND_S
        while True:
            try:
                return self._open(role, host, port)
            except BindError as exc:
                if exc.errno != errno.EADDRINUSE or self._loop.time() > give_up:
                    raise
            await asyncio.sleep(REBIND_PAUSE_S)

    def reauthorise(self) -> None:
        """Ask the authority anew about everybody, since it may have changed its mind."""
        for key, (name, user_id) in list(self._names.items()):
            objection = self._stranger(name, user_id)
            peer = self._switch.peer(key)
            if objection is None and peer is not None:
                objection = self._objection(key, peer.attributes)
            if objection is not None:
                del self._names[key]
                self._reject(name.role, key, objection, self._ports[name.role.value].connections.of_peer(key))

    def attach(self, name: PeerName, attributes: Mapping[str, object], receiver: Receiver) -> LocalPeer:
        """Join a peer of this process; its receiver hears of it in the next turn of the loop."""
        peer = LocalPeer(self, name, receiver)
        self._local.append(peer)
        self.from_local(peer, control(Hello(FABRIC_VERSION, FABRIC_VERSION_LEAST, 0, attributes)))
        return peer

    def from_local(self, peer: LocalPeer, frames: list[Buffer]) -> None:
        """Route a message of a peer of this process."""
        self._dispatch(self._switch.receive(peer, peer.name, frames, self._loop.time()), later=True)

    def _from_remote(self, role: Role, user_id: str, frames: list[Buffer]) -> None:
        routing_id = bytes(frames[0])
        port = self._ports[role.value]
        body = frames[1:]
        port.connections.read(routing_id, body)
        known = self._names.get(routing_id)
        is_control = body[:1] == [CONTROL]
        try:
            # Any message may be of another connection that took the routing id over: the key is looked at each time.
            name = known[0] if known is not None and known[1] == user_id else self._identify(role, routing_id, user_id)
            outputs = self._switch.receive(routing_id, name, body, self._loop.time())
        except (BadName, BadMessage) as exc:
            text = f"dropped a message on the {role} port: {exc}"
            self._log.say("message_dropped", text, port=str(role), reason=str(exc))
            if isinstance(exc, BadName):
                if is_control:
                    self._tell(role, routing_id, Refused(str(exc)))
                self._reject(role, routing_id, str(exc), port.connections.of_descriptor(port.channel.descriptor))
            return
        if is_control and self._switch.peer(routing_id) is not None:
            obstacle = self._follow(port, routing_id)
            if obstacle is not None:
                outputs = [(routing_id, control(Refused(obstacle))), *self._switch.lost(routing_id, "lost")]
        self._dispatch(outputs)

    def _follow(self, port: _Port, routing_id: bytes) -> str | None:
        """Learn which connection a peer has; return what is in the way, if anything."""
        descriptor = port.channel.descriptor
        if descriptor < 0:
            return "its ZeroMQ is too old: ZMTP 3 is needed"
        if port.connections.of_descriptor(descriptor) is None:
            port.monitor.drain()  # the events of a connection come before its messages, but in another queue
        if port.connections.greeted(descriptor, routing_id):
            return None
        return "this broker has no file descriptors left: raise its limit (ulimit -n)"

    def _tell(self, role: Role, routing_id: bytes, message: Refused) -> None:
        """Say something to a connection that is nobody's, if it can still be reached."""
        with contextlib.suppress(zmq.ZMQError):
            self._ports[role.value].channel.send([routing_id, *control(message)])

    def _identify(self, role: Role, routing_id: bytes, user_id: str) -> PeerName:
        name = PeerName.from_routing_id(routing_id)
        if name.role is not role:
            raise BadName(f"{name.role} {name.name} is on the port for {role}s")
        objection = self._stranger(name, user_id)
        if objection is not None:
            raise BadName(objection)
        if len(self._names) >= NAMES:  # a cache of what can be found out again, but for those who are up
            self._names = {key: known for key, known in self._names.items() if self._switch.peer(key) is not None}
        self._names[routing_id] = name, user_id
        return name

    def _stranger(self, name: PeerName, user_id: str) -> str | None:
        """Return why a connection with this key is not `name`, or None if it is."""
        if self._security is None:
            return None
        grant = self._security.authority.grant(user_id.encode())
        if grant is None:
            return f"the key of {name.role} {name.name} is not authorised"
        if (grant.role, grant.name) != (name.role, name.name):
            return f"the key of {grant.role} {grant.name} is not for {name.role} {name.name}"
        return None

    def _objection(self, key: Hashable, attributes: Mapping[str, object]) -> str | None:
        """Return why a peer may not have these attributes; those of this process may have any."""
        if self._security is None or not isinstance(key, bytes):
            return None
        return self._security.authority.objection(self._names[key][1].encode(), attributes)

    def _reject(self, role: Role, key: bytes, reason: str, connection: Connection | None) -> None:
        """Hear nothing more from a connection that is not what it claims, or may no longer be, and end it."""
        if key[:1] == role.value and (connection is None or connection.routing_id in (None, key)):
            self._dispatch([(key, control(Refused(reason))), *self._switch.lost(key, REVOKED)])
            self._outboxes.pop(key, None)
        if connection is not None and not connection.is_refused:
            connection.is_refused = True
            self._loop.call_later(REFUSED_S, connection.end)

    def _dispatch(self, outputs: Sequence[Output], *, later: bool = False) -> None:
        """Send; what sending brings about (a lost peer) is sent after it, not inside it."""
        self._pending.extend(outputs)
        if self._dispatching:
            return
        self._dispatching = True
        try:
            while self._pending:
                key, frames = self._pending.popleft()
                if isinstance(key, LocalPeer):
                    key.deliver(frames, later=later)
                else:
                    assert isinstance(key, bytes)
                    self._send(key, frames)
        finally:
            self._dispatching = False

    def _send(self, key: bytes, frames: list[Buffer]) -> None:
        box = self._outboxes.get(key)
        if box is None and self._try(key, frames):
            return
        if box is None:
            box = self._outboxes[key] = _Outbox()
            self._retry = self._retry or self._loop.call_later(RETRY_S, self._retry_timer)
        box.messages.append(frames)
        box.size += sum(map(len, frames))
        if box.size > OUTBOX_BYTES or len(box.messages) > OUTBOX_MESSAGES:
            del self._outboxes[key]
            logger.bind(event="peer_overflow", messages=len(box.messages)).warning(
                "a peer is too slow: dropped {} messages to it", len(box.messages)
            )
            self._pending.extend(self._switch.overflow(key, self._loop.time()))

    def _try(self, key: bytes, frames: list[Buffer]) -> bool:
        """Return whether the message needs no more care: it was sent, or its receiver is gone."""
        try:
            self._ports[key[:1]].channel.send([key, *frames])
        except zmq.Again:
            return False
        except zmq.ZMQError as exc:
            if exc.errno != zmq.EHOSTUNREACH:
                raise
            self._pending.extend(self._switch.lost(key, "lost"))
        return True

    def _retry_timer(self) -> None:
        self._retry = None
        self._retry_outboxes()
        if self._outboxes:
            self._retry = self._loop.call_later(RETRY_S, self._retry_timer)

    def _retry_outboxes(self) -> None:
        if not self._outboxes:
            return
        for key, box in list(self._outboxes.items()):
            while box.messages and self._try(key, box.messages[0]):
                box.size -= sum(map(len, box.messages.popleft()))
            if not box.messages:
                del self._outboxes[key]
        self._dispatch(())

    def _monitored(self, role: Role, event: int, value: int) -> None:
        """`value` is a descriptor, or of a handshake what went wrong."""
        if event == zmq.EVENT_ACCEPTED:
            self._ports[role.value].connections.accepted(value, self._loop.time())
            self._enforce_soon()
        elif event == zmq.EVENT_DISCONNECTED:
            self._ports[role.value].connections.closed(value)
            self._disconnected()
        elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            cause, text = HANDSHAKE_CAUSES.get(value, NOT_OURS)
            self._log.say("handshake_failed", text, cause=cause)

    def _enforce_soon(self) -> None:
        """Look at the bounds of connections within `ENFORCE_S`."""
        when = self._loop.time() + ENFORCE_S
        if not self._closed and when < self._enforcing.when():
            self._enforcing.cancel()
            self._enforcing = self._loop.call_at(when, self._enforce)

    def _enforce(self) -> None:
        """Hold connections to their bounds."""
        now = self._loop.time()
        elapsed_s, self._enforced_at = now - self._enforced_at, now
        self._enforcing = self._loop.call_later(ENFORCE_IDLE_S, self._enforce)
        for byte, port in self._ports.items():
            for address, reason in port.connections.enforce(now, elapsed_s=elapsed_s):
                self._log.say("connection_ended", f"ended a connection from {address}: {reason}", address=address)
            if port.connections.stuck(now) >= STUCK_CONNECTIONS and self._replacing is None:
                self._replacing = self._loop.create_task(self._replace(Role(byte), port), name="replace a socket")
        if any(port.connections.greeting for port in self._ports.values()):
            self._enforce_soon()

    async def _replace(self, role: Role, port: _Port) -> None:
        """Get back the descriptors that libzmq has lost (see `connections`)."""
        logger.bind(event="port_reopened").warning(
            "{} connections do not close: all links are made anew", STUCK_CONNECTIONS
        )
        try:
            await self._reopen(role, port)
        except BindError as exc:
            self._log.say("port_reopen_failed", f"{exc}; retrying")
        finally:
            self._replacing = None
        self._probe()

    def _disconnected(self) -> None:
        """Probe everybody: libzmq does not say whose connection was closed, but it cannot reach that one.

        At most once in 50 ms: strangers can make any number of connections and close them.
        """
        if self._probe_again is None:
            self._loop.call_soon(self._probe_when_read, PROBE_TURNS)
            self._probe_again = self._loop.call_later(PROBE_AGAIN_S, self._probe_late)
        else:
            self._disconnected_again = True

    def _probe_when_read(self, turns: int) -> None:
        """The last words of a peer may still be in the queue: hear them before it counts as gone."""
        if self._closed:
            return
        if turns and any(port.channel.readable for port in self._ports.values()):
            self._loop.call_soon(self._probe_when_read, turns - 1)
        else:
            self._probe()

    def _probe_late(self) -> None:
        self._probe_again = None
        self._probe_when_read(PROBE_TURNS)
        if self._disconnected_again:
            self._disconnected_again = False
            self._probe_again = self._loop.call_later(PROBE_AGAIN_S, self._probe_late)

    def _probe(self) -> None:
        self._dispatch([output for output in self._switch.renewals() if not isinstance(output[0], LocalPeer)])

    def _tick(self) -> None:
        self._timer = self._loop.call_later(self._timings.renew_s, self._tick)
        for peer in self._local:
            self.from_local(peer, control(Renew()))
        self._probe()
        for key in self._switch.expired(self._loop.time()):
            self._dispatch(self._switch.lost(key, "expired"))
            if isinstance(key, bytes):
                connection = self._ports[key[:1]].connections.of_peer(key)
                if connection is not None:
                    connection.end()

    async def close(self, *, linger_s: float) -> None:
        """Close all ports; what is queued has `linger_s` seconds to go out."""
        if self._closed:
            return
        self._closed = True
        self._timer.cancel()
        for timer in (self._retry, self._probe_again, self._enforcing):
            if timer is not None:
                timer.cancel()
        if self._replacing is not None:
            self._replacing.cancel()
            await asyncio.wait([self._replacing])
        if self._gatekeeper is not None:
            self._gatekeeper.close()
        for port in self._ports.values():
            port.close(linger_s)
        await self._loop.run_in_executor(None, self._context.term)

    # What people are shown.

    @property
    def messages(self) -> int:
        """Messages passed on between peers."""
        return self._switch.messages

    @property
    def dropped(self) -> int:
        """Messages of or to peers that were not there."""
        return self._switch.dropped

    @property
    def backlogs(self) -> dict[bytes, int]:
        """Bytes that have arrived from peers and were not read yet, about, by the peers' ids; where the kernel says."""
        return {key[:ID_BYTES]: size for port in self._ports.values() for key, size in port.connections.backlogs()}

    @property
    def outboxes(self) -> dict[bytes, tuple[int, int]]:
        """Messages and bytes that wait for slow peers, by the peers' ids."""
        return {key[:ID_BYTES]: (len(box.messages), box.size) for key, box in self._outboxes.items()}
