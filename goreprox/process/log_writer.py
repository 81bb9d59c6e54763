"""Writes log lines from a thread of its own, so that a stream that stalls blocks nothing else.

A reader that stopped (`| less`, a stuck log driver) or a disk that hangs blocks that thread only. Lines are queued up
to `MAX_QUEUED_BYTES`; further ones are dropped and counted, and their number is logged once lines are written again.
The stream is not made non-blocking: a standard stream is shared with other processes.
"""

import contextlib
import os
import select
import signal
import threading
from collections import deque
from collections.abc import Callable
from typing import Final, TextIO

MAX_QUEUED_BYTES: Final = 1 << 20
"""Some 5,000 lines. With Python's overhead (at most 100 bytes a line, lines having at least 50) 3 MiB of memory."""
_BATCH_BYTES: Final = 1 << 16
FLUSH_S: Final = 1.0
"""How long a process that ends waits for its lines to be written."""


class LogWriter:
    """Writes lines in order. All methods may be called from any thread, and in a forked child."""

    def __init__(self, stream: TextIO) -> None:
        self.lost_line: Callable[[int], str] = "{} lines were lost\n".format
        """Makes the line that says how many were lost."""
        self._write = _writer(stream)
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        """Forget the queue and the thread: a forked child has only the thread that forked."""
        self._changed = threading.Condition()
        self._lines: deque[bytes] = deque()
        self._queued_bytes = 0
        self._lost = 0
        self._thread: threading.Thread | None = None

    def write(self, line: str) -> None:
        """Queue a line that ends with a line feed; drop it if the queue is full."""
        data = line.encode(errors="backslashreplace")
        with self._changed:
            if self._queued_bytes + len(data) > MAX_QUEUED_BYTES:
                self._lost += 1
                return
            self._queue(data)
            if self._thread is None:
                # A daemon: the interpreter must not wait for a write that never ends.
                self._thread = threading.Thread(target=self._run, name="log", daemon=True)
                self._thread.start()

    def flush(self, deadline_s: float = FLUSH_S) -> bool:
        """Wait until all lines are written; return whether they are."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._queued_bytes, deadline_s)

    def _queue(self, data: bytes) -> None:
        self._lines.append(data)
        self._queued_bytes += len(data)
        self._changed.notify_all()

    def _run(self) -> None:
        # A signal must not be delivered here while the main thread has it blocked for an upgrade.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines)
                batch = [self._lines.popleft()]
                size = len(batch[0])
                while self._lines and size + len(self._lines[0]) <= _BATCH_BYTES:
                    batch.append(self._lines.popleft())
                    size += len(batch[-1])
            written = self._written(b"".join(batch))
            with self._changed:
                self._queued_bytes -= size
                if not written:
                    self._lost += len(batch)
                elif self._lost:
                    self._queue(self.lost_line(self._lost).encode())
                    self._lost = 0
                self._changed.notify_all()

    def _written(self, data: bytes) -> bool:
        """Write all of `data`, however long that takes; return False if it cannot be written."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._write(rest) :]
        except (OSError, ValueError):  # the disk is full, the reader is gone; the stream was closed
            if len(rest) < len(data):
                with contextlib.suppress(OSError, ValueError):
                    self._write(memoryview(b"\n"))  # ends the line that was cut off
            return False
        return True


def _writer(stream: TextIO) -> Callable[[memoryview], int]:
    """Return a function that writes to a stream and returns the number of bytes written."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):  # no file, but something in memory

        def remember(data: memoryview) -> int:
            stream.write(str(data, errors="replace"))
            return len(data)

        return remember

    def write(data: memoryview) -> int:
        while True:
            try:
                return os.write(descriptor, data)
            except BlockingIOError:  # another process has made the stream non-blocking
                select.select([], [descriptor], [])

    return write
