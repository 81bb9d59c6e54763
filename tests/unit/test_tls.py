"""A socket with TLS: what comes out is what went in, whatever the kernel takes or gives at a time."""

import contextlib
import errno
import os
import random
import socket
import ssl
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goreprox.config.addresses import Scheme
from goreprox.net.certificates import Certificates, reason
from goreprox.net.handshakes import Handshakes
from goreprox.net.poller import READ, WRITE, Poller
from goreprox.net.tls import PLAINTEXT_BYTES, RECORD_BYTES, TlsSocket
from tests.support.tls import NAME, Authority
from tests.support.waiting import eventually

TEXT = random.Random(1).randbytes(1 << 20)


class Client:
    """The other end, in memory but for the socket."""

    def __init__(self, authority: Authority, sock: socket.socket, version: ssl.TLSVersion) -> None:
        context = authority.trusting()
        context.minimum_version = context.maximum_version = version
        self.sock = sock
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=NAME)

    def pump(self) -> None:
        """Take what has come, and send what is to be said."""
        with contextlib.suppress(BlockingIOError):
            self.incoming.write(self.sock.recv(1 << 16))
        if self.outgoing.pending:
            self.sock.send(self.outgoing.read())

    def encrypted(self, text: bytes, *, goodbye: bool = False) -> bytes:
        rest = memoryview(text)
        while rest:
            rest = rest[self.tls.write(rest) :]
        if goodbye:
            with contextlib.suppress(ssl.SSLWantReadError):
                self.tls.unwrap()
        return self.outgoing.read()

    def read(self) -> bytes:
        """Return what text there is, b"" for none."""
        self.pump()
        try:
            return self.tls.read(1 << 16)
        except ssl.SSLWantReadError:
            return b""


class Edge:
    """Handshakes, and what became of them."""

    def __init__(self, authority: Authority, *, timeout_s: float = 30.0) -> None:
        self.authority = authority
        self.poller = Poller(lambda serve: serve())
        self.admitted: list[TlsSocket] = []
        self.lost: list[OSError] = []
        self.handshakes = Handshakes(self.poller, timeout_s=timeout_s)
        self._certificates = Certificates([(authority.cert, authority.key)], None)

    def accept(self) -> socket.socket:
        """Begin a handshake; return the other end."""
        ours, theirs = socket.socketpair()
        for sock in (ours, theirs):
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        context = self._certificates.context(Scheme.TLS)
        self.handshakes.begin(ours, context, admit=self.admitted.append, lose=self.lost.append)
        return theirs

    async def meet(self, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> tuple[TlsSocket, Client]:
        """Have a connection whose handshake is over."""
        client = Client(self.authority, self.accept(), version)
        count = len(self.admitted)

        def greeted() -> bool:
            client.pump()
            with contextlib.suppress(ssl.SSLWantReadError):
                client.tls.do_handshake()
            client.pump()
            return len(self.admitted) > count

        await eventually(greeted)
        client.pump()
        return self.admitted[-1], client


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


versions = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])


@versions
@settings(max_examples=25)
@given(
    size=st.integers(0, 40_000),
    splits=st.lists(st.integers(1, 20_000), max_size=20),
    reads=st.lists(st.integers(50, 20_000), min_size=1, max_size=5),
)
async def test_plaintext_is_whole_however_records_arrive_and_are_read(
    authority: Authority, version: ssl.TLSVersion, size: int, splits: list[int], reads: list[int]
) -> None:
    ours, client = await Edge(authority).meet(version)
    records = client.encrypted(TEXT[:size], goodbye=True)
    view = memoryview(bytearray(max(reads)))
    got = bytearray()
    for index in range(1 << 20):
        most = reads[index % len(reads)]
        try:
            count = ours.recv_into(view, most)
        except BlockingIOError:
            assert records, "nothing more is to come, and no end"
            split = splits[index % len(splits)] if splits else RECORD_BYTES
            with contextlib.suppress(BlockingIOError):
                records = records[client.sock.send(records[:split]) :]
            continue
        assert len(ours._plaintext) <= 2 * RECORD_BYTES
        if not count:
            break
        got += view[:count]
    assert got == TEXT[:size]
    client.sock.close()
    ours.close()


class _Cut(socket.socket):
    """A socket whose connection is reset after so many calls of `send`."""

    sends_left = 0

    def send(self, data: Any, flags: int = 0, /) -> int:
        if not self.sends_left:
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        self.sends_left -= 1
        return super().send(data, flags)


async def test_small_buffers_share_a_record_and_what_went_out_before_a_reset_is_counted(authority: Authority) -> None:
    ours, client = await Edge(authority).meet()
    cut = ours._sock = _Cut(fileno=ours._sock.detach())
    cut.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
    cut.sends_left = 1
    assert ours.sendmsg([b"a", b"b", TEXT[: PLAINTEXT_BYTES - 2], b"c"]) == PLAINTEXT_BYTES
    with pytest.raises(ConnectionResetError):
        ours.sendmsg([b"c"])
    client.pump()
    assert client.tls.read(PLAINTEXT_BYTES) == b"ab" + TEXT[: PLAINTEXT_BYTES - 2]
    assert client.read() == b""
    ours.close()
    client.sock.close()


@versions
async def test_bytes_that_the_kernel_does_not_take_are_sent_once(authority: Authority, version: ssl.TLSVersion) -> None:
    ours, client = await Edge(authority).meet(version)
    draw = random.Random(2)
    chunks: list[memoryview] = []
    rest = memoryview(TEXT)
    while rest:
        size = draw.choice([1, 100, 5000, 70_000])
        chunks.append(rest[:size])
        rest = rest[size:]
    got, refusals, shut = bytearray(), 0, False
    while not shut:
        try:
            if not chunks:
                ours.shutdown(socket.SHUT_WR)
                shut = True
            sent = ours.sendmsg(chunks[:64]) if chunks else 0
        except BlockingIOError:
            refusals += 1
            assert len(ours._encrypted) + ours._outgoing.pending <= RECORD_BYTES
            got += client.read()
            continue
        while sent:
            taken = min(sent, len(chunks[0]))
            sent -= taken
            chunks[0] = chunks[0][taken:]
            if not chunks[0]:
                del chunks[0]
    assert refusals > 10
    while data := client.read():
        got += data
    assert got == TEXT
    assert client.sock.recv(1) == b""  # close_notify was before
    client.sock.close()
    ours.close()


async def test_close_notify_waits_for_room_and_the_other_direction_goes_on(authority: Authority) -> None:
    ours, client = await Edge(authority).meet()
    while True:
        try:
            ours.send(TEXT[:PLAINTEXT_BYTES])
        except BlockingIOError:
            break
    client.sock.send(client.encrypted(b"still coming"))
    with pytest.raises(BlockingIOError):
        ours.shutdown(socket.SHUT_WR)
    for _ in range(1000):
        with contextlib.suppress(BlockingIOError):
            ours.shutdown(socket.SHUT_WR)
            break
        client.pump()
    view = memoryview(bytearray(100))
    assert bytes(view[: ours.recv_into(view, 100)]) == b"still coming"
    client.pump()
    total = 0
    while data := client.read():
        total += len(data)
    assert total % PLAINTEXT_BYTES == 0
    assert client.tls.read(1) == b""  # close_notify
    client.sock.close()
    ours.close()


async def test_decrypted_bytes_are_read_without_the_kernel(authority: Authority) -> None:
    edge = Edge(authority)
    ours, client = await edge.meet()
    client.sock.send(client.encrypted(TEXT[:50], goodbye=True))
    view = memoryview(bytearray(1))
    got = bytearray()
    ends = 0

    def ready(events: int) -> None:
        """Read a byte; stop reading in the middle."""
        nonlocal ends
        assert events == READ
        if ours.recv_into(view, 1):
            got.extend(view)
            if len(got) == 25:
                edge.poller.change(ours.fileno(), READ, WRITE, lambda _: None)
        else:
            ends += 1
            edge.poller.forget(ours.fileno())

    edge.poller.watch(ours.fileno(), READ, ready)
    await eventually(lambda: len(got) == 25)
    edge.poller.change(ours.fileno(), WRITE, READ, ready)
    await eventually(lambda: ends)
    assert (got, ends) == (TEXT[:50], 1)
    client.sock.close()
    ours.close()


async def test_plaintext_before_a_forged_record_or_a_missing_end_arrives_first(authority: Authority) -> None:
    edge = Edge(authority)
    view = memoryview(bytearray(100))
    for forged, error in ((True, "TLS: decryption failed or bad record mac"), (False, "without close_notify")):
        ours, client = await edge.meet()
        client.sock.send(client.encrypted(b"before"))
        if forged:
            record = bytearray(client.encrypted(b"forged"))
            record[-1] ^= 1
            client.sock.send(record)
        else:
            client.sock.shutdown(socket.SHUT_WR)
        assert bytes(view[: ours.recv_into(view, 100)]) == b"before"
        for _ in range(2):
            with pytest.raises(ConnectionAbortedError, match=error):
                ours.recv_into(view, 100)
        client.sock.close()
        ours.close()


async def test_a_handshake_that_fails_or_takes_too_long_ends(authority: Authority) -> None:
    edge = Edge(authority)
    edge.accept().close()
    await eventually(lambda: edge.lost)
    assert isinstance(edge.lost[0], ConnectionError)
    for sent, why, alert in (
        (b"GET / HTTP/1.1\r\n\r\n", "http request", b""),
        (b"\x16\x03\x01\x00\x05hello", "unexpected message", b"\x15"),  # RFC 8446, 5.1
    ):
        edge.lost.clear()
        with edge.accept() as alien:
            alien.send(sent)
            await eventually(lambda: edge.lost)
            assert reason(edge.lost[-1]) == why
            assert alien.recv(100)[:1] == alert
    late = Edge(authority, timeout_s=0.05)
    with late.accept() as silent:
        await eventually(lambda: late.lost)
        assert reason(late.lost[0]) == "not complete within 0.05 s"
        assert silent.recv(1) == b""
    with edge.accept():
        edge.handshakes.close()
    assert "shutting down" in reason(edge.lost[-1])
    assert not edge.handshakes
    assert not edge.admitted
