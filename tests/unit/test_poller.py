"""The poller: what a socket is watched for, and how that changes."""

import asyncio
import socket

import pytest

from goreprox.net.poller import READ, WRITE, Poller
from tests.support.waiting import eventually


@pytest.mark.parametrize("before", [0, READ, WRITE, READ | WRITE])
@pytest.mark.parametrize("events", [0, READ, WRITE, READ | WRITE])
async def test_a_socket_is_watched_for_what_was_said_last(before: int, events: int) -> None:
    poller = Poller(lambda work: work())
    ours, far = socket.socketpair()
    ready = 0

    def note(now: int) -> None:
        nonlocal ready
        ready |= now

    with ours, far:
        far.send(b"x")  # so it is ready for both
        poller.change(ours.fileno(), 0, before, note)
        poller.change(ours.fileno(), before, events, note)
        await eventually(lambda: ready == events)
        for _ in range(3):
            await asyncio.sleep(0)
        assert ready == events
        poller.change(ours.fileno(), events, 0, note)
