"""Collects what the page shows: the processes as they are, their last hour, and what happens to them.

What happens is followed, so that it is known a tenth of a second later. How the processes are is asked for once a
second while somebody looks, at once if something has happened, and else as often as the history needs it.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from goreprox.control.client import follow
from goreprox.errors import ControlError
from goreprox.monitor.history import EVERY_S, History, Sample
from goreprox.monitor.processes import FRESH_S, Known, Processes
from goreprox.process.clock import clock, iso
from goreprox.process.feed import Feed

SOON_S: Final = 0.2
"""After something has happened; so processes are asked at most five times a second."""
AGAIN_S: Final = 0.5
"""How often it looks for processes that have started, or whose code was replaced."""
REMEMBERED: Final = 256
"""Processes whose last event is remembered, each in 0.2 KiB, so that none is told twice."""
GONE_S: Final = 2.0
"""A process that is not there for so long has ended; an upgrade in place takes less."""
STREAMS: Final = ("stream_opened", "stream_ended")
"""Events that are left out: there may be thousands a second, and the status has the last ends."""


class Collector:
    """Looks at the processes of a runtime directory."""

    def __init__(self, directory: Path, processes: Processes) -> None:
        self._directory = directory
        self._processes = processes
        self.known: list[Known] = []
        self.at = 0.0
        """When that was; seconds since 1970."""
        self.history = History()
        self.samples: dict[str, Sample] = {}
        """The last ones, all of the same moment."""
        self.feed = Feed()
        """What has happened, the times being those of the processes."""
        self.looks = 0
        """How often it has looked."""
        self._seen: dict[str, float] = {}
        """When each process was seen last."""
        self._incarnations: dict[str, str] = {}
        self._after: dict[str, str] = {}
        self._watching = 0
        self._happened = asyncio.Event()
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Look and follow until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._look_again_and_again(), name="look")
            tasks.create_task(self._follow(), name="follow")

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Look more often while in this context."""
        self._watching += 1
        self._happened.set()
        try:
            yield
        finally:
            self._watching -= 1

    async def change(self, looks: int, events: int) -> None:
        """Wait until it has looked more often than `looks`, or more has happened than `events`."""
        while self.looks <= looks and self.feed.count <= events:
            await self._changed.wait()

    async def _look_again_and_again(self) -> None:
        while True:
            self._happened.clear()
            await self._look()
            await asyncio.sleep(SOON_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout((FRESH_S if self._watching else EVERY_S) - SOON_S):
                    await self._happened.wait()

    async def _look(self) -> None:
        known = await self._processes.known(SOON_S)
        self.at = time.time()
        self._compare(known)
        self.known = known
        documents = {each.who: each.document for each in known if each.document is not None}
        self.samples = self.history.add(self.at, clock(), documents) or self.samples
        self.looks += 1
        self._tell()

    def _compare(self, known: list[Known]) -> None:
        """Tell of processes that have started or ended since an earlier look."""
        now = clock()
        for each in known:
            self._seen[each.who] = now
            incarnation = each.document["incarnation"] if each.document is not None else None
            if incarnation is not None and self._incarnations.get(each.who) != incarnation:
                if self.looks:
                    self._add(each.who, {"event": "process_started", "message": "the process has started"})
                self._incarnations[each.who] = incarnation
        for who in [who for who, at in self._seen.items() if now - at > GONE_S]:
            del self._seen[who]
            if self._incarnations.pop(who, None) is not None:
                self._add(who, {"event": "process_ended", "message": "the process has ended"})

    async def _follow(self) -> None:
        while True:
            with contextlib.suppress(ControlError):  # it cannot look into the directory, as yet
                await follow(
                    [self._directory],
                    "events",
                    options=self._options,
                    take=self._take,
                    failed=lambda _: self._happened.set(),
                    again_s=AGAIN_S,
                )
            await asyncio.sleep(AGAIN_S)

    def _options(self, who: str) -> Mapping[str, object]:
        after = {"after": self._after[who]} if who in self._after else {}
        return {"follow": True, "streams": False, **after}

    def _take(self, who: str, page: object) -> None:
        match page:
            case {"after": str(after), "missed": int(missed), "events": [*events]}:
                self._after.pop(who, None)
                self._after[who] = after
                while len(self._after) > REMEMBERED:
                    del self._after[next(iter(self._after))]
                if missed:
                    self._add(who, {"event": "events_missed", "message": f"{missed} events missed", "events": missed})
                for event in events:
                    if isinstance(event, dict) and event.get("event") not in STREAMS:
                        self._add(who, event)

    def _add(self, who: str, event: Mapping[str, object]) -> None:
        fields = {"at": iso(time.time()), "process": who, **event}
        self.feed.add(str(event.get("event")), str(event.get("message")), fields)
        self._happened.set()
        self._tell()

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
