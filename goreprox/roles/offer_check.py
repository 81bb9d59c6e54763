"""Warnings about what providers offer: a service that none offers, and one whose providers have different targets."""

import asyncio
from collections.abc import Callable, Collection
from typing import Final

from brokers import LimitedLog
from goreprox.config.defaults import DEFAULT_SERVICE
from goreprox.config.published import is_published
from goreprox.process.log import listing
from goreprox.roles.offers import Offers
from goreprox.tunnel.attributes import Attributes, shared

SETTLE_S: Final = 1.0
"""Providers come one by one, over several brokers: checks wait this long after a change."""


class OfferCheck:
    """Compares the services that have ports or routes with what providers offer."""

    def __init__(self, offers: Offers, services: Collection[str]) -> None:
        """Check `offers` for the `services` of our listeners."""
        self._offers = offers
        self.services = services
        self._log = LimitedLog()
        self._unknown: set[str] = set()
        """Services that no provider offers, which was logged."""
        self._shared: dict[str, None] = {}
        """Services whose providers have different targets, which was logged."""
        self._changed: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None
        self.announce: Callable[[Attributes], None] = lambda _attributes: None
        """Called with what the peer list is to say of us when `shared` changes, so that providers warn, too."""

    def needed(self, service: str) -> None:
        """Warn, once, if a client needs a service that none of the known providers offers."""
        offered = self._offers.known
        if is_published(service) or (service == DEFAULT_SERVICE and any(map(is_published, offered))):
            return  # an HTTP port that is for no service may be for published hosts alone
        if service in offered:
            self._unknown.discard(service)
        elif offered and service not in self._unknown:
            self._unknown.add(service)
            self._log.say(
                "unknown_service",
                f"no provider offers the service {service}, which has a port; offered: {listing(offered)}; is one "
                "of the names misspelt?",
                service=service,
            )

    def changed(self, services: Collection[str]) -> None:
        """Check `services`, which a provider has begun or ceased to offer, once all is settled."""
        self._changed.update(services)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SETTLE_S, self._look)

    def _look(self) -> None:
        self._timer = None
        changed, self._changed = self._changed, set()
        for service in self.services:
            self.needed(service)
        before = list(self._shared)
        for service in changed:
            self._compare_targets(service)
        if list(self._shared) != before:
            self.announce(shared(self._shared))

    def _compare_targets(self, service: str) -> None:
        differing = self._offers.differing(service)
        if not differing:
            self._shared.pop(service, None)
        elif service not in self._shared:
            self._shared[service] = None
            self._log.say(
                "shared_service",
                f"clients of the service {service} are shared between {differing[0].title} and {differing[1].title}, "
                "whose targets differ; if these are different applications, give each a service of its own: goreprox "
                "provider NAME=TARGET",
                service=service,
            )
