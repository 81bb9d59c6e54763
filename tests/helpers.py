"""What tests of several layers share."""

import asyncio
import time
from collections.abc import Callable

POLL_S = 0.005


async def eventually(condition: Callable[[], object], deadline_s: float = 30.0) -> None:
    """Return as soon as the condition holds; fail, naming it, if it does not within `deadline_s`."""
    try:
        async with asyncio.timeout(deadline_s):
            while not condition():  # noqa: ASYNC110 -- conditions of any kind, on objects without events
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        code = condition.__code__
        raise AssertionError(
            f"not true within {deadline_s} s: the condition at {code.co_filename}:{code.co_firstlineno}"
        ) from None


class Level:
    """A number that is level once it has not changed for a second."""

    def __init__(self) -> None:
        self.value = -1
        self.since = time.monotonic()

    def holds(self, value: int) -> bool:
        if value != self.value:
            self.value, self.since = value, time.monotonic()
        return time.monotonic() - self.since >= 1.0
