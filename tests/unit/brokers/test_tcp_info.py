"""What the kernel says of a TCP connection."""

import contextlib
import socket
from collections.abc import Iterator

import pytest

from brokers.tcp_info import link_condition, received_bytes

needs_tcp_info = pytest.mark.skipif(not hasattr(socket, "TCP_INFO"), reason="this system has no TCP_INFO")


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
        with near, far:
            yield near, far


@needs_tcp_info
def test_an_idle_connection_has_a_round_trip_and_nothing_unsent(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    near.sendall(b"hello")
    assert far.recv(5) == b"hello"
    assert received_bytes(far) == 5
    condition = link_condition(near)
    assert condition is not None
    assert condition.unsent_bytes == 0
    assert 0 < condition.round_trip_s < 5


@needs_tcp_info
def test_what_a_reader_has_no_room_for_stays_unsent(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    near.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += near.send(bytes(1 << 20))
    condition = link_condition(near)
    assert condition is not None
    assert 0 < condition.unsent_bytes <= sent - received_bytes(far)


def test_a_closed_connection_has_no_condition(pair: tuple[socket.socket, socket.socket]) -> None:
    near, _ = pair
    near.close()
    assert link_condition(near) is None
    assert received_bytes(near) == 0


def test_where_the_kernel_says_nothing_nothing_is_known(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(socket, "TCP_INFO", raising=False)
    near, far = pair
    near.sendall(b"x")
    assert far.recv(1) == b"x"
    assert link_condition(near) is None
    assert received_bytes(far) == 0
