"""Streams for which there is no provider yet, in the order in which they came, each with a timeout."""

import asyncio
from collections.abc import Callable, Collection, Iterator

from goreprox.tunnel.connections import StreamOwner

LEAST_S, MOST_S = 0.01, 5.0
"""Bounds of the timer: timers of the loop do not count suspend, so the clock is looked at now and then."""


class PendingQueue:
    """Holds each stream until it is removed, or until its timeout."""

    def __init__(
        self, *, timeout_s: float, clock: Callable[[], float], expired: Callable[[StreamOwner, str], None]
    ) -> None:
        """Measure `timeout_s` by `clock`; `expired` is called with each stream that timed out, and the reason."""
        self.timeout_s = timeout_s
        self._expired = expired
        self._clock = clock
        self._until: dict[StreamOwner, float] = {}
        self._by_service: dict[str, dict[StreamOwner, None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def set_timeout(self, timeout_s: float) -> None:
        """Hold streams for `timeout_s` at most from now on, those that are here, too."""
        self.timeout_s = timeout_s
        most = self._clock() + timeout_s
        self._until = {owner: min(until, most) for owner, until in self._until.items()}
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._watch()

    @property
    def services(self) -> Collection[str]:
        """The services that streams are pending for."""
        return self._by_service.keys()

    def count(self, service: str) -> int:
        """Return the number of streams of a service."""
        return len(self._by_service.get(service, ()))

    def of(self, service: str) -> list[StreamOwner]:
        """Return the streams of a service, the oldest first."""
        return list(self._by_service.get(service, ()))

    def until(self, owner: StreamOwner) -> float | None:
        """Return the timeout of a stream by the clock, if it is here."""
        return self._until.get(owner)

    def __iter__(self) -> Iterator[StreamOwner]:
        return iter(list(self._until))

    def __len__(self) -> int:
        return len(self._until)

    def add(self, owner: StreamOwner, until: float | None = None) -> None:
        """Add a stream behind all others; `until`, if given, is its timeout by the clock."""
        self._until[owner] = self._clock() + self.timeout_s if until is None else until
        self._by_service.setdefault(owner.stream.service, {})[owner] = None
        self._watch()

    def discard(self, owner: StreamOwner) -> None:
        """Remove a stream, if it is here."""
        if self._until.pop(owner, None) is None:
            return
        queue = self._by_service[owner.stream.service]
        del queue[owner]
        if not queue:
            del self._by_service[owner.stream.service]

    def _watch(self) -> None:
        if self._until and self._timer is None:
            delay_s = max(next(iter(self._until.values())) - self._clock(), LEAST_S)
            self._timer = self._loop.call_later(min(delay_s, MOST_S), self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = self._clock()
        for owner, until in list(self._until.items()):
            if until > now:
                break
            self.discard(owner)
            self._expired(owner, f"no provider within {self.timeout_s:g} s")
        self._watch()
