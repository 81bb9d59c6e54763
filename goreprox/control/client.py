"""Asks running processes by their control sockets, all at once."""

import asyncio
import contextlib
import functools
import re
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple, Never

from goreprox.control.message import REPLY_BYTES, encode_request, parse_page, parse_reply
from goreprox.errors import ControlError

ASK_S: Final = 2.0
"""Deadline for each process, unless a command takes longer."""
PAGES_BYTES: Final = 256 << 20
"""All pages of a reply: a million streams, the most that can be configured, at 256 bytes."""
AGAIN_S: Final = 2.0
"""How often `follow` looks for processes that have started, by default."""
ROLES: Final = ("server", "edge", "broker", "provider")
PARENT: Final = "workers"
"""What a process is called that has no status itself, but a worker for each core that has."""
NOTHING: Final[Mapping[str, object]] = MappingProxyType({})
_SOCKET: Final = re.compile(r"(?P<role>[a-z]+)-(?P<name>[A-Za-z0-9._-]{1,64})\.[0-9]+\.sock")


class Reply(NamedTuple):
    """What one process has said."""

    who: str
    """Its role, name and slot, like `server-tunnel.0`."""
    result: object
    problem: str | None = None
    """Why there is no result, for people."""
    pages: Sequence[object] = ()
    """What came before the result."""


def leading(role: str | None) -> Sequence[str]:
    """Return whom to ask for a change of processes of this role (None: of all): workers leave it to their parent."""
    roles = ROLES if role is None else (role,)
    return (*roles, PARENT) if "edge" in roles else roles


def ask_all(
    directories: Sequence[Path],
    command: str,
    *,
    roles: Sequence[str] = ROLES,
    name: str | None = None,
    deadline_s: float | None = None,
    options: Mapping[str, object] = NOTHING,
) -> list[Reply]:
    """Ask all processes in `directories` that have one of these roles, and that name if any, at once.

    Raises:
        ControlError: there is none, or none that this user may ask.
    """
    return asyncio.run(ask(directories, command, roles=roles, name=name, deadline_s=deadline_s, options=options))


async def ask(
    directories: Sequence[Path],
    command: str,
    *,
    roles: Sequence[str] = ROLES,
    name: str | None = None,
    deadline_s: float | None = None,
    options: Mapping[str, object] = NOTHING,
) -> list[Reply]:
    """Do the same within a loop.

    Raises:
        ControlError: there is none, or none that this user may ask.
    """
    paths, closed = _sockets(directories, roles, name)
    replies = await _gather(paths, encode_request(command, **options), ASK_S if deadline_s is None else deadline_s)
    if replies:
        return replies
    if closed:
        where = ", ".join(map(str, closed))
        raise ControlError(f"runtime directory {where}: it is another user's; run this as root or as its owner")
    wanted = f"{roles[0] if len(roles) == 1 else 'process'}{f' named {name}' if name else ''}"
    where = " or ".join(map(str, directories))
    raise ControlError(f"no {wanted} runs in {where}; start one, or name its directory with --runtime-dir")


async def ask_pages(
    directories: Sequence[Path],
    command: str,
    *,
    options: Mapping[str, object],
    deadline_s: float,
    enough: Callable[[Sequence[object]], bool],
) -> list[Reply]:
    """Ask all processes for pages until there are `enough` of each; the result is whether these are all.

    Raises:
        ControlError: this user may not look into a directory.
    """

    async def asked(path: Path) -> Reply:
        pages: list[object] = []
        try:
            async with asyncio.timeout(deadline_s), contextlib.aclosing(_pages(path, request)) as found:
                async for page in found:
                    pages.append(page)
                    if enough(pages):
                        return Reply(_who(path), result=False, pages=pages)
        except (ControlError, TimeoutError) as exc:
            return Reply(_who(path), False, _problem(_who(path), exc, deadline_s), pages)
        return Reply(_who(path), result=True, pages=pages)

    request = encode_request(command, **options)
    return list(await asyncio.gather(*map(asked, _sockets(directories, ROLES, None)[0])))


async def follow(
    directories: Sequence[Path],
    command: str,
    *,
    roles: Sequence[str] = ROLES,
    name: str | None = None,
    options: Callable[[str], Mapping[str, object]],
    take: Callable[[str, object], None],
    failed: Callable[[str], None],
    again_s: float = AGAIN_S,
) -> Never:
    """Ask the same processes for pages without end, those that start later and those that start again, too.

    `options` returns those of a request to one, named as in `Reply.who`. Each page is given to `take`, and why there
    are no more for now, in a line for people, to `failed`.
    """
    asked: dict[Path, asyncio.Task[None]] = {}
    try:
        while True:
            for path in _sockets(directories, roles, name)[0]:
                if path not in asked:
                    who = _who(path)
                    work = _follow_one(
                        path, encode_request(command, **options(who)), functools.partial(take, who), failed
                    )
                    asked[path] = asyncio.create_task(work, name=f"follow {who}")
            await asyncio.sleep(again_s)
            for path in [path for path, task in asked.items() if task.done()]:
                asked.pop(path).result()
    finally:
        for task in asked.values():
            task.cancel()


async def _follow_one(
    path: Path, request: bytes, take: Callable[[object], None], failed: Callable[[str], None]
) -> None:
    async with contextlib.aclosing(_pages(path, request)) as pages:
        try:
            async for page in pages:
                take(page)
        except ControlError as exc:
            failed(str(exc))


async def _pages(path: Path, request: bytes) -> AsyncGenerator[object, None]:
    """Yield pages as they come; none if nobody listens there.

    Raises:
        ControlError: there will be no more, though the process has not said that this was the last one.
    """
    try:
        async with contextlib.aclosing(_lines(path, request)) as lines:
            async for line in lines:
                if not line.endswith(b"\n"):
                    parse_reply(line)
                    return
                yield parse_page(line)
            raise ValueError
    except (ControlError, OSError, ValueError, LookupError) as exc:
        if (problem := _problem(_who(path), exc)) is not None:
            raise ControlError(problem) from exc


def _sockets(directories: Sequence[Path], roles: Collection[str], name: str | None) -> tuple[list[Path], list[Path]]:
    """Return the sockets of these roles and that name, and the directories that this user may not look into."""
    found: list[Path] = []
    closed: list[Path] = []
    for directory in directories:
        try:
            paths = sorted(directory.iterdir())
        except FileNotFoundError:
            continue
        except PermissionError:
            closed.append(directory)
            continue
        except OSError as exc:
            raise ControlError(
                f"runtime directory {directory}: {exc.strerror}; name another with --runtime-dir, or run this as its "
                "owner"
            ) from exc
        matches = [(path, match) for path in paths if (match := _SOCKET.fullmatch(path.name))]
        found += [path for path, match in matches if match["role"] in roles and name in (None, match["name"])]
    return found, closed


async def _gather(paths: Sequence[Path], request: bytes, deadline_s: float) -> list[Reply]:
    replies = await asyncio.gather(*(_ask(path, request, deadline_s) for path in paths))
    return [reply for reply in replies if reply is not None]


async def _ask(path: Path, request: bytes, deadline_s: float) -> Reply | None:
    who = _who(path)
    try:
        async with asyncio.timeout(deadline_s):
            *pages, last = await _all_lines(path, request)
        return Reply(who, parse_reply(last), pages=[*map(parse_page, pages)])
    except (ControlError, OSError, ValueError, LookupError) as exc:
        problem = _problem(who, exc, deadline_s)
        return None if problem is None else Reply(who, None, problem)


def _who(path: Path) -> str:
    return path.name.removesuffix(".sock")


def _problem(who: str, exc: Exception, deadline_s: float = 0.0) -> str | None:
    """Return why a process was asked in vain, in one line; None if nobody listens there."""
    match exc:
        case ConnectionRefusedError() | FileNotFoundError():
            return None
        case ControlError():
            return f"{who}: {str(exc).removeprefix(f'{who}: ')}"
        case TimeoutError():
            return f"{who} does not respond within {deadline_s:g} s; is it stopped or overloaded?"
        case OSError():
            return f"{who} cannot be asked: {exc.strerror or exc}; run this as its owner, or try again"
        case ValueError():
            return f"{who} disconnected in the middle of its reply; try again"
    return f"{who} runs another version of goreprox; use that version to ask it"


async def _all_lines(path: Path, request: bytes) -> list[bytes]:
    """Return the lines of a reply.

    Raises:
        OSError: the process cannot be asked.
        ValueError: they are longer than `PAGES_BYTES`, one is longer than `REPLY_BYTES`, or the last one is missing.
    """
    found: list[bytes] = []
    size = 0
    async with contextlib.aclosing(_lines(path, request)) as lines:
        async for line in lines:
            found.append(line)
            size += len(line)
            if size > PAGES_BYTES:
                raise ValueError
    if not found or found[-1].endswith(b"\n"):
        raise ValueError
    return found


async def _lines(path: Path, request: bytes) -> AsyncGenerator[bytes, None]:
    """Yield the lines of a reply as they come; the last one of all has no line feed.

    Raises:
        OSError: the process cannot be asked.
        ValueError: one is longer than `REPLY_BYTES`.
    """
    reader, writer = await asyncio.open_unix_connection(path, limit=REPLY_BYTES)
    try:
        writer.write(request)
        while line := await reader.readline():
            yield line
    finally:
        writer.transport.abort()
