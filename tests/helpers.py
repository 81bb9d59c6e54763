"""What tests of several layers share."""

import asyncio
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
