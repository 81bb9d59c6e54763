"""The sockets of HTTP clients: each drives a gateway, and does with streams what it says.

Knows sockets and the poller; what the bytes mean, the gateway knows. A client that reads slowly stops its target, and
a target that reads slowly its client: nothing is read that there is no room for.
"""

import asyncio
import socket
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Protocol, assert_never

from loguru import logger

from brokers import LimitedLog
from goreprox import sockets
from goreprox.bridge import Bridge, Bridges
from goreprox.certificates import Identity
from goreprox.http.commands import (
    Abort,
    Answered,
    Command,
    Commands,
    Connect,
    Discard,
    Finish,
    HalfClose,
    Release,
    Resend,
    Switch,
    ToClient,
    ToProvider,
)
from goreprox.http.exchange import Site
from goreprox.http.gateway import Gateway
from goreprox.http.outgoing import Outgoing
from goreprox.http.upstream import CLOSING_S, REUSED_FOR_S, Upstream
from goreprox.log import ACCESS, quoted
from goreprox.poller import READ, WRITE
from goreprox.protocol.budget import Budget
from goreprox.protocol.limits import KIB
from goreprox.protocol.session import Kind
from goreprox.protocol.stream import State, Stream
from goreprox.sockets import Socket

HEAD_S: Final = 10.0
"""From the first byte of a head to its last."""
IDLE_S: Final = 75.0
"""Without a request."""
LINGER_S: Final = 2.0
"""After its last answer a client has so long to end its side. RST before would take the answer away from it."""
REFUSED_LINES: Final = 60
"""A minute, of the access log, for requests that reach no provider."""
SWEEP_S: Final = 1.0
FEED_BYTES: Final = 256 * KIB
"""Of an answer, turned over at once."""
CHUNK_OVERHEAD: Final = 32
"""A part of a body grows by this where it becomes a chunk: 16 digits, two line ends, and the last chunk."""


class Providers(Protocol):
    """The edge, as far as HTTP needs it."""

    def connect(self, upstream: Upstream) -> None:
        """Open its stream at a provider, now or when one comes."""

    def reusable(self, stream: Stream) -> bool:
        """Whether the provider of a stream is there, and takes requests."""

    def provider_of(self, stream: Stream) -> tuple[str | None, int | None]:
        """Return the name of a stream's provider and how many outages there were so far, if it has one."""

    def tells_delivery(self, stream: Stream) -> bool:
        """Whether the provider of a stream has acknowledged all that was delivered before it told of an end of file."""

    def upstream_ended(self, upstream: Upstream) -> None:
        """A stream is over."""

    def client_ended(self, client: str) -> None:
        """A client is gone."""

    def bridge_ended(self, bridge: Bridge) -> None:
        """A client that had left HTTP is gone, and its stream is over."""


class Fronts:
    """What all HTTP clients of a process share, and a watch over those who take too long."""

    def __init__(self, bridges: Bridges, providers: Providers, budget: Budget) -> None:
        """Serve clients on the running loop."""
        self.bridges = bridges
        self.providers = providers
        self.budget = budget
        self.live: set[Front] = set()
        self.attached = 0
        """Clients that have a stream."""
        self.draining = False
        self.log = LimitedLog(burst=REFUSED_LINES)
        self._timer: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> int:
        """Clients without a stream."""
        return len(self.live) - self.attached

    def add(self, front: "Front") -> None:
        """Watch a client."""
        self.live.add(front)
        if self._timer is None:
            self._timer = self.bridges.loop.call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        now = self.bridges.clock()
        for front in list(self.live):
            front.look(now)
        if self.live:
            self._timer = self.bridges.loop.call_later(SWEEP_S, self._sweep)

    def drain(self) -> None:
        """End whoever has no request; the others after their answers."""
        self.draining = True
        for front in list(self.live):
            front.drain()

    def providers_changed(self) -> None:
        """Let go of streams that carry nothing, at providers that are about to end."""
        for front in list(self.live):
            front.check_upstream()


@dataclass(frozen=True, slots=True)
class _Upgraded:
    """A connection that has left HTTP, like a WebSocket."""

    text: str
    fields: dict[str, object]
    began: float
    sent: int
    """Bytes of the stream that were HTTP, to the target."""
    received: int
    """And from it."""

    def log_end(self, stream: Stream, *, now: float) -> None:
        more = {
            "bytes": stream.received_bytes - self.received,
            "bytes_in": stream.sent_bytes - self.sent,
            "duration_s": round(now - self.began, 4),
            "error": stream.end_reason or None,
        }
        logger.bind(event="upgrade_ended", **self.fields | more).info("{} ended", self.text)


class Front:
    """Owns a client's socket, and the stream that its requests go over."""

    def __init__(
        self,
        fronts: Fronts,
        sock: Socket,
        client: str,
        destination: str,
        site: Site,
        *,
        certificate: Identity | None = None,
    ) -> None:
        """Take over `sock`, prepared, of a client who came to `destination`, and begin to read it.

        `certificate` is what is known of the client's, if it has shown one.
        """
        self._fronts = fronts
        self._bridges = fronts.bridges
        self._sock = sock
        self._fd = sock.fileno()
        self._client = client
        self._destination = destination
        self._certificate = None if certificate is None else certificate.name
        self._gateway = Gateway(
            site,
            client=client.rpartition(":")[0].strip("[]"),
            authority=destination,
            certificate=b"" if certificate is None else certificate.forwarded,
        )
        self._upstream: Upstream | None = None
        self._served_by: str | None = None
        """Whose stream the present request was on, once it is detached."""
        self._out = Outgoing(fronts.budget)
        self._watched = 0
        self._ending: type[Finish | Switch] | None = None
        """What is to be done when everything is written."""
        self._parting = False
        """Its end waits for room in the socket, as TLS has something to say at it."""
        self._lingering = False
        self._pulling = False
        self._began: float | None = None
        """When the request came that is being answered."""
        self._outages: int | None = None
        """Of its provider, at that time."""
        self._since = self._bridges.clock()
        """When it was last seen to do what it is waited for."""
        self._upgraded: _Upgraded | None = None
        """What is logged of its connection once that has left HTTP and ended."""
        fronts.add(self)
        self._update()
        if fronts.draining:
            self.drain()

    @property
    def open(self) -> bool:
        """Whether the socket is still ours."""
        return self._fd >= 0

    @property
    def _provider_away(self) -> bool:
        """Whether the stream has a provider, and is not to count what it takes until that is back."""
        if self._upstream is None:
            return False
        providers, stream = self._fronts.providers, self._upstream.stream
        return providers.provider_of(stream)[0] is not None and not providers.reusable(stream)

    # What others tell.

    def look(self, now: float) -> None:
        """End it if it takes too long."""
        gateway = self._gateway
        waited_s = now - self._since
        if self._lingering:
            if waited_s >= LINGER_S:
                self._close(finish=True)
        elif gateway.half_closed and (self._out or self._provider_away):
            self._since = now
        elif (
            (gateway.reading_head and waited_s >= HEAD_S)
            or (gateway.idle and waited_s >= IDLE_S)
            or (gateway.half_closed and waited_s >= CLOSING_S)
        ):
            self._do(gateway.timed_out())
        self.check_upstream(now)

    def check_upstream(self, now: float | None = None) -> None:
        """Let go of a stream that will carry no other request."""
        upstream = self._upstream
        if upstream is None or (since := upstream.idle_since) is None:
            return
        too_long = (self._bridges.clock() if now is None else now) - since >= REUSED_FOR_S
        if too_long or not self._fronts.providers.reusable(upstream.stream):
            self._detach()
            upstream.finish()

    def drain(self) -> None:
        """Answer what was asked, and end."""
        self._do(self._gateway.drain())

    def abort(self) -> None:
        """Reset the client, and what it was doing."""
        if self.open:
            self._close()

    def failed(self, reason: str) -> None:
        """Take note that the client's socket was reset."""
        self.abort()

    # What the stream tells (upstream.User).

    def readable(self) -> None:
        """The target has said something."""
        self._pull()

    def writable(self) -> None:
        """There is room for more of the request."""
        self._settle()
        self._update()

    def lost(self, upstream: Upstream, status: int, reason: str, *, again: bool) -> None:
        """The stream is over before its time."""
        if upstream is self._upstream:
            self._detach()
            if self._ending is Switch:
                self.abort()  # it has left HTTP, and so has nobody to be joined with
            else:
                self._do(self._gateway.provider_lost(status, reason, again=again))

    # From the client.

    def _ready(self, events: int) -> None:
        if events & self._watched & WRITE:
            self._flush()
        if events & self._watched & READ:
            self._read()

    def _room(self) -> int:
        """Return how many bytes may be read: of a body what the stream takes, too."""
        upstream = self._upstream
        room = min(self._gateway.wanted, len(self._bridges.view))
        if upstream is not None and self._gateway.in_body:
            room = min(room, upstream.room - CHUNK_OVERHEAD)
        return room

    def _read(self) -> None:
        view = self._bridges.view
        room = len(view) if self._lingering else self._room()
        if room <= 0:
            self._update()
            return
        try:
            count = self._sock.recv_into(view, room)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.abort()
            return
        if self._lingering:
            if not count:
                self._close(finish=True)
        elif count:
            if not self._gateway.idle:
                self._do(self._gateway.receive(bytes(view[:count])))
                return
            now = self._bridges.clock()
            self.check_upstream(now)
            commands = self._gateway.receive(bytes(view[:count]))
            if commands or not self._gateway.idle:  # and not blank lines alone
                self._since = now
            self._do(commands)
        else:
            self._do(self._gateway.receive_eof())

    # To the client.

    def _flush(self) -> None:
        """Give the socket what it takes."""
        try:
            self._out.send(self._sock)
        except OSError:
            self.abort()
            return
        self._settle()
        self._update()
        self._pull()

    def _settle(self) -> None:
        """Do what was to be done once everything is written."""
        if self._out or self._lingering or not self.open:
            return
        if self._ending is Finish:
            self._linger()
        elif self._ending is Switch and self._upstream is not None and self._upstream.settled:
            self._hand_over(self._upstream)

    def _linger(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            self._parting = True
            return
        except OSError:
            self.abort()
            return
        self._let_go()
        self._parting, self._lingering = False, True
        self._since = self._bridges.clock()

    # From the provider.

    def _pull(self) -> None:
        """Turn over what the target says, as long as the client takes it."""
        if self._pulling:
            return
        self._pulling = True
        try:
            while (upstream := self._upstream) is not None and not self._out and self._ending is None:
                moved = upstream.stream.receive.delivered
                if data := upstream.take(min(FEED_BYTES, self._fronts.budget.allowance(0, moved=moved))):
                    self._do(self._gateway.provider_data(data))
                elif upstream.take_eof():
                    untouched = upstream.untouched and self._fronts.providers.tells_delivery(upstream.stream)
                    self._do(self._gateway.provider_eof(untouched=untouched))
                else:
                    upstream.finish_reset()
                    break
        finally:
            self._pulling = False

    # What the gateway wants.

    def _do(self, commands: Commands) -> None:
        """Do it, in order."""
        if commands:
            self._since = self._bridges.clock()
        for command in commands:
            self._obey(command)
        if not self.open:
            return
        if self._out:
            self._flush()
        else:
            self._settle()
            self._update()

    def _obey(self, command: Command) -> None:
        match command:
            case ToClient(data):
                self._out.append(data)
            case ToProvider() | HalfClose() | Release():
                if self._upstream is not None:
                    self._tell(self._upstream, command)
            case Connect(service, fresh):
                self._connect(service, fresh=fresh)
            case Answered():
                self._log(command)
            case Resend(service):
                self._resend(service)
            case Discard(reset):
                self._discard(reset=reset)
            case Finish() | Switch():
                self._ending = type(command)
            case Abort():
                self.abort()
            case _:
                assert_never(command)

    def _tell(self, upstream: Upstream, command: ToProvider | HalfClose | Release) -> None:
        match command:
            case ToProvider(data):
                upstream.write(data)
            case HalfClose():
                upstream.write_eof()
            case Release():
                upstream.idle_since = self._since

    def _log(self, done: Answered) -> None:
        provider, outages = self._served_by, self._outages
        if self._upstream is not None:
            provider, outages = self._fronts.providers.provider_of(self._upstream.stream)
        text = "a request that cannot be read"
        if done.method:
            text = f"{quoted(done.method, 16)} {quoted(done.host)}{quoted(done.path)}"
        fields = {
            "status": done.status,
            "bytes": done.body_bytes,
            "duration_s": 0.0 if self._began is None else round(self._bridges.clock() - self._began, 4),
            "client": done.client,
            "service": done.service or None,
            "provider": provider,
            "token": done.token,
            "certificate": self._certificate,
            "error": done.error or None,
            "request_id": done.request_id or None,
            "outage_survived": self._outages is not None and outages != self._outages,
        }
        if self._began is None:  # it was refused, so whoever sends such requests costs the target nothing
            self._fronts.log.say(ACCESS, text, "INFO", **fields)
        else:
            logger.bind(event=ACCESS, **fields).info("{}", text)
        if done.status == HTTPStatus.SWITCHING_PROTOCOLS and self._began is not None and self._upstream is not None:
            stream = self._upstream.stream
            self._upgraded = _Upgraded(text, fields, self._began, stream.send.end, stream.receive.delivered)
        self._began = None

    def _connect(self, service: str, *, fresh: bool) -> None:
        self._served_by = None
        if not fresh:
            self._began = self._since
        if self._upstream is not None and not fresh:
            self._upstream.begin()
            _, self._outages = self._fronts.providers.provider_of(self._upstream.stream)
            return
        fronts = self._fronts
        stream = Stream(
            opener=True, service=service, client=self._client, destination=self._destination, budget=fronts.budget
        )
        upstream = Upstream(stream, self, clock=self._bridges.clock, on_end=self._upstream_ended)
        self._upstream = upstream
        fronts.attached += 1
        self._bridges.live.add(upstream)
        fronts.providers.connect(upstream)
        _, self._outages = fronts.providers.provider_of(stream)

    def _resend(self, service: str) -> None:
        before = self._detach()
        if before is not None:
            request = before.take_back()
            before.reset("the target had closed the connection before the request came")
            self._connect(service, fresh=True)
            assert self._upstream is not None
            self._upstream.write(request)

    def _upstream_ended(self, upstream: Upstream) -> None:
        self._bridges.live.discard(upstream)
        self._fronts.providers.upstream_ended(upstream)

    def _detach(self) -> Upstream | None:
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            self._fronts.attached -= 1
            self._served_by, _ = self._fronts.providers.provider_of(upstream.stream)
        return upstream

    def _discard(self, *, reset: bool) -> None:
        upstream = self._detach()
        if upstream is not None:
            if reset:
                upstream.reset("the request came to nothing")
            else:
                upstream.finish()

    def _hand_over(self, upstream: Upstream) -> None:
        """Join socket and stream: they have left HTTP."""
        self._detach()
        if upstream.stream.state is State.CLOSED:
            self._close()
            return
        self._unwatch()
        self._fd = -1
        self._fronts.live.discard(self)
        self._bridges.live.discard(upstream)
        stream = upstream.release()
        bridge = Bridge(self._bridges, self._sock, stream, self._upgrade_ended)
        bridge.notice(Kind.RESET if stream.state is State.RESET else Kind.READABLE)

    def _upgrade_ended(self, bridge: Bridge) -> None:
        if self._upgraded is not None:
            self._upgraded.log_end(bridge.stream, now=self._bridges.clock())
        self._fronts.providers.bridge_ended(bridge)

    # Ends.

    def _update(self) -> None:
        """Poll for what there is to do."""
        if not self.open:
            return
        reading = self._lingering or (self._ending is None and self._gateway.reading and self._room() > 0)
        events = (READ if reading else 0) | (WRITE if self._out or self._parting else 0)
        watched, self._watched = self._watched, events
        poller = self._bridges.poller
        if not watched and events:
            poller.watch(self._fd, events, self._ready)
        elif watched and not events:
            poller.forget(self._fd)
        elif watched != events:
            poller.change(self._fd, events, self._ready)
        if reading:
            self._bridges.unwatch(self._fd)
        else:
            self._bridges.watch(self._fd, self)

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = 0
            self._bridges.poller.forget(self._fd)
        self._bridges.unwatch(self._fd)

    def _let_go(self) -> None:
        """Let go of the stream: well, if it carries nothing."""
        upstream = self._upstream
        if upstream is not None:
            self._discard(reset=upstream.idle_since is None)

    def _close(self, *, finish: bool = False) -> None:
        """Let go of the socket: with RST, unless it is finished."""
        if not self.open:
            return
        self._unwatch()
        self._fd = -1
        self._out.clear()
        self._fronts.live.discard(self)
        if finish:
            sockets.finish(self._sock)
        else:
            self._sock.close()
        self._let_go()
        self._fronts.providers.client_ended(self._client)
