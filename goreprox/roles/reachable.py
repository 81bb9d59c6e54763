"""Logs where clients reach the services of a provider, as its edges announce, and warns of mistakes in their names."""

import asyncio
from collections.abc import Collection, Mapping
from typing import Final

from brokers import LimitedLog
from goreprox.config.addresses import TargetAddress
from goreprox.process.log import listing, quoted
from goreprox.tunnel.attributes import machine_of, ports_of, process_of, shared_of
from goreprox.tunnel.driver import Driver
from goreprox.tunnel.peer import Peer

SETTLE_S: Final = 1.0
"""Edges come one by one, over several brokers: checks wait this long after a change."""


class Reachable:
    """Compares what edges announce with what is offered here."""

    def __init__(
        self, driver: Driver, targets: Mapping[str, TargetAddress], log: LimitedLog, published: Collection[str] = ()
    ) -> None:
        """Check the edges of `driver` for the services of `targets`; those that are published need no port or route."""
        self._driver = driver
        self.targets = targets
        self.published = published
        self._log = log
        self._logged: dict[bytes, frozenset[tuple[str, str]]] = {}
        """Services and URLs that were logged, by edge."""
        self._shared: set[str] = set()
        self._look: asyncio.TimerHandle | None = None

    def changed(self) -> None:
        """Check again, once all is settled: an edge came up, went down, or announces something else."""
        if self._look is None:
            self._look = asyncio.get_running_loop().call_later(SETTLE_S, self._look_at_edges)

    def _look_at_edges(self) -> None:
        self._look = None
        edges = [peer for peer in self._driver.peers.values() if peer.session.established and not peer.gone]
        self._logged = {edge.id: self._logged.get(edge.id, frozenset()) for edge in edges}
        for edge in edges:
            self._log_addresses(edge)
        listened = {service for edge in edges for service in edge.services}
        for service in self.targets:
            if edges and service not in listened and service not in self.published:
                self._log.say(
                    "not_listened",
                    f"no edge listens for the service {service}: it gets no clients; listened for: "
                    f"{listing(listened)}; is one of the names misspelt?",
                    service=service,
                )
        shared = {service for edge in edges for service in shared_of(edge.info.attributes)} & self.targets.keys()
        for service in shared - self._shared:
            self._log.say(
                "shared_service",
                f"clients of the service {service} are shared with another provider, whose target differs from "
                f"{self.targets[service]}; if these are different applications, give each a service of its own: "
                "goreprox provider NAME=TARGET",
                service=service,
            )
        self._shared = shared

    def _log_addresses(self, edge: Peer) -> None:
        host = self._host(edge)
        found = {
            (port.service, port.url(host)) for port in ports_of(edge.info.attributes) if port.service in self.targets
        }
        new = found - self._logged[edge.id]
        self._logged[edge.id] = frozenset(found)
        for service in sorted({service for service, _ in new}):
            where = ", ".join(sorted(quoted(url) for name, url in new if name == service))
            self._log.say(
                "serving",
                f"serving {service} at {where}: {edge.title} passes clients on to {self.targets[service]}",
                "INFO",
                service=service,
                at=where,
            )

    def _host(self, edge: Peer) -> str:
        """Return the host of an edge that listens on all its addresses; a server's is where our link leads."""
        if process_of(edge.info.attributes) == "server" and edge.epochs:
            return next(iter(edge.epochs)).label.rpartition(":")[0].strip("[]")
        return machine_of(edge.info.attributes) or edge.info.name.name
