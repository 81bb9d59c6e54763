"""How much memory an upgrade in place takes while buffers are full."""

import asyncio
import os
from pathlib import Path

import pytest

from goreprox.protocol.limits import WINDOW_INITIAL
from tests.e2e.upgrading import Gate, gated, provide, upgraded
from tests.support.memory import limited
from tests.support.processes import WAIT_S, Process, nothing_yet
from tests.support.traffic import block
from tests.support.waiting import Level, eventually

STREAMS = 256
BLOCKS = 8
"""In each direction of each stream, 512 KiB: more than fits into sockets and windows while nobody reads."""
DATA = b"".join(map(block, range(BLOCKS)))
LEAST_BYTES = STREAMS * 2 * WINDOW_INITIAL
"""What the provider holds then at least, 32 MiB: each stream's window in each direction, which may have grown."""
SLACK_BYTES = 8 << 20
"""For streams and sockets themselves, and for what the allocator keeps."""


def state_bytes(process: Process) -> int:
    """Return the size of the file in memory that `process` has written."""
    for entry in Path(f"/proc/{process.process.pid}/fd").iterdir():
        if "memfd:goreprox" in str(entry.readlink()):
            return entry.stat().st_size
    return 0


def transport(writer: asyncio.StreamWriter) -> asyncio.Transport:
    found = writer.transport
    assert isinstance(found, asyncio.Transport)
    return found


def paused(writer: asyncio.StreamWriter) -> asyncio.StreamWriter:
    """Read nothing from the connection of `writer` for now, so that only its sockets take bytes."""
    transport(writer).pause_reading()
    return writer


@pytest.mark.long
@pytest.mark.skipif(os.geteuid() != 0, reason="only root limits the memory of a process")
async def test_bytes_are_in_memory_once_while_they_are_written_and_twice_while_they_are_restored(tmp: Path) -> None:
    released = asyncio.Event()

    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        paused(writer).write(DATA)
        await released.wait()
        transport(writer).resume_reading()
        assert await asyncio.wait_for(reader.readexactly(len(DATA)), WAIT_S) == DATA

    writing = Gate(tmp, "real goreprox.process.instance Instance.detach")
    written = Gate(tmp, "real goreprox.process.handover execute")
    with limited() as memory:
        async with nothing_yet(tmp) as made:
            await made.target(exchange)
            await made.serve("--max-connections", "1024", "--max-connections-per-address", "1024")
            made.provider = await provide(made, program=gated(writing, written), before=memory.before)
            empty = memory.used_bytes
            clients = [await made.connect() for _ in range(STREAMS)]
            for _, writer in clients:
                paused(writer).write(DATA)
            await eventually(lambda: memory.used_bytes > empty + 0.9 * LEAST_BYTES, "all buffers are full")
            level = Level()
            await eventually(lambda: level.holds(memory.used_bytes >> 20), "so are those of the kernel")
            upgrading = asyncio.create_task(upgraded(tmp, STREAMS))
            await writing.reached()
            before = memory.used_bytes
            memory.limit(before + LEAST_BYTES * 3 // 4)  # the allocator keeps some of what is freed in between
            writing.open()
            await written.reached()
            size = state_bytes(made.provider)
            assert size > 0.8 * LEAST_BYTES
            memory.limit(before + size + SLACK_BYTES)
            written.open()
            await upgrading
            released.set()
            for reader, writer in clients:
                transport(writer).resume_reading()
                assert await asyncio.wait_for(reader.readexactly(len(DATA)), WAIT_S) == DATA
