"""One bridge between a real socket and the stream of a real session."""

import asyncio
import contextlib
import socket

import pytest

from goreprox.net import sockets
from goreprox.net.poller import Poller
from goreprox.protocol.events import Data, Eof, Reset
from goreprox.protocol.limits import KIB
from goreprox.protocol.notices import Kind
from goreprox.protocol.state import State
from goreprox.tunnel.bridge import Bridge, Bridges
from tests.support.waiting import eventually
from tests.unit.protocol.harness import accepted

TIMEOUT_S = 3600.0


class Clock:
    """A clock that the test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def pair() -> tuple[socket.socket, socket.socket]:
    """Return our end of a connection, and the far one, which takes little before it is read."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        far = socket.socket()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * KIB)
        far.connect(listening.getsockname())
        ours, _ = listening.accept()
    sockets.prepare(ours)
    return ours, far


def bridges(clock: Clock) -> Bridges:
    poller = Poller(lambda work: work())
    return Bridges(poller, clock=clock, half_closed_timeout_s=TIMEOUT_S)


def read_all(far: socket.socket) -> int:
    """Read until the connection is reset; return how many bytes came before."""
    count = 0
    with far, contextlib.suppress(ConnectionResetError):
        while data := far.recv(64 * KIB):
            count += len(data)
        pytest.fail("an end of file, expected a reset")
    return count


@pytest.mark.parametrize("together", [False, True])
async def test_a_reset_waits_for_the_send_queue(*, together: bool) -> None:
    size = 60 * KIB
    peer, stream = accepted()
    ours, far = pair()
    bridge = Bridge(bridges(Clock()), ours, stream, lambda _: None)
    data = [Data(1, i * 15 * KIB, bytes(15 * KIB)) for i in range(4)]
    if together:  # both are applied before the first is noticed
        peer.say(*data, Reset(1, size, "there"))
        bridge.notice(Kind.READABLE)
    else:
        peer.say(*data)
        bridge.notice(Kind.READABLE)
        assert not stream.receive.chunks, "the kernel has all of it"
        peer.say(Reset(1, size, "there"))
    bridge.notice(Kind.RESET)
    count = await asyncio.to_thread(read_all, far)
    await eventually(lambda: not bridge.open)
    assert stream.state is State.CLOSED
    assert count == size


async def test_bytes_from_a_half_closed_socket_count_as_activity() -> None:
    clock = Clock()
    peer, stream = accepted()
    ours, far = pair()
    with far:
        bridge = Bridge(bridges(clock), ours, stream, lambda _: None)
        peer.say(Eof(1, 0))
        bridge.notice(Kind.READABLE)
        clock.now = TIMEOUT_S
        far.sendall(b"x")
        await eventually(lambda: stream.send.end == 1)
        for idle_s, is_open in ((0.0, True), (TIMEOUT_S - 1.0, True), (TIMEOUT_S, False)):
            clock.now = TIMEOUT_S + idle_s
            bridge._check_half_closed()
            assert bridge.open is is_open
