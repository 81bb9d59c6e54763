"""One port of a broker: a ROUTER, its monitor, and its connections."""

import asyncio
import contextlib
import errno
import functools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import zmq

from brokers.carrier import Buffer
from brokers.channel import Channel, Monitor
from brokers.connections import Connection, Connections
from brokers.errors import BindError
from brokers.keys import KeyPair
from brokers.limited_log import LimitedLog
from brokers.peers import Role
from brokers.relays import Relays
from brokers.sockets import ensure_descriptors, router_socket

GREETING_S: Final = 15.0
"""From the connection to the hello: the handshake, and a link that repeats its hello every 8 s."""
REBIND_S: Final = 5.0
REBIND_PAUSE_S: Final = 0.01
"""libzmq's I/O thread closes ports without telling when."""
ROTATION_S: Final = 30.0
"""For so long after a change of the keys, a failed handshake with the earlier one is how a peer learns of it, and no
cause for a warning. Links that were up return within seconds; pauses between attempts last 8 s at most."""
_EVENTS: Final = zmq.EVENT_LISTENING | zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
"""Other failed handshakes are not logged here: the ZAP handler has rejected a key, or a connection was closed."""
_SERVER_KEY: Final = "server key"
_CAUSES: Final[dict[int, tuple[str, str]]] = {
    zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH: ("keys", "the peer has no keys and this broker has, or the reverse"),
    zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC: (
        _SERVER_KEY,
        "the peer expects another server key; if this repeats, it needs a new join string",
    ),
}
"""Why a handshake failed, for programs and for people, by the value of HANDSHAKE_FAILED_PROTOCOL."""
_OTHER_CAUSE: Final = "protocol", "the peer does not speak the fabric's protocol"


@dataclass(frozen=True, slots=True)
class Handlers:
    """What a port calls."""

    received: "Callable[[Port, list[Buffer]], None]"
    """With each message: the routing id of its sender, body."""
    drained: Callable[[], None]
    """After a series of messages was read: there may be room for sending again."""
    busy: Callable[[], None]
    """When the bounds of connections should be checked soon: one is new, or messages were left unread."""
    disconnected: Callable[[], None]
    """When a connection was closed."""


class Port:
    """Listens for peers of one role."""

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        role: Role,
        host: str | None,
        number: int,
        *,
        keys: KeyPair | None,
        handlers: Handlers,
        log: LimitedLog,
        descriptor: int | None = None,
        relays: Relays | None = None,
    ) -> None:
        """Listen on `host` (None: all interfaces, IPv4 and IPv6) and port `number` (0: any).

        A `descriptor` is of a socket that listens there already; it is libzmq's from now on (ZMQ_USE_FD). With `relays`
        it is for their connections alone.

        Raises:
            BindError: the address is in use, not permitted or not of this machine.
        """
        self.role = role
        self.keys = keys
        self._context = context
        self._host = host
        self._handlers = handlers
        self._log = log
        self._relays = relays
        self.rotated_at = -math.inf
        """When this port replaced one with other keys, by the clock of the loop."""
        self._listening = -1
        """The descriptor of the listening socket, once the monitor has told."""
        address = f"[{host}]" if host is not None and ":" in host else host or "*"
        with contextlib.ExitStack() as undo:
            try:
                socket = router_socket(context, role, keys)
                undo.callback(socket.close, linger=0)
                self._monitor = Monitor(socket, _EVENTS, self._monitored)
                undo.callback(self._monitor.close)
                if descriptor is not None:
                    socket.setsockopt(zmq.USE_FD, descriptor)
                socket.bind(f"tcp://{address}:{number or '*'}")
            except (OSError, zmq.ZMQError) as exc:
                raise BindError(exc.errno, f"cannot listen on {address}:{number}: {exc.strerror}") from exc
            undo.pop_all()
        self._endpoint = socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.number = int(self._endpoint.rpartition(":")[2])
        self.connections = Connections(self.number, secure=keys is not None, greeting_s=GREETING_S, relays=relays)
        self.channel = Channel(socket, functools.partial(handlers.received, self), authenticated=keys is not None)
        self.channel.on_drained = handlers.drained
        self.channel.on_behind = handlers.busy

    async def reopened(self, keys: KeyPair | None) -> "Port":
        """Close this port and return one at the same address with `keys`; peers have to connect again.

        Raises:
            BindError: another process took the address meanwhile, or there are no descriptors; call it again later.
        """
        try:
            ensure_descriptors()  # first: an unbound port without a successor would have no peers
        except OSError as exc:
            raise BindError(exc.errno, f"cannot listen on {self._endpoint} again: {exc.strerror}") from exc
        with contextlib.suppress(zmq.ZMQError):  # unbound by an attempt that failed
            self.channel.socket.unbind(self._endpoint)
        port = await self._open_again(keys)
        port.rotated_at = self.rotated_at if keys == self.keys else asyncio.get_running_loop().time()
        self.close(0)
        return port

    async def _open_again(self, keys: KeyPair | None) -> "Port":
        loop = asyncio.get_running_loop()
        give_up = loop.time() + REBIND_S
        while True:
            try:
                return Port(
                    self._context,
                    self.role,
                    self._host,
                    0 if self._relays is not None else self.number,  # which only relays have to know
                    keys=keys,
                    handlers=self._handlers,
                    log=self._log,
                    relays=self._relays,
                )
            except BindError as exc:
                if exc.errno != errno.EADDRINUSE or loop.time() > give_up:
                    raise
            await asyncio.sleep(REBIND_PAUSE_S)

    def listening(self) -> int:
        """Return a duplicate of the descriptor of the listening socket, which stays open when this port is closed.

        Raises:
            OSError: there are no descriptors.
        """
        self._monitor.drain()
        return os.dup(self._listening)

    @property
    def sender(self) -> Connection | None:
        """The connection that the present message came from, if it is known."""
        return self.connections.of_descriptor(self.channel.descriptor)

    def associate(self, routing_id: bytes) -> str | None:
        """Note that the peer `routing_id` sent the present message; return why its connection cannot be kept, if so."""
        descriptor = self.channel.descriptor
        if descriptor < 0:
            return "its ZeroMQ is too old: ZMTP 3 is needed"
        if self.connections.of_descriptor(descriptor) is None:
            self._monitor.drain()  # the events of a connection come before its messages, but in another queue
        if self.connections.greeted(descriptor, routing_id):
            return None
        return "this broker has no file descriptors left: raise its limit (ulimit -n)"

    def _monitored(self, event: int, value: int) -> None:
        """Handle an event; `value` is the descriptor of a connection, or what went wrong in a handshake."""
        if event == zmq.EVENT_LISTENING:
            self._listening = value
        elif event == zmq.EVENT_ACCEPTED:
            self.connections.accepted(value, asyncio.get_running_loop().time())
            self._handlers.busy()
        elif event == zmq.EVENT_DISCONNECTED:
            self.connections.closed(value)
            self._handlers.disconnected()
        else:
            cause, text = _CAUSES.get(value, _OTHER_CAUSE)
            expected = cause == _SERVER_KEY and asyncio.get_running_loop().time() < self.rotated_at + ROTATION_S
            text = f"a handshake at the port for {self.role}s failed: {text}"
            self._log.say("handshake_failed", text, "INFO" if expected else "WARNING", cause=cause)

    def close(self, linger_s: float) -> None:
        """Close all connections; what is queued has `linger_s` seconds to go out once the context is terminated."""
        self._monitor.close()
        self.connections.close()
        self.channel.close(linger_s)
