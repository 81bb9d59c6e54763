"""Connections to the first of several addresses that accepts one."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import pytest

from brokers import SocketAddress, connect, interleaved
from tests.support.sockets import HOST, closed_port


def v4(port: int) -> SocketAddress:
    return socket.AF_INET, (HOST, port)


def v6(port: int) -> SocketAddress:
    return socket.AF_INET6, ("::1", port, 0, 0)


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        ([], []),
        ([v4(1), v4(2)], [v4(1), v4(2)]),
        ([v6(1), v6(2), v6(3), v4(1)], [v6(1), v4(1), v6(2), v6(3)]),
        ([v4(1), v6(1), v4(2), v6(2)], [v4(1), v6(1), v4(2), v6(2)]),
        ([v4(1), v6(1), v6(2), v6(3)], [v4(1), v6(1), v6(2), v6(3)]),
    ],
)
def test_families_take_turns(addresses: list[SocketAddress], expected: list[SocketAddress]) -> None:
    assert interleaved(addresses) == expected


@pytest.fixture
def silent() -> Iterator[SocketAddress]:
    """An address that is silent to whoever connects: its backlog is full."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind((HOST, 0))
        listening.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        yield v4(listening.getsockname()[1])


async def test_a_refused_and_a_silent_address_leave_the_connection_to_the_next(silent: SocketAddress) -> None:
    with closed_port() as port, socket.create_server((HOST, 0)) as good:
        sock = await connect([v4(port), silent, v4(good.getsockname()[1])], timeout_s=30)
        assert sock.getpeername() == good.getsockname() and not sock.getblocking()
        sock.close()
    await asyncio.sleep(0)  # the attempt that was given up closes its socket
    assert len(asyncio.all_tasks()) == 1


async def test_the_error_is_that_of_the_last_address() -> None:
    with closed_port() as port, pytest.raises(ConnectionRefusedError):
        await connect([v4(port), v4(port)], timeout_s=30)


async def test_all_addresses_together_have_one_deadline(silent: SocketAddress) -> None:
    with pytest.raises(TimeoutError):
        await connect([silent, silent], timeout_s=0.4)
