"""A rate-limited log: for lines that peers, clients or a lasting fault could repeat without end."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from loguru import logger

PERIOD_S: Final = 60.0
BURST: Final = 10
"""Lines of one event in a period. With one more for the rest, 20 events of at most 2 KiB a line are 7 KiB/s at most."""


@dataclass(slots=True)
class _Period:
    """What was logged about one event since `began_at`."""

    began_at: float
    texts: set[str] = field(default_factory=set)
    suppressed: int = 0
    last: str = ""
    """The last suppressed line, and its level."""
    level: str = ""
    timer: asyncio.TimerHandle | None = None


class LimitedLog:
    """Logs each text about an event once a period, and at most `burst` different ones; counts the others.

    The count is logged at the end of the period, or, where no event loop runs, with the next line about that event.
    Events are names of ours, never taken from outside: their number bounds the memory.
    """

    def __init__(
        self,
        *,
        burst: int = BURST,
        period_s: float = PERIOD_S,
        summary: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Measure periods with `clock`, in seconds. Without `summary`, suppressed lines are not counted."""
        self._burst = burst
        self._period_s = period_s
        self._summary = summary
        self._clock = clock
        self._periods: dict[str, _Period] = {}

    def say(self, event: str, text: str, level: str = "WARNING", /, **fields: object) -> None:
        """Log `text` about `event`, with `fields`, unless it or enough others were logged in this period."""
        now = self._clock()
        period = self._periods.get(event)
        if period is None or now - period.began_at >= self._period_s:
            self._sum_up(event)
            period = self._periods[event] = _Period(now)
        if text not in period.texts and len(period.texts) < self._burst:
            period.texts.add(text)
            logger.opt(depth=1).bind(event=event, **fields).log(level, "{}", text)
        elif self._summary:
            period.suppressed += 1
            period.last, period.level = text, level
            if period.timer is None:
                self._start_timer(event, period, now)

    def reset(self) -> None:
        """Begin a new period for every event: the next line about it is logged."""
        for event in list(self._periods):
            self._sum_up(event)

    def _start_timer(self, event: str, period: _Period, now: float) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        period.timer = loop.call_later(period.began_at + self._period_s - now, self._sum_up, event)

    def _sum_up(self, event: str) -> None:
        """End a period."""
        period = self._periods.pop(event, None)
        if period is None or not period.suppressed:
            return
        if period.timer is not None:
            period.timer.cancel()
        seconds = round(self._clock() - period.began_at)
        bound = logger.bind(event=event, more=period.suppressed, seconds=seconds)
        bound.log(period.level, "{} more in the last {} s, the last: {}", period.suppressed, seconds, period.last)
