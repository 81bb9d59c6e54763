"""Bytes of a stream in a queue of chunks, such that these hold little more memory than their bytes count.

An object costs 60 bytes beside its own (`bytes` has 33, the allocator and the queue the rest), and a slice keeps all of
what it is a slice of. So small chunks are joined, and small slices copied. It knows nothing of offsets.
"""

from collections import deque
from typing import cast

from goreprox.protocol.events import Buffer
from goreprox.protocol.limits import KIB

PACK_EVERY = 64
"""At each 64th chunk the last 64 are joined: with pieces of one byte, 63 + 60 * 64 bytes more than they count."""
PACK_BYTES = 4 * KIB
"""Nothing is joined beyond this, so of two neighbours one has half of it at least: 3 % more than they count. Until it
is in such a chunk a byte is copied with each 64th chunk: 65 times at most, in pieces of one byte."""
KEPT = 4
"""A slice is copied when it would keep alive more than so many times its own size."""


def add(chunks: deque[Buffer], chunk: Buffer) -> None:
    """Append a chunk, which must not change any more."""
    chunks.append(chunk)
    if not len(chunks) % PACK_EVERY:
        _pack(chunks)


def _pack(chunks: deque[Buffer]) -> None:
    last = [chunks.pop() for _ in range(PACK_EVERY)]
    run = [last.pop()]
    size = len(run[0])
    while last:
        chunk = last.pop()
        if size + len(chunk) > PACK_BYTES:
            chunks.append(_joined(run))
            run, size = [], 0
        run.append(chunk)
        size += len(chunk)
    chunks.append(_joined(run))


def _joined(run: list[Buffer]) -> Buffer:
    return run[0] if len(run) == 1 else b"".join(run)


def part(chunk: Buffer, start: int, stop: int | None = None) -> Buffer:
    """Return a slice, or a copy of it where the slice would keep alive much more than itself."""
    view = memoryview(chunk)[start:stop]
    return view if len(view) * KEPT >= len(memoryview(cast(Buffer, view.obj))) else bytes(view)
