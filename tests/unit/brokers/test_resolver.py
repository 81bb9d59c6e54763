"""Looking names up, beside name servers that do not respond."""

import asyncio
import socket
import threading

import pytest

from brokers import SocketAddress, resolve
from tests.support.sockets import HOST

MANY = 40


async def test_an_address_resolves_to_itself() -> None:
    assert await resolve(HOST, 80) == [(socket.AF_INET, (HOST, 80))]


@pytest.mark.parametrize("host", ["no.invalid", "a" * 64 + ".test"])
async def test_an_unknown_or_invalid_name_raises_in_the_caller(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lookup = socket.getaddrinfo

    def unknown(host: str, port: int, **options: int) -> object:
        if host == "no.invalid":  # whatever the name servers here say
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return lookup(host, port, **options)

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises((socket.gaierror, UnicodeError)):
        await resolve(host, 80)


async def test_a_thread_that_cannot_start_raises_oserror(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none_left)
    with pytest.raises(OSError, match="can't start new thread"):
        await resolve(HOST, 80)


def test_lookups_that_hang_delay_neither_others_nor_the_end_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    responded, outwaited = threading.Event(), []
    lookup = socket.getaddrinfo

    def slow(host: str, port: int, **options: int) -> object:
        if host == "slow.test":
            outwaited.append(responded.wait(60))
            host = HOST
        return lookup(host, port, **options)

    async def main() -> None:
        waiting = [asyncio.create_task(resolve("slow.test", 80)) for _ in range(MANY)]
        await asyncio.sleep(0)  # all have begun
        quick: list[SocketAddress] = await resolve(HOST, 80)
        assert quick == [(socket.AF_INET, (HOST, 80))]
        waiting.pop().cancel()
        assert not any(task.done() for task in waiting)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    before = set(threading.enumerate())
    asyncio.run(main())
    assert outwaited == []
    late = set(threading.enumerate()) - before
    responded.set()  # for a loop that is closed
    for thread in late:
        thread.join()
    assert outwaited == [True] * MANY
