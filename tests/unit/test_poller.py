"""The poller: what a socket is watched for, and how that changes."""

import asyncio
import contextlib
import socket

import pytest

from goreprox.net.epoll import Epoll, SelectorEpoll
from goreprox.net.poller import READ, WRITE, Poller
from tests.support.sockets import HOST, closed_port
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


@pytest.mark.parametrize("kind", [Epoll, SelectorEpoll])
def test_descriptors_are_ready_for_what_they_are_watched_for(kind: type[Epoll | SelectorEpoll]) -> None:
    epoll = kind()
    ours, far = socket.socketpair()
    with ours, far:
        fd = ours.fileno()
        assert epoll.fileno() >= 0 and epoll.poll(0) == []
        epoll.register(fd, READ)
        assert epoll.poll(0) == []
        far.send(b"x")
        assert epoll.poll(0) == [(fd, READ)]
        epoll.modify(fd, READ | WRITE)
        assert epoll.poll(0) == [(fd, READ | WRITE)]
        epoll.modify(fd, WRITE)
        assert epoll.poll(0) == [(fd, WRITE)]
        epoll.unregister(fd)
        assert epoll.poll(0) == []
    epoll.close()


async def test_a_failed_connection_is_ready_for_what_is_wanted_of_it() -> None:
    poller = Poller(lambda work: work())
    refused = socket.socket()
    with closed_port() as port, refused:
        refused.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            refused.connect((HOST, port))
        found: list[int] = []
        poller.watch(refused.fileno(), WRITE, found.append)
        await eventually(lambda: found)
        poller.forget(refused.fileno())
    assert set(found) == {WRITE}
