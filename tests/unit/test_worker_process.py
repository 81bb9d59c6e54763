"""What the parent of workers writes to one and reads from it, across its own upgrade."""

import asyncio
import contextlib
import json
import os
from collections.abc import Iterator

import pytest

from goreprox.errors import StartError
from goreprox.protocol.fields import Fields
from goreprox.roles.worker_messages import CONFIGURE, framed
from goreprox.roles.worker_process import Handed, WorkerProcess
from tests.support.waiting import eventually


class Pipes:
    """A worker that does what a test does."""

    def __init__(self) -> None:
        self.stdin, self.to_it = os.pipe()
        os.set_blocking(self.stdin, False)
        self.from_it, self.stdout = os.pipe()
        self.heard: list[str] = []

    def parent(self, handed: Handed | None = None) -> WorkerProcess:
        return WorkerProcess(
            handed or Handed(3, os.getpid(), self.to_it, self.from_it),
            ready=lambda _: self.heard.append("ready"),
            failed=lambda _, error: self.heard.append(error),
        )

    def write(self, text: str) -> None:
        os.write(self.stdout, text.encode())

    def reply(self, **message: object) -> None:
        self.write(json.dumps(message) + "\n")


@pytest.fixture
def pipes() -> Iterator[Pipes]:
    made = Pipes()
    yield made
    for descriptor in (made.stdin, made.to_it, made.from_it, made.stdout):
        os.close(descriptor)


def upgraded(before: WorkerProcess, pipes: Pipes) -> WorkerProcess:
    """Return what the code has that takes over."""
    before.release()
    return pipes.parent(Handed.read(Fields(before.export())))


async def test_what_fits_into_no_pipe_is_written_as_the_worker_reads_also_by_the_next_code(pipes: Pipes) -> None:
    data = b"".join(number.to_bytes(4, "big") for number in range(1 << 16))
    parent = pipes.parent()
    parent.send(data)
    parent = upgraded(parent, pipes)
    read = bytearray()

    def read_all() -> bool:
        with contextlib.suppress(BlockingIOError):
            read.extend(os.read(pipes.stdin, 1 << 16))
        return len(read) == len(data)

    await eventually(read_all, "all is read")
    assert read == data
    parent.release()


async def test_half_a_line_is_completed_for_the_next_code(pipes: Pipes) -> None:
    parent = pipes.parent()
    pipes.write('{"error": "no')
    await eventually(lambda: parent.export()["unread"], "it is read")
    parent = upgraded(parent, pipes)
    pipes.write(' port"}\n{"ready": null}\n')
    await eventually(lambda: parent.is_ready, "it is ready")
    assert pipes.heard == ["no port", "ready"]
    parent.release()


async def test_a_reply_that_comes_too_late_is_not_taken_for_the_next_one(pipes: Pipes) -> None:
    parent = pipes.parent()
    with pytest.raises(StartError, match=r"does not respond within 0 s"):
        await parent.order(CONFIGURE, b"first", deadline_s=0)
    parent = upgraded(parent, pipes)
    second = asyncio.create_task(parent.order(CONFIGURE, b"second", deadline_s=60))
    pipes.reply(done="first")
    pipes.reply(refused="no certificate")
    with pytest.raises(StartError, match="no certificate"):
        await second
    assert os.read(pipes.stdin, 100) == b"".join(CONFIGURE + framed(each) for each in (b"first", b"second"))
    parent.release()


async def test_a_worker_that_ends_replies_to_nothing_any_more(pipes: Pipes) -> None:
    parent = pipes.parent()
    order = asyncio.create_task(parent.order(CONFIGURE, b"", deadline_s=60))
    await asyncio.sleep(0)
    os.dup2(pipes.stdin, pipes.stdout)  # closes it
    assert await order is None and await parent.order(CONFIGURE, b"", deadline_s=60) is None
    assert parent.ended.is_set()
