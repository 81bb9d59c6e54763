"""The HTTP server of the dashboard: aiohttp at sockets that are accepted here, so that all of it is bounded.

A connection is one request. One that does not send it in time, or does not take the response, is closed, and one that
may be anybody's is closed for another where there are too many (`Acceptor`).
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from http import HTTPStatus
from typing import Final

from aiohttp import web

from goreprox.monitor.acceptor import CLOSE_S, Acceptor

TIMEOUT_S: Final = 5.0
"""For a TLS handshake, for a request, and for a response to be taken."""
HEAD_BYTES: Final = 8190
"""Of the first line, and of each header field."""
HEADERS: Final = 64
"""In a request: with their names and values at most 64 x 8 KiB = 512 KiB for each of 64 clients."""
BODY_BYTES: Final = 65_536
"""Of a request."""
FIELDS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Server": "goreprox",
    "X-Content-Type-Options": "nosniff",
}
"""Sent with every response: no script but the files of the page, no text that becomes a script, no frame around it."""
_QUIET: Final = logging.getLogger(f"{__name__}.requests")
"""Logs nothing: malformed requests would fill the log, and faults of ours are logged here."""
_QUIET.disabled = True
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Routes = Iterable[web.RouteDef]


class _Connection(web.RequestHandler):
    """A client's connection, and the task that owns it."""

    __slots__ = ("client", "closed")
    client: "asyncio.Task[None] | None"
    closed: asyncio.Event

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = HTTPStatus.BAD_REQUEST,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Respond to a request that is malformed or too long, without telling more of it."""
        if request.writer.output_size > 0:
            raise ConnectionError from exc
        response = text(HTTPStatus(status), "the request is malformed\n")
        response.headers.update(FIELDS)
        response.force_close()
        return response

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self.closed.set()


class WebServer(Acceptor):
    """Serves routes to the clients of listening sockets."""

    def __init__(self, routes: Routes, tls: Callable[[], ssl.SSLContext] | None = None) -> None:
        """Serve `routes`, within TLS if `tls` returns the context for a handshake."""
        super().__init__()
        application = web.Application(middlewares=[_contained], client_max_size=BODY_BYTES)
        application.add_routes(routes)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=CLOSE_S)
        self._tls = tls

    async def start(self) -> None:
        """Become able to serve."""
        await self._runner.setup()

    async def close(self) -> None:
        """Serve those who have connected, if that takes no longer than `CLOSE_S`, and nobody else."""
        await super().close()
        await self._runner.cleanup()

    async def serve_client(self, sock: socket.socket) -> None:
        """Serve one client."""
        connection: _Connection | None = None
        try:
            context = None if self._tls is None else self._tls()
            _, connection = await self._loop.connect_accepted_socket(
                self._made, sock, ssl=context, ssl_handshake_timeout=None if context is None else TIMEOUT_S
            )
            await connection.closed.wait()
        except OSError:
            pass  # its handshake has failed
        finally:
            if connection is not None and connection.transport is not None:
                connection.transport.abort()

    def _made(self) -> _Connection:
        server = self._runner.server
        assert server is not None
        made = _Connection(
            server,
            loop=self._loop,
            keepalive_timeout=TIMEOUT_S,
            lingering_time=0.0,
            logger=_QUIET,
            access_log=None,  # type: ignore[arg-type] # none is written
            max_line_size=HEAD_BYTES,
            max_field_size=HEAD_BYTES,
            max_headers=HEADERS,
            auto_decompress=False,
        )
        made.client = asyncio.current_task()
        made.closed = asyncio.Event()
        return made

    def keep(self, request: web.BaseRequest) -> None:
        """Let no other client take the place of the one that has sent a request."""
        connection = request.protocol
        assert isinstance(connection, _Connection)
        if connection.client is not None:
            self.retain(connection.client)


@web.middleware
async def _contained(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Respond in time, with the fields of every response; a fault ends no more than the request."""
    try:
        response = await handler(request)
    except web.HTTPException as exc:
        allowed = {"Allow": exc.headers["Allow"]} if "Allow" in exc.headers else {}
        response = text(HTTPStatus(exc.status), f"{exc.reason}\n", **allowed)
    except (ConnectionResetError, asyncio.CancelledError):
        raise
    except Exception as exc:  # noqa: BLE001 -- a bug must not end more than the request
        asyncio.get_running_loop().call_exception_handler({"message": "responding", "exception": exc})
        response = text(HTTPStatus.INTERNAL_SERVER_ERROR, "a fault, which is in the log\n")
    if response.prepared:
        return response
    response.headers.update(FIELDS)
    response.force_close()
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await response.prepare(request)
            await response.write_eof()
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
    return response


def text(status: HTTPStatus, body: str, kind: str = "text/plain; charset=utf-8", **fields: str) -> web.Response:
    """Return a response of a text."""
    headers = {"Content-Type": kind} | {name.replace("_", "-"): value for name, value in fields.items()}
    return web.Response(status=status, text=None, body=body.encode(), headers=headers)
