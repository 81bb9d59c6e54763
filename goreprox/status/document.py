"""How a running process is asked what it does: a Unix socket beside its lock file, one JSON document a connection.

Knows the form of the document, files and sockets. What goes into it, `snapshot` knows; how it is shown, `report`.
Whoever connects gets the document and is hung up on; nothing is ever read from him.
"""

import asyncio
import contextlib
import errno
import json
import os
import re
import socket
import stat
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NotRequired, Self, TypedDict, cast

from loguru import logger

from goreprox.errors import StatusError
from goreprox.process.instance import Instance

FORMAT: Final = 1
"""Of the document: another number has other fields. Fields that were added since may be missing (`NotRequired`)."""
ANSWER_S: Final = 5.0
"""A reader that has not taken its document by then is hung up on."""
READERS: Final = 8
"""At a time. A document is below 2 MiB (1,024 peers of at most 2 KiB), so all of them hold below 16 MiB."""
ASK_S: Final = 2.0
DOCUMENT_BYTES: Final = 16 << 20
"""What the asking side takes at most."""
_SOCKET: Final = re.compile(r"(?P<role>[a-z]+)-(?P<name>[A-Za-z0-9._-]{1,64})\.[0-9]+\.sock")


class PathStatus(TypedDict):
    """A way to a peer that is up."""

    label: str
    in_use: bool
    fabric_epoch: int
    round_trip_s: float | None


class PeerStatus(TypedDict):
    """A process at the other end of a session."""

    name: str
    role: str
    incarnation: str
    state: str
    down_s: float | None
    epoch: int
    services: list[str]
    paths: list[PathStatus]
    streams_open: int
    streams_total: int
    sent_bytes: int
    received_bytes: int
    scheduled_streams: int
    control_events: int
    outages: int
    replayed_bytes: int
    process: NotRequired[str | None]
    machine: NotRequired[str | None]
    up_s: NotRequired[float | None]


class LinkStatus(TypedDict):
    """Our connection to a broker."""

    label: str
    state: str
    since_s: NotRequired[float]
    problem: NotRequired[str | None]


class MemberStatus(TypedDict):
    """A peer as the broker sees it."""

    name: str
    role: str
    incarnation: str
    fabric_epoch: int
    outbox_messages: int
    outbox_bytes: int


class BrokerStatus(TypedDict):
    """What a broker has done, and for whom."""

    messages: int
    dropped_messages: int
    members: list[MemberStatus]


class StreamsStatus(TypedDict):
    """All streams of the process. Sent: from our own sockets; received: to them."""

    open: int
    limit: int
    total: int
    waiting_clients: int
    refused_clients: int
    dialing: int
    sent_bytes: int
    received_bytes: int
    borrowed_bytes: int
    lendable_bytes: int


class EndStatus(TypedDict):
    """How a stream ended."""

    ended_at: str
    client: str
    service: str
    peer: str | None
    sent_bytes: int
    received_bytes: int
    reason: str


class ConnectionStatus(TypedDict):
    """A stream that is open."""

    client: str
    service: str
    peer: str | None
    state: str
    open_s: float | None
    sent_bytes: int
    received_bytes: int


class Document(TypedDict):
    """What a process says of itself; `docs/status.md` explains every field."""

    format: int
    version: str
    role: str
    name: str
    incarnation: str
    pid: int
    started_at: str
    up_s: float
    draining: bool
    ports: dict[str, list[int]]
    services: dict[str, list[str]]
    streams: StreamsStatus | None
    peers: list[PeerStatus]
    links: list[LinkStatus]
    broker: BrokerStatus | None
    ends: list[EndStatus]
    connections: NotRequired[list[ConnectionStatus]]


class StatusSocket:
    """Answers whoever connects. A process runs as well without one: what prevents it is logged, not raised."""

    def __init__(self, path: Path, describe: Callable[[], Document]) -> None:
        """Answer at `path` with what `describe` returns at that moment; use `open`."""
        self.path: Final = path
        self._describe = describe
        self._readers: set[_Reader] = set()
        self._server: asyncio.Server | None = None
        self._inode: os.stat_result | None = None

    @classmethod
    async def open(cls, lock: Path, describe: Callable[[], Document]) -> Self:
        """Begin to answer beside the lock file `lock` (of `Instance`, whose directory is this user's own)."""
        made = cls(lock.with_name(f"{lock.name}.sock"), describe)
        try:
            await made._listen()
        except OSError as exc:
            reason = exc.strerror or str(exc)  # Python's own "AF_UNIX path too long" has no number
            logger.bind(event="no_status").warning(
                "no status at {}: {}; choose another directory with --runtime-dir", made.path, reason
            )
        return made

    async def _listen(self) -> None:
        _remove_stale(self.path)
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.bind(str(self.path))
            self.path.chmod(0o600)  # nobody can connect before it listens
            self._inode = self.path.lstat()
            self._server = await asyncio.get_running_loop().create_unix_server(lambda: _Reader(self), sock=sock)
        except BaseException:
            sock.close()
            raise

    def admit(self, reader: "_Reader") -> bytes | None:
        """Return the document for one more reader, or None if there are `READERS` already."""
        if len(self._readers) >= READERS:
            return None
        self._readers.add(reader)
        return json.dumps(self._describe()).encode()

    def leave(self, reader: "_Reader") -> None:
        """Forget a reader."""
        self._readers.discard(reader)

    def close(self) -> None:
        """Answer no more, and remove the socket unless it has become another's."""
        if self._server is None or self._inode is None:
            return
        with contextlib.suppress(OSError):
            if os.path.samestat(self.path.lstat(), self._inode):
                self.path.unlink()
        self._server.close()
        for reader in list(self._readers):
            reader.hang_up()


@contextlib.asynccontextmanager
async def answering(instance: Instance, describe: Callable[[], Document]) -> AsyncIterator[None]:
    """Answer with what `describe` returns; at a clean end stop that and release `instance`."""
    status = await StatusSocket.open(instance.path, describe)
    yield
    status.close()
    instance.release()


class _Reader(asyncio.Protocol):
    """One connection: gets the document, and is closed; what it sends stays unread."""

    def __init__(self, owner: StatusSocket) -> None:
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        document = self._owner.admit(self)
        if document is None:
            transport.abort()
            return
        self._deadline = asyncio.get_running_loop().call_later(ANSWER_S, self.hang_up)
        transport.write(document)
        transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._owner.leave(self)
        if self._deadline is not None:
            self._deadline.cancel()

    def hang_up(self) -> None:
        """Drop what has not been read."""
        if self._transport is not None:
            self._transport.abort()


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens at. Our lock says so already, unless its file was swept away."""
    with contextlib.suppress(FileNotFoundError), socket.socket(socket.AF_UNIX) as probe:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(errno.EEXIST, "there is a file of that name")
        probe.setblocking(False)
        if probe.connect_ex(str(path)) != errno.ECONNREFUSED:
            raise OSError(errno.EADDRINUSE, "another process answers there")
        path.unlink()


# The side that asks.


@dataclass(frozen=True, slots=True)
class Answers:
    """What the processes of a directory said."""

    documents: list[Document]
    problems: list[str]
    """Of those that did not answer: what and why, one line each."""


def ask_all(directories: Sequence[Path], *, role: str | None = None, name: str | None = None) -> Answers:
    """Ask all processes of `directories`, or those of a role or name, at once; each has `ASK_S` seconds.

    Raises:
        StatusError: there is none, or none that this user may ask.
    """
    paths, closed = _sockets(directories, role, name)
    answers = asyncio.run(_gather(paths))
    documents = [answer for answer in answers if isinstance(answer, dict)]
    problems = [answer for answer in answers if isinstance(answer, str)]
    if not documents and not problems:
        if closed:
            where = ", ".join(map(str, closed))
            raise StatusError(f"runtime directory {where}: it is another user's; run this as root or as its owner")
        wanted = f"{role or 'process'}{f' named {name}' if name else ''}"
        where = " or ".join(map(str, directories))
        raise StatusError(f"no {wanted} runs in {where}; start one, or name its directory with --runtime-dir")
    return Answers(documents, problems)


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
    """Return the document, or why there is none; nothing if its process is dead."""
    who = path.name.removesuffix(".sock")
    try:
        async with asyncio.timeout(ASK_S):
            data = await _read(path)
        document: Any = json.loads(data)
    except (ConnectionRefusedError, FileNotFoundError):
        return None
    except TimeoutError:
        return f"{who} does not answer within {ASK_S:g} s; is it stopped or overloaded?"
    except OSError as exc:
        return f"{who} cannot be asked: {exc.strerror or exc}; run this as its owner, or try again"
    except ValueError:
        return f"{who} hung up in the middle of its answer; try again"
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        return f"{who} runs another version of goreprox; ask it with that one"
    return cast("Document", document)


async def _read(path: Path) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        data = bytearray()
        while len(data) <= DOCUMENT_BYTES and (chunk := await reader.read(1 << 16)):
            data += chunk
        return bytes(data)
    finally:
        writer.transport.abort()
