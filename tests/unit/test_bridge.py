"""One bridge between a real socket and the stream of a real session."""

import asyncio
import contextlib
import errno
import os
import socket
import struct
from typing import Any

import pytest

from goreprox.net import sockets
from goreprox.net.poller import READ, Poller
from goreprox.protocol.events import Abort, Ack, Code, Data, Eof, Event, Reset
from goreprox.protocol.fields import Fields
from goreprox.protocol.limits import KIB, RESET_LINGER_S
from goreprox.protocol.notices import Kind
from goreprox.protocol.state import State
from goreprox.protocol.stream import Stream
from goreprox.protocol.totals import EndCode
from goreprox.tunnel.bridge import Bridge, Bridges
from tests.support.peer import WINDOW, accepted
from tests.support.waiting import eventually

TIMEOUT_S = 3600.0


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 0.0
        self.reads = 0

    def __call__(self) -> float:
        self.reads += 1
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


def data(events: list[Event]) -> bytes:
    return b"".join(bytes(event.payload) for event in events if isinstance(event, Data))


class Joined:
    """A bridge, the far side of its socket, and the peer of its stream. Notices are passed on as by the driver."""

    def __init__(
        self, *, half_closed_timeout_s: float | None = None, room: bool = True, beside: "Joined | None" = None
    ) -> None:
        self.clock = Clock()
        self.faults: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self.faults.append(context))
        self.bridges = Bridges(
            Poller(lambda work: work()), clock=self.clock, half_closed_timeout_s=half_closed_timeout_s
        )
        if beside is not None:
            self.bridges = beside.bridges
        self.peer, self.stream = accepted()
        if not room:
            self.stream.send.limit = 0
        ours, self.far = pair()
        self.far.setblocking(False)
        self.ended: list[Bridge] = []
        self.bridge = Bridge(self.bridges, ours, self.stream, self.ended.append)

    def __enter__(self) -> "Joined":
        return self

    def __exit__(self, *_: object) -> None:
        self.far.close()
        self.bridge.abort("the test is over", EndCode.ON_REQUEST)
        assert not self.faults

    def say(self, *events: Event) -> None:
        """Let the peer send events in one message."""
        self.peer.say(*events)
        self.obey()

    def obey(self) -> None:
        for notice in self.peer.notices():
            if notice.stream is self.stream:
                self.bridge.notice(notice.kind)

    async def hears(self, kind: type[Event]) -> list[Event]:
        """Return what the session has sent the peer, once an event of this kind is among it."""
        heard: list[Event] = []

        def has() -> bool:
            heard.extend(self.peer.heard())
            return any(isinstance(event, kind) for event in heard)

        await eventually(has)
        return heard

    def reset_far(self) -> None:
        self.far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.far.close()

    async def reads(self) -> bytes:
        """Return what the far side reads next: b"" for an end of file."""
        return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.far, 64 * KIB), 10)

    def fills(self) -> int:
        """Send until the kernel takes no more, which our side keeps; return how many bytes."""
        size = 0
        while not self.stream.receive.chunks:
            self.say(Data(1, size, bytes(16 * KIB)))
            size += 16 * KIB
            self.peer.heard()
        return size

    def is_over(self) -> bool:
        return self.ended == [self.bridge] and not self.bridges.connections and self.stream.state is State.CLOSED


@pytest.mark.parametrize("first", ["socket", "stream"])
async def test_both_ends_of_file_end_a_bridge_with_fin(first: str) -> None:
    with Joined() as it:
        it.far.send(b"request")
        for who in sorted(["socket", "stream"], reverse=first == "stream"):
            assert it.bridge.open
            if who == "socket":
                it.far.shutdown(socket.SHUT_WR)
                assert data(await it.hears(Eof)) == b"request"
                it.say(Ack(1, len(b"request") + 1, WINDOW))
            else:
                it.say(Data(1, 0, b"response"), Eof(1, len(b"response")))
                assert (await it.reads(), await it.reads()) == (b"response", b"")
        assert not it.bridge.open
        it.peer.heard()
        it.obey()
        assert it.is_over()


async def test_an_abort_of_the_stream_resets_the_socket() -> None:
    with Joined() as it:
        it.say(Abort(1, Code.OTHER, "gone"))
        with pytest.raises(ConnectionResetError):
            await it.reads()
        assert it.is_over()


async def test_an_abort_of_the_bridge_resets_both_sides() -> None:
    with Joined() as it:
        it.bridge.abort("the process is shutting down", EndCode.ON_REQUEST)
        await it.hears(Abort)
        with pytest.raises(ConnectionResetError):
            await it.reads()
        it.bridge.abort("again", EndCode.ON_REQUEST)
        assert it.is_over()


async def test_a_reset_of_the_socket_follows_the_bytes_before_it() -> None:
    with Joined() as it:
        it.far.send(b"last words")
        assert data(await it.hears(Data)) == b"last words"
        it.reset_far()
        (reset,) = await it.hears(Reset)
        assert reset == Reset(1, len(b"last words"), os.strerror(errno.ECONNRESET))
        assert not it.bridge.open
        it.say(Abort(1, Code.OTHER, "over"))
        assert it.is_over()


async def test_a_reset_that_a_write_meets_first_follows_the_bytes_before_it() -> None:
    with Joined() as it:
        it.far.send(b"last words")
        it.reset_far()
        it.say(Data(1, 0, b"too late"))  # before the loop can find the socket readable
        assert data(await it.hears(Reset)) == b"last words"
        assert not it.bridge.open


async def test_resets_are_noticed_while_sockets_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("goreprox.tunnel.bridge.WATCH_S", 0.01)
    checks: list[list[int]] = []
    errors_among = sockets.errors_among

    def count(fds: list[int]) -> list[int]:
        checks.append(fds)
        return errors_among(fds)

    monkeypatch.setattr(sockets, "errors_among", count)
    with Joined() as it:
        it.far.shutdown(socket.SHUT_WR)
        await it.hears(Eof)
        await eventually(lambda: len(checks) > 2)
        assert it.bridge.open
        it.reset_far()
        await it.hears(Reset)
        assert not it.bridge.open
    with Joined(beside=it) as another:  # the checks had stopped
        another.far.shutdown(socket.SHUT_WR)
        another.reset_far()
        await another.hears(Reset)


async def test_a_socket_is_read_no_further_than_the_stream_has_room() -> None:
    with Joined() as it:
        room = it.stream.room
        sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(it.far, b"x" * (room + 1000)))
        await eventually(lambda: it.stream.send.end == room)
        it.peer.heard()
        it.say(Ack(1, room, WINDOW))
        await eventually(lambda: it.stream.send.end == room + 1000)
        await sending


async def test_a_reset_waits_for_a_socket_that_takes_nothing_no_longer_than_the_linger() -> None:
    with Joined() as it:
        size = it.fills()
        it.say(Reset(1, size, "there"))
        it.far.send(b"nobody reads this")
        it.clock.now = RESET_LINGER_S - 0.1
        reads = it.clock.reads
        await eventually(lambda: it.clock.reads > reads + 1)
        assert it.bridge.open
        it.clock.now = RESET_LINGER_S
        await eventually(lambda: not it.bridge.open)
        assert it.is_over()


async def test_a_half_closed_socket_that_is_silent_is_reset() -> None:
    with Joined(half_closed_timeout_s=0.25) as it:
        it.clock.now = 9.75
        it.far.shutdown(socket.SHUT_WR)
        await it.hears(Eof)
        it.clock.now = 10.0
        it.say(Data(1, 0, b"still here"))
        it.clock.now = 10.125
        reads = it.clock.reads
        await eventually(lambda: it.clock.reads > reads)
        assert it.bridge.open
        it.clock.now = 10.25
        await it.hears(Abort)
        assert it.is_over() and it.stream.end_reason == "half-closed and silent for 0.25 s"


@pytest.mark.parametrize("noticed_by", ["check", "write"])
@pytest.mark.parametrize("has_room", [False, True])
async def test_bytes_before_a_reset_of_the_socket_wait_for_room_as_long_as_the_linger(
    monkeypatch: pytest.MonkeyPatch, noticed_by: str, *, has_room: bool
) -> None:
    monkeypatch.setattr("goreprox.tunnel.bridge.WATCH_S", 0.01)
    monkeypatch.setattr("goreprox.tunnel.bridge.RESET_LINGER_S", 0.25)
    with Joined() as it:
        room = it.stream.room
        await asyncio.get_running_loop().sock_sendall(it.far, b"x" * (room + 1000))
        await eventually(lambda: it.stream.send.end == room)
        it.peer.heard()
        it.reset_far()
        if noticed_by == "write":
            it.say(Data(1, 0, b"too late"))
        reads = it.clock.reads
        await eventually(lambda: it.clock.reads > reads + (noticed_by == "check"))
        it.clock.now = 0.125
        if has_room:
            it.say(Ack(1, room, WINDOW))
        else:
            reads = it.clock.reads
            await eventually(lambda: it.clock.reads > reads)
            assert it.bridge.open
            it.clock.now = 0.25
        (reset,) = (event for event in await it.hears(Reset) if isinstance(event, Reset))
        assert reset.final == (room + 1000 if has_room else room)
        assert not it.bridge.open


async def test_a_socket_that_is_full_gets_the_rest_as_it_is_read() -> None:
    with Joined() as it:
        size = it.fills()
        it.say(Data(1, size, b"the end"), Eof(1, size + len(b"the end")))
        received = b""
        while part := await it.reads():
            received += part
        assert received == bytes(size) + b"the end"


async def test_a_socket_whose_stream_has_no_room_yet_is_read_once_there_is_some() -> None:
    with Joined(room=False) as it:
        it.far.send(b"early")
        it.say(Ack(1, 0, WINDOW))
        assert data(await it.hears(Data)) == b"early"


async def test_a_reset_of_a_socket_whose_stream_has_no_room_yet_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("goreprox.tunnel.bridge.WATCH_S", 0.01)
    monkeypatch.setattr("goreprox.tunnel.bridge.RESET_LINGER_S", 0.0)
    with Joined(room=False) as it:
        it.reset_far()
        await it.hears(Reset)
        assert not it.bridge.open


async def test_a_reset_of_both_sides_ends_the_bridge_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("goreprox.tunnel.bridge.WATCH_S", 0.01)
    with Joined() as it:
        size = 0
        while not it.stream.receive.chunks:
            it.say(Data(1, size, bytes(16 * KIB)))
            size += 16 * KIB
            it.peer.heard()
        it.say(Reset(1, size, "there"))
        it.reset_far()
        await eventually(it.is_over)


async def test_an_end_of_file_for_a_socket_that_was_reset_passes_the_reset_on() -> None:
    with Joined() as it:
        it.reset_far()
        it.say(Eof(1, 0))
        await it.hears(Reset)
        assert not it.bridge.open


@pytest.mark.pure
async def test_a_connection_whose_bytes_were_read_and_could_not_be_kept_is_reset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_stream: Stream, _data: bytes) -> None:
        raise MemoryError

    with Joined() as it:
        with monkeypatch.context() as patch:
            patch.setattr(Stream, "write", refuse)
            it.far.send(b"lost")
            await eventually(lambda: it.faults, "it is reported")
        assert isinstance(it.faults.pop()["exception"], MemoryError)
        await it.hears(Abort)
        assert it.ended == [it.bridge]
        with pytest.raises(ConnectionResetError):
            it.far.recv(1)


async def test_a_socket_that_is_reported_ready_and_is_not_does_no_harm() -> None:
    with Joined() as it:
        it.bridge._ready(READ)
        it.far.send(b"later")
        assert data(await it.hears(Data)) == b"later"


def moved(bridge: Bridge, clock: Clock) -> Bridge:
    """Go on with a socket and its stream as another process would."""
    bridge._bridges.poller.close()
    marks = bridge.export(payload=True)
    descriptor = marks["descriptor"]
    assert descriptor is None or isinstance(descriptor, int)
    sock = sockets.restored(descriptor)
    return Bridge.restore(bridges(clock), sock, bridge.stream, lambda _: None, Fields(marks))


async def test_a_socket_goes_on_in_another_process_in_both_directions() -> None:
    peer, stream = accepted()
    ours, far = pair()
    with far:
        bridge = moved(Bridge(bridges(Clock()), ours, stream, lambda _: None), Clock())
        far.sendall(b"from the socket")
        await eventually(lambda: stream.send.end == 15)
        peer.say(Data(1, 0, b"from the stream"))
        bridge.notice(Kind.READABLE)
        assert far.recv(100) == b"from the stream"
        bridge.abort("done", EndCode.ON_REQUEST)
        assert not bridge.open and bridge.portable


async def test_what_waits_for_a_socket_is_written_by_the_next_process() -> None:
    peer, stream = accepted()
    ours, far = pair()
    with far:
        bridge = Bridge(bridges(Clock()), ours, stream, lambda _: None)
        peer.say(Data(1, 0, b"waits"), Eof(1, 5))
        bridge = moved(bridge, Clock())
        assert (far.recv(100), far.recv(100)) == (b"waits", b"")
        bridge.abort("done", EndCode.ON_REQUEST)


async def test_a_half_closed_socket_stays_so_and_its_timeout_goes_on() -> None:
    clock = Clock()
    _, stream = accepted()
    ours, far = pair()
    with far:
        bridge = Bridge(bridges(clock), ours, stream, lambda _: None)
        far.shutdown(socket.SHUT_WR)
        await eventually(lambda: stream.send.eof)
        clock.now = TIMEOUT_S - 1.0
        bridge = moved(bridge, clock)
        assert bridge.open
        clock.now = TIMEOUT_S
        bridge._check_half_closed()
        assert not bridge.open


async def test_a_socket_that_has_failed_passes_on_its_reset() -> None:
    _, stream = accepted()
    ours, far = pair()
    with far:
        bridge = Bridge(bridges(Clock()), ours, stream, lambda _: None)
        stream.send.limit = 0  # no room for what comes before the reset
        bridge.failed("there")
        assert bridge.open
        stream.send.limit = WINDOW
        bridge = moved(bridge, Clock())
        assert not bridge.open and stream.state is State.RESETTING and stream.end_reason == "there"


async def test_a_reset_that_waits_for_its_bytes_does_so_in_the_next_process() -> None:
    size = 60 * KIB
    peer, stream = accepted()
    ours, far = pair()
    bridge = Bridge(bridges(Clock()), ours, stream, lambda _: None)
    peer.say(*(Data(1, i * 15 * KIB, bytes(15 * KIB)) for i in range(4)), Reset(1, size, "there"))
    bridge.notice(Kind.RESET)
    assert bridge.open
    bridge = moved(bridge, Clock())
    assert await asyncio.to_thread(read_all, far) == size
    await eventually(lambda: not bridge.open)


async def test_a_socket_that_was_closed_stays_so_until_its_stream_is_over() -> None:
    _, stream = accepted()
    ours, far = pair()
    with far:
        bridge = Bridge(bridges(Clock()), ours, stream, lambda _: None)
        bridge.failed("there")
        assert not bridge.open and stream.state is State.RESETTING
        bridge = moved(bridge, Clock())
        assert not bridge.open and bridge.descriptor is None
        stream.abort("done")
        bridge.notice(Kind.ABORTED)
        assert not len(bridge._bridges.connections)
