"""Asking a process for something by its control socket, with real sockets in a real directory."""

import asyncio
import contextlib
import json
import os
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from loguru import logger

from goreprox.control import client
from goreprox.control import socket as control_socket
from goreprox.control.message import REQUEST_BYTES, VERSION, Request, encode_page, encode_request
from goreprox.control.socket import CLIENTS, FOLLOWERS, ControlSocket, Pages
from goreprox.errors import ControlError, StartError
from goreprox.status.document import FORMAT, Document
from goreprox.status.query import Responses, ask_all
from tests.support.sockets import read_to_end
from tests.support.waiting import DEADLINE_S, eventually

SHORT_S = 5.0
"""Shorter than other deadlines of tests, and long enough for a response on a busy machine."""
LARGE = 4 << 20
"""More than the kernel takes for a reader that does not read."""


def document(name: str = "n", *, filler: int = 0) -> Document:
    return {
        "format": FORMAT,
        "version": "1",
        "role": "server",
        "name": name,
        "incarnation": "0" * 8,
        "pid": 1,
        "started_at": "2020-01-01T00:00:00+00:00",
        "up_s": 1.0,
        "draining": False,
        "ports": {},
        "services": {"filler": ["x" * filler]},
        "streams": None,
        "peers": [],
        "links": [],
        "broker": None,
        "ends": [],
    }


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory whose path leaves room for the name of a socket."""
    with tempfile.TemporaryDirectory(prefix="gp", dir="/tmp") as path:
        yield Path(path)


@contextlib.asynccontextmanager
async def serving(
    directory: Path, lock: str = "server-n.0", describe: Callable[[], Document] = document
) -> AsyncIterator[ControlSocket]:
    async def status(_: Request) -> Document:
        return describe()

    async def refuse(_: Request) -> None:
        raise StartError("the port is in use")

    async def fail(_: Request) -> None:
        raise ZeroDivisionError

    async def wait(_: Request) -> None:
        await asyncio.Event().wait()

    async def count(request: Request) -> Pages:
        for number in range(int(str(request.options.get("to", 0)))):
            yield {"number": number, "filler": "x" * int(str(request.options.get("filler", 0)))}
        if request.options.get("fail"):
            raise StartError("the port is in use")
        if request.options.get("for_ever"):
            await asyncio.Event().wait()

    opened = await ControlSocket.open(
        directory / lock, {"status": status, "refuse": refuse, "fail": fail, "wait": wait, "count": count}
    )
    try:
        yield opened
    finally:
        opened.close()


async def ask(directory: Path, *, role: str | None = None, name: str | None = None) -> Responses:
    return await asyncio.to_thread(ask_all, [directory], role=role, name=name)


@contextlib.contextmanager
def warnings() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(message.record["message"]), level="WARNING")
    try:
        yield lines
    finally:
        logger.remove(sink)


def connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.setblocking(False)
    sock.connect(str(path))
    return sock


async def say(path: Path, data: bytes) -> Any:
    """Return what is replied to `data`."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(data)
    writer.write_eof()
    try:
        return json.loads(await asyncio.wait_for(reader.read(), DEADLINE_S))
    finally:
        writer.close()


def leave_stale_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()


async def test_each_client_gets_the_present_document(directory: Path) -> None:
    names = iter(["first", "second"])
    async with serving(directory, describe=lambda: document(next(names))):
        assert await ask(directory) == Responses([document("first")], [])
        assert await ask(directory) == Responses([document("second")], [])


async def test_only_the_owner_can_connect_and_the_socket_is_removed_at_the_end(directory: Path) -> None:
    mask = os.umask(0)
    try:
        async with serving(directory) as opened:
            mode = opened.path.lstat().st_mode
            assert stat.S_ISSOCK(mode)
            assert stat.S_IMODE(mode) == 0o600
        opened.close()
    finally:
        os.umask(mask)
    assert list(directory.iterdir()) == []


async def test_the_socket_of_a_dead_process_is_replaced(directory: Path) -> None:
    leave_stale_socket(directory / "server-n.0.sock")
    async with serving(directory):
        assert (await ask(directory)).documents == [document()]


async def test_the_socket_of_a_live_process_is_left_alone(directory: Path) -> None:
    async with serving(directory, describe=lambda: document("first")):
        with warnings() as lines:
            async with serving(directory, describe=lambda: document("second")):
                pass
        assert lines == [
            f"no status and no reload at {directory}/server-n.0.sock: another process listens there; "
            "choose another directory with --runtime-dir"
        ]
        assert (await ask(directory)).documents == [document("first")]


async def test_a_successor_keeps_its_socket_when_the_predecessor_closes_late(directory: Path) -> None:
    async with serving(directory, describe=lambda: document("first")) as first:
        first.path.unlink()
        async with serving(directory, describe=lambda: document("second")):
            first.close()
            assert (await ask(directory)).documents == [document("second")]


async def test_a_regular_file_of_that_name_is_left_alone(directory: Path) -> None:
    (directory / "server-n.0.sock").write_text("precious")
    with warnings() as lines:
        async with serving(directory):
            pass
    assert "there is a file of that name" in lines[0]
    assert (directory / "server-n.0.sock").read_text() == "precious"


async def test_a_path_too_long_for_a_socket_is_logged_as_a_warning(directory: Path) -> None:
    with warnings() as lines:
        async with serving(directory, "server-" + "n" * 110 + ".0"):
            pass
    assert len(lines) == 1
    assert "path too long; choose another directory with --runtime-dir" in lines[0]


async def test_the_number_of_clients_that_do_not_read_is_bounded(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_socket, "READ_S", 60.0)
    async with serving(directory, describe=lambda: document(filler=LARGE)) as opened:
        silent = [connect(opened.path) for _ in range(CLIENTS)]
        await eventually(lambda: len(opened._clients) == CLIENTS)
        with connect(opened.path) as refused:
            assert await asyncio.get_running_loop().sock_recv(refused, 1) == b""
        silent.pop().close()
        await eventually(lambda: len(opened._clients) < CLIENTS)
        assert len((await ask(directory)).documents) == 1
        for sock in silent:
            sock.close()


async def test_pages_come_before_the_result(directory: Path) -> None:
    async with serving(directory):
        (reply,) = await client.ask([directory], "count", options={"to": 3})
        assert [page["number"] for page in reply.pages if isinstance(page, dict)] == [0, 1, 2]
        assert (reply.result, reply.problem) == (None, None)
        (reply,) = await client.ask([directory], "count")
        assert (reply.pages, reply.result, reply.problem) == ([], None, None)
        (reply,) = await client.ask([directory], "count", options={"to": 1, "fail": True})
        assert reply.problem == "server-n.0: the port is in use"


async def test_those_that_follow_leave_room_for_others_and_are_bounded(directory: Path) -> None:
    async with serving(directory) as opened:
        following = [connect(opened.path) for _ in range(FOLLOWERS)]
        for sock in following:
            sock.send(encode_request("count", to=1, for_ever=True))
        await eventually(lambda: len(opened._followers) == FOLLOWERS)
        assert not opened._clients
        assert len((await ask(directory)).documents) == 1
        (reply,) = await client.ask([directory], "count")
        assert "other clients list or follow" in str(reply.problem)
        following.pop().close()
        await eventually(lambda: len(opened._followers) < FOLLOWERS)
        (reply,) = await client.ask([directory], "count")
        assert reply.problem is None
        for sock in following:
            sock.close()
        await eventually(lambda: not opened._followers)


async def test_a_client_that_takes_no_page_in_time_is_disconnected(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_socket, "READ_S", 0.1)
    async with serving(directory) as opened:
        with connect(opened.path) as silent:
            silent.send(encode_request("count", to=1000, filler=1 << 17))
            await eventually(lambda: opened._followers)
            await eventually(lambda: not opened._followers)
            received = b"".join(iter(lambda: silent.recv(1 << 16), b""))
            assert 0 < len(received) < 1000 << 17


@pytest.mark.parametrize("last", [b"", b'{"control": 1, "result": nu'])
async def test_pages_without_an_end_are_a_problem(directory: Path, last: bytes) -> None:
    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(encode_page(1) + last)
        writer.close()

    async with await asyncio.start_unix_server(reply, directory / "server-n.0.sock"):
        (got,) = await client.ask([directory], "count")
    assert got.problem is not None and got.problem.startswith("server-n.0 disconnected in the middle")


async def test_clients_that_ask_nothing_are_disconnected(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_socket, "READ_S", 0.1)
    async with serving(directory) as opened:
        with connect(opened.path) as silent:
            assert await asyncio.get_running_loop().sock_recv(silent, 1) == b""
        await eventually(lambda: not opened._clients)


async def test_clients_that_do_not_read_are_disconnected(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_socket, "READ_S", 0.1)
    async with serving(directory, describe=lambda: document(filler=LARGE)) as opened:
        with connect(opened.path) as silent:
            silent.send(encode_request("status"))
            await eventually(lambda: opened._clients)
            await eventually(lambda: not opened._clients)
            received = b"".join(iter(lambda: silent.recv(1 << 16), b""))
            assert 0 < len(received) < LARGE


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (b"status\n", "expected one line, like"),
        (b"\xff\n", "expected one line, like"),
        (b"[]\n", "expected one line, like"),
        (b"[" * 4000 + b"\n", "expected one line, like"),
        (b'{"command": "status"}\n', "expected one line, like"),
        (b'{"control": 2, "command": "status"}\n', "expected one line, like"),
        (b'{"control": 1}\n', "expected a command"),
        (b'{"control": 1, "command": 1}\n', "expected a command"),
        (encode_request("polish"), "the command 'polish' is not known here; it is of another version"),
        (encode_request("refuse"), "the port is in use"),
        (encode_request("fail"), "a fault in this process, which is in its log"),
    ],
)
async def test_what_cannot_be_done_is_said_in_one_line(directory: Path, request_: bytes, error: str) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    async with serving(directory) as opened:
        reply = await say(opened.path, request_)
        assert reply.keys() == {"control", "error", "exit_code"}
        assert (reply["control"], reply["exit_code"]) == (VERSION, 1)
        assert reply["error"].startswith(error)
        assert (await ask(directory)).documents == [document()]


@pytest.mark.parametrize("data", [b"", b'{"control": 1', b"x" * 2 * REQUEST_BYTES, b"x" * 2 * REQUEST_BYTES + b"\n"])
async def test_a_request_that_is_no_line_gets_no_reply(directory: Path, data: bytes) -> None:
    async with serving(directory) as opened:
        with connect(opened.path) as sock, contextlib.suppress(ConnectionResetError, BrokenPipeError):
            await asyncio.get_running_loop().sock_sendall(sock, data)
            sock.shutdown(socket.SHUT_WR)
            assert await asyncio.get_running_loop().sock_recv(sock, 1) == b""
        await eventually(lambda: not opened._clients)
        assert (await ask(directory)).documents == [document()]


async def test_a_refusal_is_reported_with_the_name_of_the_process(directory: Path) -> None:
    async with serving(directory):
        (reply,) = await asyncio.to_thread(client.ask_all, [directory], "refuse")
    assert reply == client.Reply("server-n.0", None, "server-n.0: the port is in use")


async def test_a_command_that_is_still_running_ends_with_the_socket(directory: Path) -> None:
    async with serving(directory) as opened:
        with connect(opened.path) as waiting:
            waiting.send(encode_request("wait"))
            await eventually(lambda: opened._clients)
            opened.close()
            await eventually(lambda: not opened._clients)


async def test_a_client_that_has_just_connected_ends_with_the_socket(directory: Path) -> None:
    async with serving(directory) as opened:
        near, far = socket.socketpair()
        with far:
            opened._connected(*await asyncio.open_unix_connection(sock=near))
            opened.close()
            assert await read_to_end(far) == b""


async def test_a_process_that_hangs_is_reported_beside_the_documents_of_the_others(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "ASK_S", SHORT_S)
    with socket.socket(socket.AF_UNIX) as hanging:
        hanging.bind(str(directory / "provider-stopped.3.sock"))
        hanging.listen()
        async with serving(directory):
            responses = await ask(directory)
    assert responses.documents == [document()]
    assert responses.problems == [
        f"provider-stopped.3 does not respond within {SHORT_S:g} s; is it stopped or overloaded?"
    ]


async def test_processes_are_selected_by_role_and_name(directory: Path) -> None:
    async with (
        serving(directory, "server-a.b-c.0", lambda: document("1")),
        serving(directory, "server-x.0", lambda: document("2")),
        serving(directory, "provider-x.1", lambda: document("3")),
    ):
        (directory / "server-x.0").touch()
        (directory / "other.sock").touch()

        async def names(role: str | None, name: str | None) -> list[str]:
            return [d["name"] for d in (await ask(directory, role=role, name=name)).documents]

        assert await names(None, None) == ["3", "1", "2"]
        assert await names("server", None) == ["1", "2"]
        assert await names(None, "x") == ["3", "2"]
        assert await names("server", "a.b-c") == ["1"]
        with pytest.raises(ControlError, match=f"no edge named x runs in {directory}; start one"):
            await names("edge", "x")


def test_sockets_of_dead_processes_count_as_no_process(directory: Path) -> None:
    leave_stale_socket(directory / "server-n.0.sock")
    with pytest.raises(ControlError, match=f"no process runs in {directory}; start one, or .* --runtime-dir"):
        ask_all([directory])
    with pytest.raises(ControlError, match="no process runs in"):
        ask_all([directory / "missing"])


def test_an_error_names_the_directory_that_cannot_be_read(directory: Path) -> None:
    (directory / "file").touch()
    with pytest.raises(ControlError, match="file: Not a directory; name another with --runtime-dir"):
        ask_all([directory / "file"])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "disconnected in the middle"),
        (json.dumps(document()).encode()[:-1], "disconnected in the middle"),
        (b"\xff", "disconnected in the middle"),
        (b"[]", "runs another version"),
        (b'{"format": 1}', "runs another version"),
        (b'{"control": 2, "result": {"format": 1}}', "runs another version"),
        (b'{"control": 1, "result": {"format": 2}}', "runs another version"),
        (b'{"control": 1, "result": []}', "runs another version"),
    ],
)
async def test_malformed_documents_are_reported_as_problems(directory: Path, content: bytes, problem: str) -> None:
    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(content)
        writer.close()

    async with await asyncio.start_unix_server(reply, directory / "server-n.0.sock"):
        responses = await ask(directory)
    assert responses.documents == []
    assert len(responses.problems) == 1
    assert responses.problems[0].startswith(f"server-n.0 {problem}")


async def test_an_endless_document_is_cut_off(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "REPLY_BYTES", 1 << 20)
    monkeypatch.setattr(client, "ASK_S", 30.0)

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b" " * 65536)
                await writer.drain()
        writer.close()

    async with await asyncio.start_unix_server(reply, directory / "server-n.0.sock"):
        assert "disconnected in the middle" in (await ask(directory)).problems[0]
