"""The server for programs that watch a process, before clients that are hostile."""

import asyncio
import contextlib
import errno
import socket
from collections.abc import AsyncIterator
from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goreprox.monitor import acceptor, responder
from goreprox.monitor.acceptor import ACCEPTS, CLIENTS
from goreprox.monitor.responder import HEAD_BYTES, Request, Responder, Response
from tests.support.sockets import HOST, read_to_end, without_descriptors
from tests.support.waiting import DEADLINE_S, eventually
from tests.support.web import fetch


class Served:
    """A responder, its port, and what it was asked."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.asked: list[str] = []
        self.may_respond = asyncio.Event()
        self.may_respond.set()
        self.responder = Responder(self.respond)

    async def respond(self, request: Request) -> Response:
        self.asked.append(request.path)
        await self.may_respond.wait()
        if request.path == "/fault":
            raise ZeroDivisionError
        return Response(HTTPStatus.OK, "hello\n", field="X-Extra: 1")

    async def exchange(self, data: bytes) -> str:
        reader, writer = await asyncio.open_connection(HOST, self.port)
        writer.write(data)
        try:
            return (await asyncio.wait_for(reader.read(), DEADLINE_S)).decode()
        except ConnectionResetError:
            return "reset"
        finally:
            writer.close()


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    with socket.create_server((HOST, 0), backlog=512) as listening:
        listening.setblocking(False)
        made = Served(listening.getsockname()[1])
        made.responder.serve(listening)
        yield made
        await made.responder.close()


async def test_the_oldest_of_too_many_clients_in_one_turn_is_closed_before_it_is_served(served: Served) -> None:
    pairs = [socket.socketpair() for _ in range(CLIENTS + 1)]
    for near, _ in pairs:
        near.setblocking(False)
        served.responder._accepted(near)
    assert await read_to_end(pairs[0][1]) == b""
    for _, far in pairs:
        far.close()


async def test_a_request_gets_one_response_and_the_connection_ends(served: Served) -> None:
    found = await served.exchange(b"GET /a?b HTTP/1.1\r\nHost: x\r\n\r\n")
    head, _, body = found.partition("\r\n\r\n")
    assert head.split("\r\n") == [
        "HTTP/1.1 200 OK",
        "Content-Type: text/plain; charset=utf-8",
        "Content-Length: 6",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "Connection: close",
        "X-Extra: 1",
    ]
    assert body == "hello\n"
    assert served.asked == ["/a"]
    assert (await served.exchange(b"HEAD / HTTP/1.0\r\n\r\n")).endswith("\r\n\r\n")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", "405 Method Not Allowed"),
        (b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", "400 Bad Request"),
        (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", "400 Bad Request"),
        (b"GET http://x/ HTTP/1.1\r\nHost: x\r\n\r\n", "400 Bad Request"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n", "400 Bad Request"),
        (b"GET / HTTP/1.1\r\nHost: x\x00\r\n\r\n", "400 Bad Request"),
        (b"\x16\x03\x01\x02\r\n\r\n", "400 Bad Request"),
    ],
)
async def test_what_is_no_request_is_told_so_and_asks_nothing(served: Served, request_: bytes, status: str) -> None:
    assert (await served.exchange(request_)).startswith(f"HTTP/1.1 {status}\r\n")
    assert not served.asked


async def test_a_header_section_that_is_too_long_ends_the_connection_without_being_kept(served: Served) -> None:
    assert await served.exchange(b"GET / HTTP/1.1\r\nX: " + bytes(4 * HEAD_BYTES)) in ("", "reset")
    assert not served.asked


async def test_a_fault_of_ours_ends_one_request_only(served: Served) -> None:
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context["exception"]))
    assert (await served.exchange(b"GET /fault HTTP/1.1\r\n\r\n")).startswith("HTTP/1.1 500 ")
    assert [type(each) for each in faults] == [ZeroDivisionError]
    assert await fetch(served.port) == (200, "hello\n")


async def test_clients_that_hold_all_connections_keep_nobody_out(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(responder, "TIMEOUT_S", 3600.0)
    async with contextlib.AsyncExitStack() as stack:
        held = []
        for _ in range(3 * CLIENTS):
            reader, writer = await asyncio.open_connection(HOST, served.port)
            stack.callback(writer.close)
            held.append(reader)
        assert await fetch(served.port) == (200, "hello\n")
        for reader in held[: 2 * CLIENTS]:
            with contextlib.suppress(ConnectionResetError):
                assert not await asyncio.wait_for(reader.read(), DEADLINE_S)  # it made room
        assert len(served.responder._clients) <= CLIENTS


async def test_a_client_that_sends_nothing_is_disconnected(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responder, "TIMEOUT_S", 0.05)
    assert await served.exchange(b"GET / HTTP/1.1\r\n") in ("", "reset")
    await eventually(lambda: not served.responder._clients, "nothing is left of it")


async def test_a_client_that_is_being_served_gets_its_response_before_the_end(served: Served) -> None:
    served.may_respond.clear()
    asking = asyncio.create_task(fetch(served.port))
    await eventually(lambda: served.asked, "it has asked")
    closing = asyncio.create_task(served.responder.close())
    await asyncio.sleep(0)
    served.may_respond.set()
    assert await asking == (200, "hello\n")
    await closing


async def test_the_end_does_not_wait_for_a_client_that_sends_nothing(served: Served) -> None:
    _, writer = await asyncio.open_connection(HOST, served.port)
    await eventually(lambda: served.responder._clients, "it is there")
    async with asyncio.timeout(DEADLINE_S):
        await served.responder.close()
    await eventually(lambda: not served.responder._clients, "it has gone")
    writer.close()


async def test_without_descriptors_accepting_pauses_and_goes_on(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceptor, "PAUSE_S", 0.01)
    clients = [socket.socket() for _ in range(2 * ACCEPTS)]
    with without_descriptors():
        for sock in clients:
            sock.setblocking(False)
            assert sock.connect_ex((HOST, served.port)) in (0, errno.EINPROGRESS)
        for _ in range(10):
            await asyncio.sleep(0.01)  # turns of the loop in which nothing can be accepted
        assert not served.responder._clients
    for sock in clients:
        sock.close()
    assert await fetch(served.port) == (200, "hello\n")


def test_a_request_is_read_with_its_fields() -> None:
    found = Request.parse("GET /ready?verbose HTTP/1.1\r\nHOST: a.example:1\r\nX:\t b c \r\nx: d\r\n\r\n")
    assert found == Request("GET", "/ready", "verbose", {"host": "a.example:1", "x": "d"})


@given(st.text(alphabet=st.characters(max_codepoint=255), max_size=200))
def test_any_text_is_a_request_or_none(text: str) -> None:
    for head in (text, f"GET /{text} HTTP/1.1\r\n\r\n", f"GET / HTTP/1.1\r\n{text}\r\n\r\n"):
        found = Request.parse(head)
        assert found is None or (found.path.startswith("/") and not {"\r", "\n", " "} & set(found.path + found.query))
