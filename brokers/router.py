"""The broker: ports for peers, and peers in this very process, around a switch.

Standalone and embedded brokers are this same code. All parts of a broker meet here, hence so long.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from typing import Final

import zmq

from brokers.carrier import Buffer, LinkCondition, Receiver, Timings
from brokers.connections import Connection
from brokers.envelope import (
    CONTROL,
    FABRIC_VERSION,
    FABRIC_VERSION_LEAST,
    REVOKED,
    Hello,
    Refused,
    Renew,
    control,
)
from brokers.errors import BadMessage, BadName, BindError
from brokers.identities import Identities
from brokers.keys import BrokerSecurity, KeyPair
from brokers.limited_log import LimitedLog
from brokers.local import LocalPeer
from brokers.outboxes import Outboxes
from brokers.peers import ID_BYTES, PeerInfo, PeerName, Role
from brokers.port import Handlers, Port
from brokers.prober import Prober
from brokers.relay import LOOPBACK
from brokers.relays import Relays
from brokers.sockets import seed_routing_ids
from brokers.switch import Output, Switch
from brokers.transport import Transport
from brokers.zap import ZapHandler

ENFORCE_S: Final = 0.05
ENFORCE_IDLE_S: Final = 0.25
"""Between two checks of the bounds of connections: while some have not said hello or messages wait, and otherwise."""
STUCK_CONNECTIONS: Final = 64
"""Two descriptors each; no more are left to those that libzmq cannot close."""
REJECTED_S: Final = 0.5
"""What a rejected peer has to read why, before its connection is ended."""


class Router:
    """A broker. All its methods belong to one event loop. Whatever its parts report comes here, hence so many."""

    def __init__(
        self, *, timings: Timings | None = None, max_peers: int = 4096, security: BrokerSecurity | None = None
    ) -> None:
        """Start without ports; `max_peers` bounds memory: each may have an outbox of 16 MiB while it is slow.

        Without `security` links are in plaintext, and anyone who can reach a port may join.
        """
        self._timings = timings or Timings()
        seed_routing_ids()
        self._context = zmq.Context()
        self._log = LimitedLog()
        self._loop = asyncio.get_running_loop()
        self._keys = None if security is None else security.keys
        authority = None if security is None else security.authority
        self._relays = Relays(lambda role: self._ports[role.value].number)
        self._zap = (
            None if authority is None else ZapHandler(self._context, authority, self._log, self._relays.address_of)
        )
        self._identities = Identities(authority, is_up=lambda key: self._switch.peer(key) is not None)
        self._switch = Switch(
            lease_s=self._timings.lease_s,
            max_peers=max_peers,
            objection=self._identities.objection,
            certified=self._identities.certified,
            refused=self._refused,
        )
        self._ports: dict[bytes, Port] = {}
        """By the first byte of the ids of the peers that connect there: their role."""
        self._local: list[LocalPeer] = []
        self._outboxes = Outboxes(
            transmit=self._transmit, overflowed=self._overflowed, call_later=self._loop.call_later
        )
        self._prober = Prober(
            probe=self._probe, readable=lambda: any(port.channel.readable for port in self._ports.values())
        )
        self._handlers = Handlers(
            received=self._received,
            drained=self._outboxes.retry,
            busy=self._enforce_soon,
            disconnected=self._prober.disconnected,
        )
        self._pending: deque[Output] = deque()
        self._dispatching = False
        self._renewing = self._loop.call_later(self._timings.renew_s, self._renew)
        self._enforcing = self._loop.call_later(ENFORCE_IDLE_S, self._enforce)
        self._enforced_at = self._loop.time()
        self._reopening = asyncio.Lock()
        self._replacing: asyncio.Task[None] | None = None
        self._closed = False

    def limit(self, max_peers: int) -> None:
        """Accept no other peers than those that are up, while there are as many."""
        self._switch.max_peers = max_peers

    @property
    def peers(self) -> list[PeerInfo]:
        """The peers that are up, local ones included."""
        return self._switch.peers

    def bind(self, role: Role, host: str | None, port: int, descriptor: int | None = None) -> int:
        """Listen for peers of `role`; None is all interfaces, IPv4 and IPv6; port 0 any. Return the port.

        A `descriptor` is of a socket that listens there already, and belongs to this router from now on.

        Raises:
            BindError: the address is in use, not permitted or not of this machine.
        """
        return self._open(role, host, port, descriptor, None).number

    def bind_for_relays(self, role: Role) -> None:
        """Listen for peers of `role` whose connections are accepted elsewhere, and given to `carry`.

        Raises:
            BindError: this machine has no loopback interface, or there are no descriptors.
        """
        self._open(role, LOOPBACK, 0, None, self._relays)

    def _open(self, role: Role, host: str | None, port: int, descriptor: int | None, relays: Relays | None) -> Port:
        assert role.value not in self._ports, "one port a role"
        opened = self._ports[role.value] = Port(
            self._context,
            role,
            host,
            port,
            keys=self._keys,
            handlers=self._handlers,
            log=self._log,
            descriptor=descriptor,
            relays=relays,
        )
        return opened

    def carry(self, role: Role, transport: Transport, address: str) -> None:
        """Serve a peer whose connection was accepted elsewhere, and comes from `address`."""
        if self._closed:
            transport.close()
        else:
            self._relays.carry(role, transport, address)

    def listening(self, role: Role) -> int:
        """Return a duplicate of the descriptor that listens for peers of `role`; it outlives this router.

        Raises:
            OSError: there are no descriptors.
        """
        return self._ports[role.value].listening()

    async def rekey(self, keys: KeyPair) -> None:
        """Prove and demand `keys` from now on: all peers are disconnected and connect again, to the same ports.

        A libzmq socket has one key for life, so each is replaced. After an error, call it again: ports that have
        `keys` already are left alone.

        Raises:
            BindError: another process took a port meanwhile, or there are no descriptors.
        """
        assert self._keys is not None, "there are no keys to replace"
        self._keys = keys
        for role in list(self._ports):
            while (port := self._ports[role]).keys != self._keys:  # a replacement under way may still have the old ones
                await self._reopen(port)
        self._probe()

    async def _reopen(self, old: Port) -> None:
        """Replace a port's socket, unless that was done already.

        Raises:
            BindError: as `Port.reopened`.
        """
        async with self._reopening:
            if self._ports[old.role.value] is old:
                self._ports[old.role.value] = await old.reopened(self._keys)

    def reauthorise(self) -> None:
        """Ask the authority again about every peer: reject those that may no longer be here, and tell the others."""

        def attributes(key: bytes) -> Mapping[str, object] | None:
            peer = self._switch.peer(key)
            return None if peer is None else peer.attributes

        for key, objection in self._identities.revoked(attributes):
            port = self._ports[key[:1]]
            self._reject(port, key, objection, port.connections.of_peer(key))
        self._dispatch(self._switch.recertify())

    def attach(self, name: PeerName, attributes: Mapping[str, object], receiver: Receiver) -> LocalPeer:
        """Add a peer of this process; its receiver is called from the next turn of the loop on."""
        peer = LocalPeer(
            name,
            receiver,
            route=self._route_local,
            address_of=lambda peer_id: _address(self._connection(peer_id)),
            link_condition=self._link_condition,
        )
        self._local.append(peer)
        self._route_local(peer, control(Hello(FABRIC_VERSION, FABRIC_VERSION_LEAST, 0, attributes)))
        return peer

    def _connection(self, peer_id: bytes) -> Connection | None:
        """Return the connection of a peer, unless it is in this process or unknown."""
        key = self._switch.key(peer_id)
        return self._ports[key[:1]].connections.of_peer(key) if isinstance(key, bytes) else None

    def _link_condition(self, peer_id: bytes) -> LinkCondition | None:
        """Return the condition of a peer's connection, with what waits for the peer in its outbox."""
        connection = self._connection(peer_id)
        if connection is None or connection.routing_id is None:
            return None
        condition = connection.condition
        if condition is None:
            return None
        waiting = self._outboxes.size(connection.routing_id)
        return condition._replace(unsent_bytes=condition.unsent_bytes + waiting)

    def _route_local(self, peer: LocalPeer, frames: list[Buffer]) -> None:
        self._dispatch(self._switch.receive(peer, peer.name, frames, self._loop.time()), later=True)

    def _received(self, port: Port, frames: list[Buffer]) -> None:
        routing_id = bytes(frames[0])
        body = frames[1:]
        port.connections.read(routing_id, body)
        user_id = port.channel.user_id
        known = self._identities.known.get(routing_id)
        is_control = body[:1] == [CONTROL]
        try:
            # Another connection may have taken the routing id over since: the key is compared for each message.
            if known is not None and known[1] == user_id:
                name = known[0]
            else:
                name = self._identities.identify(port.role, routing_id, user_id)
            outputs = self._switch.receive(routing_id, name, body, self._loop.time())
        except (BadName, BadMessage) as exc:
            self._drop(port, routing_id, exc, tell=is_control)
            return
        if is_control and self._switch.peer(routing_id) is not None:
            obstacle = port.associate(routing_id)
            if obstacle is not None:
                outputs = [(routing_id, control(Refused(obstacle))), *self._switch.lost(routing_id, "lost")]
        self._dispatch(outputs)

    def _drop(self, port: Port, routing_id: bytes, error: BadName | BadMessage, *, tell: bool) -> None:
        """Log that the present message is dropped, and reject its sender if it is not who it says it is."""
        sender = port.sender
        address = _address(sender)
        text = f"dropped a message at the port for {port.role}s{_from(address)}: {error}"
        self._log.say("message_dropped", text, port=str(port.role), address=address, reason=str(error))
        if isinstance(error, BadName):
            if tell:
                with contextlib.suppress(zmq.ZMQError):  # it cannot be reached any more
                    port.channel.send([routing_id, *control(Refused(str(error)))])
            self._reject(port, routing_id, str(error), sender)

    def _refused(self, key: Hashable, name: PeerName, reason: str) -> None:
        """Log that the switch refuses the hello that is the present message."""
        address = _address(self._ports[key[:1]].sender) if isinstance(key, bytes) else None
        text = f"refused {name.role} {name.name}{_from(address)}: {reason}"
        self._log.say("peer_refused", text, peer=name.name, address=address, reason=reason)

    def _reject(self, port: Port, key: bytes, reason: str, connection: Connection | None) -> None:
        """Ignore a connection from now on, tell its peer why, and end it."""
        if key[:1] == port.role.value and (connection is None or connection.routing_id in (None, key)):
            self._dispatch([(key, control(Refused(reason))), *self._switch.lost(key, REVOKED)])
            self._outboxes.discard(key)
        if connection is not None and not connection.is_rejected:
            connection.is_rejected = True
            self._loop.call_later(REJECTED_S, connection.end)

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
                    self._outboxes.send(key, frames)
        finally:
            self._dispatching = False

    def _transmit(self, key: bytes, frames: list[Buffer]) -> bool:
        """Return False if the pipe to a peer is full. A peer that cannot be reached counts as lost."""
        try:
            self._ports[key[:1]].channel.send([key, *frames])
        except zmq.Again:
            return False
        except zmq.ZMQError as exc:
            if exc.errno != zmq.EHOSTUNREACH:
                raise
            self._dispatch(self._switch.lost(key, "lost"))
        return True

    def _overflowed(self, key: bytes, messages: int) -> None:
        """Tell the correspondents of a peer that messages to it were dropped."""
        peer = self._switch.peer(key)
        address = _address(self._ports[key[:1]].connections.of_peer(key))
        who = "a peer" if peer is None else f"{peer.name.role} {peer.name.name}"
        text = f"{who}{_from(address)} is too slow: dropped {messages} messages to it"
        self._log.say("peer_overflow", text, messages=messages, address=address)
        self._dispatch(self._switch.overflow(key, self._loop.time()))

    def _enforce_soon(self) -> None:
        """Check the bounds of connections within `ENFORCE_S`."""
        when = self._loop.time() + ENFORCE_S
        if not self._closed and when < self._enforcing.when():
            self._enforcing.cancel()
            self._enforcing = self._loop.call_at(when, self._enforce)

    def _enforce(self) -> None:
        """End connections that exceed their bounds, and replace a socket that has too many stuck ones."""
        now = self._loop.time()
        elapsed_s, self._enforced_at = now - self._enforced_at, now
        self._enforcing = self._loop.call_later(ENFORCE_IDLE_S, self._enforce)
        for port in self._ports.values():
            for address, reason in port.connections.enforce(now, elapsed_s=elapsed_s):
                self._log.say("connection_ended", f"ended a connection{_from(address)}: {reason}", address=address)
            if port.connections.stuck(now) >= STUCK_CONNECTIONS and self._replacing is None:
                self._replacing = self._loop.create_task(self._replace(port), name="replace a socket")
        if any(port.connections.greeting for port in self._ports.values()):
            self._enforce_soon()

    async def _replace(self, port: Port) -> None:
        """Get back the descriptors that libzmq has lost (see `connections`)."""
        text = f"{STUCK_CONNECTIONS} connections of {port.role}s do not close: replacing the socket, so all reconnect"
        self._log.say("port_reopened", text, port=str(port.role))
        try:
            await self._reopen(port)
        except BindError as exc:
            self._log.say("port_reopen_failed", f"{exc}; retrying")
        finally:
            self._replacing = None
        self._probe()

    def _probe(self) -> None:
        """Send a keep-alive to every remote peer; those that cannot be reached count as lost."""
        self._dispatch(_to_remote(self._switch.renewals()))

    def _renew(self) -> None:
        """Renew leases, and end those that have expired."""
        self._renewing = self._loop.call_later(self._timings.renew_s, self._renew)
        for peer in self._local:
            self._route_local(peer, control(Renew()))
        now = self._loop.time()
        self._dispatch(_to_remote(self._switch.renewals(now - self._timings.renew_s)))
        for key in self._switch.expired(now):
            self._dispatch(self._switch.lost(key, "expired"))
            if isinstance(key, bytes):
                connection = self._ports[key[:1]].connections.of_peer(key)
                if connection is not None:
                    connection.end()

    async def close(self, *, linger_s: float) -> None:
        """Close all ports; what is queued at libzmq has `linger_s` seconds to go out."""
        if self._closed:
            return
        self._closed = True
        self._dispatch(_to_remote(self._switch.closing()))
        self._renewing.cancel()
        self._enforcing.cancel()
        self._prober.close()
        self._outboxes.close()
        if self._replacing is not None:
            self._replacing.cancel()
            await asyncio.wait([self._replacing])
        if self._zap is not None:
            self._zap.close()
        for port in self._ports.values():
            port.close(linger_s)
        await self._loop.run_in_executor(None, self._context.term)
        await self._relays.finish(linger_s)

    @property
    def messages(self) -> int:
        """Messages forwarded between peers."""
        return self._switch.messages

    @property
    def dropped(self) -> int:
        """Messages from or to peers that were not up."""
        return self._switch.dropped

    @property
    def backlogs(self) -> dict[bytes, int]:
        """About how many bytes have arrived and were not read yet, by the peers' ids; 0 if the kernel does not tell."""
        return {key[:ID_BYTES]: size for port in self._ports.values() for key, size in port.connections.backlogs()}

    @property
    def outboxes(self) -> dict[bytes, tuple[int, int]]:
        """Messages and bytes that wait for slow peers, by the peers' ids."""
        return {key[:ID_BYTES]: sizes for key, sizes in self._outboxes.sizes.items()}


def _to_remote(outputs: Sequence[Output]) -> list[Output]:
    return [output for output in outputs if not isinstance(output[0], LocalPeer)]


def _address(connection: Connection | None) -> str | None:
    return None if connection is None else connection.address


def _from(address: str | None) -> str:
    return "" if address is None else f" from {address}"
