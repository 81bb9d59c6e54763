"""Services that a reload has removed, while clients use them: providers take streams of announced services only."""

import asyncio
from collections.abc import Callable, Collection, Iterable
from typing import Final

from goreprox.config.checks import services_bytes
from goreprox.config.defaults import MAX_SERVICES_BYTES

LOOK_S: Final = 30.0
"""Longer than clients of a removed listener take to be admitted: 10 s for a PROXY header, 10 s for a handshake."""


class FormerServices:
    """Announces services as long as clients need them."""

    def __init__(self, services: Collection[str], in_use: Callable[[], Iterable[str]]) -> None:
        """Begin with `services`, which are announced; `in_use` returns those that clients use at this moment."""
        self._services = services
        self._announced = list(services)
        self._in_use = in_use
        self.announce: Callable[[list[str]], None] = lambda _services: None
        """Called with all that are to be announced from now on."""
        self._timer: asyncio.TimerHandle | None = None

    def replace(self, services: Collection[str]) -> None:
        """Announce other services, and for some time those before, of which clients are being admitted."""
        before, self._services = self._services, services
        self._keep([*before, *self._in_use()])
        self.announce(self._announced)

    def _keep(self, former: Iterable[str]) -> None:
        """Announce these, too, as far as there is room, and look again later."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._announced = list(self._services)
        for service in dict.fromkeys(former):
            more = [*self._announced, service]
            if service not in self._announced and services_bytes(more) <= MAX_SERVICES_BYTES:
                self._announced = more
        if len(self._announced) > len(self._services):
            self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._look)

    def _look(self) -> None:
        before = self._announced
        self._keep(self._in_use())
        if self._announced != before:
            self.announce(self._announced)
