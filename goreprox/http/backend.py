"""The stream that one HTTP client's requests go over, whose it is, and what is logged of these requests.

Knows streams and providers; neither the client's socket nor what is in the requests.
"""

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Protocol, assert_never

from loguru import logger

from brokers import LimitedLog
from goreprox.endpoint import Endpoint
from goreprox.http.commands import Connect, Discard, HalfClose, LogRequest, Release, ToProvider
from goreprox.http.provider_stream import REUSED_FOR_S, Upstream, User
from goreprox.process.log import ACCESS, quoted
from goreprox.protocol.budget import Budget
from goreprox.protocol.state import State
from goreprox.protocol.stream import Stream
from goreprox.tunnel.bridge import Bridge, Bridges
from goreprox.tunnel.connections import Connections

REFUSED_LINES: Final = 60
"""A minute, of the access log, for requests that reach no provider."""
ForBackend = Connect | ToProvider | HalfClose | Release | Discard


class Providers(Protocol):
    """The edge, as far as HTTP needs it."""

    def connect(self, upstream: Upstream) -> None:
        """Open its stream at a provider, now or when one comes."""

    def reusable(self, stream: Stream) -> bool:
        """Whether the provider of a stream is there, and takes requests."""

    def provider_of(self, stream: Stream) -> tuple[str | None, int | None]:
        """Return the name of a stream's provider and how many outages there were so far, if it has one."""

    def tells_delivery(self, stream: Stream) -> bool:
        """Whether the provider of a stream has acknowledged all it delivered before it told of an end or a reset."""

    def upstream_ended(self, upstream: Upstream) -> None:
        """A stream is over."""

    def client_ended(self, client: Endpoint) -> None:
        """A client is gone."""

    def bridge_ended(self, client: Endpoint, bridge: Bridge) -> None:
        """A client that had left HTTP is gone, and its stream is over."""


class Backends:
    """What the backends of all clients share."""

    def __init__(self, bridges: Bridges, providers: Providers, budget: Budget) -> None:
        """Open streams at these providers."""
        self.bridges = bridges
        self.providers = providers
        self.budget = budget
        self.attached = Connections[Upstream]()
        """The streams of clients that are still there."""
        self.log = LimitedLog(burst=REFUSED_LINES)


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


class Backend:
    """One client's. It has a stream (`upstream`) from a request until that is of no more use."""

    def __init__(
        self, backends: Backends, user: User, *, client: Endpoint, destination: Endpoint, certificate: str | None
    ) -> None:
        """Serve `user`, whose streams are those of `client`, who came to `destination` and has shown `certificate`."""
        self.upstream: Upstream | None = None
        self._backends = backends
        self._user = user
        self._client = client
        self._destination = destination
        self._certificate = certificate
        self._served_by: str | None = None
        """Whose stream the present request was on, once it is detached."""
        self._began: float | None = None
        """When the request came that is being answered."""
        self._outages: int | None = None
        """Of its provider, at that time."""
        self._upgraded: _Upgraded | None = None

    @property
    def away(self) -> bool:
        """Whether the stream has a provider that is out of reach, or about to end."""
        if self.upstream is None:
            return False
        providers, stream = self._backends.providers, self.upstream.stream
        return providers.provider_of(stream)[0] is not None and not providers.reusable(stream)

    def unsent_request(self, upstream: Upstream) -> bytes | None:
        """Return the present request, if its target has closed the connection before a byte of it was written there."""
        return upstream.unsent_request if self._backends.providers.tells_delivery(upstream.stream) else None

    def obey(self, command: ForBackend, *, now: float) -> None:
        """Do what the gateway wants of the stream, on behalf of what came at `now`."""
        upstream = self.upstream
        match command:
            case Connect(service, fresh):
                if not fresh:
                    self._began = now
                self._connect(service, fresh=fresh)
            case Discard(reset):
                self.discard(reset=reset)
            case _ if upstream is None:
                pass
            case ToProvider(data):
                upstream.write(data)
            case HalfClose():
                upstream.write_eof()
            case Release():
                upstream.idle_since = now
            case _:
                assert_never(command)

    def _connect(self, service: str, *, fresh: bool) -> None:
        backends, bridges = self._backends, self._backends.bridges
        self._served_by = None
        if self.upstream is None or fresh:
            stream = Stream(
                opener=True,
                service=service,
                client=str(self._client),
                destination=str(self._destination),
                budget=backends.budget,
            )
            self.upstream = Upstream(stream, self._user, clock=bridges.clock, on_end=self._ended)
            backends.attached.add(self.upstream)
            bridges.connections.add(self.upstream)
            backends.providers.connect(self.upstream)
        else:
            self.upstream.begin()
        _, self._outages = backends.providers.provider_of(self.upstream.stream)

    def _ended(self, upstream: Upstream) -> None:
        self._backends.bridges.connections.remove(upstream)
        self._backends.providers.upstream_ended(upstream)

    # Ends.

    def check(self, now: float) -> None:
        """Let go of a stream that will carry no other request."""
        upstream = self.upstream
        if upstream is None or upstream.idle_since is None:
            return
        too_long = now - upstream.idle_since >= REUSED_FOR_S
        if too_long or not self._backends.providers.reusable(upstream.stream):
            self.discard(reset=False)

    def let_go(self) -> None:
        """Let go of the stream: well, if it carries nothing."""
        if self.upstream is not None:
            self.discard(reset=self.upstream.idle_since is None)

    def discard(self, *, reset: bool) -> None:
        """Let go of the stream: well, or with a reset."""
        upstream = self.detach()
        if upstream is not None:
            if reset:
                upstream.reset("the request came to nothing")
            else:
                upstream.finish()

    def detach(self) -> Upstream | None:
        """Give the stream away, or forget it; return it."""
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            self._backends.attached.remove(upstream)
            self._served_by, _ = self._backends.providers.provider_of(upstream.stream)
        return upstream

    def release(self) -> tuple[Stream, Callable[[Bridge], None]] | None:
        """Give the stream to a bridge, which calls what is returned with it at its end; None: it is over already."""
        upstream = self.detach()
        if upstream is None or upstream.stream.state is State.CLOSED:
            return None
        self._backends.bridges.connections.remove(upstream)
        return upstream.release(), self._bridge_ended

    def _bridge_ended(self, bridge: Bridge) -> None:
        if self._upgraded is not None:
            self._upgraded.log_end(bridge.stream, now=self._backends.bridges.clock())
        self._backends.providers.bridge_ended(self._client, bridge)

    # The access log.

    def log(self, done: LogRequest) -> None:
        """Log a request."""
        backends, upstream = self._backends, self.upstream
        provider, outages = self._served_by, self._outages
        if upstream is not None:
            provider, outages = backends.providers.provider_of(upstream.stream)
        text = "a request that cannot be read"
        if done.method:
            text = f"{quoted(done.method, 16)} {quoted(done.host)}{quoted(done.path)}"
        fields = {
            "status": done.status,
            "bytes": done.body_bytes,
            "duration_s": 0.0 if self._began is None else round(backends.bridges.clock() - self._began, 4),
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
            backends.log.say(ACCESS, text, "INFO", **fields)
        else:
            logger.bind(event=ACCESS, **fields).info("{}", text)
        if done.status == HTTPStatus.SWITCHING_PROTOCOLS and self._began is not None and upstream is not None:
            stream = upstream.stream
            self._upgraded = _Upgraded(text, fields, self._began, stream.send.end, stream.receive.delivered)
        self._began = None
