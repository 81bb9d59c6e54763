"""Connections through a proxy: SOCKS5 (RFC 1928 and 1929) and CONNECT of HTTP (RFC 9110, 9.3.6).

No byte is read beyond the proxy's response, since the broker's may follow at once.
"""

import asyncio
import base64
import errno
import ipaddress
import os
import re
import socket
from typing import Final

from brokers import Cause, OpenError, SocketAddress, connect, resolve
from goreprox.config.addresses import Address
from goreprox.config.proxy import ProxyConfig, ProxyScheme, ProxyUrl
from goreprox.process.log import quoted

REACH_S: Final = 5.0
"""For the proxy's name, and again for a connection to it, all its addresses together."""
MAX_ADDRESSES: Final = 16
"""Of a proxy, that are tried."""
RESPOND_S: Final = 15.0
"""For all that a proxy does, including its connection to the broker."""
MAX_HEAD_BYTES: Final = 16 * 1024
"""Of one response to CONNECT; it is read byte by byte, and is seldom longer than 500."""
MAX_INTERIM: Final = 4
"""Responses with 1xx before the final one."""
_VERSION: Final = 5
_NO_PASSWORD, _PASSWORD, _NONE = 0, 2, 0xFF
_ADDRESS_BYTES: Final = {1: 4, 4: 16}
"""By type of address; 3 is a name, after its length."""
_SOCKS_REFUSED: Final = 2
_SOCKS_FAILURES: Final = {
    1: "it does not say why",
    3: os.strerror(errno.ENETUNREACH),
    4: os.strerror(errno.EHOSTUNREACH),
    5: os.strerror(errno.ECONNREFUSED),
    6: os.strerror(errno.ETIMEDOUT),
    7: "it does not know the command",
    8: "it does not know this type of address",
}
_HTTP: Final = b"HTTP/"
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])(?: ([^\r\n]*))?\r?\n")
_CHALLENGE: Final = re.compile(rb"^proxy-authenticate:[ \t]*([A-Za-z0-9-]+)", re.IGNORECASE | re.MULTILINE)
_UNAUTHORISED: Final = (407, 401)
"""The second is what tinyproxy says to a wrong password."""
_UNREACHED: Final = (500, 502, 503, 504)
"""What proxies say if they do not reach the server: tinyproxy 500, squid 503."""


class ProxyClient:
    """Opens connections through one proxy (brokers.Proxy)."""

    def __init__(self, url: ProxyUrl) -> None:
        self._url = url
        self._title = f"the proxy {url}"

    def __str__(self) -> str:
        """Return its URL without user and password."""
        return str(self._url)

    @property
    def resolves(self) -> bool:
        """Whether it resolves host names."""
        return self._url.scheme is not ProxyScheme.SOCKS5

    async def open(self, address: SocketAddress) -> socket.socket:
        """Return a connection to an address, or to a name where the proxy resolves it.

        Raises:
            OpenError: there is none; the text says at which hop, and why.
        """
        sock = await self._reach()
        host, port = address[1][:2]
        ask = self._connect if self._url.scheme is ProxyScheme.HTTP else self._socks
        try:
            async with asyncio.timeout(RESPOND_S):
                await ask(sock, host, port)
        except BaseException as exc:
            sock.close()
            match exc:
                case TimeoutError():
                    raise self._failed(f"has not connected us to {Address(host, port)} within {RESPOND_S:g} s") from exc
                case OSError():
                    raise self._failed(f"has closed the connection ({exc.strerror or exc})") from exc
            raise
        return sock

    async def _reach(self) -> socket.socket:
        """Return a connection to the proxy."""
        host, port = self._url.address.host, self._url.address.port
        try:
            async with asyncio.timeout(REACH_S):
                found = (await resolve(host, port))[:MAX_ADDRESSES]
        except TimeoutError:
            raise self._unreachable(f"no name server responds within {REACH_S:g} s") from None
        except (OSError, UnicodeError) as exc:
            why = exc.strerror if isinstance(exc, OSError) else "not a valid host name"
            raise self._unreachable(f"its name cannot be resolved ({why})") from exc
        try:
            return await connect(found, timeout_s=REACH_S)
        except TimeoutError:
            raise self._unreachable(f"no response within {REACH_S:g} s") from None
        except OSError as exc:
            raise self._unreachable(os.strerror(exc.errno) if exc.errno else str(exc)) from exc

    # HTTP.

    async def _connect(self, sock: socket.socket, host: str, port: int) -> None:
        where = str(Address(host, port))
        lines = [f"CONNECT {where} HTTP/1.1", f"Host: {where}"]
        if self._url.credentials is not None:
            secret = base64.b64encode(":".join(self._url.credentials).encode()).decode()
            lines.append(f"Proxy-Authorization: Basic {secret}")
        await _send(sock, "\r\n".join([*lines, "", ""]).encode())
        for _ in range(MAX_INTERIM):
            head = await self._read_head(sock)
            status = _STATUS.match(head)
            if status is None:
                raise self._failed("does not speak HTTP; is it a SOCKS proxy, or another program?")
            code, reason = int(status[1]), quoted((status[2] or b"").decode("latin-1"))
            if code // 100 != 1:
                break
        else:
            raise self._failed("sends interim responses only")
        if code // 100 == 2:
            return
        said = f"{code} {reason}".rstrip()
        if code in _UNAUTHORISED:
            raise self._unauthorised(said, {each.decode().lower() for each in _CHALLENGE.findall(head)})
        if code in _UNREACHED:
            raise self._cannot_reach(where, said)
        raise self._refused(where, said)

    async def _read_head(self, sock: socket.socket) -> bytes:
        """Return the first line and the header section of a response; what follows stays in the socket."""
        head = bytearray()
        while not head.endswith((b"\r\n\r\n", b"\n\n")):
            if len(head) >= MAX_HEAD_BYTES:
                raise self._failed("sends an endless header section")
            head += await _read(sock, 1)
            if not _HTTP.startswith(head[: len(_HTTP)]):
                break  # another protocol, which may have no lines
        return bytes(head)

    def _unauthorised(self, said: str, schemes: set[str]) -> OpenError:
        if schemes and "basic" not in schemes:
            offered = quoted(", ".join(sorted(schemes)))
            return self._error(Cause.PROXY_PASSWORD, f"wants a password by {offered}, and we know Basic alone")
        return self._wants_password(said)

    # SOCKS5.

    async def _socks(self, sock: socket.socket, host: str, port: int) -> None:
        credentials = self._url.credentials
        methods = [_NO_PASSWORD] if credentials is None else [_NO_PASSWORD, _PASSWORD]
        await _send(sock, bytes([_VERSION, len(methods), *methods]))
        version, method = await _read(sock, 2)
        if version != _VERSION:
            raise self._failed("does not speak SOCKS5; is it an HTTP proxy, or another program?")
        if method == _PASSWORD and credentials is not None:
            user, password = (each.encode() for each in credentials)
            await _send(sock, bytes([1, len(user)]) + user + bytes([len(password)]) + password)
            _, status = await _read(sock, 2)
            if status:
                raise self._wants_password("")
        elif method == _NONE:
            raise self._wants_password("")
        elif method != _NO_PASSWORD:
            raise self._failed(f"has chosen method {method}, which was not offered")
        await _send(sock, bytes([_VERSION, 1, 0]) + _socks_address(host) + port.to_bytes(2, "big"))
        await self._read_reply(sock, str(Address(host, port)))

    async def _read_reply(self, sock: socket.socket, where: str) -> None:
        version, reply, _ = await _read(sock, 3)  # all that some proxies send of a failure
        if version != _VERSION:
            raise self._failed("does not speak SOCKS5")
        if reply == _SOCKS_REFUSED:
            raise self._refused(where, "not allowed by its rules")
        if reply:
            raise self._cannot_reach(where, _SOCKS_FAILURES.get(reply, f"reply {reply}"))
        (kind,) = await _read(sock, 1)
        size = _ADDRESS_BYTES.get(kind)
        if size is None:
            (size,) = await _read(sock, 1)
        await _read(sock, size + 2)

    # Errors.

    def _unreachable(self, why: str) -> OpenError:
        return OpenError(Cause.PROXY_UNREACHABLE, f"cannot reach {self._title}: {why}")

    def _wants_password(self, said: str) -> OpenError:
        what = "wants a password" if self._url.credentials is None else "rejects our user or password"
        return self._error(Cause.PROXY_PASSWORD, f"{what} ({said})" if said else what)

    def _refused(self, where: str, why: str) -> OpenError:
        return self._error(Cause.PROXY_REFUSED, f"refuses to connect us to {where}: {why}")

    def _cannot_reach(self, where: str, why: str) -> OpenError:
        return self._error(Cause.UNREACHABLE, f"cannot reach {where}: {why}")

    def _failed(self, what: str) -> OpenError:
        return self._error(Cause.PROXY_FAILED, what)

    def _error(self, cause: Cause, what: str) -> OpenError:
        return OpenError(cause, f"{self._title} {what}")


def client_of(proxies: ProxyConfig, broker: Address) -> ProxyClient | None:
    """Return the client of the proxy for a broker; None if there is none."""
    url = proxies.of(broker)
    return None if url is None else ProxyClient(url)


def _socks_address(host: str) -> bytes:
    """Return a host with its type before it (RFC 1928, 5)."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        name = host.encode("ascii")  # names that are configured have no other characters
        return bytes([3, len(name)]) + name
    return bytes([1 if address.version == 4 else 4]) + address.packed


async def _send(sock: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(sock, data)


async def _read(sock: socket.socket, count: int) -> bytes:
    """Read so many bytes.

    Raises:
        OSError: the proxy has closed the connection before.
    """
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < count:
        more = await loop.sock_recv(sock, count - len(data))
        if not more:
            raise ConnectionResetError(
                errno.ECONNRESET, "in the middle of its response" if data else "without a response"
            )
        data += more
    return data
