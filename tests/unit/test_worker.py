"""What a worker does with what its parent writes to it."""

import os
from collections.abc import Iterator

import pytest

from goreprox.roles import worker
from goreprox.roles.worker import Worker
from goreprox.roles.worker_messages import CONFIGURE, FORCE, STOP, framed
from tests.support.waiting import eventually


@pytest.fixture
def parent(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The end of the pipe that the parent has."""
    stdin, end = os.pipe()
    monkeypatch.setattr(worker, "STDIN", stdin)
    yield end
    for descriptor in (stdin, end):
        os.close(descriptor)


async def test_messages_are_obeyed_in_their_order_once_they_are_whole(parent: int) -> None:
    with Worker(CONFIGURE + framed(b"first")) as life:
        whole = CONFIGURE + framed(b"second")
        os.write(parent, whole[:3])
        await eventually(lambda: life.unread.endswith(whole[:3]), "a part is read")
        os.write(parent, whole[3:] + STOP)
        await eventually(life.stop.is_set, "it is to end")
        assert life.unread == CONFIGURE + framed(b"first") + whole  # nobody has carried them out
        assert [await life.order() for _ in range(2)] == [(CONFIGURE, b"first"), (CONFIGURE, b"second")]
        assert not life.unread
        assert not life.forced
        os.write(parent, FORCE)
        await eventually(lambda: life.forced, "it is to end at once")


async def test_what_comes_while_other_code_takes_over_is_left_to_it(parent: int) -> None:
    with Worker(b"") as life:
        life.replace()
        os.write(parent, STOP)
        await eventually(lambda: life.unread == STOP, "it is read")
    with Worker(life.unread) as after:
        assert after.stop.is_set() and not after.unread
