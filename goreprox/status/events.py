"""Lists what has happened in a process lately, in pages, and what happens from then on to those who follow."""

import asyncio
from collections.abc import Mapping
from typing import Final, TypedDict

from goreprox.control.message import Request
from goreprox.control.socket import Commands, Pages
from goreprox.process.clock import iso
from goreprox.process.feed import Event, Feed
from goreprox.status.ids import Ids

PAGE: Final = 16
"""Events in a page, of at most 15 KiB each: an address and a reason, twice, of at most 256 characters of 12 bytes."""
STREAM: Final = "stream_"
"""How the names of events of single streams begin."""
GATHER_S: Final = 0.1
"""How long what happens is gathered for the next page: those who follow cost the process at most ten pages a second,
and miss something only if there are more than `feed.KEPT` events in that time."""


class EventsPage(TypedDict):
    """Some events in a row."""

    after: str
    """The id of the last one; another request names it as `after`, and gets those behind it."""
    missed: int
    """How many were before these that are no longer kept, of those that were asked for."""
    events: list[Mapping[str, object]]
    """Each with `at`, `event`, `message` and fields of its own; docs/status.md explains them."""


class EventList:
    """Serves `events` on the control socket of a process."""

    def __init__(self, ids: Ids, feed: Feed) -> None:
        self._ids = ids
        self._feed = feed

    @property
    def commands(self) -> Commands:
        """What the control socket serves."""
        return {"events": self._list}

    async def _list(self, request: Request) -> Pages:
        feed = self._feed
        after = self._ids.number_of(request.options.get("after"))
        number = feed.forgotten if after is None else min(after, feed.count)
        until = None if request.options.get("follow") is True else feed.count
        with_streams = request.options.get("streams") is not False
        while until is None or number < until:
            await feed.more(number)
            missed = max(feed.forgotten - number, 0)
            events = feed.after(number + missed, PAGE)
            number += missed + len(events)
            told = [self._told(event) for event in events if with_streams or not event.name.startswith(STREAM)]
            if told or missed:
                yield EventsPage(after=self._ids.id_of(number), missed=missed, events=told)
            await asyncio.sleep(GATHER_S if number == feed.count else 0)

    def _told(self, event: Event) -> Mapping[str, object]:
        told = {"at": iso(event.at), "event": event.name, "message": event.message, **event.fields}
        match told.pop("number", None):
            case int(number):
                told["id"] = self._ids.id_of(number)
        return told
