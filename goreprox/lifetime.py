"""The signals that end a process: the first politely, the second at once."""

import asyncio
import contextlib
import signal
from collections.abc import Coroutine
from typing import Any, Self

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """SIGTERM and SIGINT as events of the loop, while in this context."""

    def __init__(self) -> None:
        """Belong to the running loop."""
        self.stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            self._loop.add_signal_handler(number, self._signalled)
        return self

    def __exit__(self, *_: object) -> None:
        for number in _SIGNALS:
            self._loop.remove_signal_handler(number)

    def _signalled(self) -> None:
        (self._hurry if self.stop.is_set() else self.stop).set()

    @property
    def hurried(self) -> bool:
        """Whether the second signal has come."""
        return self._hurry.is_set()

    async def unless_hurried(self, work: Coroutine[Any, Any, None]) -> None:
        """Do `work`, but drop it when the second signal comes."""
        task = asyncio.create_task(work, name="shutdown")
        hurry = asyncio.create_task(self._hurry.wait(), name="second signal")
        await asyncio.wait((task, hurry), return_when=asyncio.FIRST_COMPLETED)
        for pending in (task, hurry):
            pending.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
