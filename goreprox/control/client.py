"""Asks running processes by their control sockets, all at once."""

import asyncio
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

from goreprox.control.message import REPLY_BYTES, encode_request, parse_page, parse_reply
from goreprox.errors import ControlError

ASK_S: Final = 2.0
"""Deadline for each process, unless a command takes longer."""
PAGES_BYTES: Final = 256 << 20
"""All pages of a reply: a million streams, the most that can be configured, at 256 bytes."""
ROLES: Final = ("server", "edge", "broker", "provider")
PARENT: Final = "workers"
"""What a process is called that has no status itself, but a worker for each core that has."""
NOTHING: Final[Mapping[str, object]] = MappingProxyType({})
_PAGE: Final = b'{"control": 1, "page": '
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
    who = path.name.removesuffix(".sock")
    try:
        async with asyncio.timeout(deadline_s):
            data = await _exchange(path, request)
        *pages, last = data.split(b"\n")
        return Reply(who, parse_reply(last), pages=[*map(parse_page, pages)])
    except (ConnectionRefusedError, FileNotFoundError):
        return None
    except ControlError as exc:
        return Reply(who, None, f"{who}: {exc}")
    except TimeoutError:
        problem = f"does not respond within {deadline_s:g} s; is it stopped or overloaded?"
    except OSError as exc:
        problem = f"cannot be asked: {exc.strerror or exc}; run this as its owner, or try again"
    except ValueError:
        problem = "disconnected in the middle of its reply; try again"
    except LookupError:
        problem = "runs another version of goreprox; use that version to ask it"
    return Reply(who, None, f"{who} {problem}")


async def _exchange(path: Path, request: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(request)
        data = bytearray()
        most = REPLY_BYTES
        while len(data) <= most and (chunk := await reader.read(1 << 16)):
            data += chunk
            if most == REPLY_BYTES and data.startswith(_PAGE):
                most = PAGES_BYTES
        return bytes(data)
    finally:
        writer.transport.abort()
