"""The links of an edge or a provider to its brokers, which a reload may add and remove."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from loguru import logger

from brokers import Link, Proxy, RemoteCarrier
from goreprox.config.addresses import Address
from goreprox.config.proxy import ProxyConfig
from goreprox.net.proxy_client import client_of
from goreprox.process.clock import clock
from goreprox.process.lifetime import LINGER_S
from goreprox.tunnel.driver import Driver

LOOK_S: Final = 0.25
"""How often it is looked whether a link that is to be removed is needed."""
Place = tuple[Address, ...]
"""What one link leads to: a broker, or the servers of a NATS cluster, each of which reaches all peers."""


def places(addresses: Sequence[Address]) -> list[Place]:
    """Return what there are links to, if brokers and NATS servers are at these addresses."""
    cluster = tuple(each for each in addresses if each.nats)
    return [*((each,) for each in addresses if not each.nats), *([cluster] if cluster else [])]


class Links:
    """Owns the links of a process (lifetime.Connection)."""

    def __init__(
        self,
        addresses: Sequence[Address],
        proxies: ProxyConfig,
        make: Callable[[Place, Proxy | None, Callable[[], None]], RemoteCarrier],
    ) -> None:
        """Start the links to these addresses; `make` makes one, which calls its last argument when it changes."""
        self.all: list[RemoteCarrier] = []
        self.up = asyncio.Event()
        self.changed: Callable[[], None] = lambda: None
        self._make = make
        self._proxies = proxies
        self._by_place: dict[Place, RemoteCarrier] = {}
        self._removed: dict[RemoteCarrier, asyncio.Task[None]] = {}
        """Links that are to be removed once nobody needs them."""
        self._lost_at: float | None = clock()
        """Since when none is up."""
        self._add(places(addresses))

    def reconfigure(self, addresses: Sequence[Address], proxies: ProxyConfig, driver: Driver) -> None:
        """Have links to these addresses, by these proxies. A link whose proxy changes is made anew.

        Others are removed once each peer of `driver` that they reach is reached over one that stays: a stream has its
        new path before the old one goes.
        """
        before, self._proxies = self._proxies, proxies
        wanted = places(addresses)
        for place, link in self._by_place.items():
            if isinstance(link, Link) and before.of(place[0]) != proxies.of(place[0]):
                link.reroute(client_of(proxies, place[0]))
        for place, link in self._by_place.items():
            if place in wanted and link in self._removed:
                self._removed.pop(link).cancel()
        self._add([place for place in wanted if place not in self._by_place])
        loop = asyncio.get_running_loop()
        for place, link in self._by_place.items():
            if place not in wanted and link not in self._removed:
                self._removed[link] = loop.create_task(self._remove(place, driver), name=f"remove {link.label}")

    def _add(self, wanted: Sequence[Place]) -> None:
        for place in wanted:
            link = self._by_place[place] = self._make(place, client_of(self._proxies, place[0]), self._link_changed)
            self.all.append(link)
            link.start()

    async def _remove(self, place: Place, driver: Driver) -> None:
        link = self._by_place[place]
        while not self._is_spare(link, driver):  # noqa: ASYNC110 -- depends on every peer, and seldom lasts
            await asyncio.sleep(LOOK_S)
        del self._by_place[place]
        self.all.remove(link)
        driver.carrier_down(link, "the link is no longer configured")
        logger.bind(event="link_removed", broker=link.label).info("removed the link to {}", link.label)
        await link.close(linger_s=LINGER_S)
        del self._removed[link]

    def _is_spare(self, link: RemoteCarrier, driver: Driver) -> bool:
        """Return whether another link is up, and each peer that this one reaches is reached over one that stays."""
        staying = [each for each in self.all if each not in self._removed]
        reached = [peer for peer in driver.peers.values() if link in peer.epochs]
        return any(each.up for each in staying) and all(
            any(each in peer.epochs for each in staying) for peer in reached
        )

    def _link_changed(self) -> None:
        """Note that a link came up or went down, or has another problem."""
        if any(link.up for link in self.all):
            self.up.set()
            self._lost_at = None
        elif self._lost_at is None:
            self._lost_at = clock()
        self.changed()

    @property
    def down_s(self) -> float:
        """For how long none has been up; 0 if one is."""
        return 0.0 if self._lost_at is None else clock() - self._lost_at

    def describe(self) -> str:
        """Describe which links are up, and why the others are not."""
        up = ", ".join(link.label for link in self.all if link.up)
        down = ", ".join(
            f"{link.label} ({link.problem})" if link.problem else link.label for link in self.all if not link.up
        )
        return "; ".join(filter(None, (up and f"connected to {up}", down and f"connecting to {down}")))
