"""One DEALER to one broker: it connects, says hello, and tells its user who is there.

    DOWN --handshake--> GREETING --Welcome--> UP --disconnected--> DOWN
                            ^--broker silent---'

libzmq connects again and again until a server accepts; names are resolved here, since libzmq does it in its I/O thread,
where one slow name stalls every connection. Monitor events are not ordered with messages: so a Welcome counts only if
it answers the latest Hello. After a failed handshake libzmq gives up or tries again ten times a second, as it comes: so
we take the connection back and try again ourselves, ever more slowly.

A connection that is lost is taken back as well, which drops what waits to be sent. The option for this, ZMQ_IMMEDIATE,
aborts the process where a connection is lost while a message of several frames is read (`recvpipe` in libzmq's fq.cpp).
"""

import asyncio
import enum
import errno
import random
import secrets
from collections.abc import Callable, Mapping, Sequence

import zmq

from brokers.carrier import Buffer, Receiver, Timings
from brokers.channel import Channel, Monitor
from brokers.diagnosis import Diagnosis
from brokers.envelope import (
    CONTROL,
    FABRIC_VERSION,
    FABRIC_VERSION_LEAST,
    LEFT,
    REVOKED,
    Announce,
    Control,
    Down,
    Hello,
    Leave,
    Refused,
    Renew,
    Up,
    Welcome,
    control,
    parse_control,
)
from brokers.errors import BadMessage
from brokers.inbox import Inbox
from brokers.keys import LinkSecurity
from brokers.peers import NONCE_BYTES, PeerName
from brokers.resolver import SocketAddress, resolve
from brokers.sockets import dealer_socket, secure_link

GREET_S = 1.0
GREET_MAX_S = 8.0
"""Between two Hellos while no Welcome comes; doubled each time, as a Welcome answers only the latest."""
RESOLVE_AFTER_S = 3.0
"""An address that has not answered for so long is looked up again, and the next one is tried."""
HANDSHAKE_TIMEOUTS = 2.5
"""With keys a handshake takes four round trips; the broker gives it 5 s, too."""
REFUSED_MAX_S = 8.0
"""Between two attempts where the broker does not want us: it may change its mind."""
LEAVING_S = 5.0
"""A broker that is lost so soon after its last peer left was shut down."""
_EVENTS = (
    zmq.EVENT_CONNECTED,
    zmq.EVENT_DISCONNECTED,
    zmq.EVENT_HANDSHAKE_SUCCEEDED,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
    zmq.EVENT_HANDSHAKE_FAILED_AUTH,
)
_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
    zmq.EVENT_HANDSHAKE_FAILED_AUTH,
)


class State(enum.Enum):
    """Of a link."""

    DOWN = enum.auto()
    GREETING = enum.auto()
    UP = enum.auto()


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
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """Be `name` at the broker on `host`:`port`, in plaintext unless there is `security`; call `start`.

        `changed` is called when it is up, and when there is another reason why it is not.
        """
        self.label = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.state = State.DOWN
        self._name = name
        self._attributes = attributes
        self._host, self._port = host, port
        self._timings = timings or Timings()
        self._inbox = Inbox(self, receiver)
        self._context = zmq.Context()
        self._loop = asyncio.get_running_loop()
        self._heard_at = self._silent_at = self._greeted_at = self._loop.time()
        self._attempt = secrets.randbelow(2**32)
        self._endpoint: str | None = None
        self._address: SocketAddress | None = None
        """Where `_endpoint` is, for a plain connection."""
        self._tried: list[str] = []
        self._diagnosis = Diagnosis(name.role, host, port, self.label, keyed=security is not None, changed=changed)
        self._peers: set[bytes] = set()
        self._deserted_at = -LEAVING_S
        """When the last peer left on purpose: what follows is the end of the server that it was in."""
        self._greet_s = GREET_S
        self._security = security
        self._brokers = list(security.brokers) if security is not None else []
        """The keys that the broker may have; the first is the one expected."""
        self._failures = 0
        self._shaking: int | None = None
        """The descriptor of the connection whose handshake goes on."""
        self._handshake_s = self._timings.connect_timeout_s * (HANDSHAKE_TIMEOUTS if security is not None else 1)
        self._waits_until = 0.0
        """Until then a handshake may go on: on a slow link it takes its time."""
        self._again: asyncio.TimerHandle | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._socket = dealer_socket(
            self._context,
            name.routing_id(secrets.token_bytes(NONCE_BYTES)),
            self._timings,
            handshake_s=self._handshake_s,
        )
        self._monitor = Monitor(self._socket, sum(_EVENTS), self._event)
        self._channel = Channel(self._socket, self._receive)

    @property
    def up(self) -> bool:
        """Whether the broker has welcomed us."""
        return self.state is State.UP

    @property
    def trouble(self) -> str | None:
        """Why the link is not up, for people; None if it is up, or nothing is known yet."""
        return self._diagnosis.trouble

    @property
    def since_s(self) -> float:
        """For how long it has been up, or not."""
        return self._loop.time() - self._diagnosis.since

    def start(self) -> None:
        """Begin to connect, and go on for ever."""
        work = (self._find(), self._keep())
        self._tasks = [self._loop.create_task(each, name=f"link {self.label}") for each in work]

    def send(self, peer_id: bytes, frames: Sequence[Buffer]) -> bool:
        """Send without blocking; False if there is no broker or its pipe is full."""
        return self.state is State.UP and self._send([peer_id, *frames])

    def announce(self, attributes: Mapping[str, object]) -> None:
        """Replace what the roster says of us, now and in later hellos."""
        self._attributes = attributes
        if self.state is State.UP:
            self._send(control(Announce(attributes)))

    async def close(self, *, linger_s: float) -> None:
        """Leave; what is queued has `linger_s` seconds to go out."""
        if self._context.closed:
            return
        for task in self._tasks:
            task.cancel()
        if self._again is not None:
            self._again.cancel()
        self._diagnosis.close()
        if self.state is State.UP:
            self._send(control(Leave()))
        self.state = State.DOWN
        self._monitor.close()
        self._channel.close(linger_s)
        await self._loop.run_in_executor(None, self._context.term)

    def _send(self, frames: list[Buffer]) -> bool:
        try:
            self._channel.send(frames)
        except zmq.Again:
            return False
        return True

    async def _find(self) -> None:
        """Resolve, as long as nobody answers: on its own, as a name server may be away longer than the server."""
        while True:
            now = self._loop.time()
            silent = now - self._silent_at >= RESOLVE_AFTER_S and now >= self._waits_until
            if self.state is not State.UP and (self._endpoint is None or silent):
                await self._connect()
                self._silent_at = self._loop.time()
            await asyncio.sleep(min(GREET_S, self._timings.renew_s) * random.uniform(0.8, 1.0))

    async def _keep(self) -> None:
        """Renew, greet again: whatever else time alone brings about."""
        while True:
            now = self._loop.time()
            if self.state is State.UP and self._is_silent:
                self._lose("the broker is silent")
                self._hang_up()
                self._dial()
            elif self.state is State.UP:
                self._send(control(Renew()))
            elif self.state is State.GREETING and now - self._greeted_at >= self._greet_s:
                self._greet_s = min(2 * self._greet_s, GREET_MAX_S)
                self._greet()
            pause = self._timings.renew_s if self.state is State.UP else min(GREET_S, self._timings.renew_s)
            await asyncio.sleep(pause * random.uniform(0.8, 1.0))

    @property
    def _is_silent(self) -> bool:
        """Whether the connection shows no life: it is made anew."""
        return self._loop.time() - self._heard_at > self._timings.link_timeout_s

    async def _connect(self) -> None:
        """Connect to the next address of the host; libzmq then reconnects to it by itself."""
        try:
            found = await resolve(self._host, self._port)
        except (OSError, UnicodeError) as exc:
            reason = exc.strerror or str(exc) if isinstance(exc, OSError) else "no host can have it"
            self._diagnosis.not_resolved(reason)
            return
        addresses = {_endpoint(str(address[0]), self._port): (family, address) for family, address in found}
        endpoints = list(addresses)
        untried = [e for e in endpoints if e not in self._tried] or endpoints
        if self._endpoint is not None and self.state is State.DOWN:
            self._diagnosis.look(self._address)
        self._tried = [*self._tried, untried[0]] if untried is not endpoints else [untried[0]]
        # The same one again, too: after some errors libzmq reconnects no more (protocol_error in its session_base.cpp).
        anew = self._again is None and (self.state is State.DOWN or self._is_silent)
        if self.state is not State.UP and (untried[0] != self._endpoint or anew):
            self._hang_up()
            self._endpoint, self._address = untried[0], addresses[untried[0]]
            self._dial()

    def _dial(self) -> None:
        self._again = None
        assert self._endpoint is not None
        if self._security is not None:
            secure_link(self._socket, self._security.keys, self._brokers[0])
        self._socket.connect(self._endpoint)

    def _hang_up(self) -> None:
        self.state = State.DOWN
        self._attempt += 1  # what the one that is left still says counts no more
        if self._again is not None:
            self._again.cancel()
            self._again = None
        elif self._endpoint is not None:
            self._socket.disconnect(self._endpoint)

    def _dial_in(self, pause_s: float) -> None:
        """Try the same address after a pause."""
        self._hang_up()
        self._again = self._loop.call_later(pause_s * random.uniform(0.8, 1.0), self._dial)

    def _dial_again(self, most_s: float) -> None:
        """Try the same address after a pause that doubles up to `most_s` seconds."""
        self._failures += 1
        self._dial_in(min(self._timings.reconnect_min_s * 2 ** min(self._failures, 16), most_s))

    def _handshake_failed(self, event: int, *, timed_out: bool) -> None:
        """Find out why, and try again: with the broker's next key, if this one may be the reason."""
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            self._diagnosis.not_known()
            self._dial_again(REFUSED_MAX_S)
            return
        self._brokers = [*self._brokers[1:], *self._brokers[:1]]
        self._dial_again(self._timings.reconnect_max_s)
        self._diagnosis.failed(self._address, timed_out=timed_out)

    def _event(self, event: int, value: int) -> None:
        if self._again is not None:
            return  # of a connection that was given up already
        if event == zmq.EVENT_CONNECTED:
            self._shaking = value
            self._waits_until = self._loop.time() + self._handshake_s
            self._diagnosis.handshake_begins(self._address)
            return
        failed = event in _FAILED or (event == zmq.EVENT_DISCONNECTED and value == self._shaking)
        self._shaking = None
        self._waits_until = 0.0
        self._diagnosis.handshake_ends()
        if failed:
            timed_out = event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL and value == errno.EAGAIN
            self._handshake_failed(event, timed_out=timed_out)
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._inbox.down("connected anew")
            self._silent_at = self._heard_at = self._loop.time()
            self._greet()
        else:
            self._lose("the connection was lost")
            self._dial_in(self._timings.reconnect_min_s)

    def _greet(self) -> None:
        self.state = State.GREETING
        self._attempt += 1
        self._greeted_at = self._loop.time()
        self._send(control(Hello(FABRIC_VERSION, FABRIC_VERSION_LEAST, self._attempt, self._attributes)))

    def _lose(self, reason: str) -> None:
        before, self.state = self.state, State.DOWN
        if before is not State.DOWN:
            self._silent_at = self._loop.time()
        if before is State.UP:
            deserted = not self._peers and self._loop.time() - self._deserted_at < LEAVING_S
            self._diagnosis.lost(reason, expected=deserted)
        self._inbox.down(reason)

    def _receive(self, frames: list[Buffer]) -> None:
        self._heard_at = self._loop.time()
        try:
            if self.state is State.UP:
                self._heed(self._inbox.receive(frames))
            elif frames[0] == CONTROL:
                self._receive_welcome(frames)
        except BadMessage as exc:
            self._diagnosis.not_understood(exc)

    def _heed(self, message: Control | None) -> None:
        match message:
            case Refused(reason):
                self._refused(reason)
            case Up(role, _, incarnation):
                self._peers.add(role + incarnation)
            case Down(peer_id, _, reason):
                self._peers.discard(peer_id)
                if reason == LEFT and not self._peers:
                    self._deserted_at = self._loop.time()
            case Welcome():
                self._peers.clear()
            case _:
                pass

    def _receive_welcome(self, frames: list[Buffer]) -> None:
        match parse_control(frames):
            case Welcome(_, attempt, _) if attempt == self._attempt:
                self.state = State.UP
                self._failures = 0
                self._keep_to_key()
                self._greet_s = GREET_S
                self._tried.clear()
                self._peers.clear()
                self._diagnosis.up()
                self._inbox.receive(frames)
            case Refused(reason):
                self._refused(reason)
            case _:
                pass

    def _keep_to_key(self) -> None:
        """Once the broker has proven a newer key, never accept an older one (downgrade protection)."""
        if self._security is not None:
            keys = self._security.brokers
            self._brokers = list(keys[keys.index(self._brokers[0]) :])

    def _refused(self, reason: str) -> None:
        if self.state is State.UP:
            self._inbox.down(REVOKED)
            self._dial_again(REFUSED_MAX_S)
        self._diagnosis.refused(reason)


def _endpoint(address: str, port: int) -> str:
    return f"tcp://[{address}]:{port}" if ":" in address else f"tcp://{address}:{port}"
