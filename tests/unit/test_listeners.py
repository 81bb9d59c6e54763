"""Listening sockets when a process has no file descriptor left."""

import asyncio
import errno
import socket

import pytest

from goreprox import listeners, sockets
from goreprox.config import Listener
from goreprox.listeners import Listeners
from goreprox.poller import Poller
from tests.helpers import HOST, eventually


def test_without_descriptors_there_is_one_retry_however_many_connections_end(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = 0

    def none_left(_: socket.socket) -> None:
        nonlocal tries
        tries += 1
        raise OSError(errno.EMFILE, "none left")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(sockets, "keep_spare_descriptors", none_left)
        monkeypatch.setattr(listeners, "FD_PAUSE_S", 3600.0)
        made = Listeners(
            [Listener.parse(f"{HOST}:0")],
            Poller(lambda work: work()),
            reuse_port=False,
            welcome=lambda *_: None,
            has_room=lambda: True,
        )
        with socket.create_connection((HOST, made.ports[0])):
            for ended in range(20):
                made.start()
                await eventually(lambda: tries == ended + 1)  # noqa: B023
            retries = [timer for timer in loop._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
            made.close()
        assert sum(timer.when() > loop.time() + 1800 for timer in retries) == 1
        assert all(timer.cancelled() for timer in retries if timer.when() > loop.time() + 1800)

    asyncio.run(main())
