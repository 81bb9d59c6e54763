"""A worker as its parent has it: a process, and a pipe in each direction (`worker_messages`).

Not an `asyncio.subprocess.Process`, because only its process id and its pipes survive an upgrade of the parent.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple, Self

from goreprox.errors import StartError
from goreprox.protocol.fields import Fields
from goreprox.roles.worker_messages import READ_BYTES, STDIN, STDOUT, framed

_CODE: Final = "import sys; sys.path[:] = {path!r}; from goreprox.roles.worker import main; sys.exit(main())"
"""Not `-m`, which searches the working directory first, where the parent may not."""


def command() -> list[str]:
    """Return the command line of a worker; the first one is what the interpreter is called."""
    return [sys.executable, "-c", _CODE.format(path=sys.path)]


class Handed(NamedTuple):
    """A worker whose parent was upgraded."""

    number: int
    pid: int
    stdin: int
    stdout: int
    unsent: bytes = b""
    unread: bytes = b""
    replies: int = 0
    is_ready: bool = False
    """Whether it has been of use."""
    is_current: bool = True
    """Whether it runs the code of its parent."""

    @classmethod
    def read(cls, fields: Fields) -> Self:
        """Read what `WorkerProcess.export` has returned.

        Raises:
            ExportError: it is something else.
        """
        return cls(
            fields.count("number"),
            fields.count("pid"),
            fields.count("stdin"),
            fields.count("stdout"),
            fields.data("unsent"),
            fields.data("unread"),
            fields.count("replies"),
            fields.flag("is_ready"),
            fields.flag("is_current"),
        )


class WorkerProcess:
    """A worker that was started by this code, or by the one before."""

    def __init__(
        self,
        handed: Handed,
        *,
        ready: Callable[["WorkerProcess"], None],
        failed: Callable[["WorkerProcess", str], None],
    ) -> None:
        """Call `ready` whenever it says so, and `failed` with the reason if it cannot start."""
        self.number: Final = handed.number
        self.pid: Final = handed.pid
        self.is_ready, self.is_current = handed.is_ready, handed.is_current
        self.is_upgrading = False
        self.ended = asyncio.Event()
        """It has, or other code is its parent now."""
        self._stdin, self._stdout = handed.stdin, handed.stdout
        self._unsent, self._unread = bytearray(handed.unsent), bytearray(handed.unread)
        self._ready, self._failed = ready, failed
        self._loop = asyncio.get_running_loop()
        self._replies: deque[asyncio.Future[object]] = deque()
        """To orders, in their sequence; nobody waits any more for those that were cancelled."""
        for _ in range(handed.replies):
            self._expect().cancel()
        for descriptor in self.descriptors:
            os.set_blocking(descriptor, False)
        self._loop.add_reader(self._stdout, self._readable)
        self._write()

    @staticmethod
    def start(number: int) -> Handed:
        """Start a process.

        Raises:
            OSError: there is no memory or no descriptor for it.
        """
        with contextlib.ExitStack() as pipes:

            def pipe() -> tuple[int, int]:
                ends = os.pipe()
                for end in ends:
                    pipes.callback(os.close, end)
                return ends

            its_stdin, stdin = pipe()
            stdout, its_stdout = pipe()
            pid = os.posix_spawn(
                sys.executable,
                command(),
                os.environ,
                file_actions=[(os.POSIX_SPAWN_DUP2, its_stdin, STDIN), (os.POSIX_SPAWN_DUP2, its_stdout, STDOUT)],
                setpgroup=0,  # a group of its own: it must not get signals of the parent's
                setsigmask=(),
                setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),  # which Python ignores
            )
            pipes.pop_all()
        os.close(its_stdin)
        os.close(its_stdout)
        return Handed(number, pid, stdin, stdout)

    def send(self, data: bytes) -> None:
        """Write to its standard input, at once or as it reads."""
        self._unsent += data
        self._write()

    def _write(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: os.write(self._stdin, self._unsent)]
        except BlockingIOError:
            self._loop.add_writer(self._stdin, self._write)
            return
        except BrokenPipeError:
            self._unsent.clear()  # its end is about to be read
        self._loop.remove_writer(self._stdin)

    def _readable(self) -> None:
        data = os.read(self._stdout, READ_BYTES)
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            self._take(json.loads(line))
        if not data:
            self.release()
            while self._replies:
                self._reply(lambda reply: reply.set_result(None))

    def _take(self, message: object) -> None:
        match message:
            case {"ready": _}:
                self.is_ready = True
                self._ready(self)
            case {"error": str(text)}:
                self._failed(self, text)
            case {"done": result}:
                self._reply(lambda reply: reply.set_result(result))
            case {"refused": str(text)}:
                self._reply(lambda reply: reply.set_exception(StartError(text)))

    def _reply(self, settle: Callable[[asyncio.Future[object]], None]) -> None:
        reply = self._replies.popleft()
        if not reply.done():
            settle(reply)

    def _expect(self) -> asyncio.Future[object]:
        self._replies.append(reply := self._loop.create_future())
        return reply

    async def order(self, kind: bytes, data: bytes, *, deadline_s: float) -> object:
        """Let it carry out an order; return the result, None if it has ended.

        Raises:
            StartError: it refuses, or does not respond.
        """
        if self.ended.is_set():
            return None
        reply = self._expect()
        self.send(kind + framed(data))
        try:
            async with asyncio.timeout(deadline_s):
                return await reply
        except TimeoutError:
            raise StartError(f"the worker with pid {self.pid} does not respond within {deadline_s:g} s") from None

    def reap(self) -> int:
        """Return the exit code, once it has `ended`."""
        for descriptor in self.descriptors:
            os.close(descriptor)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])  # closing its pipe was the last that it did

    @property
    def descriptors(self) -> list[int]:
        """The pipes."""
        return [self._stdin, self._stdout]

    def release(self) -> None:
        """Use the pipes no more: it has ended, or other code is about to be its parent."""
        self._loop.remove_reader(self._stdout)
        self._loop.remove_writer(self._stdin)
        self.ended.set()

    def export(self) -> dict[str, object]:
        """Return it for the code that takes over."""
        handed = Handed(
            self.number,
            self.pid,
            self._stdin,
            self._stdout,
            bytes(self._unsent),
            bytes(self._unread),
            len(self._replies),
            self.is_ready,
            self.is_current,
        )
        return handed._asdict()
