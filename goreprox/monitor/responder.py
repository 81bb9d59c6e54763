"""A small HTTP server for programs that watch a process: each connection is one request without a body.

Anybody may connect, so all of it is bounded. A client that comes when there are too many takes the place of the one
that has been there longest: those that hold connections cannot keep a probe out, which sends its request at once.
"""

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Final, NamedTuple, Self

from goreprox.monitor.acceptor import Acceptor

HEAD_BYTES: Final = 8192
"""Of the header section of a request. asyncio reads at most twice as much."""
TIMEOUT_S: Final = 5.0
"""A client that has not sent its request by then, or not taken the response, is disconnected."""
_NAME: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_HEAD: Final = re.compile(
    rf"(?P<method>{_NAME}) (?P<path>/[!->@-~]*)(?:\?(?P<query>[!-~]*))? HTTP/1\.[01]\r\n"
    rf"(?P<fields>(?:{_NAME}:[\t -~\x80-\xff]*\r\n)*)\r\n"
)
"""RFC 9112, 3 and 5, without obsolete forms. Nobody else reads these requests, and nothing follows one."""


class Request(NamedTuple):
    """The head of a request."""

    method: str
    path: str
    query: str
    fields: Mapping[str, str]
    """By names in lower case; of several with one name the last."""

    @classmethod
    def parse(cls, head: str) -> Self | None:
        """Read a request to the end of its blank line; None if it is none."""
        found = _HEAD.fullmatch(head)
        if found is None:
            return None
        fields = (line.partition(":") for line in found["fields"].split("\r\n")[:-1])
        by_name = {name.lower(): value.strip(" \t") for name, _, value in fields}
        return cls(found["method"], found["path"], found["query"] or "", by_name)


class Response(NamedTuple):
    """What a client gets."""

    status: HTTPStatus
    text: str
    kind: str = "text/plain; charset=utf-8"
    field: str = ""
    """A further header field."""


Respond = Callable[[Request], Awaitable[Response]]
"""Responds to a GET request, and bounds its own time."""
_METHODS: Final = ("GET", "HEAD")
_NOT_ALLOWED: Final = Response(
    HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD are supported\n", field=f"Allow: {', '.join(_METHODS)}"
)
_MALFORMED: Final = Response(HTTPStatus.BAD_REQUEST, "the request is malformed\n")
_FAULT: Final = Response(HTTPStatus.INTERNAL_SERVER_ERROR, "a fault, which is in the log\n")


class Responder(Acceptor):
    """Serves the clients of listening sockets, which stay the caller's."""

    def __init__(self, respond: Respond) -> None:
        super().__init__()
        self._respond = respond

    async def serve_client(self, sock: socket.socket) -> None:
        """Serve one client."""
        with sock:
            reader, writer = await asyncio.open_connection(sock=sock, limit=HEAD_BYTES)
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    head = await reader.readuntil(b"\r\n\r\n")
                data = await self._reply(head)
                async with asyncio.timeout(TIMEOUT_S):
                    writer.write(data)
                    writer.close()
                    await writer.wait_closed()
            except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                pass  # it is the client that is not served
            finally:
                writer.transport.abort()

    async def _reply(self, head: bytes) -> bytes:
        request = Request.parse(head.decode("latin-1"))
        if request is None:
            return _encoded(_MALFORMED)
        if request.method not in _METHODS:
            return _encoded(_NOT_ALLOWED)
        try:
            response = await self._respond(request)
        except Exception as exc:  # noqa: BLE001 -- a bug must not end more than the request
            self._loop.call_exception_handler({"message": "responding", "exception": exc})
            response = _FAULT
        return _encoded(response, body=request.method == "GET")


def _encoded(response: Response, *, body: bool = True) -> bytes:
    content = response.text.encode()
    lines = [
        f"HTTP/1.1 {response.status.value} {response.status.phrase}",
        f"Content-Type: {response.kind}",
        f"Content-Length: {len(content)}",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "Connection: close",
        *([response.field] if response.field else []),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + (content if body else b"")
