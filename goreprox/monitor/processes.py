"""Asks the processes of a runtime directory for their status and their health, by their control sockets.

However many ask, a process is asked at most once a second, or a few times where something has just happened to it.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, Generic, NamedTuple, TypeVar

from goreprox.control.client import Reply, ask
from goreprox.errors import ControlError
from goreprox.monitor.health import Answer, Report, ask_ready
from goreprox.status.document import Document
from goreprox.status.query import is_document

T = TypeVar("T")
FRESH_S: Final = 1.0
"""For how long a response of the processes is told to others, too."""


class Shared(Generic[T]):
    """Work whose result is shared by all who ask for it at the same time, or within `FRESH_S`."""

    def __init__(self, work: Callable[[], Awaitable[T]]) -> None:
        self._work = work
        self._task: asyncio.Task[T] | None = None
        self._began = 0.0

    async def get(self, fresh_s: float | None = None) -> T:
        """Return the result of work that begins now, or began less than `fresh_s` ago (None: `FRESH_S`)."""
        loop = asyncio.get_running_loop()
        until = self._began + (FRESH_S if fresh_s is None else fresh_s)
        if self._task is None or (self._task.done() and loop.time() >= until):
            self._began = loop.time()
            self._task = loop.create_task(self._run(), name="ask")
        return await asyncio.shield(self._task)

    async def _run(self) -> T:
        return await self._work()


class Known(NamedTuple):
    """What is known of a process."""

    who: str
    """Its role, name and slot."""
    document: Document | None
    """Its status; None: it has not responded, or is of another version."""
    report: Report
    """Whether it is ready."""


class Processes:
    """Those of one runtime directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._answers = Shared(self._ask_ready)
        self._known = Shared(self._ask_all)

    async def are_live(self) -> bool:
        """Return whether there are some, and all respond."""
        return all(answer.pid is not None for answer in await self._answers.get())

    async def report(self) -> Report:
        """Return whether there are some, and all are ready."""
        answers = await self._answers.get()
        reasons = [f"{answer.who}: {answer.report.reason}" for answer in answers if answer.report.reason is not None]
        missing = {service for answer in answers for service in answer.report.missing}
        return Report("; ".join(reasons).removeprefix(": ") or None, sorted(missing))

    async def known(self, fresh_s: float | None = None) -> list[Known]:
        """Return what is known of each, at most so many seconds old."""
        return await self._known.get(fresh_s)

    async def _ask_ready(self) -> list[Answer]:
        try:
            return await ask_ready([self._directory])
        except ControlError as exc:  # there is none, or it is another user's
            return [Answer("", None, Report(str(exc), []))]

    async def _ask_all(self) -> list[Known]:
        answers, replies = await asyncio.gather(self._answers.get(0.0), self._ask_status())
        reports = {answer.who: answer.report for answer in answers}
        return [
            Known(
                reply.who,
                reply.result if is_document(reply.result) else None,
                reports.get(reply.who, Report(reply.problem or "it has just started", [])),
            )
            for reply in replies
        ]

    async def _ask_status(self) -> list[Reply]:
        with contextlib.suppress(ControlError):
            return await ask([self._directory], "status")
        return []
