"""Clients for whom there is no provider: they wait, first come first, each for so long and no longer."""

import asyncio
from collections.abc import Callable

from goreprox.bridge import Bridge

LEAST_S = 0.01
"""Between two looks at the clock."""


class WaitingRoom:
    """Whoever leaves it in time is served; the rest is reset."""

    def __init__(self, *, patience_s: float, clock: Callable[[], float]) -> None:
        """Belong to the running loop; everybody may wait `patience_s` seconds of `clock`."""
        self.patience_s = patience_s
        self._clock = clock
        self._until: dict[Bridge, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def bridges(self) -> list[Bridge]:
        """Who waits, in order."""
        return list(self._until)

    def __len__(self) -> int:
        return len(self._until)

    def enter(self, bridge: Bridge) -> None:
        """Begin to wait."""
        self._until[bridge] = self._clock() + self.patience_s
        self._watch()

    def leave(self, bridge: Bridge) -> None:
        """Wait no longer, if it did."""
        self._until.pop(bridge, None)

    def _watch(self) -> None:
        if self._until and self._timer is None:
            delay_s = max(next(iter(self._until.values())) - self._clock(), LEAST_S)
            self._timer = self._loop.call_later(delay_s, self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = self._clock()
        for bridge, until in list(self._until.items()):
            if until > now:
                break
            del self._until[bridge]
            bridge.abort(f"no provider within {self.patience_s:g} s")
        self._watch()
