"""Lists and ends streams for the page, some hundred at a time, for all who look."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from goreprox.control.client import ask, ask_pages
from goreprox.errors import ControlError

MOST: Final = 1000
"""Streams of a process in a list, of at most 2.5 KiB each."""
LIST_S: Final = 10.0
"""Deadline for a list."""
IDS: Final = 100
"""That can be ended at a time: as many as a request of the control socket has room for."""
CONDITIONS: Final = ("service", "client", "provider")


class Streams:
    """Those of the processes of a directory."""

    def __init__(self, directory: Path) -> None:
        self._directories = [directory]
        self._lock = asyncio.Lock()
        """One list at a time, so that pages take one of the eight places of a process that others list streams in."""

    async def list(self, query: Mapping[str, str]) -> dict[str, object]:
        """Return the first streams of each process that fulfil the conditions of a query, or what is wrong with it."""
        options = {name: query[name] for name in CONDITIONS if query.get(name)}
        async with self._lock:
            try:
                replies = await ask_pages(
                    self._directories, "streams", options=options, deadline_s=LIST_S, enough=_are_enough
                )
            except (ControlError, ValueError) as exc:
                return {"processes": [], "problems": [str(exc)]}
        return {
            "processes": [
                {"who": reply.who, "is_whole": reply.result, "streams": [*_streams(reply.pages)]} for reply in replies
            ],
            "problems": [reply.problem for reply in replies if reply.problem is not None],
        }

    async def end(self, ids: Sequence[str]) -> dict[str, object]:
        """End streams; return how many."""
        ended = 0
        for reply in await ask(self._directories, "end", options={"ids": list(ids[:IDS])}):
            match reply.result:
                case {"ended": int(count)}:
                    ended += count
        return {"ended": ended}


def _streams(pages: Sequence[object]) -> Iterator[Mapping[str, object]]:
    for page in pages:
        match page:
            case {"at_s": float(at_s), "streams": [*streams]}:
                yield from ({**stream, "at_s": at_s} for stream in streams if isinstance(stream, dict))


def _are_enough(pages: Sequence[object]) -> bool:
    return sum(1 for _ in _streams(pages)) >= MOST
