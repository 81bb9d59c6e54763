"""Sockets of TLS clients, real ones: a ClientHello in any pieces, and what comes instead of it."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from goreprox.config.addresses import Address, Listener, Scheme
from goreprox.endpoint import Endpoint
from goreprox.net.client_hello import DECODE_ERROR, UNRECOGNIZED_NAME, ClientHello, fatal_alert
from goreprox.net.hellos import Arrival, Hellos
from goreprox.net.poller import Poller
from goreprox.protocol.fields import Fields
from tests.support.client_hellos import first_bytes
from tests.support.sockets import HOST
from tests.support.waiting import eventually

CLIENT, HERE = Endpoint("192.0.2.1", 5), Endpoint("192.0.2.2", 443)
LISTENER = Listener(Address(None, 443), scheme=Scheme.SNI)
HELLO = first_bytes("example.com", "h2")


@dataclass
class Made:
    """Hellos, and what came of them."""

    poller: Poller
    loop: asyncio.AbstractEventLoop
    takes: bool = True
    heard: list[tuple[Arrival, ClientHello]] = field(default_factory=list)
    lost: list[OSError] = field(default_factory=list)
    ends: list[socket.socket] = field(default_factory=list)

    def start(self, timeout_s: float) -> None:
        self.hellos = Hellos(self.poller, heard=self._heard, lose=self._lose, timeout_s=timeout_s)

    def _heard(self, arrival: Arrival, hello: ClientHello) -> bool:
        self.heard.append((arrival, hello))
        return self.takes

    def _lose(self, address: Endpoint, why: OSError) -> None:
        assert address == CLIENT
        self.lost.append(why)

    def connected(self) -> tuple[socket.socket, socket.socket]:
        """Return both ends of a connection."""
        with socket.create_server((HOST, 0)) as listening:
            theirs = socket.create_connection(listening.getsockname())
            ours, _ = listening.accept()
        theirs.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for end in (theirs, ours):
            end.setblocking(False)
            self.ends.append(end)
        return theirs, ours

    def hear(self) -> tuple[socket.socket, Arrival]:
        """Be a client that connects."""
        theirs, ours = self.connected()
        arrival = Arrival(ours, CLIENT, HERE, LISTENER)
        self.hellos.hear(arrival)
        return theirs, arrival

    async def told(self, theirs: socket.socket) -> bytes | None:
        """Return what a client gets before the end of its connection; None: it is reset."""
        told = b""
        try:
            while data := await asyncio.wait_for(self.loop.sock_recv(theirs, 100), 60):
                told += data
        except ConnectionResetError:
            return None
        return told


@contextlib.asynccontextmanager
async def made(timeout_s: float = 600.0) -> AsyncIterator[Made]:
    def batch(serve: Callable[[], None]) -> None:
        serve()

    it = Made(Poller(batch), asyncio.get_running_loop())
    it.start(timeout_s)
    try:
        yield it
    finally:
        it.hellos.close()
        it.poller.close()
        for end in it.ends:
            end.close()


async def test_a_client_hello_in_pieces_is_read_and_nothing_of_it_taken() -> None:
    async with made() as it:
        theirs, arrival = it.hear()
        for size in (1, 2, 5, 6, 9, 10, 100, len(HELLO) - 1):
            theirs.send(HELLO[arrival.seen : size])
            await eventually(lambda size=size: arrival.seen == size)  # type: ignore[misc]
            assert it.poller._epoll.poll(0) == []  # it does not turn in circles until there is more
        theirs.send(HELLO[-1:] + b"early data")
        await eventually(lambda: it.heard)
        assert it.heard == [(arrival, ClientHello("example.com", (b"h2",), has_ech=False))]
        assert len(it.hellos) == 0
        it.poller.watch(arrival.sock.fileno(), 1, lambda _: None)
        assert it.poller._epoll.poll(60) == [(arrival.sock.fileno(), 1)]
        received = b""
        while len(received) < len(HELLO) + 10:
            received += await it.loop.sock_recv(arrival.sock, 4096)
        assert received == HELLO + b"early data"
        theirs.send(b"!")  # one byte is enough again
        assert await asyncio.wait_for(it.loop.sock_recv(arrival.sock, 1), 60) == b"!"
        it.poller.forget(arrival.sock.fileno())


async def test_what_is_no_client_hello_ends_with_an_alert() -> None:
    async with made() as it:
        for data in (b"GET / HTTP/1.1\r\n\r\n", HELLO[:200] + b"\0" * 4000):
            theirs, _ = it.hear()
            theirs.send(data)
            assert await it.told(theirs) == fatal_alert(DECODE_ERROR)
        assert (it.heard, len(it.hellos)) == ([], 0)
        assert not any(isinstance(why, ConnectionError) for why in it.lost)
        assert "a record is of type 71, expected 22 (handshake)" in str(it.lost[0])


async def test_a_client_that_is_rejected_by_its_name_gets_the_alert() -> None:
    async with made() as it:
        theirs, arrival = it.hear()
        theirs.send(HELLO)
        await eventually(lambda: it.heard)
        it.hellos.reject(arrival, UNRECOGNIZED_NAME, "nobody has it")
        assert await it.told(theirs) == fatal_alert(UNRECOGNIZED_NAME)
        assert "nobody has it" in str(it.lost[0])


async def test_clients_that_leave_are_only_noted() -> None:
    async with made() as it:
        for size, end in ((0, socket.SHUT_WR), (50, socket.SHUT_WR), (50, None)):
            theirs, _ = it.hear()
            theirs.send(HELLO[:size])
            if end is None:
                theirs.close()
            else:
                theirs.shutdown(end)
            await eventually(lambda: len(it.hellos) == 0)
        assert len(it.lost) == 3
        assert all(isinstance(why, ConnectionError) for why in it.lost)
        theirs, _ = it.hear()
        theirs.send(HELLO)
        theirs.shutdown(socket.SHUT_WR)
        await eventually(lambda: it.heard)  # it may still be told something


async def test_a_client_hello_that_does_not_arrive_in_time_is_a_reset() -> None:
    async with made(timeout_s=0.05) as it:
        (silent, _), (half, _) = it.hear(), it.hear()
        half.send(HELLO[:9])
        assert await it.told(silent) in (None, b"")
        assert await it.told(half) is None
        assert len(it.hellos) == 0
        assert [why.strerror for why in it.lost] == ["no ClientHello within 0.05 s"] * 2


async def test_what_is_half_read_and_what_is_not_taken_goes_on_in_the_next_code() -> None:
    async with made() as before, made() as after:
        before.takes = False
        theirs, arrival = before.hear()
        half, half_read = before.hear()
        theirs.send(HELLO)
        half.send(HELLO[:9])
        await eventually(lambda: before.heard and half_read.seen)
        assert len(before.hellos) == 2
        items = [Fields(item) for item in before.hellos.export(payload=True)]
        assert {item.count("descriptor") for item in items} == set(before.hellos.descriptors)
        before.hellos.release()
        for item in items:
            after.hellos.restore(socket.socket(fileno=item.count("descriptor")), LISTENER, item)
        half.send(HELLO[9:])
        await eventually(lambda: len(after.heard) == 2)
        assert {hello for _, hello in after.heard} == {before.heard[0][1]}
        for restored, _ in after.heard:
            assert (restored.address, restored.destination) == (arrival.address, arrival.destination)
            restored.sock.close()
