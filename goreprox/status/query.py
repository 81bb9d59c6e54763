"""Asks running processes for their status documents."""

import asyncio
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeGuard

from goreprox.errors import StatusError
from goreprox.status.document import FORMAT, Document

ASK_S: Final = 2.0
"""Deadline for each process."""
DOCUMENT_BYTES: Final = 16 << 20
"""Longest document that is accepted."""
_SOCKET: Final = re.compile(r"(?P<role>[a-z]+)-(?P<name>[A-Za-z0-9._-]{1,64})\.[0-9]+\.sock")


@dataclass(frozen=True, slots=True)
class Responses:
    """The documents of the processes of a directory."""

    documents: list[Document]
    problems: list[str]
    """One line for each process that did not respond: which one, and why."""


def ask_all(directories: Sequence[Path], *, role: str | None = None, name: str | None = None) -> Responses:
    """Ask all processes of `directories`, or those of a role or name, at once.

    Raises:
        StatusError: there is none, or none that this user may ask.
    """
    paths, closed = _sockets(directories, role, name)
    found = asyncio.run(_gather(paths))
    documents = [each for each in found if isinstance(each, dict)]
    problems = [each for each in found if isinstance(each, str)]
    if not documents and not problems:
        if closed:
            where = ", ".join(map(str, closed))
            raise StatusError(f"runtime directory {where}: it is another user's; run this as root or as its owner")
        wanted = f"{role or 'process'}{f' named {name}' if name else ''}"
        where = " or ".join(map(str, directories))
        raise StatusError(f"no {wanted} runs in {where}; start one, or name its directory with --runtime-dir")
    return Responses(documents, problems)


def _sockets(directories: Sequence[Path], role: str | None, name: str | None) -> tuple[list[Path], list[Path]]:
    """Return the sockets of a role or name, and the directories that this user may not look into."""
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
            raise StatusError(
                f"runtime directory {directory}: {exc.strerror}; name another with --runtime-dir, or run this as its "
                "owner"
            ) from exc
        matches = [(path, match) for path in paths if (match := _SOCKET.fullmatch(path.name))]
        found += [path for path, match in matches if role in (None, match["role"]) and name in (None, match["name"])]
    return found, closed


async def _gather(paths: Sequence[Path]) -> list[Document | str | None]:
    return await asyncio.gather(*map(_ask, paths))


async def _ask(path: Path) -> Document | str | None:
    """Return the document, or why there is none; None if the process is dead."""
    who = path.name.removesuffix(".sock")
    try:
        async with asyncio.timeout(ASK_S):
            data = await _read(path)
        document: object = json.loads(data)
    except (ConnectionRefusedError, FileNotFoundError):
        return None
    except TimeoutError:
        return f"{who} does not respond within {ASK_S:g} s; is it stopped or overloaded?"
    except OSError as exc:
        return f"{who} cannot be asked: {exc.strerror or exc}; run this as its owner, or try again"
    except ValueError:
        return f"{who} disconnected in the middle of its document; try again"
    if not _is_document(document):
        return f"{who} runs another version of goreprox; use that version to ask it"
    return document


def _is_document(value: object) -> TypeGuard[Document]:
    return isinstance(value, dict) and value.get("format") == FORMAT


async def _read(path: Path) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        data = bytearray()
        while len(data) <= DOCUMENT_BYTES and (chunk := await reader.read(1 << 16)):
            data += chunk
        return bytes(data)
    finally:
        writer.transport.abort()
