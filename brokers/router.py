"""A broker: ROUTER sockets around a `Switch` for the peers elsewhere, and local peers for those in this process.

Knows sockets and the clock, and takes no decisions: the switch does. Embedded in a server and standing alone it
is this same code. There is one ROUTER per role; which one a connection came by tells what its peer may be.
"""

import asyncio
import errno
import ipaddress
import os
import socket as net
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import zmq
from loguru import logger

from brokers.carrier import Buffer, Receiver, Roster, Timings
from brokers.envelope import Control, Down, Reason, Refused, Renewed, Up, Welcome, check_attributes, encode
from brokers.errors import BindError
from brokers.names import INCARNATION_BYTES, PeerInfo, PeerName, Role
from brokers.presence import Peer
from brokers.sockets import Frame, Monitor, Pump, buffers, open_router, send, terminate
from brokers.switch import Output, Switch

PROBE_DELAY_S = 0.05
"""How long after a connection was closed its peer is looked for: libzmq tells so a moment before it acts on it, and
many that close at once shall cost one search."""
TICKS_PER_LEASE = 8
REFUSALS_REMEMBERED = 64
"""So many different refusals are not logged twice."""


@dataclass(frozen=True, slots=True)
class RouterStatus:
    """What a broker has done since it began, and what waits in it now."""

    messages: int
    bytes: int
    dropped: int
    """Messages that could not go on: sender or destination unknown or down, too large, or lost in an overflow."""
    refused: int
    overflows: int
    held_bytes: int
    """What waits in the outboxes of all peers whose pipes are full."""
    held_messages: Mapping[PeerName, int]
    """How many wait for each peer; those for whom none waits are left out."""


@dataclass(slots=True)
class _Port:
    """The ROUTER for the peers of one role."""

    socket: "zmq.Socket[bytes]"
    pump: Pump
    monitor: Monitor


class Router:
    """A broker. To be created in the event loop it shall run in."""

    def __init__(self, *, timings: Timings = Timings(), max_peers: int = 1024) -> None:  # noqa: B008 -- frozen
        self._timings = timings
        self._loop = asyncio.get_running_loop()
        self._context: zmq.Context[Any] = zmq.Context()
        incarnation = os.urandom(INCARNATION_BYTES)
        self._switch = Switch(incarnation=incarnation, lease_s=timings.lease_s, max_peers=max_peers)
        self._ports: dict[Role, _Port] = {}
        self._locals: dict[bytes, LocalPeer] = {}
        self._waiting: dict[Peer, None] = {}
        """Remote peers with something in their outbox, in order of arrival."""
        self._bytes = 0
        self._all_sent = asyncio.Event()
        self._probe: asyncio.TimerHandle | None = None
        self._logged: OrderedDict[tuple[bytes, str], None] = OrderedDict()
        self._closed = False
        self._timer = self._loop.call_soon(self._tick)

    # -- for the user

    def bind(self, role: Role, host: str | None, port: int) -> int:
        """Listen for remote peers of a role, and return the port.

        None as host means all interfaces, IPv4 and IPv6. A host name is resolved here and now (this may block;
        it is meant for names of this machine), and all its addresses are listened on. Port 0 means any.

        Raises:
            BindError: the address is in use, is not this machine's, is not allowed, or does not exist.
        """
        if role not in self._ports:
            socket = open_router(self._context, self._timings)
            pump = Pump(
                socket, heads=3, on_message=lambda frames, size: self._receive(role, frames, size),
                on_turn=self._on_turn,
            )  # fmt: skip
            monitor = Monitor(socket, zmq.EVENT_DISCONNECTED, lambda _event, _endpoint: self._probe_soon())
            self._ports[role] = _Port(socket, pump, monitor)
        socket = self._ports[role].socket
        for address in _addresses(host, port):
            port = _bind(socket, address, port)
        return port

    def attach(self, name: PeerName, attributes: Mapping[str, object], receiver: Receiver) -> "LocalPeer":
        """Take in a peer of this process; its receiver hears of that in the next turn of the loop.

        Raises:
            NotAdmitted: it is here already, or there are too many.
            BadMessage: the attributes are not plain values, or more than 4 KiB.
        """
        peer, outputs = self._switch.attach(name, check_attributes(dict(attributes)), self._loop.time())
        local = self._locals[peer.id] = LocalPeer(self, peer, receiver)
        self.dispatch(outputs)
        return local

    def peers(self) -> list[PeerInfo]:
        """Return who is up."""
        return [peer.info for peer in self._switch.presence if peer.up]

    def status(self) -> RouterStatus:
        """Return counters and lengths."""
        counters = self._switch.counters
        return RouterStatus(
            messages=counters.messages,
            bytes=self._bytes,
            dropped=counters.dropped + sum(port.pump.discarded for port in self._ports.values()),
            refused=counters.refused,
            overflows=counters.overflows,
            held_bytes=self._switch.held_bytes,
            held_messages={peer.name: len(peer.outbox) for peer in self._switch.presence if len(peer.outbox)},
        )

    async def close(self, *, linger_s: float) -> None:
        """Stop listening, wait at most `linger_s` until what was sent has gone out, and end all local peers."""
        if self._closed:
            return
        self._closed = True
        deadline_s = self._loop.time() + linger_s
        try:
            if self._waiting:
                async with asyncio.timeout(linger_s):
                    await self._all_sent.wait()
        except TimeoutError:
            logger.warning("broker closes with messages for {} slow peers unsent", len(self._waiting))
        finally:
            self._timer.cancel()
            if self._probe is not None:
                self._probe.cancel()
            for local in list(self._locals.values()):
                local.end("the broker has closed")
            linger_ms = max(0, round((deadline_s - self._loop.time()) * 1000))
            for port in self._ports.values():
                port.pump.stop()
                port.monitor.stop()
                port.socket.close(linger=linger_ms)
            await terminate(self._context)

    # -- messages

    def _receive(self, role: Role, frames: list[Frame], size: int) -> None:
        self._bytes += size
        outputs = self._switch.receive(role, frames, self._loop.time())
        if outputs:
            self.dispatch(outputs)

    def forward(self, peer: Peer, destination: bytes, frames: Sequence[Buffer]) -> bool:
        """Send a local peer's message. Return False if it was dropped."""
        outputs = self._switch.forward(peer, destination, frames)
        self.dispatch(outputs)
        return bool(outputs)

    def announce(self, peer: Peer, attributes: Mapping[str, object]) -> None:
        """Replace a local peer's attributes."""
        self.dispatch(self._switch.announce(peer, attributes))

    def detach(self, peer: Peer) -> None:
        """Let a local peer go."""
        if self._locals.pop(peer.id, None) is not None and peer in self._switch.presence:
            self.dispatch(self._switch.depart(peer, Reason.LEFT))

    def drained(self, peer: Peer) -> None:
        """Go on after a local peer has taken all its messages."""
        if not peer.up:
            self.dispatch(self._switch.drained(peer))

    def dispatch(self, outputs: list[Output]) -> None:
        """Send what the switch decided, and what it decides next because of how that went."""
        for output in outputs:  # grows meanwhile; it ends, as every loss and every overflow takes a peer out
            outputs.extend(self._send(*output))

    def _send(self, to: Peer, source: bytes, body: Any) -> Sequence[Output]:
        if not source:
            self._log(to, body)
        if to.route is None:
            local = self._locals.get(to.id)
            if local is None:
                return ()
            local.wake()
            return self._switch.hold(to, source, body)
        if len(to.outbox):
            return self._switch.hold(to, source, body)
        return self._transmit(to, source, body)

    def _transmit(self, to: Peer, source: bytes, body: Any) -> Sequence[Output]:
        assert to.route is not None
        port = self._ports[to.role]
        try:
            send(port.socket, (to.route, source), body if source else (encode(body),))
        except zmq.Again:
            self._waiting[to] = None
            return self._switch.hold(to, source, body)
        except zmq.ZMQError as exc:
            if exc.errno != errno.EHOSTUNREACH:
                raise
            return self._switch.lost(to)
        port.pump.touch()
        return ()
