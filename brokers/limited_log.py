"""Log lines that others can cause: of each kind a few a minute, then one that says how many more there were."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from loguru import logger

PERIOD_S = 60.0
BURST = 10
"""Lines of one kind in a period. With one more for the rest, 20 kinds of at most 2 KiB are 7 KiB/s at the worst."""


@dataclass(slots=True)
class _Kind:
    """What was said of one event in the current period."""

    began_at: float
    texts: set[str] = field(default_factory=set)
    more: int = 0
    """What was not said."""
    last: str = ""
    level: str = ""
    timer: asyncio.TimerHandle | None = None


class LimitedLog:
    """Logs each text of an event once in `PERIOD_S`, and at most `burst` different ones; counts the others.

    The count is logged at the end of the period, or, where no event loop runs, with the next line of that event. Events
    are names chosen by us, never taken from outside: memory is bounded by their number.
    """

    def __init__(self, *, burst: int = BURST, clock: Callable[[], float] = time.monotonic) -> None:
        """Measure periods with `clock`, in seconds."""
        self._burst = burst
        self._clock = clock
        self._kinds: dict[str, _Kind] = {}

    def say(self, event: str, text: str, level: str = "WARNING", /, **fields: object) -> None:
        """Log `text` about `event`, with `fields`, unless it or enough others were logged in this period."""
        now = self._clock()
        kind = self._kinds.get(event)
        if kind is None or now - kind.began_at >= PERIOD_S:
            self._sum_up(event)
            kind = self._kinds[event] = _Kind(now)
        if text not in kind.texts and len(kind.texts) < self._burst:
            kind.texts.add(text)
            logger.opt(depth=1).bind(event=event, **fields).log(level, "{}", text)
            return
        kind.more += 1
        kind.last, kind.level = text, level
        if kind.timer is None:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                return
            kind.timer = loop.call_later(kind.began_at + PERIOD_S - now, self._sum_up, event)

    def _sum_up(self, event: str) -> None:
        """End a period."""
        kind = self._kinds.pop(event, None)
        if kind is None or not kind.more:
            return
        if kind.timer is not None:
            kind.timer.cancel()
        seconds = round(self._clock() - kind.began_at)
        bound = logger.bind(event=event, more=kind.more, seconds=seconds)
        bound.log(kind.level, "{} more in the last {} s, of which the last: {}", kind.more, seconds, kind.last)
