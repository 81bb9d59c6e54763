"""Lists, shows and sends once more for the page what the processes of a directory keep of requests."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from goreprox.control.client import Reply, ask
from goreprox.errors import ControlError
from goreprox.status.requests import curl

ROLES: Final = ("server", "edge")
LIST_S: Final = 30.0
"""Deadline for a list."""
REPLAY_S: Final = 35.0
"""Deadline for a replay: 30 s of the process for the response, and some."""
AFTER: Final = 128
"""Processes that a page has seen a list of: with ids of at most 26 bytes in the 4 KiB of a request."""


class Requests:
    """Those that the servers and edges of a directory keep."""

    def __init__(self, directory: Path) -> None:
        self._directories = [directory]
        self._lock = asyncio.Lock()
        """One list at a time, so that pages take one of the eight places of a process that others list in."""

    async def list(self, after: Sequence[str]) -> dict[str, object]:
        """Return what has changed since the lists that `after` names, which earlier ones have told, or all requests."""
        async with self._lock:
            try:
                replies = await ask(
                    self._directories,
                    "requests",
                    roles=ROLES,
                    deadline_s=LIST_S,
                    options={"after": list(after[:AFTER])},
                )
            except ControlError as exc:
                return {"processes": [], "problems": [str(exc)]}
        return {
            "processes": [{"who": reply.who, **_joined(reply.pages)} for reply in replies if reply.problem is None],
            "problems": [reply.problem for reply in replies if reply.problem is not None],
        }

    async def detail(self, id_: str) -> dict[str, object] | None:
        """Return a request with its response, and a command for curl; None if nobody keeps it.

        Raises:
            ControlError: there is nobody to ask.
        """
        replies = await ask(self._directories, "request", roles=ROLES, options={"id": id_})
        found = next(_found(replies), None)
        return None if found is None else {**found, "curl": curl(found)}  # type: ignore[arg-type] # as the process says

    async def replay(self, id_: str) -> dict[str, object]:
        """Send a request once more; return what is kept of that one.

        Raises:
            ControlError: it cannot be sent.
        """
        replies = await ask(self._directories, "replay", roles=ROLES, deadline_s=REPLAY_S, options={"id": id_})
        for found in _found(replies):
            return dict(found)
        problems = [reply.problem for reply in replies if reply.problem is not None]
        raise ControlError("; ".join(problems) or f"request {id_} is not kept any more")


def _found(replies: Sequence[Reply]) -> Iterator[Mapping[str, object]]:
    return (reply.result for reply in replies if isinstance(reply.result, dict))


def _joined(pages: Sequence[object]) -> Mapping[str, object]:
    """Return all pages of a process as one."""
    found: list[object] = []
    last: Mapping[str, object] = {"inspecting": False, "after": None, "oldest": None}
    for page in pages:
        match page:
            case {"requests": [*requests], **more}:
                last = {str(name): value for name, value in more.items()}
                found += requests
    return {**last, "requests": found}
