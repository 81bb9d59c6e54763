"""The send queue of a simulated socket does what that of a kernel does."""

import socket
import termios

import pytest

from tests.sim.far import KIB, Far, Program, text
from tests.sim.tcp import SimSocket, Sockets
from tests.sim.world import Process, World

RATE = 64 * KIB
"""Bytes per second."""


class Ends:
    """One socket of ours, and the far side that reads it; another far side has written what ours sends."""

    def __init__(self, *, buffer: int) -> None:
        self.world = World(0)
        self.process = Process(self.world, "e0")
        self.net = Sockets(self.world, rate=RATE)
        self.far = Far(self.world, Program(1, eof="read"), "reader", buffer)
        self.far.other = Far(self.world, Program(2), "writer", buffer)
        self.far.other.written = 1 << 20
        self.sock = SimSocket(self.net, self.process)
        self.far.connected(self.sock)

    def send(self, count: int) -> int:
        return self.sock.send(text(2, self.sock.out, count))

    @property
    def unsent(self) -> int:
        return int.from_bytes(self.net.ioctl(self.sock, termios.TIOCOUTQ, b""), "little")

    def after(self, seconds: float) -> None:
        self.world.run_until(self.world.now + seconds)


def test_bytes_leave_the_send_queue_as_fast_as_the_network_carries_them() -> None:
    ends = Ends(buffer=64 * KIB)
    assert ends.send(32 * KIB) == 32 * KIB
    assert (ends.unsent, ends.far.read) == (32 * KIB, 0)
    ends.after(0.25)
    assert ends.unsent == 16 * KIB
    ends.after(0.25)
    assert (ends.unsent, ends.far.read) == (0, 32 * KIB)


def test_the_send_queue_is_bounded() -> None:
    ends = Ends(buffer=16 * KIB)
    assert ends.send(64 * KIB) == 16 * KIB
    with pytest.raises(BlockingIOError):
        ends.send(1)
    assert not ends.sock.writable
    ends.after(1.0)
    assert ends.sock.writable and ends.far.read == 16 * KIB


def test_a_reset_discards_what_is_queued() -> None:
    ends = Ends(buffer=64 * KIB)
    ends.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    ends.send(32 * KIB)
    ends.after(0.25)
    ends.sock.close()
    ends.after(1.0)
    assert ends.far.was_reset and ends.far.read == 16 * KIB


def test_an_end_of_file_comes_after_what_is_queued() -> None:
    ends = Ends(buffer=64 * KIB)
    assert ends.far.other is not None
    ends.far.other.written, ends.far.other.fin_sent = 32 * KIB, True
    ends.send(32 * KIB)
    ends.sock.shutdown(socket.SHUT_WR)
    ends.after(0.25)
    assert not ends.far.fin_read
    ends.after(0.5)
    assert ends.far.fin_read and ends.far.read == 32 * KIB
