"""Queues of chunks that take little more memory than their bytes.

An object costs 60 bytes beside its payload (`bytes` has 33, the allocator and the queue the rest), and a slice keeps
alive all that it is a slice of. So small chunks are joined, and small slices copied.
"""

from collections import deque

from goreprox.protocol.events import Buffer
from goreprox.protocol.limits import KIB

PACK_EVERY = 64
"""Every 64 chunks the last 64 are joined: pieces of one byte take at most 63 + 60 * 64 bytes more than they count."""
PACK_BYTES = 4 * KIB
"""Nothing is joined beyond this, so of two neighbours one has at least half of it: 3 % more than they count. Until a
byte is in such a chunk it is copied with each 64th chunk: at most 65 times, in pieces of one byte."""
KEPT = 4
"""A slice that would keep alive more than this many times its own size is copied."""


def add(chunks: deque[Buffer], chunk: Buffer) -> None:
    """Append a chunk, which must not change from now on."""
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
    """Return a slice, or a copy of it if the slice would keep alive much more than itself."""
    view = memoryview(chunk)[start:stop]
    return view if len(view) * KEPT >= len(memoryview(view.obj)) else bytes(view)
