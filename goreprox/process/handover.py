"""The state of a process for the code that takes its place, with the same process id: docs/upgrade.md.

A state is a file in memory (memfd_create(2)), sealed once it is written:

    "goreprox"  format, 4 bytes  length of what follows, 8 bytes  items

Each item is CBOR (RFC 8949) after its length in 4 bytes. Sockets and the lock stay open across `execve`; the items name
their descriptors. The file itself is found by a variable of the environment.

Chunks of bytes are moved: each is freed once it is in the file, so that memory holds it once. If the file cannot be
completed, all are back where they were, and the code before goes on.
"""

import contextlib
import ctypes
import errno
import fcntl
import gc
import os
import struct
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

import cbor2

from brokers import Buffer, decode_cbor
from goreprox.errors import ControlError
from goreprox.process import child
from goreprox.process.child import ChildError
from goreprox.protocol.errors import ExportError

FORMAT: Final = 1
"""Of the items, too. A version reads its own format and the one before it."""
VARIABLE: Final = "_GOREPROX_HANDOVER"
"""Set for a moment only, between `execve` and the start of the new code."""
PREFLIGHT_S: Final = 60.0
"""How long the new code may take to prove that it starts: importing takes half a second, on a busy machine many."""
MAX_ITEM: Final = 64 << 20
"""The largest are the last words of a session: at most 65,536 + 10,000 of 300 bytes, 23 MiB."""
_MAX_DEPTH: Final = 8
"""Attributes of peers are nested most: 4 by the envelope, and 2 of ours; two to spare."""
_HEAD: Final = struct.Struct(">8sIQ")
_MAGIC: Final = b"goreprox"
_LENGTH: Final = struct.Struct(">I")
_CHUNK: Final = struct.Struct(">IBI")
"""What is before a chunk: the length of the item, and the head of a byte string in CBOR, with its length in 4 bytes."""
_BYTE_STRING: Final = 0x5A
_TRIM_BYTES: Final = 4 << 20
"""How much is freed before the allocator is asked to give it back to the system, which by itself it does at the end."""
_trim: Final = getattr(ctypes.CDLL(None), "malloc_trim", lambda _keep: 0)
"""malloc_trim(3), of glibc."""


class Handover(NamedTuple):
    """What the next code needs: the file with the state, descriptors that stay open, and how it is started."""

    state: int
    descriptors: list[int]
    command: list[str] = sys.orig_argv
    """Of which the first one is not the interpreter, but what that is called."""
    kept: Callable[[], Iterator[object]] | None = None
    """The items in place of the file, if that could not be written. This code goes on with them."""
    problem: str = ""
    """Why it could not be written."""


@dataclass(slots=True)
class Inherited:
    """A state that was found."""

    descriptor: int
    """Of the file; -1 if there are `kept` items in its place."""
    trial: bool
    """It is there to be read, and nothing more: there are no descriptors, and no bytes of streams."""
    problem: str | None = None
    """Why the code that has written it goes on itself."""
    kept: Callable[[], Iterator[object]] | None = None
    """What could not be written. Chunks of bytes are moved from where they are."""
    restored: bool = False
    """Whether all of it is in use."""

    def items(self) -> Iterator[object]:
        """Yield the items, each once it is asked for.

        Raises:
            ExportError: it is not a state, is incomplete, or has a format that we do not know.
        """
        if self.kept is not None:
            for item in moved(self.kept()):
                yield item if isinstance(item, bytes) else _decoded(cbor2.dumps(item))
            return
        with os.fdopen(os.dup(self.descriptor), "rb") as file:
            file.seek(0)
            head = file.read(_HEAD.size)
            if len(head) < _HEAD.size:
                raise ExportError("the state is incomplete")
            magic, form, length = _HEAD.unpack(head)
            if magic != _MAGIC or form != FORMAT:
                raise ExportError(f"a state of format {form}, expected {FORMAT}")
            while length > 0:
                (size,) = _LENGTH.unpack(file.read(_LENGTH.size).ljust(_LENGTH.size, b"\xff"))
                length -= _LENGTH.size + size
                item = file.read(size) if length >= 0 else b""
                if len(item) < size:
                    raise ExportError("the state is incomplete")
                yield _decoded(item)

    def close(self) -> None:
        """Free the memory of the state, which is in use."""
        self.restored = True
        gc.enable()
        if self.kept is None:
            os.close(self.descriptor)
        self.kept = None


def _decoded(item: bytes) -> object:
    return decode_cbor(item, max_bytes=MAX_ITEM, max_depth=_MAX_DEPTH, error=ExportError)


def inherited() -> Inherited | None:
    """Return the state that the code before us has left, once; None if this is a start like any other."""
    value = os.environ.pop(VARIABLE, None)
    if value is None:
        return None
    kind, _, number = value.partition(" ")
    os.set_inheritable(int(number), False)
    gc.disable()  # until all is restored: what is made for that stays, and looking through it takes a fifth of the time
    return Inherited(int(number), trial=kind == "trial")


def moved(items: Iterable[object]) -> Iterator[object]:
    """Yield `items` as they are read back: in place of each queue its chunks, which are taken from it."""
    for item in items:
        if isinstance(item, deque):
            while item:
                yield bytes(item.popleft())
        else:
            yield item


def write(items: Iterable[object]) -> int:
    """Write a state; return its descriptor. Each item is made as it is written; queues (`deque`) of chunks are emptied.

    Raises:
        ControlError: the system has no such files, or no memory or descriptor for one. All chunks are in their queues.
    """
    if sys.platform != "linux":
        raise ControlError("an upgrade in place needs Linux; restart the process, which drains it first")
    try:
        state = os.memfd_create("goreprox", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            _write(state, items)
        except BaseException:
            os.close(state)
            raise
    except (OSError, MemoryError) as exc:
        raise ControlError(f"no memory for the state: {_reason(exc)}") from exc
    return state


def _reason(exc: OSError | MemoryError) -> str:
    return exc.strerror or str(exc) if isinstance(exc, OSError) else os.strerror(errno.ENOMEM)


def _write(state: int, items: Iterable[object]) -> None:
    emptied: list[tuple[deque[Buffer], int, int]] = []
    """Queues, how many chunks each had, and where in the file they are."""
    freed = 0
    _append(state, bytes(_HEAD.size))
    try:
        for item in items:
            if isinstance(item, deque):
                emptied.append((item, len(item), os.lseek(state, 0, os.SEEK_CUR)))
                while item:
                    size = len(item[0])
                    _append(state, _CHUNK.pack(_CHUNK.size - _LENGTH.size + size, _BYTE_STRING, size), item[0])
                    item.popleft()
                    freed += size
                    if freed >= _TRIM_BYTES:
                        freed = 0
                        _trim(0)
            else:
                data = cbor2.dumps(item)
                _append(state, _LENGTH.pack(len(data)), data)
        length = os.lseek(state, 0, os.SEEK_CUR) - _HEAD.size
        os.pwrite(state, _HEAD.pack(_MAGIC, FORMAT, length), 0)
        fcntl.fcntl(
            state, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        )
    except BaseException:
        while emptied:
            _give_back(state, *emptied.pop())
        raise


def _append(state: int, *parts: Buffer) -> None:
    if os.writev(state, parts) < sum(map(len, parts)):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


def _give_back(state: int, queue: deque[Buffer], count: int, at: int) -> None:
    """Move the chunks that are missing of `count` back into `queue`, and end the file where they were."""
    end, chunks = at, list[Buffer]()
    for _ in range(count - len(queue)):
        _, _, size = _CHUNK.unpack(os.pread(state, _CHUNK.size, end))
        chunks.append(os.pread(state, size, end + _CHUNK.size))
        end += _CHUNK.size + size
    queue.extendleft(reversed(chunks))
    os.ftruncate(state, at)


async def preflight(state: int, command: list[str]) -> str:
    """Prove, in a child that has no socket and no lock of ours, that `command` starts code that reads `state`.

    Returns its version.

    Raises:
        ControlError: it does not.
    """
    try:
        version = await child.output_of(
            [sys.executable, *command[1:]],
            {**os.environ, VARIABLE: f"trial {state}"},
            pass_fds=(state,),
            timeout_s=PREFLIGHT_S,
        )
    except TimeoutError:
        raise ControlError(f"the new code does not start within {PREFLIGHT_S:g} s; nothing has changed") from None
    except OSError as exc:
        raise ControlError(f"{sys.executable}: {exc.strerror}; install it again; nothing has changed") from exc
    except ChildError as exc:
        reason = str(exc).removeprefix("goreprox: ")
        raise ControlError(f"the new code cannot take over: {reason}; nothing has changed") from exc
    return version.strip()


def execute(handover: Handover) -> Inherited:
    """Replace this process by the code that is installed now, which finds the state.

    If that cannot be done, return what this code goes on with.
    """
    problem = handover.problem
    if not problem:
        try:
            _keep({handover.state, *handover.descriptors})
            os.execve(sys.executable, handover.command, {**os.environ, VARIABLE: f"real {handover.state}"})  # noqa: S606 -- itself
        except (OSError, MemoryError) as exc:
            problem = f"{sys.executable} could not be started: {_reason(exc)}"
        finally:
            _keep(set())
    return Inherited(handover.state, trial=False, problem=f"{problem}; the code before it goes on", kept=handover.kept)


def start_anew() -> NoReturn:
    """Replace this process by one that has nothing: its sockets are reset, and its lock says that it has died.

    Raises:
        OSError: it could not be started.
    """
    _keep(set())
    os.execve(sys.executable, sys.orig_argv, os.environ)  # noqa: S606 -- itself


def _keep(descriptors: set[int]) -> None:
    """Let these survive `execve`, and those of the standard streams, but no other: libzmq has some that would."""
    for entry in list(Path("/proc/self/fd").iterdir()):
        if (descriptor := int(entry.name)) > 2:
            with contextlib.suppress(OSError):  # that of the list itself
                os.set_inheritable(descriptor, descriptor in descriptors)
