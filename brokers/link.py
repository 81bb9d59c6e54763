"""A link: one DEALER to one broker, and who is reachable over it.

    DOWN --handshake--> GREETING --Welcome--> UP --disconnected--> DOWN
                            ^--broker silent---'

libzmq reconnects until a broker accepts. Names are resolved here, since libzmq does it in its I/O thread, where one
slow name stalls every connection. Monitor events are not ordered with messages, so a Welcome counts only if it responds
to the latest Hello.

After a failed handshake libzmq gives up or tries again ten times a second, depending on the failure. So the link hangs
up and dials again itself, with growing pauses. It hangs up after a lost connection as well, which drops what is queued:
the option for this, ZMQ_IMMEDIATE, aborts the process where a connection is lost while a message of several frames is
read (`recvpipe` in libzmq's fq.cpp).

Every step of a connection is here, from its address to its end, hence so long.
"""

import asyncio
import errno
import random
import secrets
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Final, NamedTuple

import zmq

from brokers.carrier import Buffer, LinkCondition, LinkState, Receiver, Timings
from brokers.causes import Cause
from brokers.channel import Channel, Monitor
from brokers.diagnosis import Diagnosis
from brokers.dialer import Dialer
from brokers.envelope import (
    CLOSING,
    CONTROL,
    FABRIC_VERSION,
    FABRIC_VERSION_LEAST,
    REVOKED,
    Announce,
    Control,
    Down,
    Hello,
    Leave,
    Refused,
    Renew,
    Welcome,
    control,
    parse_control,
)
from brokers.errors import BadMessage
from brokers.inbox import Inbox
from brokers.keys import LinkSecurity
from brokers.peers import NONCE_BYTES, LinkIdentity, PeerName
from brokers.proxy import OpenError, Proxy, addresses
from brokers.resolver import SocketAddress
from brokers.sockets import dealer_socket, secure_link
from brokers.transport import Tls

GREET_S: Final = 1.0
GREET_MAX_S: Final = 8.0
"""Between two Hellos while no Welcome comes; doubled each time, as a Welcome responds to the latest only."""
RESOLVE_AFTER_S: Final = 3.0
"""An address that has not responded for so long is resolved again, and the next one is tried."""
HANDSHAKE_TIMEOUTS: Final = 2.5
"""Connect timeouts that a handshake with keys may take: it has four round trips. The broker gives it 5 s, too."""
REFUSED_MAX_S: Final = 8.0
"""Between two attempts while the broker or a proxy refuses: it may change its mind."""
PROXIED_PAUSES: Final = 4
"""Longest pauses between two attempts that the longest one through a proxy takes: most proxies log each attempt."""
_REFUSALS: Final = (Cause.PROXY_PASSWORD, Cause.PROXY_REFUSED, Cause.CERTIFICATE)
_HANDSHAKE_FAILED: Final = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
    zmq.EVENT_HANDSHAKE_FAILED_AUTH,
)
_EVENTS: Final = sum((zmq.EVENT_CONNECTED, zmq.EVENT_DISCONNECTED, zmq.EVENT_HANDSHAKE_SUCCEEDED, *_HANDSHAKE_FAILED))


class _Handshake(NamedTuple):
    descriptor: int
    """Of its connection."""
    until: float
    """On a slow path it takes its time: no other address is tried before."""


class Link:
    """A carrier over TCP. All its methods belong to one event loop."""

    def __init__(
        self,
        name: PeerName,
        attributes: Mapping[str, object],
        host: str,
        port: int,
        receiver: Receiver,
        *,
        timings: Timings | None = None,
        security: LinkSecurity | None = None,
        called: str = "broker",
        advise: Callable[[Cause], str | None] = lambda _cause: None,
        changed: Callable[[], None] = lambda: None,
        identities: MutableMapping[str, LinkIdentity] | None = None,
        proxy: Proxy | None = None,
        tls: Tls | None = None,
    ) -> None:
        """Be `name` at the broker on `host`:`port`, in plaintext unless there is `security`; call `start`.

        Log lines name the broker as it is `called`, and say what to do about a cause if `advise` returns something.
        `changed` is called when the link comes up, and when there is another reason why it is down. A link that
        finds its label in `identities`, and takes it, is the same to the broker as an earlier one. It connects through
        `proxy`, if there is one, and speaks `tls` with the broker.
        """
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.label = where if tls is None else f"tls://{where}"
        self.state = LinkState.DOWN
        self._name = name
        self._attributes = attributes
        self._untold = False
        """Whether they have changed since the last hello and could not be announced yet."""
        self._host, self._port = host, port
        self._timings = timings or Timings()
        self._inbox = Inbox(self, receiver)
        self._context = zmq.Context()
        self._loop = asyncio.get_running_loop()
        self._heard_at = self._silent_at = self._greeted_at = self._loop.time()
        known = None if identities is None else identities.pop(self.label, None)
        self._nonce, self._attempt = known or (secrets.token_bytes(NONCE_BYTES), secrets.randbelow(2**32))
        self._address: SocketAddress | None = None
        """The one that is tried, or connected to."""
        self._tried: list[SocketAddress] = []
        self._diagnosis = Diagnosis(
            host,
            self.label,
            called=called,
            keyed=security is not None,
            advise=advise,
            changed=changed,
            proxy=proxy,
            tls=tls,
        )
        self._greet_s = GREET_S
        self._security = security
        self._brokers = list(security.brokers) if security is not None else []
        """The keys that the broker may have; the first is the one expected."""
        self._failures = 0
        self._handshake: _Handshake | None = None
        self._handshake_s = self._timings.connect_timeout_s * (HANDSHAKE_TIMEOUTS if security is not None else 1)
        self._redial: asyncio.TimerHandle | None = None
        """Runs while the link has hung up and waits for its next attempt."""
        self._tasks: list[asyncio.Task[None]] = []
        self._socket = dealer_socket(
            self._context, name.routing_id(self._nonce), self._timings, handshake_s=self._handshake_s
        )
        self._dialer = Dialer(self._socket, proxy, tls, self._unreached, connect_s=self._timings.connect_timeout_s)
        self._monitor = Monitor(self._socket, _EVENTS, self._monitored)
        self._channel = Channel(self._socket, self._receive)

    @property
    def up(self) -> bool:
        """Whether the broker has welcomed us."""
        return self.state is LinkState.UP

    @property
    def identity(self) -> LinkIdentity:
        """What the process that replaces this one needs to be the same to the broker."""
        return LinkIdentity(self._nonce, self._attempt)

    @property
    def problem(self) -> str | None:
        """Why the link is down, for people; None if it is up, or nothing is known yet."""
        return self._diagnosis.problem

    @property
    def proxy(self) -> Proxy | None:
        """What it connects through, if not directly."""
        return self._dialer.proxy

    @property
    def proxied(self) -> str | None:
        """The same, for people."""
        return None if self.proxy is None else str(self.proxy)

    @property
    def since_s(self) -> float:
        """For how long it has been up, or down."""
        return self._loop.time() - self._diagnosis.since

    def start(self) -> None:
        """Connect, and reconnect until it is closed."""
        work = (self._keep_resolving(), self._keep_alive())
        self._tasks = [self._loop.create_task(each, name=f"link {self.label}") for each in work]

    def send(self, peer_id: bytes, frames: Sequence[Buffer]) -> bool:
        """Send without blocking; False if the link is down or its pipe is full."""
        return self.state is LinkState.UP and self._send([peer_id, *frames])

    def link_condition(self, peer_id: bytes) -> LinkCondition | None:
        """Return the condition of the connection to the broker; None if there is none, or it is unknown."""
        return self._dialer.condition

    def announce(self, attributes: Mapping[str, object]) -> None:
        """Replace our attributes in the peer list, now and in later hellos."""
        self._attributes, self._untold = attributes, True
        self._tell()

    def _tell(self) -> None:
        """Announce attributes that the broker does not know; if the pipe is full, at the next renewal."""
        if self._untold and self.state is LinkState.UP:
            self._untold = not self._send(control(Announce(self._attributes)))

    def reroute(self, proxy: Proxy | None) -> None:
        """Reach the broker through another proxy, or none: end the present connection, and make a new one."""
        self._dialer.proxy = self._diagnosis.proxy = proxy
        self._lose("the proxy was changed")
        self._hang_up()
        self._address, self._failures = None, 0
        self._tasks[0].cancel()
        self._tasks[0] = self._loop.create_task(self._keep_resolving(), name=f"link {self.label}")

    async def close(self, *, linger_s: float) -> None:
        """Leave; what is queued has `linger_s` seconds to go out."""
        if self._context.closed:
            return
        for task in self._tasks:
            task.cancel()
        if self._redial is not None:
            self._redial.cancel()
        self._diagnosis.close()
        if self.state is LinkState.UP:
            self._send(control(Leave()))
        self._dialer.stop()
        self.state = LinkState.DOWN
        self._monitor.close()
        self._channel.close(linger_s)
        await self._loop.run_in_executor(None, self._context.term)
        await self._dialer.finish(linger_s=linger_s)

    def _send(self, frames: list[Buffer]) -> bool:
        try:
            self._channel.send(frames)
        except zmq.Again:
            return False
        return True

    async def _keep_resolving(self) -> None:
        """Resolve the host while nothing responds; a task of its own, as a name server may be away for long."""
        while True:
            now = self._loop.time()
            is_shaking = self._handshake is not None and now < self._handshake.until
            silent = now - self._silent_at >= RESOLVE_AFTER_S and not is_shaking and not self._dialer.dialing
            if self.state is not LinkState.UP and (self._address is None or silent):
                await self._connect()
                self._silent_at = self._loop.time()
            await asyncio.sleep(min(GREET_S, self._timings.renew_s) * random.uniform(0.8, 1.0))

    async def _keep_alive(self) -> None:
        """Renew our lease, notice a silent broker, and repeat a Hello without a response."""
        while True:
            now = self._loop.time()
            if self.state is LinkState.UP and self._is_silent:
                self._lose("the broker is silent")
                self._hang_up()
                self._dial()
            elif self.state is LinkState.UP:
                self._send(control(Renew()))
                self._tell()
            elif self.state is LinkState.GREETING and now - self._greeted_at >= self._greet_s:
                self._greet_s = min(2 * self._greet_s, GREET_MAX_S)
                self._greet()
            pause = self._timings.renew_s if self.state is LinkState.UP else min(GREET_S, self._timings.renew_s)
            await asyncio.sleep(pause * random.uniform(0.8, 1.0))

    @property
    def _is_silent(self) -> bool:
        """Whether nothing has arrived for so long that the connection is to be replaced."""
        return self._loop.time() - self._heard_at > self._timings.link_timeout_s

    @property
    def _longest_pause_s(self) -> float:
        """Between two attempts, unless we are refused."""
        return self._timings.reconnect_max_s * (1 if self._dialer.proxy is None else PROXIED_PAUSES)

    async def _connect(self) -> None:
        """Dial the next address of the host; libzmq then reconnects to it by itself."""
        try:
            found = list(dict.fromkeys(await addresses(self._host, self._port, self._dialer.proxy)))
        except (OSError, UnicodeError) as exc:
            reason = exc.strerror or str(exc) if isinstance(exc, OSError) else "not a valid host name"
            self._diagnosis.not_resolved(reason)
            return
        untried = [each for each in found if each not in self._tried] or found
        if self._address is not None and self.state is LinkState.DOWN and not self._dialer.connects:
            self._diagnosis.examine(self._address)
        self._tried = [*self._tried, untried[0]] if untried is not found else [untried[0]]
        # The same address, too: after some errors libzmq stops reconnecting (protocol_error in its session_base.cpp).
        again = self._redial is None and (self.state is LinkState.DOWN or self._is_silent)
        if self.state is not LinkState.UP and (untried[0] != self._address or again):
            self._hang_up()
            self._address = untried[0]
            self._dial()

    def _dial(self) -> None:
        self._redial = None
        assert self._address is not None
        if self._security is not None:
            secure_link(self._socket, self._security.keys, self._brokers[0])
        self._dialer.dial(self._address)

    def _hang_up(self) -> None:
        self.state = LinkState.DOWN
        self._attempt += 1  # so that a Welcome over the old connection counts no more
        if self._redial is not None:
            self._redial.cancel()
            self._redial = None
        self._dialer.hang_up()

    def _redial_in(self, pause_s: float) -> None:
        self._hang_up()
        self._redial = self._loop.call_later(pause_s * random.uniform(0.8, 1.0), self._dial)

    def _redial_later(self, most_s: float) -> None:
        """Hang up for a pause that doubles with each failure, up to `most_s` seconds."""
        self._failures += 1
        self._redial_in(min(self._timings.reconnect_min_s * 2 ** min(self._failures, 16), most_s))

    def _monitored(self, event: int, value: int) -> None:
        """Handle an event; `value` is a descriptor, or what went wrong in a handshake."""
        if not self._dialer.dialed:
            return  # of a connection that was given up
        if event == zmq.EVENT_CONNECTED:
            if not self._dialer.connected(value):
                self._redial_later(self._longest_pause_s)
                return
            self._handshake = _Handshake(value, self._loop.time() + self._handshake_s)
            self._diagnosis.handshake_begins(self._address)
            return
        if event == zmq.EVENT_DISCONNECTED:
            self._dialer.disconnected()
        handshake, self._handshake = self._handshake, None
        self._diagnosis.handshake_ends()
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._inbox.down("connected anew")
            self._silent_at = self._heard_at = self._loop.time()
            self._greet()
        elif event in _HANDSHAKE_FAILED or (handshake is not None and value == handshake.descriptor):
            timed_out = event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL and value == errno.EAGAIN
            self._handshake_failed(event, timed_out=timed_out)
        else:
            if self.state is LinkState.UP:
                self._channel.drain()  # the broker's last message may say that it is being shut down
            if self._redial is None:
                self._lose("the connection was lost")
                self._redial_in(self._timings.reconnect_min_s)

    def _handshake_failed(self, event: int, *, timed_out: bool) -> None:
        """Find out why, and try again: with the broker's next key, if this one may be the reason."""
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            self._diagnosis.key_rejected()
            self._redial_later(REFUSED_MAX_S)
            return
        self._brokers = [*self._brokers[1:], *self._brokers[:1]]
        self._redial_later(self._longest_pause_s)
        self._diagnosis.handshake_failed(self._address, timed_out=timed_out)

    def _unreached(self, error: OpenError) -> None:
        """Try again later: we have not got a connection."""
        self._redial_later(REFUSED_MAX_S if error.cause in _REFUSALS else self._longest_pause_s)
        self._diagnosis.unreached(error)

    def _greet(self) -> None:
        self.state = LinkState.GREETING
        self._attempt += 1
        self._greeted_at = self._loop.time()
        self._untold = False
        self._send(control(Hello(FABRIC_VERSION, FABRIC_VERSION_LEAST, self._attempt, self._attributes)))

    def _lose(self, reason: str) -> None:
        before, self.state = self.state, LinkState.DOWN
        if before is not LinkState.DOWN:
            self._silent_at = self._loop.time()
        if before is LinkState.UP:
            self._diagnosis.lost(reason)
        self._inbox.down(reason)

    def _receive(self, frames: list[Buffer]) -> None:
        self._heard_at = self._loop.time()
        try:
            if self.state is LinkState.UP:
                message = self._inbox.receive(frames)
                if message is not None:
                    self._react(message)
            elif frames[0] == CONTROL:
                self._receive_welcome(frames)
        except BadMessage as exc:
            self._diagnosis.not_understood(exc)

    def _react(self, message: Control) -> None:
        match message:
            case Refused(reason):
                self._refused(reason)
            case Down(_, _, reason) if reason == CLOSING:
                self._diagnosis.broker_closes()
            case _:
                pass

    def _receive_welcome(self, frames: list[Buffer]) -> None:
        match parse_control(frames):
            case Welcome(_, attempt, _) if attempt == self._attempt:
                self.state = LinkState.UP
                self._failures = 0
                if self._security is not None:
                    # The broker has proven this key: never accept an older one again (downgrade protection).
                    keys = self._security.brokers
                    self._brokers = list(keys[keys.index(self._brokers[0]) :])
                self._greet_s = GREET_S
                self._tried.clear()
                self._diagnosis.up()
                self._inbox.receive(frames)
                self._tell()
            case Refused(reason):
                self._refused(reason)
            case _:
                pass

    def _refused(self, reason: str) -> None:
        if self.state is LinkState.UP:
            self._inbox.down(REVOKED)
            self._redial_later(REFUSED_MAX_S)
        self._diagnosis.refused(reason)
