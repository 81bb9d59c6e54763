"""Assigns each stream of a client to a provider of its service, at once or when there is one.

Pending streams are tried once a turn of the loop, and only for services that a provider has newly offered.
"""

import asyncio
import random
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Self

from loguru import logger

from brokers import LimitedLog, Role
from goreprox.http.provider_stream import ProviderStream
from goreprox.process.clock import clock
from goreprox.process.log import quoted
from goreprox.protocol.budget import Budget
from goreprox.protocol.events import Code
from goreprox.protocol.fields import Fields
from goreprox.protocol.stream import Stream
from goreprox.protocol.totals import EndCode
from goreprox.roles.balancer import FULL_S, Balancer
from goreprox.roles.offer_check import OfferCheck
from goreprox.roles.offers import Offers
from goreprox.roles.pending import PendingQueue
from goreprox.roles.places import Places
from goreprox.tunnel.connections import StreamOwner
from goreprox.tunnel.driver import Driver
from goreprox.tunnel.peer import Peer


@dataclass(slots=True)
class Refusals:
    """The providers that have refused a stream; whether one of them did because it is draining."""

    peers: set[bytes] = field(default_factory=set)
    draining: bool = False

    def export(self) -> dict[str, object]:
        """Return it for the code that takes over."""
        return {"peers": list(self.peers), "draining": self.draining}

    @classmethod
    def restore(cls, fields: Fields) -> Self:
        """Return what was exported.

        Raises:
            ExportError: it is something else.
        """
        return cls({peer for peer in fields.items("peers") if isinstance(peer, bytes)}, fields.flag("draining"))


class Assignment:
    """Owns the sessions with providers (driver.Application), and each stream until a provider has accepted it."""

    def __init__(
        self,
        budget: Budget,
        *,
        services: Collection[str],
        grace_s: float,
        queue_timeout_s: float,
        most: Callable[[str], int | None],
        lost: Callable[[], None],
    ) -> None:
        """Assign streams of `services`; they are pending for `grace_s` at most, HTTP requests for `queue_timeout_s`.

        `most` returns how many streams of a service may be open at a time, None without a limit. `lost` is called once
        in each turn of the loop in which a provider ceased to accept streams, or a place is wanted that an idle stream
        has.
        """
        self.driver = Driver(self, role=Role.EDGE, budget=budget, grace_s=grace_s)
        self._lost = lost
        self.places = Places(most, waiting=self._count)
        rng = random.Random()
        self._balancer = Balancer(rng)
        self._offers = Offers(rng)
        self.check = OfferCheck(self._offers, services)
        self._connections = PendingQueue(timeout_s=grace_s, clock=clock, expired=_reset)
        self._requests = PendingQueue(timeout_s=queue_timeout_s, clock=clock, expired=_unavailable)
        self.refusals: dict[Stream, Refusals] = {}
        """Of streams that no provider has accepted yet."""
        self.changed: Callable[[Peer], None] = lambda _peer: None
        """Called whenever a provider may have changed."""
        self._log = LimitedLog()
        self._loop = asyncio.get_running_loop()
        self._to_serve: set[str] = set()
        self._any_lost = False
        self._turn: asyncio.Handle | None = None
        self._retry: asyncio.TimerHandle | None = None
        """When providers that were full are tried again."""

    def reconfigure(
        self,
        *,
        services: Collection[str],
        grace_s: float,
        queue_timeout_s: float,
        most: Callable[[str], int | None],
    ) -> None:
        """Assign streams of other `services`, with other timeouts."""
        self.check.services = services
        self.check.changed(services)
        self.driver.set_grace(grace_s)
        self._connections.set_timeout(grace_s)
        self._requests.set_timeout(queue_timeout_s)
        self.places.most = most
        self._serve_soon(self.pending_services)

    @property
    def pending_services(self) -> set[str]:
        """The services of streams that have no provider yet."""
        return {*self._connections.services, *self._requests.services}

    @property
    def pending(self) -> int:
        """The number of streams that have no provider yet."""
        return len(self._connections) + len(self._requests)

    @property
    def missing(self) -> list[str]:
        """The services of our listeners and routes whose clients wait, as no provider accepts streams for them."""
        return [service for service in self.check.services if not self._offers.available(service)]

    # Streams.

    def connect(self, owner: StreamOwner) -> None:
        """Open its stream at a provider, now or when there is one."""
        service = owner.stream.service
        if self.places.queued(service):
            self._add_pending(owner)  # behind those that wait for a place
            self._serve_soon([service])
        elif not self._assign(owner.stream):
            self._add_pending(owner)

    def pending_until(self, owner: StreamOwner) -> float | None:
        """Return when a stream is given up that has no provider yet, by the clock."""
        return self._queue_of(owner).until(owner)

    def restore(self, owner: StreamOwner, until: float) -> None:
        """Find a provider for a stream that has waited for one in the code before this one."""
        self._queue_of(owner).add(owner, until)
        self.check.needed(owner.stream.service)

    def ended(self, owner: StreamOwner) -> None:
        """Forget a stream that has ended; its provider has room for another one."""
        stream = owner.stream
        self.refusals.pop(stream, None)
        self._queue_of(owner).discard(owner)
        self._make_room(stream)
        peer = self.driver.peer_of(stream)
        if peer is not None and self._balancer.ended(peer.id):
            self._serve_soon(peer.services)

    def restored(self, peer: Peer) -> None:
        """Go on with the session with a provider that an upgrade has handed over, and with its streams."""
        for stream in peer.session.streams.values():
            self.places.take(stream)
        self.peer_changed(peer)

    def _count(self, service: str) -> int:
        return self._connections.count(service) + self._requests.count(service)

    def _make_room(self, stream: Stream) -> None:
        """Take note that a stream is no longer at a provider."""
        if self.places.leave(stream):
            self._serve_soon([stream.service])

    def offered(self, stream: Stream) -> bool:
        """Return whether the provider of a stream offers its service now."""
        peer = self.driver.peer_of(stream)
        return peer is not None and peer.id in self._offers.known_for(stream.service)

    def drain(self, reason: str) -> None:
        """End pending streams whose client has sent all it had."""
        for queue in (self._connections, self._requests):
            for owner in queue:
                if owner.stream.send.eof:
                    owner.abort(reason, EndCode.SHUTDOWN)

    def _assign(self, stream: Stream) -> bool:
        """Open `stream` at the best provider that has not refused it; return whether there is one."""
        if self.places.full(stream.service):
            return False
        now, refusals = clock(), self.refusals.get(stream)
        candidates = self._offers.candidates(
            stream.service,
            without=refusals.peers if refusals is not None else (),
            well=lambda candidate: self._balancer.well(stream.service, candidate, now),
        )
        best = self._balancer.choose(stream.service, candidates, now)
        if best is None:
            return False
        self.driver.peers[best].session.open(stream)
        self.places.take(stream)
        return True

    def _add_pending(self, owner: StreamOwner) -> None:
        queue, service = self._queue_of(owner), owner.stream.service
        if self.places.full(service):
            if not self.places.crowded(service):
                self._any_lost = True  # an idle stream makes room
                self._serve_soon(())
            text = (
                f"the limit of connections to {service} is reached: clients wait; raise --max-connections-per-service"
            )
            self._log.say("service_full", text, service=service)
        elif not queue:
            why = "has room for more" if self._offers.available(service) else "is connected"
            text = f"no provider of {service} {why}: clients wait up to {queue.timeout_s:g} s"
            self._log.say("no_provider", text, service=service)
        queue.add(owner)
        self.check.needed(service)
        if self._balancer.any_full and self._retry is None:
            self._retry = self._loop.call_later(FULL_S, self._try_again)

    def _queue_of(self, owner: StreamOwner) -> PendingQueue:
        return self._requests if isinstance(owner, ProviderStream) else self._connections

    def _try_again(self) -> None:
        self._retry = None
        self._serve_soon([*self._connections.services, *self._requests.services])
        if self.pending and self._balancer.any_full:
            self._retry = self._loop.call_later(FULL_S, self._try_again)

    def _serve_soon(self, services: Collection[str]) -> None:
        """Try the pending streams of `services`, once in this turn of the loop."""
        self._to_serve.update(services)
        if self._turn is None:
            self._turn = self._loop.call_soon(self._serve)

    def _serve(self) -> None:
        self._turn = None
        services, self._to_serve = self._to_serve, set()
        for queue in (self._connections, self._requests):
            for service in services.intersection(queue.services):
                self._serve_service(queue, service)
        if self._any_lost:
            self._any_lost = False
            self._lost()

    def _serve_service(self, queue: PendingQueue, service: str) -> None:
        """Assign streams in order, up to the first that finds no provider though none has refused it."""
        for owner in queue.of(service):
            if self._assign(owner.stream):
                queue.discard(owner)
                if isinstance(owner, ProviderStream):
                    owner.assigned()
            elif owner.stream not in self.refusals:
                break

    def _may_still_accept(self, service: str, refusals: Refusals) -> bool:
        """Whether a provider that has not refused is up, though it is full, or between two epochs of its session."""
        for peer_id in self._offers.known_for(service):
            peer = self.driver.peers.get(peer_id)
            if peer is None or peer_id in refusals.peers:
                continue
            if peer.epochs and not peer.session.peer_draining and peer.session.failed is None:
                return True
        return False

    # driver.Application

    def peer_changed(self, peer: Peer) -> None:
        """Take note of what a provider is and offers now."""
        change = self._offers.update(peer)
        if peer.gone:
            self._balancer.gone(peer.id)
        self._any_lost |= bool(change.lost)
        if change.gained or change.lost:
            self._serve_soon(change.gained)
        if change.gained or change.gone:
            self.check.changed(change.gained | change.gone)
        self.changed(peer)

    def stream_opened(self, peer: Peer, stream: Stream) -> None:
        """Never called: providers open no streams, and the session refuses them before this."""
        stream.abort("edges take no streams")

    def stream_accepted(self, peer: Peer, stream: Stream) -> None:
        """Note that the target is well; the stream stays with this provider."""
        self._balancer.accepted(peer.id, stream.service)
        self.refusals.pop(stream, None)

    def stream_refused(self, peer: Peer, stream: Stream, code: Code, reason: str) -> None:
        """Try the next provider with the bytes so far, none of which has reached a target; reset when all refused.

        One that is draining is not avoided for it: its successor is worth waiting for. So is one that is full: it is
        asked again once it has room.
        """
        logger.debug("{} refused client {}: {}", peer.title, stream.client, reason, event="stream_refused")
        self._make_room(stream)
        refusals = self.refusals.setdefault(stream, Refusals())
        if code is Code.FULL:
            self._balancer.full(peer.id, clock())
        else:
            refusals.peers.add(peer.id)
            refusals.draining |= code is Code.DRAINING
            if code is not Code.DRAINING:
                self._balancer.failed(peer.id, stream.service, clock())
        if self._assign(stream):
            return
        owner: StreamOwner = stream.owner
        if refusals.draining or self._may_still_accept(stream.service, refusals):
            self._add_pending(owner)
        else:
            text = f"no provider accepted client {stream.client}: {quoted(reason)}"
            self._log.say("client_refused", text, client=stream.client, service=stream.service)
            owner.abort(reason, EndCode.REFUSED)

    def stream_unsent(self, stream: Stream) -> None:
        """Assign it anew: nothing of it has left this process, so any provider may have it."""
        self._make_room(stream)
        self.connect(stream.owner)

    def stream_dropped(self, stream: Stream) -> None:
        """Never called: every stream here has an owner."""


def _reset(owner: StreamOwner, reason: str) -> None:
    owner.abort(reason, EndCode.NO_PROVIDER)


def _unavailable(owner: StreamOwner, reason: str) -> None:
    assert isinstance(owner, ProviderStream)
    owner.abort(reason, EndCode.NO_PROVIDER, status=503)
