"""Lines to a stream that stalls: nobody waits, memory is bounded, what is lost is counted."""

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from typing import TextIO

import pytest

from goreprox.process.log_writer import MAX_QUEUED_BYTES, LogWriter

LINE = "x" * 199 + "\n"
KERNEL_BYTES = 1 << 20
"""More than a pipe holds by default."""


@contextlib.contextmanager
def pipe() -> Iterator[tuple[int, TextIO]]:
    """A pipe: a descriptor to read from, and a stream to write to."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        try:
            yield reader, stream
        finally:
            with contextlib.suppress(OSError):
                os.close(reader)


def read_until(reader: int, end: bytes) -> bytes:
    """Read up to something that is bound to come."""
    data = b""
    while end not in data:
        data += os.read(reader, 1 << 16)
    return data


def test_lines_are_written_whole_and_in_order() -> None:
    with pipe() as (reader, stream):
        log = LogWriter(stream)
        for number in range(100):
            log.write(f"{number} é\n")
        assert log.flush(30)
        assert read_until(reader, b"99 ").decode().splitlines()[:99] == [f"{number} é" for number in range(99)]


def test_a_stalled_reader_blocks_nobody_and_learns_how_many_lines_were_lost() -> None:
    with pipe() as (reader, stream):
        log = LogWriter(stream)
        log.lost_line = "lost {}\n".format
        lines = (MAX_QUEUED_BYTES + KERNEL_BYTES) // len(LINE) + 1000
        for _ in range(lines):
            log.write(LINE)  # would hang here
        assert not log.flush(0.01)
        came = lost = 0
        rest = b""
        while came + lost < lines:  # a writer that was slow to begin counts twice: meanwhile, and at the end
            *whole, rest = (rest + os.read(reader, 1 << 16)).split(b"\n")
            counts = [int(line[5:]) for line in whole if line.startswith(b"lost ")]
            came += len(whole) - len(counts)
            lost += sum(counts)
        assert lost >= 1000
        assert came + lost == lines
        assert log.flush(30)
        log.write("after\n")
        assert read_until(reader, b"after\n") == b"after\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")  # noqa: PTH110
def test_a_full_disk_only_loses_lines() -> None:
    with open("/dev/full", "w") as stream:  # noqa: PTH123
        log = LogWriter(stream)
        for _ in range(1000):
            log.write(LINE)
        assert log.flush(30)


def test_a_line_cut_off_by_a_full_disk_ends_before_the_next_one() -> None:
    taken: list[bytes] = []
    full = [4]  # bytes that still fit

    def write(data: memoryview) -> int:
        if full and not full[0]:
            full.clear()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        size = full[0] if full else len(data)
        full[:] = [0] if full else []
        taken.append(bytes(data[:size]))
        return size

    with pipe() as (_, stream):
        log = LogWriter(stream)
        log._write = write
        log.lost_line = "lost {}\n".format
        log.write("first\n")
        assert log.flush(30)
        log.write("second\n")
        assert log.flush(30)
    assert b"".join(taken) == b"firs\nsecond\nlost 1\n"


def test_a_non_blocking_stream_is_waited_for() -> None:
    with pipe() as (reader, stream):
        os.set_blocking(stream.fileno(), False)
        log = LogWriter(stream)
        for _ in range(2000):
            log.write(LINE)
        log.write("last\n")
        assert read_until(reader, b"last\n") == LINE.encode() * 2000 + b"last\n"


def test_a_closed_pipe_is_no_error() -> None:
    with pipe() as (reader, stream):
        os.close(reader)
        log = LogWriter(stream)
        log.write(LINE)
        assert log.flush(30)


def test_a_forked_child_writes_lines_of_its_own() -> None:
    with pipe() as (reader, stream):
        log = LogWriter(stream)
        log.write("parent\n")
        assert log.flush(30)
        child = os.fork()
        if not child:
            log.write("child\n")
            os._exit(0 if log.flush(30) else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert read_until(reader, b"child\n") == b"parent\nchild\n"


def test_a_flush_waits_a_bounded_time() -> None:
    with pipe() as (_, stream):
        log = LogWriter(stream)
        for _ in range(KERNEL_BYTES // len(LINE)):
            log.write(LINE)
        began = time.monotonic()
        assert not log.flush(0.2)
        assert time.monotonic() - began >= 0.2
