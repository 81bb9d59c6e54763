"""What has happened in a process lately, for those who follow it.

Those who follow have a place in it each and nothing else, so that one that is slow costs the process nothing: what it
has missed is no longer here when it comes back.
"""

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

KEPT: Final = 1000
"""Events, of 0.7 KiB each; at most 5 KiB, with an address and a reason, twice, of at most 256 characters each."""


class Event(NamedTuple):
    """Something that has happened."""

    at: float
    """Seconds since 1970."""
    name: str
    """What, for programs: as in the log, if it is there, too."""
    message: str
    """For people."""
    fields: Mapping[str, object]


class Feed:
    """The last events of a process. The first one has the number 1."""

    def __init__(self) -> None:
        self.count = 0
        """Events so far, so the number of the last one; an upgrade in place goes on from it."""
        self._last: deque[tuple[float, str, str, Mapping[str, object]]] = deque(maxlen=KEPT)
        """Those of `Event`, which takes longer to make: two are added for each stream, and few are ever asked for."""
        self._added = asyncio.Event()

    def add(self, name: str, message: str, fields: Mapping[str, object]) -> None:
        """Add an event; those who wait for it are woken in the next turn of the loop."""
        self.count += 1
        self._last.append((time.time(), name, message, fields))
        self._added.set()

    @property
    def forgotten(self) -> int:
        """The number of the last event that is no longer kept."""
        return self.count - len(self._last)

    def after(self, number: int, most: int) -> Sequence[Event]:
        """Return the events behind `number`, which is at least `forgotten`, at most so many of them."""
        begin = number - self.forgotten
        assert begin >= 0, f"event {number} is forgotten"
        return list(map(Event._make, itertools.islice(self._last, begin, begin + most)))

    async def more(self, number: int) -> None:
        """Wait until there is an event behind `number`."""
        while self.count <= number:
            self._added.clear()
            await self._added.wait()
