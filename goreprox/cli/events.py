"""The command `events`: what happens to links, peers and connections."""

import asyncio
from collections.abc import Mapping
from json import dumps
from typing import Final

from goreprox.cli.options import ALL, AskOptions
from goreprox.control import client
from goreprox.errors import ControlError
from goreprox.process.log import counted, printable, say

Event = Mapping[str, object]
"""In the form of docs/status.md, whose values are what the process says."""
COMMAND: Final = "events"


def events(
    *,
    follow: bool = False,
    json: bool = False,
    of: AskOptions = ALL,
) -> None:
    """Show what has happened lately to the links, peers and connections of the processes of this machine.

    Parameters
    ----------
    follow
        Go on with what happens from now on, until Ctrl-C.
    json
        Print a JSON object per line, as docs/status.md describes.
    """
    shown = _Shown(as_json=json)
    replies = client.ask_all(of.directories, COMMAND, roles=of.roles, name=of.name)
    for reply in replies:
        for page in reply.pages:
            shown.add(reply.who, page)
    shown.print()
    if follow:
        asyncio.run(_follow(of, shown))
    if problems := [reply.problem for reply in replies if reply.problem is not None]:
        raise ControlError("; ".join(problems))


async def _follow(of: AskOptions, shown: "_Shown") -> None:
    def take(who: str, page: object) -> None:
        shown.add(who, page)
        shown.print()

    def failed(problem: str) -> None:
        say(f"goreprox: {problem}; retrying")

    await client.follow(
        of.directories, COMMAND, roles=of.roles, name=of.name, options=shown.request, take=take, failed=failed
    )


class _Shown:
    """What is printed, and up to where: a process that is asked again tells what is new."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._after: dict[str, str] = {}
        """The ids of the last events, by process."""
        self._found: list[tuple[str, str, str]] = []
        """Lines that are not printed yet, each behind its time and its process."""

    def request(self, who: str) -> dict[str, object]:
        """Return the options of a request that follows."""
        return {"follow": True} | ({"after": self._after[who]} if who in self._after else {})

    def add(self, who: str, page: object) -> None:
        """Take a page of a process."""
        match page:
            case {"after": str(after), "missed": int(missed), "events": [{"at": str(first)}, *_] as events}:
                self._after[who] = after
                if missed:
                    message = f"{counted(missed, 'event')} missed"
                    lost = {"at": first, "event": "events_missed", "message": message, "events": missed}
                    self._found.append((first, who, self._line(who, lost)))
                self._found += [(str(event["at"]), who, self._line(who, event)) for event in events]

    def print(self) -> None:
        """Print what has been added, the oldest first."""
        for _, _, line in sorted(self._found, key=lambda found: found[0]):
            print(line)
        print(end="", flush=True)
        self._found.clear()

    def _line(self, who: str, event: Event) -> str:
        if self._as_json:
            return dumps({"process": who, **event})
        named = f"{event['id']} " if "id" in event else ""
        return printable(f"{event['at']} {who}: {named}{event['message']}")
