"""The published names of a provider: which there are, and where clients find them, as its edges say."""

import asyncio
from collections.abc import Mapping
from typing import Final

from loguru import logger

from brokers import LimitedLog
from goreprox.config.published import PUBLISHES, PublishedName
from goreprox.process.log import quoted
from goreprox.status.document import PublishedStatus
from goreprox.tunnel.driver import Driver
from goreprox.tunnel.peer import Peer

SETTLE_S: Final = 0.2
"""Edges come one by one, and tell one name after the other: what they say is looked at this long after a change."""
SILENT_S: Final = 3.0
"""After this time an edge that has said nothing will not: it is of an earlier version, or opens nothing."""


class Publishing:
    """Logs where clients find each name, once and whenever it changes, and why they do not."""

    def __init__(self, driver: Driver, names: Mapping[PublishedName, str]) -> None:
        """Look at what the edges of `driver` say of `names`, each with its service."""
        self._driver = driver
        self.names = names
        self._log = LimitedLog()
        self._loop = asyncio.get_running_loop()
        self._logged: dict[PublishedName, PublishedStatus] = {}
        self._look: asyncio.TimerHandle | None = None
        self._silence: asyncio.TimerHandle | None = None

    def changed(self) -> None:
        """Look again, once all is settled."""
        if self._look is None and self.names:
            self._look = self._loop.call_later(SETTLE_S, self._look_at_edges)

    @property
    def _edges(self) -> list[Peer]:
        """The edges that accept clients for us."""
        return [peer for peer in self._driver.peers.values() if peer.available]

    def _status(self, name: PublishedName) -> PublishedStatus:
        told = [(edge, edge.served[name.text]) for edge in self._edges if name.text in edge.served]
        problems = [f"{edge.title} says: {quoted(served.reason)}" for edge, served in told if served.reason]
        return {"at": sorted({quoted(each.at) for _, each in told if each.at}), "problem": "; ".join(problems) or None}

    @property
    def status(self) -> dict[str, PublishedStatus]:
        """Where clients find each name now, and what is wrong."""
        return {name.text: self._status(name) for name in self.names}

    def _look_at_edges(self) -> None:
        self._look = None
        for name, service in self.names.items():
            now, before = self._status(name), self._logged.get(name, {"at": [], "problem": None})
            if now["at"] and now["at"] != before["at"]:
                where = ", ".join(now["at"])
                logger.bind(event="published", service=service, name=name.url, at=where).info(
                    "published {}: clients find {} at {}", name.url, service, where
                )
            if now["problem"] and now["problem"] != before["problem"]:
                text = f"{name.url} is {'partly' if now['at'] else 'not'} published: {now['problem']}"
                self._log.say("not_published", text, service=service, name=name.url)
            if now["at"] or now["problem"]:
                self._logged[name] = now
        if self._silence is None:
            self._silence = self._loop.call_later(SILENT_S, self._look_for_silence)

    def _look_for_silence(self) -> None:
        self._silence = None
        silent = [name.url for name in self.names if self._status(name) == {"at": [], "problem": None}]
        if not silent or not self._edges:
            return
        if any(edge.info.attributes.get(PUBLISHES) is True for edge in self._edges):
            why = "a broker of an earlier version passes it on to them without our key: upgrade brokers first"
        else:
            why = "they need an http:// or https:// port that is for no service, or --publish-ports, and this version"
        self._log.say("not_published", f"none of the edges serves published names, like {silent[0]}: {why}")
