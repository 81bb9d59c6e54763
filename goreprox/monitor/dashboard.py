"""Serves metrics, health and a page for people of the processes of a runtime directory, in a process of its own.

It asks them by their control sockets, so that it never slows their connections down.
"""

import asyncio
import contextlib
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from typing import Final

from aiohttp import web
from loguru import logger

from goreprox.config.addresses import WILDCARDS, Address, Scheme
from goreprox.config.dashboard import DashboardConfig
from goreprox.config.names import default_name
from goreprox.control.message import Request as Ask
from goreprox.control.socket import ControlSocket
from goreprox.monitor.acceptor import listening
from goreprox.monitor.collector import Collector
from goreprox.monitor.guard import Guard
from goreprox.monitor.health import probe
from goreprox.monitor.metrics import Process, written
from goreprox.monitor.page import Page
from goreprox.monitor.processes import Processes
from goreprox.monitor.responder import Request
from goreprox.monitor.sessions import Sessions
from goreprox.monitor.web import WebServer, text
from goreprox.net.certificates import Certificate
from goreprox.process import supervisor
from goreprox.process.lifetime import Lifetime

CONTROL: Final = "dashboard-{port}.0"
"""The control socket is named as that of a role is, whose name is the port."""


class Dashboard:
    """Responds for the processes of one runtime directory."""

    def __init__(self, config: DashboardConfig) -> None:
        """Serve `config`.

        Raises:
            StartError: the token or the certificate cannot be used.
        """
        self._config = config
        self._guard = Guard(config)
        self._processes = Processes(config.directory)
        self._sessions = Sessions(time.monotonic)
        self._tls = _contexts(config)
        self.port = 0
        """Where it listens."""
        self.routes: list[web.RouteDef] = []
        """What it responds to there."""

    @contextlib.asynccontextmanager
    async def at(self, address: Address) -> AsyncIterator[int]:
        """Respond at an address while in this context; its value is the port.

        Raises:
            StartError: the address cannot be listened on.
        """
        socks = listening("listen", address)
        self.port = socks[0].getsockname()[1]
        collector = Collector(self._config.directory, self._processes)
        page = Page(self._config, self._sessions, self._guard, collector, port=self.port)
        self.routes = [*self._programs, *page.routes]
        server = WebServer(self.routes, self._tls)
        page.keep = server.keep
        await server.start()
        for sock in socks:
            server.serve(sock)
        collecting = asyncio.create_task(collector.run(), name="collector")
        try:
            yield self.port
        finally:
            page.close()
            collecting.cancel()
            await server.close()
            await asyncio.wait([collecting])
            for sock in socks:
                sock.close()

    @property
    def _programs(self) -> list[web.RouteDef]:
        """What programs ask for."""
        return [web.get("/metrics", self._metrics), web.get("/live", self._probe), web.get("/ready", self._probe)]

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        if (refused := self._refusal(_read(request))) is not None:
            return refused
        known = await self._processes.known()
        found = [Process.named(each.who, each.document, ready=each.report.reason is None) for each in known]
        body, kind = written(found, request.headers.get("Accept", ""))
        return text(HTTPStatus.OK, body, kind)

    async def _probe(self, request: web.Request) -> web.StreamResponse:
        asked = _read(request)
        if asked.query and (refused := self._refusal(asked)) is not None:
            return refused
        response = await probe(asked, self._processes.report, self._processes.are_live)
        assert response is not None
        return text(response.status, response.text, response.kind)

    def _refusal(self, request: Request) -> web.Response | None:
        refused = self._guard.refusal(request)
        if refused is None:
            return None
        name, _, value = refused.field.partition(": ")
        return text(refused.status, refused.text, **({name: value} if name else {}))

    def invitation(self) -> str:
        """Return a URL that opens the page once."""
        return f"{self._origin}/#{self._sessions.invite()}"

    @property
    def _origin(self) -> str:
        if self._config.url is not None:
            return self._config.url.origin
        scheme = "http" if self._tls is None else "https"
        host = self._config.listen.host
        if host in WILDCARDS:
            host = "127.0.0.1" if self._tls is None else default_name()
        return f"{scheme}://{f'[{host}]' if host and ':' in host else host}:{self.port}"

    async def serve_invitation(self, _: Ask) -> object:
        """Serve the command `invite` of the control socket."""
        return {"url": self.invitation()}


def _read(request: web.Request) -> Request:
    fields = {name.lower(): value for name, value in request.headers.items()}
    return Request(request.method, request.path, request.query_string, fields)


def _contexts(config: DashboardConfig) -> Callable[[], ssl.SSLContext] | None:
    """Return a function that returns the context for a handshake; None: there is no TLS.

    Raises:
        StartError: the certificate cannot be used.
    """
    if config.tls_cert is None:
        return None
    certificate = Certificate(config.tls_cert, config.tls_key, None)
    return lambda: certificate.context(Scheme.HTTPS)


async def run(config: DashboardConfig) -> None:
    """Run a dashboard until a signal ends it, or standard input if it is a role's.

    Raises:
        StartError: the address cannot be listened on, or the token not be used.
    """
    dashboard, life = Dashboard(config), Lifetime()
    async with dashboard.at(config.listen) as port:
        with contextlib.suppress(OSError):
            config.directory.mkdir(mode=0o700, parents=True)
        lock = config.directory / CONTROL.format(port=port)
        control = await ControlSocket.open(lock, {"invite": dashboard.serve_invitation})
        with life:
            if config.of_role:
                asyncio.get_running_loop().add_reader(sys.stdin, life.stop.set)  # nothing is written to it
            told = f"the dashboard responds to /metrics, /live and /ready on port {port} for {config.directory}"
            logger.bind(event="dashboard", dashboard=port).info("{}", told)
            if sys.stdout.isatty():
                print(f"open it once, within ten minutes: {dashboard.invitation()}", flush=True)  # noqa: T201
            life.tell(supervisor.READY)
            await life.stop.wait()
        control.close()
