"""Streams for which there is no provider: they wait, first come first, each for so long and no longer."""

import asyncio
from collections.abc import Callable, Collection, Iterator

from goreprox.tunnel.connections import StreamOwner

LEAST_S, MOST_S = 0.01, 5.0
"""Between two looks at the clock: timers of the loop do not count suspend."""


class WaitingRoom:
    """Whoever leaves it in time is served; the rest is given up."""

    def __init__(
        self, *, patience_s: float, clock: Callable[[], float], give_up: Callable[[StreamOwner, str], None]
    ) -> None:
        """Belong to the running loop; everybody may wait `patience_s` seconds of `clock`, then `give_up` says why."""
        self.patience_s = patience_s
        self._give_up = give_up
        self._clock = clock
        self._until: dict[StreamOwner, float] = {}
        self._lines: dict[str, dict[StreamOwner, None]] = {}
        """Who waits for each service, in order."""
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def services(self) -> Collection[str]:
        """What somebody waits for."""
        return self._lines.keys()

    def line(self, service: str) -> list[StreamOwner]:
        """Return who waits for a service, in order."""
        return list(self._lines.get(service, ()))

    def __iter__(self) -> Iterator[StreamOwner]:
        return iter(list(self._until))

    def __len__(self) -> int:
        return len(self._until)

    def enter(self, joint: StreamOwner) -> None:
        """Begin to wait."""
        self._until[joint] = self._clock() + self.patience_s
        self._lines.setdefault(joint.stream.service, {})[joint] = None
        self._watch()

    def leave(self, joint: StreamOwner) -> None:
        """Wait no longer, if it did."""
        if self._until.pop(joint, None) is None:
            return
        line = self._lines[joint.stream.service]
        del line[joint]
        if not line:
            del self._lines[joint.stream.service]

    def _watch(self) -> None:
        if self._until and self._timer is None:
            delay_s = max(next(iter(self._until.values())) - self._clock(), LEAST_S)
            self._timer = self._loop.call_later(min(delay_s, MOST_S), self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = self._clock()
        for joint, until in list(self._until.items()):
            if until > now:
                break
            self.leave(joint)
            self._give_up(joint, f"no provider within {self.patience_s:g} s")
        self._watch()
