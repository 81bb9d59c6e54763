"""Gives each stream of a client to a provider of its service, at once or when there is one.

Knows providers and streams, not sockets. Waiting clients are looked at once a turn of the loop, and only for services
that somebody new offers.
"""

import asyncio
import random
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final

from loguru import logger

from brokers import LimitedLog
from goreprox.http.provider_stream import Upstream
from goreprox.process.clock import clock
from goreprox.process.log import listing, quoted
from goreprox.protocol.events import Code
from goreprox.protocol.stream import Stream
from goreprox.roles.balancer import FULL_S, Balancer
from goreprox.roles.offers import Offers
from goreprox.roles.waiting import WaitingRoom
from goreprox.tunnel.attributes import shared
from goreprox.tunnel.connections import StreamOwner
from goreprox.tunnel.driver import Driver
from goreprox.tunnel.peer import Peer

SETTLE_S: Final = 1.0
"""Providers come one by one, over several brokers: wait so long before saying what is odd about what they offer."""


@dataclass(slots=True)
class _Tries:
    """Who has refused a stream; whether one of them did because it was about to end."""

    peers: set[bytes] = field(default_factory=set)
    draining: bool = False


class Dispatcher:
    """Owns streams until a provider has them."""

    def __init__(
        self,
        driver: Driver,
        log: LimitedLog,
        *,
        services: Collection[str],
        patience_s: float,
        queue_timeout_s: float,
        lost: Callable[[], None],
    ) -> None:
        """Serve clients of `services`: they may wait for `patience_s`, HTTP requests for `queue_timeout_s`.

        `lost` is called in a turn in which a provider ceased to take streams.
        """
        self._driver = driver
        self._log = log
        self._listened = services
        self._lost = lost
        rng = random.Random()
        self._balancer = Balancer(rng)
        self._offers = Offers(rng)
        self._waiting = WaitingRoom(patience_s=patience_s, clock=clock, give_up=_reset)
        self._queue = WaitingRoom(patience_s=queue_timeout_s, clock=clock, give_up=_unavailable)
        """Of HTTP requests."""
        self._tries: dict[Stream, _Tries] = {}
        self._loop = asyncio.get_running_loop()
        self._to_serve: set[str] = set()
        self._anybody_lost = False
        self._turn: asyncio.Handle | None = None
        self._retry: asyncio.TimerHandle | None = None
        """When to try providers again that were full."""
        self._to_look_at: set[str] = set()
        self._look: asyncio.TimerHandle | None = None
        self._unknown: set[str] = set()
        """Services that nobody offers, which was said."""
        self._shared: dict[str, None] = {}
        """Services whose providers have different targets, which was said."""
        self.attributes: dict[str, object] = {}
        """What the roster says of us; announced anew when it changes."""

    @property
    def waiting_clients(self) -> int:
        """Those that have no provider yet."""
        return len(self._waiting) + len(self._queue)

    # Clients.

    def connect(self, joint: StreamOwner) -> None:
        """Open its stream at a provider, now or when one comes."""
        if not self._assign(joint.stream):
            self._wait(joint)

    def ended(self, joint: StreamOwner) -> None:
        """Forget a stream that is over; its provider has room for another one."""
        stream = joint.stream
        self._tries.pop(stream, None)
        self._room_of(joint).leave(joint)
        peer = self._driver.peer_of(stream)
        if peer is not None and self._balancer.ended(peer.id):
            self._serve_soon(peer.services)

    def drain(self, reason: str) -> None:
        """End those who wait for a provider and have sent all they had."""
        for room in (self._waiting, self._queue):
            for joint in room:
                if joint.stream.send.eof:
                    joint.abort(reason)

    def _assign(self, stream: Stream) -> bool:
        """Open `stream` at the best provider that has not refused it; return whether there is one."""
        tries = self._tries.get(stream)
        candidates = self._offers.candidates(stream.service, without=tries.peers if tries is not None else ())
        best = self._balancer.choose(stream.service, candidates, clock())
        if best is None:
            return False
        self._driver.peers[best].session.open(stream)
        return True

    def _wait(self, joint: StreamOwner) -> None:
        room, service = self._room_of(joint), joint.stream.service
        if not room:
            why = "has room for more" if self._offers.available(service) else "is there"
            text = f"no provider of {service} {why}: clients wait up to {room.patience_s:g} s"
            self._log.say("no_provider", text, service=service)
        room.enter(joint)
        self._warn_of_unknown(service)
        if self._balancer.any_full and self._retry is None:
            self._retry = self._loop.call_later(FULL_S, self._try_again)

    def _room_of(self, joint: StreamOwner) -> WaitingRoom:
        return self._queue if isinstance(joint, Upstream) else self._waiting

    def _try_again(self) -> None:
        self._retry = None
        self._serve_soon([*self._waiting.services, *self._queue.services])
        if self.waiting_clients and self._balancer.any_full:
            self._retry = self._loop.call_later(FULL_S, self._try_again)

    def _serve_soon(self, services: Collection[str]) -> None:
        """Serve those who wait for `services`, once in this turn."""
        self._to_serve.update(services)
        if self._turn is None:
            self._turn = self._loop.call_soon(self._serve)

    def _serve(self) -> None:
        self._turn = None
        services, self._to_serve = self._to_serve, set()
        for room in (self._waiting, self._queue):
            for service in services.intersection(room.services):
                self._serve_line(room, service)
        if self._anybody_lost:
            self._anybody_lost = False
            self._lost()

    def _serve_line(self, room: WaitingRoom, service: str) -> None:
        """Serve in order, up to the first who finds nobody though nobody has refused it."""
        for joint in room.line(service):
            if self._assign(joint.stream):
                room.leave(joint)
            elif joint.stream not in self._tries:
                break

    # Providers.

    def peer_changed(self, peer: Peer) -> None:
        """Take note of what a provider is and offers now."""
        change = self._offers.update(peer)
        if peer.gone:
            self._balancer.gone(peer.id)
        self._anybody_lost |= bool(change.lost)
        if change.gained or change.lost:
            self._serve_soon(change.gained)
        self._to_look_at |= change.gained | change.gone
        if self._look is None and (change.gained or change.gone):
            self._look = self._loop.call_later(SETTLE_S, self._look_at_offers)

    def accepted(self, peer: Peer, stream: Stream) -> None:
        """The target is well; nobody else will get this stream."""
        self._balancer.accepted(peer.id, stream.service)
        self._tries.pop(stream, None)

    def refused(self, peer: Peer, stream: Stream, code: Code, reason: str) -> None:
        """Try the next provider with the bytes so far, none of which has reached a target; reset when all refused.

        One that drains is not avoided for it: it is about to be replaced, which is worth waiting for. So is one that is
        full: it is asked again once it has room.
        """
        logger.debug("{} refused client {}: {}", peer.title, stream.client, reason, event="stream_refused")
        tries = self._tries.setdefault(stream, _Tries())
        if code is Code.FULL:
            self._balancer.full(peer.id, clock())
        else:
            tries.peers.add(peer.id)
            tries.draining |= code is Code.DRAINING
            if code is not Code.DRAINING:
                self._balancer.failed(peer.id, stream.service, clock())
        if self._assign(stream):
            return
        joint: StreamOwner = stream.owner
        if tries.draining or self._may_come(stream.service, tries):
            self._wait(joint)
        else:
            text = f"client {stream.client} is refused: {quoted(reason)}"
            self._log.say("client_refused", text, client=stream.client, service=stream.service)
            joint.abort(reason)

    def _may_come(self, service: str, tries: _Tries) -> bool:
        """Whether a provider that has not refused is there: full, or by the roster, and only between two epochs."""
        for peer_id in self._offers.known_for(service):
            peer = self._driver.peers.get(peer_id)
            if peer is None or peer_id in tries.peers:
                continue
            if peer.epochs and not peer.session.peer_draining and peer.session.failed is None:
                return True
        return False

    # What is odd about them.

    def _warn_of_unknown(self, service: str) -> None:
        """Say, once, that providers are known, present or out of reach, but none offers what clients come for."""
        offered = self._offers.known
        if service in offered:
            self._unknown.discard(service)
        elif offered and service not in self._unknown:
            self._unknown.add(service)
            logger.bind(event="unknown_service", service=service).warning(
                "no provider offers the service {}, which has a port; offered: {}; is one of the names misspelt?",
                service,
                listing(offered),
            )

    def _look_at_offers(self) -> None:
        self._look = None
        services, self._to_look_at = self._to_look_at, set()
        for service in self._listened:
            self._warn_of_unknown(service)
        before = list(self._shared)
        for service in services:
            differing = self._offers.differing(service)
            if not differing:
                self._shared.pop(service, None)
            elif service not in self._shared:
                self._shared[service] = None
                text = (
                    f"clients of the service {service} are shared between {differing[0].title} and "
                    f"{differing[1].title}, whose targets differ; if these are different applications, give each a "
                    f"service of its own: goreprox provider NAME=TARGET"
                )
                self._log.say("shared_service", text, service=service)
        if list(self._shared) != before:
            self.attributes = self.attributes | shared(self._shared)
            for carrier in self._driver.carriers:
                carrier.announce(self.attributes)


def _reset(joint: StreamOwner, reason: str) -> None:
    joint.abort(reason)


def _unavailable(joint: StreamOwner, reason: str) -> None:
    assert isinstance(joint, Upstream)
    joint.abort(reason, status=503)
