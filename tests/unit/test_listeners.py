"""Listening sockets when a process has no file descriptor left."""

import asyncio
import errno
import socket
from collections.abc import Callable

import pytest

from goreprox.config.addresses import Listener
from goreprox.endpoint import Endpoint
from goreprox.net import listeners, sockets
from goreprox.net.listeners import Listeners
from goreprox.net.poller import Poller
from tests.support.events import Events, matching, message
from tests.support.sockets import HOST
from tests.support.waiting import eventually


def listening(welcome: Callable[[socket.socket, Endpoint, Listener], None], *where: str) -> Listeners:
    return Listeners(
        [Listener.parse(text) for text in where or (f"{HOST}:0",)],
        Poller(lambda work: work()),
        reuse_port=False,
        accepted=welcome,
        has_room=lambda _: True,
    )


async def test_without_descriptors_there_is_one_retry_however_many_connections_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries = 0

    def none_left(_: socket.socket) -> None:
        nonlocal tries
        tries += 1
        raise OSError(errno.EMFILE, "none left")

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(sockets, "keep_spare_descriptors", none_left)
    monkeypatch.setattr(listeners, "FD_PAUSE_S", 3600.0)
    made = listening(lambda *_: None)
    with socket.create_connection((HOST, made.ports[0])):
        for ended in range(20):
            made.start()
            await eventually(lambda: tries == ended + 1)  # noqa: B023
        retries = [timer for timer in loop._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
        made.close()
    assert sum(timer.when() > loop.time() + 1800 for timer in retries) == 1
    assert all(timer.cancelled() for timer in retries if timer.when() > loop.time() + 1800)


async def is_reset(client: socket.socket) -> None:
    client.setblocking(False)
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 1), 30)


@pytest.mark.parametrize("before", [False, True], ids=["in_the_drain", "before_it"])
async def test_a_drain_without_descriptors_ends_and_accepts_nobody(
    monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    loop = asyncio.get_running_loop()
    welcomed: list[socket.socket] = []
    tries = 0

    def none_left(_: socket.socket) -> None:
        nonlocal tries
        tries += 1
        raise OSError(errno.EMFILE, "none left")

    monkeypatch.setattr(listeners, "FD_PAUSE_S", 3600.0)
    made = listening(lambda sock, *_: welcomed.append(sock))
    with socket.create_connection((HOST, made.ports[0])) as client, monkeypatch.context() as patch:
        patch.setattr(sockets, "keep_spare_descriptors", none_left)
        if before:  # a retry is due already
            made.start()
            await eventually(lambda: tries)
        made.drain()
        assert tries == 1 + before
        await is_reset(client)
    retries = [timer for timer in loop._scheduled if timer.when() > loop.time() + 1800]  # type: ignore[attr-defined]
    assert retries and all(timer.cancelled() for timer in retries)
    made._try_again()  # had it been too late to cancel it
    made.start()  # as one who leaves later does
    assert not made.ports and not made._accepting
    assert not welcomed


async def test_a_drain_accepts_clients_behind_one_that_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    welcomed: list[socket.socket] = []
    made = listening(lambda sock, *_: welcomed.append(sock))
    gone = [OSError(errno.ECONNABORTED, "gone")]

    def first_fails(_: socket.socket) -> None:
        if gone:
            raise gone.pop()

    monkeypatch.setattr(sockets, "keep_spare_descriptors", first_fails)
    with socket.create_connection((HOST, made.ports[0])) as client:
        made.drain()
        (sock,) = welcomed
        assert sock.getpeername() == client.getsockname()
        sock.close()


async def test_a_drain_accepts_clients_at_other_ports_when_one_fails(
    monkeypatch: pytest.MonkeyPatch, events: Events
) -> None:
    welcomed: list[Endpoint] = []

    def welcome(sock: socket.socket, client: Endpoint, _: Listener) -> None:
        welcomed.append(client)
        sock.close()

    made = listening(welcome, f"{HOST}:0", f"{HOST}:0=other")
    first, second = made.ports

    def fails_at_first(listening: socket.socket) -> None:
        if listening.getsockname()[1] == first:
            raise OSError(errno.EPROTO, "protocol error")

    monkeypatch.setattr(sockets, "keep_spare_descriptors", fails_at_first)
    with socket.create_connection((HOST, first)) as lost, socket.create_connection((HOST, second)) as client:
        made.drain()
        assert welcomed == [Endpoint(*client.getsockname())]
        assert not made.ports
        await is_reset(lost)
    (entry,) = matching(events, "drain")
    assert "protocol error" in message(entry)
