"""The stream that the requests of one HTTP client go over, from the first request that needs one to its end."""

import functools
from collections.abc import Callable
from typing import Protocol, assert_never

from goreprox.endpoint import Endpoint
from goreprox.http.access_log import AccessLog
from goreprox.http.clients import ClientConnections
from goreprox.http.commands import Ask, Connect, Discard, ForBackend, HalfClose, LogRequest, Release, ToProvider
from goreprox.http.forward_auth import Verdict
from goreprox.http.observer import Observer
from goreprox.http.provider_stream import REUSED_FOR_S, ProviderStream, StreamUser
from goreprox.protocol.state import State
from goreprox.protocol.stream import Stream
from goreprox.protocol.totals import EndCode
from goreprox.tunnel.bridge import Bridge


class User(StreamUser, Protocol):
    """Sends requests over the stream, once they may."""

    def judged(self, verdict: Verdict) -> None:
        """Take note whether the present request may."""


class Backend:
    """Owns the stream (`provider_stream`) of one client while there is one."""

    def __init__(
        self,
        clients: ClientConnections,
        user: User,
        *,
        client: Endpoint,
        destination: Endpoint,
        certificate: str | None,
    ) -> None:
        """Serve `user`, the connection of `client` to `destination`; `certificate` is a name in the client's."""
        self.provider_stream: ProviderStream | None = None
        self._clients = clients
        self._user = user
        self._client = client
        self._destination = destination
        self._access = AccessLog(clients.rejected, certificate)
        self._ask_no_more: Callable[[], object] = lambda: None
        """Has no effect once there is a verdict."""
        self._observed: tuple[Observer, ProviderStream] | None = None
        """Who sees the present request, and what carries it."""

    @property
    def facts(self) -> dict[str, str]:
        """What is known of the client, whatever it asks for."""
        certificate = self._access.certificate
        return {} if certificate is None else {"certificate": certificate}

    @property
    def away(self) -> bool:
        """Whether the stream's provider is out of reach or draining."""
        if self.provider_stream is None:
            return False
        providers, stream = self._clients.providers, self.provider_stream.stream
        return providers.provider_of(stream)[0] is not None and not providers.reachable(stream)

    def unsent_request(self, provider_stream: ProviderStream) -> bytes | None:
        """Return the present request, if the target closed its connection before a byte of it was written there."""
        return (
            provider_stream.unsent_request if self._clients.providers.tells_delivery(provider_stream.stream) else None
        )

    def obey(self, command: ForBackend, *, now: float) -> None:
        """Obey a command for the stream; `now` is when the client or target sent what led to it."""
        provider_stream = self.provider_stream
        match command:
            case Ask(guard, question):
                self._ask_no_more = guard.ask(question, self._user.judged)
            case Connect(service, fresh, observer):
                if not fresh:
                    self._access.began = now
                provider_stream = self._connect(service, fresh=fresh)
                self._observed = None if observer is None else (observer, provider_stream)
            case Discard(reset):
                self.discard(reset=reset)
            case _ if provider_stream is None:
                pass
            case ToProvider(data):
                provider_stream.write(data)
            case HalfClose():
                provider_stream.write_eof()
            case Release():
                provider_stream.idle_since = now
                self.check(now)  # others may wait for its place
            case _:
                assert_never(command)

    def _connect(self, service: str, *, fresh: bool) -> ProviderStream:
        clients = self._clients
        self._access.provider = None
        if self.provider_stream is None or fresh:
            stream = Stream(
                opener=True,
                service=service,
                client=str(self._client),
                destination=str(self._destination),
                budget=clients.budget,
            )
            self.provider_stream = clients.provider_stream(stream, self._user)
            clients.attached.add(self.provider_stream)
            clients.providers.connect(self.provider_stream)
        else:
            self.provider_stream.begin()
        _, self._access.outages = clients.providers.provider_of(self.provider_stream.stream)
        return self.provider_stream

    # Ends.

    def check(self, now: float) -> None:
        """End an idle stream that will carry no other request."""
        provider_stream = self.provider_stream
        if provider_stream is None or provider_stream.idle_since is None:
            return
        too_long = now - provider_stream.idle_since >= REUSED_FOR_S
        if too_long or not self._clients.providers.reusable(provider_stream.stream):
            self.discard(reset=False)

    def let_go(self) -> None:
        """End the stream: with a reset if it carries a request. Nothing else is to follow."""
        self._ask_no_more()
        if self.provider_stream is not None:
            self.discard(reset=self.provider_stream.idle_since is None)

    def discard(self, *, reset: bool) -> None:
        """End the stream: with its end of file or a reset."""
        provider_stream = self.detach()
        if provider_stream is not None:
            if reset:
                provider_stream.reset("the request was not completed", EndCode.INCOMPLETE)
            else:
                provider_stream.finish()

    def detach(self) -> ProviderStream | None:
        """Give up the stream; return it."""
        provider_stream, self.provider_stream = self.provider_stream, None
        if provider_stream is not None:
            self._clients.attached.remove(provider_stream)
            self._access.provider, _ = self._clients.providers.provider_of(provider_stream.stream)
        return provider_stream

    def release(self) -> tuple[Stream, Callable[[Bridge], None]] | None:
        """Give the stream to a bridge, and the function to call at its end; None if the stream is over already."""
        provider_stream = self.detach()
        if provider_stream is None or provider_stream.stream.state is State.CLOSED:
            return None
        self._clients.bridges.connections.remove(provider_stream)
        stream = provider_stream.release()
        if self._access.upgraded is not None:
            self._clients.upgraded[stream] = self._access.upgraded
        return stream, functools.partial(self._clients.bridge_ended, self._client)

    def log(self, done: LogRequest) -> None:
        """Write a request's line of the access log."""
        access, stream = self._access, None
        outages = access.outages
        if self.provider_stream is not None:
            stream = self.provider_stream.stream
            access.provider, outages = self._clients.providers.provider_of(stream)
        now = self._clients.bridges.clock()
        self._count(done.service, done.status, now=now)
        access.write(done, outages=outages, stream=stream, now=now)

    def count(self, service: str, status: int, *, now: float) -> None:
        """Count a request that is not logged."""
        self._count(service, status, now=now)
        self._access.began = None

    def _count(self, service: str, status: int, *, now: float) -> None:
        began, observed, self._observed = self._access.began, self._observed, None
        if observed is not None and began is not None:
            observer, carrier = observed
            provider, _ = self._clients.providers.provider_of(carrier.stream)
            observer.carried(provider or self._access.provider, max(began, carrier.assigned_at))
        self._clients.counters.add(service, status, None if began is None else now - began)
