"""Waiting for what has no event."""

import asyncio
import time
from collections.abc import Callable

DEADLINE_S = 120.0
"""How long tests wait before they fail: on a busy machine a process may need half a minute to start."""
POLL_S = 0.005


async def eventually(
    condition: Callable[[], object], what: str | Callable[[], str] = "", *, deadline_s: float = DEADLINE_S
) -> None:
    """Return as soon as the condition holds; fail, saying `what` did not, if it does not within `deadline_s`."""
    give_up = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() >= give_up:
            where = f"{condition.__code__.co_filename}:{condition.__code__.co_firstlineno}"
            told = what if isinstance(what, str) else what()
            raise AssertionError(f"not within {deadline_s} s: {told or 'the condition'} ({where})")
        await asyncio.sleep(POLL_S)


class Level:
    """A number that is level once it has not changed for a second."""

    def __init__(self) -> None:
        self.value = -1
        self.since = time.monotonic()

    def holds(self, value: int) -> bool:
        if value != self.value:
            self.value, self.since = value, time.monotonic()
        return time.monotonic() - self.since >= 1.0
