"""Dials: several addresses, targets that cannot be reached, handshakes, name lookups."""

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from brokers import LimitedLog, SocketAddress
from goreprox.config.addresses import Address, Target, UnixPath
from goreprox.config.roles import DialConfig
from goreprox.net import sockets
from goreprox.net.poller import Poller
from goreprox.net.sockets import Socket
from goreprox.net.tls import TlsSocket
from goreprox.protocol.budget import Budget
from goreprox.protocol.stream import Stream
from goreprox.roles.dial import Dialer, Targets
from goreprox.roles.loops import Loops
from tests.support.sockets import HOST, closed_port
from tests.support.waiting import eventually

DIAL_TIMEOUT_S = 2.0


class Asked:
    """A stream, and what became of its dial."""

    def __init__(self) -> None:
        budget = Budget(total_bytes=1 << 20, max_streams=1)
        self.stream = Stream(opener=False, service="web", client="192.0.2.9:1", budget=budget)
        self.connected: Socket | None = None

    @property
    def outcome(self) -> object:
        """The socket, or why there is none; None while it is dialed."""
        return self.connected or self.stream.end_reason or None


def dialer(
    monkeypatch: pytest.MonkeyPatch,
    asked: Asked,
    *where: tuple[str, int],
    host: str = "example.org",
    tls: bool = False,
    target: UnixPath | None = None,
) -> Dialer:
    """Dial these addresses, whatever the name of the target; `asked` gets the socket that was connected in the end."""
    targets = (Target("web", target or Address(host, 80), tls=tls),)
    config = DialConfig(timeout_s=DIAL_TIMEOUT_S, insecure=tls)

    async def found(*_: object) -> list[SocketAddress]:
        return [(socket.AF_INET, address) for address in where]

    monkeypatch.setattr("goreprox.net.names.resolve", found)

    def connected(_: Stream, sock: Socket) -> None:
        asked.connected = sock

    poller = Poller(lambda work: work())
    return Dialer(targets, config, poller, Loops(), LimitedLog(), connected=connected, failed=ignored)


def ignored(_: Stream) -> None: ...


async def dial(monkeypatch: pytest.MonkeyPatch, *where: tuple[str, int], host: str = "example.org") -> object:
    """Dial these addresses in turn; return the address of the one that was reached, or why there is none."""
    asked = Asked()
    dialer(monkeypatch, asked, *where, host=host).dial(asked.stream)
    await eventually(lambda: asked.outcome)
    if isinstance(sock := asked.connected, socket.socket):
        with sock:
            return sock.getpeername()
    return asked.outcome


async def test_a_socket_connected_to_itself_counts_as_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare: Callable[[socket.socket], Any] = sockets.prepare

    def as_the_kernel_may_choose(sock: socket.socket) -> None:
        prepare(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((HOST, port))

    monkeypatch.setattr(sockets, "prepare", as_the_kernel_may_choose)
    with closed_port() as port:
        reason = await dial(monkeypatch, (HOST, port))
    assert "refused" in str(reason)


class Silent:
    """A port of loopback whose backlog is full: it is silent to whoever connects."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> tuple[str, int]:
        listening = self._stack.enter_context(socket.socket())
        listening.bind((HOST, 0))
        listening.listen(0)
        for _ in range(4):
            waiting = self._stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        address: tuple[str, int] = listening.getsockname()
        return address

    def __exit__(self, *_: object) -> None:
        self._stack.close()


async def test_a_silent_address_costs_a_quarter_of_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    pauses: list[float] = []
    call_later = loop.call_later

    def noting(delay: float, *args: Any, **more: Any) -> asyncio.TimerHandle:
        pauses.append(delay)
        return call_later(delay, *args, **more)

    monkeypatch.setattr(loop, "call_later", noting)
    with Silent() as silent, Silent() as other, socket.create_server((HOST, 0)) as good:
        assert await dial(monkeypatch, silent, other, good.getsockname()) == good.getsockname()
    assert pauses.count(0.25) == 2


async def test_an_address_that_is_slower_than_the_next_may_still_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "DIAL_TIMEOUT_S", 20.0)  # the kernel tries again after 1, 3 and 7 s
    with contextlib.ExitStack() as stack, Silent() as silent:
        slow = stack.enter_context(socket.socket())
        slow.bind((HOST, 0))
        slow.listen(0)
        slow.setblocking(False)
        waiting = []
        for _ in range(2):
            waiting.append(stack.enter_context(socket.socket()))
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(slow.getsockname())
        dialing = asyncio.ensure_future(dial(monkeypatch, slow.getsockname(), silent))
        attempts: list[int] = []
        watch = Poller.watch

        def noting(poller: Poller, fd: int, *args: Any) -> None:
            attempts.append(fd)
            watch(poller, fd, *args)

        monkeypatch.setattr(Poller, "watch", noting)
        await eventually(lambda: len(attempts) == 2)  # the next address is being tried
        # Room for one that waits: whose turn it is then, ours or the other's, is up to when the kernel tries again.
        loop = asyncio.get_running_loop()
        loop.add_reader(slow, lambda: stack.enter_context(slow.accept()[0]))
        assert await dialing == slow.getsockname()
        loop.remove_reader(slow)


async def test_a_unix_socket_whose_backlog_is_full_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path, asked = str(tmp_path / "s"), Asked()
    with socket.socket(socket.AF_UNIX) as listening, contextlib.ExitStack() as stack:
        listening.bind(path)
        listening.listen(0)
        stack.enter_context(socket.socket(socket.AF_UNIX)).connect(path)
        dialer(monkeypatch, asked, target=UnixPath(path)).dial(asked.stream)
        assert asked.outcome is None  # it is neither connected nor refused
        stack.enter_context(listening.accept()[0])
        await eventually(lambda: asked.outcome)
        assert isinstance(asked.connected, socket.socket)
        stack.enter_context(asked.connected)
        stack.enter_context(listening.accept()[0])


async def test_a_unix_socket_whose_backlog_stays_full_has_the_whole_timeout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path, asked = str(tmp_path / "s"), Asked()
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as first:
        listening.bind(path)
        listening.listen(0)
        first.connect(path)
        dialer(monkeypatch, asked, target=UnixPath(path)).dial(asked.stream)
        await eventually(lambda: asked.outcome)
        assert asked.outcome == f"target unix:{path}: no response within 2 s"


async def test_a_unix_socket_that_is_missing_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = Asked()
    dialer(monkeypatch, asked, target=UnixPath(f"{tmp_path}/none")).dial(asked.stream)
    assert asked.outcome == f"target unix:{tmp_path}/none: No such file or directory"


async def test_a_name_whose_addresses_are_all_silent_has_the_whole_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    with Silent() as first, Silent() as second:
        assert "no response within 2 s" in str(await dial(monkeypatch, first, second))


async def test_only_the_first_of_a_thousand_addresses_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    with closed_port() as port:
        reason = await dial(monkeypatch, *[(HOST, port)] * 1000)
    assert "refused" in str(reason)


@pytest.mark.parametrize("host", [HOST, "127.0.0.2"])
async def test_a_refusal_at_the_default_host_suggests_localhost_for_ipv6_targets(
    monkeypatch: pytest.MonkeyPatch, warnings: list[str], host: str
) -> None:
    with closed_port() as port:
        await dial(monkeypatch, (HOST, port), host=host)
    (line,) = warnings
    assert ("if it listens on [::1] alone, give the target as localhost:80" in line) is (host == HOST)


async def test_a_dial_that_timed_out_ends_the_handshake_with_the_second_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shake, attempts = TlsSocket.shake_hands, 0

    def fail_at_once_the_first_time(tls: TlsSocket) -> bool:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        return shake(tls)

    monkeypatch.setattr(TlsSocket, "shake_hands", fail_at_once_the_first_time)
    with socket.create_server((HOST, 0)) as first, socket.create_server((HOST, 0)) as silent:
        asked = Asked()
        dialer(monkeypatch, asked, first.getsockname(), silent.getsockname(), tls=True).dial(asked.stream)
        await eventually(lambda: asked.outcome)
        assert asked.outcome == "target example.org:80: no response within 2 s"
        sock, _ = silent.accept()
        with sock:
            sock.settimeout(DIAL_TIMEOUT_S)
            assert sock.recv(1 << 16), "its part of the handshake"
            with pytest.raises(ConnectionResetError):
                sock.recv(1 << 16)


async def test_concurrent_dials_share_one_lookup_of_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    responded, lookups = asyncio.Event(), 0

    async def slow(_: str, port: int) -> list[SocketAddress]:
        nonlocal lookups
        lookups += 1
        await responded.wait()
        if lookups == 1:
            raise socket.gaierror(socket.EAI_AGAIN, "no name server responds")
        return [(socket.AF_INET, (HOST, port))]

    monkeypatch.setattr("goreprox.net.names.resolve", slow)
    targets = Targets({"web": Address("example.org", 80)})
    asking = [loop.create_task(targets.resolve("web")) for _ in range(8)]
    await eventually(lambda: lookups)
    asking.pop().cancel()
    responded.set()
    outcomes = await asyncio.gather(*asking, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [socket.gaierror] * 7
    assert lookups == 1
    assert await targets.resolve("web") == targets.known("web") == [(socket.AF_INET, (HOST, 80))]
