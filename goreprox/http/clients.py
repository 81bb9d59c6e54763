"""What the HTTP clients of a process share, and what they need of the edge."""

import asyncio
from collections.abc import Mapping
from typing import Final, Protocol

from brokers import LimitedLog
from goreprox.endpoint import Endpoint
from goreprox.http.access_log import REJECTED_LINES, Upgraded
from goreprox.http.counters import RequestCounters
from goreprox.http.exchange import Site
from goreprox.http.gateway import Gateway
from goreprox.http.provider_stream import ProviderStream, StreamUser
from goreprox.http.write_buffer import WriteBuffer
from goreprox.net.sockets import Socket
from goreprox.protocol.budget import Budget
from goreprox.protocol.stream import Stream
from goreprox.tunnel.bridge import Bridge, Bridges
from goreprox.tunnel.connections import Connections

SWEEP_S: Final = 1.0
"""The interval at which timeouts are checked."""


class Providers(Protocol):
    """The edge, as far as HTTP needs it."""

    def connect(self, provider_stream: ProviderStream) -> None:
        """Open its stream at a provider, now or when one comes."""

    def reachable(self, stream: Stream) -> bool:
        """Whether the provider of a stream is there, and not draining."""

    def reusable(self, stream: Stream) -> bool:
        """Whether the provider of a stream is there, and takes requests for its service."""

    def provider_of(self, stream: Stream) -> tuple[str | None, int | None]:
        """Return the name of a stream's provider and how many outages there were so far, if it has one."""

    def tells_delivery(self, stream: Stream) -> bool:
        """Whether the provider of a stream has acknowledged all it delivered before it told of an end or a reset."""

    def provider_stream_ended(self, provider_stream: ProviderStream) -> None:
        """A stream is over."""

    def client_ended(self, client: Endpoint) -> None:
        """A client is gone."""

    def bridge_ended(self, client: Endpoint, bridge: Bridge) -> None:
        """A client that had left HTTP is gone, and its stream is over."""


class Client(Protocol):
    """A client's connection."""

    sock: Socket
    address: Endpoint
    destination: Endpoint
    gateway: Gateway
    out: WriteBuffer
    """What is to be written to the client."""
    since: float
    """When timeouts began to run."""

    def check(self, now: float) -> None:
        """End the connection if it takes too long."""

    def check_backend(self) -> None:
        """Let go of a stream that will carry no other request."""

    def pause(self) -> None:
        """Begin no further request for now."""

    def drain(self) -> None:
        """End the connection after the response that is due, if one is."""

    def abort(self) -> None:
        """Reset the connection, and the stream of its request."""


class ClientConnections:
    """What the HTTP clients of a process share; it checks their timeouts."""

    def __init__(self, bridges: Bridges, providers: Providers, budget: Budget) -> None:
        """Serve clients on the running loop, with streams at these providers."""
        self.bridges = bridges
        self.providers = providers
        self.budget = budget
        self.attached = Connections[ProviderStream]()
        """The streams of clients that are still there."""
        self.rejected = LimitedLog(burst=REJECTED_LINES)
        """Writes the lines of the access log for requests that reach no provider."""
        self.counters = RequestCounters()
        self.live: set[Client] = set()
        self.upgraded: dict[Stream, Upgraded] = {}
        """What the access log says at the end of connections that have left HTTP."""
        self.draining = False
        self.paused = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> int:
        """How many clients have no stream."""
        return len(self.live) - len(self.attached)

    def add(self, client: Client) -> None:
        """Check a client's timeouts from now on."""
        self.live.add(client)
        client.gateway.paused = self.paused
        if self._timer is None:
            self._timer = self.bridges.loop.call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        now = self.bridges.clock()
        for client in list(self.live):
            client.check(now)
        if self.live:
            self._timer = self.bridges.loop.call_later(SWEEP_S, self._sweep)

    def drain(self) -> None:
        """End clients without a request now, the others after their responses."""
        self.draining = True
        for client in list(self.live):
            client.drain()

    def pause(self) -> None:
        """Begin no further request for now; what comes of one waits."""
        self.paused = True
        for client in list(self.live):
            client.pause()

    def provider_stream(self, stream: Stream, user: StreamUser | None) -> ProviderStream:
        """Return an owner of `stream`, which counts until it is over."""
        bridges = self.bridges
        provider_stream = ProviderStream(
            stream, user, clock=bridges.clock, pace=bridges.pace_of(stream.service), on_end=self._stream_ended
        )
        bridges.connections.add(provider_stream)
        return provider_stream

    def _stream_ended(self, provider_stream: ProviderStream) -> None:
        self.bridges.connections.remove(provider_stream)
        self.providers.provider_stream_ended(provider_stream)

    def bridge_ended(self, client: Endpoint, bridge: Bridge) -> None:
        """Note that a client that had left HTTP is gone, and its stream is over."""
        upgraded = self.upgraded.pop(bridge.stream, None)
        if upgraded is not None:
            upgraded.write_end(bridge.stream, now=self.bridges.clock())
        self.providers.bridge_ended(client, bridge)

    def replace(self, sites: Mapping[Site, Site]) -> None:
        """Serve the next requests of clients by the sites that replace theirs."""
        for client in list(self.live):
            client.gateway.site = sites.get(client.gateway.site, client.gateway.site)

    @property
    def sites(self) -> set[Site]:
        """What the next requests of clients are served by."""
        return {client.gateway.site for client in self.live}

    def providers_changed(self) -> None:
        """Let go of idle streams at providers that are about to end."""
        for client in list(self.live):
            client.check_backend()
