"""What the control socket of an edge serves of the inspector: a list of requests, one in detail, and replays."""

import asyncio
from collections.abc import Callable
from typing import Final

from goreprox.control.message import Request
from goreprox.control.socket import Commands, Pages
from goreprox.errors import ControlError
from goreprox.inspector.records import Record, Records
from goreprox.inspector.replay import Connect, Replays
from goreprox.inspector.shown import detail, row
from goreprox.status.requests import RequestDetail, RequestRow, RequestsPage

PAGE: Final = 25
"""Requests in a page, each 60 us of the loop and at most 6 KiB: paths and hosts of 256 characters of 12 bytes each."""
REST: Final = 2
"""After each page a list rests for so many times as long as that took: it gets a third of the loop at most."""
GATHER_S: Final = 0.25
"""How long ends are gathered for the next page of one who follows: at most 500 requests, 30 ms of the loop."""


class Inspection:
    """Keeps requests, and serves them."""

    def __init__(self, clock: Callable[[], float], connect: Connect) -> None:
        self.records: Final = Records(clock)
        self._replays = Replays(self.records, connect)
        self.selects: Callable[[], bool] = lambda: True
        """Returns whether any requests are kept."""

    @property
    def commands(self) -> Commands:
        """What the control socket serves."""
        return {"requests": self._list, "request": self._detail, "replay": self._replay}

    async def _list(self, request: Request) -> Pages:
        """Yield the requests that go on, and those that have ended since `after`, or all; to one who follows for ever.

        `after` may be a list, of what several processes have told.
        """
        records = self.records
        ended = self._ended_of(request.options.get("after"))
        follow = request.options.get("follow") is True
        while True:
            until = records.ended
            found = sorted((each for each in records if not 0 < each.ended_as <= ended), key=_order)
            for first in range(0, len(found) or 1, PAGE):
                began, part = records.clock(), found[first : first + PAGE]
                ended = until if first + PAGE >= len(found) else max(ended, part[-1].ended_as)
                page = self._page(part, ended)
                took_s = records.clock() - began
                yield page
                await asyncio.sleep(REST * took_s)
            if not follow:
                return
            await records.more(ended)
            await asyncio.sleep(GATHER_S)

    def _page(self, part: list[Record], ended: int) -> RequestsPage:
        records, now = self.records, self.records.clock()
        oldest = next(iter(records), None)
        return {
            "inspecting": self.selects(),
            "after": records.ids.id_of(ended),
            "oldest": None if oldest is None else records.ids.id_of(oldest.number),
            "requests": [row(record, records.ids, now) for record in part],
        }

    async def _detail(self, request: Request) -> RequestDetail | None:
        """Return a request; None if it is not kept here."""
        record = self._find(request)
        return None if record is None else detail(record, self.records.ids, self.records.clock())

    async def _replay(self, request: Request) -> RequestRow | None:
        """Send a request once more; return the new one, None if the first is not kept here."""
        record = self._find(request)
        if record is None:
            return None
        replayed = await self._replays.run(record)
        if replayed is None:
            raise ControlError("it was sent once more, and what has become of it is not kept: the log has it")
        return row(replayed, self.records.ids, self.records.clock())

    def _ended_of(self, after: object) -> int:
        known = map(self.records.ids.number_of, after if isinstance(after, list) else [after])
        return next((number for number in known if number is not None), 0)

    def _find(self, request: Request) -> Record | None:
        wanted = request.options.get("id")
        if not isinstance(wanted, str):
            raise ControlError("expected the id of a request")
        return self.records.find(self.records.ids.number_of(wanted))


def _order(record: Record) -> int:
    """Those that go on come first, so that the last one of a page tells how many have ended."""
    return record.ended_as
