"""Proxies: those that others wrote, and one of our own that can fail at any byte."""

import asyncio
import base64
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

from tests.support.programs import daemon, program, reserved_port
from tests.support.sockets import HOST, abort, reset_now, stop_accepting

SOCKS: Final = ("microsocks", "dante")
HTTP: Final = ("tinyproxy", "squid")
USER, PASSWORD = "us:er", "p@ss/word"
HTTP_USER, HTTP_PASSWORD = "user", "pass.word"
SECRETS: Final = dict.fromkeys(SOCKS, "us%3Aer:p%40ss%2Fword") | dict.fromkeys(HTTP, "user:pass.word")
"""As URLs have them."""


def url_of(kind: str, port: int, *, secret: str = "", remote: bool = False) -> str:
    scheme = "http" if kind in HTTP else "socks5h" if remote else "socks5"
    return f"{scheme}://{secret}{'@' if secret else ''}{HOST}:{port}"


@contextlib.asynccontextmanager
async def proxy(kind: str, tmp: Path, *, password: bool = False, ports: tuple[int, ...] = ()) -> AsyncIterator[int]:
    """Run a proxy of this kind that allows connections to these ports, or to all; give its port.

    With a password it wants what SECRETS has; dante cannot. microsocks always allows all ports.
    """
    folder = tmp / kind
    folder.mkdir()
    folder.chmod(0o755)  # as root, squid runs as another user
    with reserved_port() as port:
        argv = _ARGUMENTS[kind](folder, port, password, ports)
        async with daemon(folder, port, *argv):
            yield port


def _microsocks(folder: Path, port: int, password: bool, ports: tuple[int, ...]) -> tuple[str, ...]:
    assert not ports
    login = ("-u", USER, "-P", PASSWORD) if password else ()
    return (program("microsocks"), "-i", HOST, "-p", str(port), *login)


def _dante(folder: Path, port: int, password: bool, ports: tuple[int, ...]) -> tuple[str, ...]:
    assert not password
    allowed = [f"to: 0.0.0.0/0 port = {each}" for each in ports] or ["to: 0.0.0.0/0"]
    rules = "\n".join(f"socks pass {{ from: 0.0.0.0/0 {each} }}" for each in allowed)
    (folder / "danted.conf").write_text(
        f"""
        logoutput: stderr
        internal: {HOST} port = {port}
        external: {HOST}
        socksmethod: none
        clientmethod: none
        user.unprivileged: {"nobody" if os.geteuid() == 0 else os.environ["USER"]}
        client pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 }}
        {rules}
        """
    )
    return (program("danted"), "-f", str(folder / "danted.conf"), "-p", str(folder / "danted.pid"))


def _tinyproxy(folder: Path, port: int, password: bool, ports: tuple[int, ...]) -> tuple[str, ...]:
    lines = [f"Port {port}", f"Listen {HOST}", "MaxClients 100", "Timeout 600", "LogLevel Critical"]
    lines += [f"ConnectPort {each}" for each in ports]
    lines += [f"BasicAuth {HTTP_USER} {HTTP_PASSWORD}"] * password
    (folder / "tinyproxy.conf").write_text("\n".join(lines) + "\n")
    return (program("tinyproxy"), "-d", "-c", str(folder / "tinyproxy.conf"))


def _squid(folder: Path, port: int, password: bool, ports: tuple[int, ...]) -> tuple[str, ...]:
    helper = folder / "helper"
    helper.write_text(
        "#!/bin/sh\nwhile read -r login; do\n"
        f'[ "$login" = "{HTTP_USER} {HTTP_PASSWORD}" ] && echo OK || echo ERR\ndone\n'
    )
    helper.chmod(0o755)
    login = (
        f"auth_param basic program {helper}\nacl known proxy_auth REQUIRED\nhttp_access deny !known" if password else ""
    )
    allowed = f"acl allowed port {' '.join(map(str, ports))}\nhttp_access deny !allowed" if ports else ""
    (folder / "squid.conf").write_text(
        f"{login}\n{allowed}\nhttp_access allow all\nhttp_port {HOST}:{port}\npid_filename none\naccess_log none\n"
        f"cache_log /dev/null\ncache deny all\nshutdown_lifetime 0 seconds\nmax_filedescriptors 1024\n"
        f"coredump_dir none\nconnect_retries 0\n"
    )
    return (program("squid"), "-N", "-f", str(folder / "squid.conf"))


_ARGUMENTS: Final[dict[str, Callable[[Path, int, bool, tuple[int, ...]], tuple[str, ...]]]] = {
    "microsocks": _microsocks,
    "dante": _dante,
    "tinyproxy": _tinyproxy,
    "squid": _squid,
}


class OwnProxy:
    """A proxy for SOCKS5 and CONNECT that does what a test wants; all that it sends is counted, for each connection."""

    def __init__(self) -> None:
        self.port = 0
        self.login: tuple[str, str] | None = None
        """User and password that it wants."""
        self.socks_reply = 0
        self.http_response = "HTTP/1.1 200 Connection established\r\nX-Some: field\r\n\r\n"
        self.cut_after: int | None = None
        """After how many bytes to end each connection that comes; None: never."""
        self.reset = False
        """Whether it ends with RST and not with FIN."""
        self.silent = False
        """Whether it accepts connections and says nothing."""
        self.idle_s: float | None = None
        """Ends a connection that carries nothing for so long."""
        self.byte_by_byte = False
        """Whether the first 500 bytes of a connection go out one by one."""
        self.asked: list[str] = []
        """To where."""
        self.ended = self.ended_idle = 0
        """Connections that have ended, and those that the proxy has ended because they were idle."""
        self.longest = 0
        """Bytes sent on one connection at most."""
        self._reading = asyncio.Event()
        self._reading.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator["OwnProxy"]:
        server = await asyncio.start_server(self._accept, HOST, self.port)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            await stop_accepting(server)
            self.cut()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def stop_reading(self) -> None:
        """Read no more from clients."""
        self._reading.clear()

    def go_on_reading(self) -> None:
        """Read what has come meanwhile, and all that comes."""
        self._reading.set()

    def cut(self) -> None:
        """End all connections."""
        for writer in list(self._writers):
            abort(writer)
        self._writers.clear()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer), name="proxy")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        out = _Out(writer, self.cut_after, byte_by_byte=self.byte_by_byte)
        far: asyncio.StreamWriter | None = None
        try:
            if self.silent:
                await reader.read()
                return
            first = await reader.readexactly(1)
            where = await (self._socks(reader, out) if first == b"\x05" else self._http(reader, out))
            if where is None:
                return
            far_reader, far = await asyncio.open_connection(*where)
            self._writers.add(far)
            await self._carry((reader, writer), (far_reader, far), out)
        except (OSError, asyncio.IncompleteReadError, _CutError):
            pass
        finally:
            self.longest = max(self.longest, out.sent)
            self.ended += 1
            for each in (writer, far):
                if each is not None:
                    self._writers.discard(each)
                    if self.reset and each.get_extra_info("socket").fileno() >= 0:
                        reset_now(each)
                    each.close()

    async def _carry(
        self,
        near: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        far: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        out: "_Out",
    ) -> None:
        heard_at = asyncio.get_running_loop().time()

        async def up() -> None:
            nonlocal heard_at
            while data := await near[0].read(1 << 16):
                await self._reading.wait()
                heard_at = asyncio.get_running_loop().time()
                far[1].write(data)
                await far[1].drain()

        async def down() -> None:
            nonlocal heard_at
            while data := await far[0].read(1 << 16):
                heard_at = asyncio.get_running_loop().time()
                await out.send(data)

        async def watch(idle_s: float) -> None:
            while (left := heard_at + idle_s - asyncio.get_running_loop().time()) > 0:  # noqa: ASYNC110 -- a timer
                await asyncio.sleep(left)
            self.ended_idle += 1

        tasks = [asyncio.create_task(up()), asyncio.create_task(down())]
        tasks += [] if self.idle_s is None else [asyncio.create_task(watch(self.idle_s))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _socks(self, reader: asyncio.StreamReader, out: "_Out") -> tuple[str, int] | None:
        (count,) = await reader.readexactly(1)
        methods = await reader.readexactly(count)
        if self.login is None:
            await out.send(b"\x05\x00")
        elif 2 not in methods:
            await out.send(b"\x05\xff")
            return None
        else:
            await out.send(b"\x05\x02")
            _, size = await reader.readexactly(2)
            user = await reader.readexactly(size)
            (size,) = await reader.readexactly(1)
            known = (user.decode(), (await reader.readexactly(size)).decode()) == self.login
            await out.send(b"\x01" + (b"\x00" if known else b"\x01"))
            if not known:
                return None
        _, _, _, kind = await reader.readexactly(4)
        if kind == 1:
            host = socket.inet_ntop(socket.AF_INET, await reader.readexactly(4))
        elif kind == 4:
            host = socket.inet_ntop(socket.AF_INET6, await reader.readexactly(16))
        else:
            host = (await reader.readexactly((await reader.readexactly(1))[0])).decode()
        port = int.from_bytes(await reader.readexactly(2), "big")
        self.asked.append(f"{host}:{port}")
        await out.send(bytes([5, self.socks_reply, 0, 1, 0, 0, 0, 0, 0, 0]))
        return None if self.socks_reply else (host, port)

    async def _http(self, reader: asyncio.StreamReader, out: "_Out") -> tuple[str, int] | None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        if self.login is not None:
            secret = base64.b64encode(":".join(self.login).encode()).decode()
            if f"Proxy-Authorization: Basic {secret}\r\n" not in head:
                await out.send(b"HTTP/1.1 407 Authenticate\r\nProxy-Authenticate: Basic realm=x\r\n\r\nno")
                return None
        host, _, port = head.split(" ")[1].rpartition(":")
        self.asked.append(f"{host}:{port}")
        await out.send(self.http_response.encode())
        return (host.strip("[]"), int(port)) if " 200 " in self.http_response else None


class _CutError(Exception):
    """A connection has sent as much as it may."""


class _Out:
    """Sends to the client of a proxy, up to a number of bytes."""

    def __init__(self, writer: asyncio.StreamWriter, most: int | None, *, byte_by_byte: bool) -> None:
        self.sent = 0
        self._writer = writer
        self._most = most
        self._byte_by_byte = byte_by_byte

    async def send(self, data: bytes) -> None:
        left = len(data) if self._most is None else self._most - self.sent
        part = data[:left]
        slow = part[: 500 - self.sent] if self._byte_by_byte and self.sent < 500 else b""
        self.sent += len(part)
        for piece in [*(slow[at : at + 1] for at in range(len(slow))), part[len(slow) :]]:
            self._writer.write(piece)
            await self._writer.drain()
            await asyncio.sleep(0)
        if len(part) < len(data):
            raise _CutError
