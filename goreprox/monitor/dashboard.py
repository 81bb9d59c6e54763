"""Serves metrics and health of the processes of a runtime directory, in a process of its own.

It asks them by their control sockets, at most once a second however many ask it, so that it never slows their
connections down.
"""

import asyncio
import contextlib
import hmac
import ipaddress
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Final, Generic, TypeVar

from loguru import logger

from brokers import LimitedLog
from goreprox.config.addresses import Address
from goreprox.config.dashboard import DashboardConfig
from goreprox.config.names import default_name
from goreprox.control.client import Reply, ask
from goreprox.errors import ControlError, GoreproxError, StartError
from goreprox.monitor.health import Answer, Report, ask_ready, probe
from goreprox.monitor.metrics import Process, written
from goreprox.monitor.responder import Request, Responder, Response, listening
from goreprox.process import supervisor
from goreprox.process.files import FileKind, read_file
from goreprox.process.lifetime import Lifetime
from goreprox.process.reloaded import Reloaded
from goreprox.status.query import is_document

T = TypeVar("T")
FRESH_S: Final = 1.0
"""For how long a response of the processes is told to others, too."""
TOKEN_CHARACTERS: Final = 16
"""At least; 64 bits, if they are hexadecimal and random."""
_TOKEN: Final = FileKind("a token", secret=True)


class Shared(Generic[T]):
    """Work whose result is shared by all who ask for it at the same time, or within `FRESH_S`."""

    def __init__(self, work: Callable[[], Awaitable[T]]) -> None:
        self._work = work
        self._task: asyncio.Task[T] | None = None
        self._until = 0.0

    async def get(self) -> T:
        """Return the result of work that has begun, or begins now."""
        loop = asyncio.get_running_loop()
        if self._task is None or (self._task.done() and loop.time() >= self._until):
            self._until = loop.time() + FRESH_S
            self._task = loop.create_task(self._run(), name="ask")
        return await asyncio.shield(self._task)

    async def _run(self) -> T:
        return await self._work()


class Guard:
    """Decides who gets data: who has the token or, where there is none, a program of this machine."""

    def __init__(self, config: DashboardConfig) -> None:
        """Read the token, if there is one; it is read again when it has changed.

        Raises:
            StartError: its file cannot be used.
        """
        self._hosts = {"localhost", default_name().lower(), (config.listen.host or "localhost").lower()}
        self._log = LimitedLog()
        self._token: Reloaded[str | None] | None = None
        """Its value is None while the file is wrong: then no token is valid."""
        if (path := config.token_file) is not None:
            self._token = Reloaded(lambda: [path], lambda _: _read_token(path), _read_token(path))

    def refusal(self, request: Request) -> Response | None:
        """Return what is said to a client that is not to get data."""
        if self._token is None:
            if self._is_ours(request.fields.get("host", "")):
                return None
            text = "ask for an address or for localhost: the Host is another one\n"
            return Response(HTTPStatus.MISDIRECTED_REQUEST, text)
        scheme, _, given = request.fields.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._is_token(self._token, given.strip()):
            return None
        return Response(
            HTTPStatus.UNAUTHORIZED, "a token is needed\n", field='WWW-Authenticate: Bearer realm="goreprox"'
        )

    def _is_token(self, token: Reloaded[str | None], given: str) -> bool:
        try:
            token.refresh()
        except (GoreproxError, OSError) as exc:
            token.value = None
            self._log.say("token_unreadable", f"{exc}; until it is repaired no token is valid", "ERROR")
        return token.value is not None and hmac.compare_digest(token.value.encode(), given.encode())

    def _is_ours(self, host: str) -> bool:
        """Whether a browser sends this Host for no page of another site, whose name leads here (DNS rebinding)."""
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name.lower() in self._hosts
        return True


def _read_token(path: Path) -> str:
    """Return the token of a file.

    Raises:
        StartError: it has none, or cannot be used.
    """
    try:
        token = read_file(path, _TOKEN).strip()
    except OSError as exc:
        raise StartError(f"token-file {path}: {exc.strerror}; write a token of your own into it") from exc
    if len(token) < TOKEN_CHARACTERS or not token.isprintable() or " " in token:
        raise StartError(
            f"token-file {path}: expected one word of at least {TOKEN_CHARACTERS} characters; "
            f"(umask 077; openssl rand -hex 32 >{path})"
        )
    return token


class Dashboard:
    """Responds to /metrics, /live and /ready for the processes of one runtime directory."""

    def __init__(self, config: DashboardConfig) -> None:
        """Serve `config`.

        Raises:
            StartError: the token cannot be used.
        """
        self._directory = config.directory
        self._guard = Guard(config)
        self._answers = Shared(self._ask_ready)
        self._metrics = Shared(self._ask_metrics)
        self._responder = Responder(self._respond)

    @contextlib.asynccontextmanager
    async def at(self, address: Address) -> AsyncIterator[int]:
        """Respond at an address while in this context; its value is the port.

        Raises:
            StartError: the address cannot be listened on.
        """
        socks = listening("listen", address)
        for sock in socks:
            self._responder.serve(sock)
        try:
            yield socks[0].getsockname()[1]
        finally:
            await self._responder.close()
            for sock in socks:
                sock.close()

    async def _respond(self, request: Request) -> Response:
        if request.path == "/metrics" or request.query:
            refused = self._guard.refusal(request)
            if refused is not None:
                return refused
        if request.path == "/metrics":
            text, kind = written(await self._metrics.get(), request.fields.get("accept", ""))
            return Response(HTTPStatus.OK, text, kind)
        response = await probe(request, self._report, self._is_live)
        return response or Response(HTTPStatus.NOT_FOUND, "there are /metrics, /live and /ready\n")

    async def _ask_ready(self) -> list[Answer]:
        try:
            return await ask_ready([self._directory])
        except ControlError as exc:  # there is none, or it is another user's
            return [Answer("", None, Report(str(exc), []))]

    async def _is_live(self) -> bool:
        return all(answer.pid is not None for answer in await self._answers.get())

    async def _report(self) -> Report:
        answers = await self._answers.get()
        reasons = [f"{answer.who}: {answer.report.reason}" for answer in answers if answer.report.reason is not None]
        missing = {service for answer in answers for service in answer.report.missing}
        return Report("; ".join(reasons).removeprefix(": ") or None, sorted(missing))

    async def _ask_metrics(self) -> list[Process]:
        answers, replies = await asyncio.gather(self._answers.get(), self._ask_status())
        ready = {answer.who for answer in answers if answer.report.reason is None}
        return [
            Process.named(reply.who, reply.result if is_document(reply.result) else None, ready=reply.who in ready)
            for reply in replies
        ]

    async def _ask_status(self) -> list[Reply]:
        with contextlib.suppress(ControlError):
            return await ask([self._directory], "status")
        return []


async def run(config: DashboardConfig) -> None:
    """Run a dashboard until a signal ends it, or standard input if it is a role's.

    Raises:
        StartError: the address cannot be listened on, or the token not be used.
    """
    dashboard, life = Dashboard(config), Lifetime()
    async with dashboard.at(config.listen) as port:
        with life:
            if config.of_role:
                asyncio.get_running_loop().add_reader(sys.stdin, life.stop.set)  # nothing is written to it
            text = f"the dashboard responds to /metrics, /live and /ready on port {port} for {config.directory}"
            logger.bind(event="dashboard", dashboard=port).info("{}", text)
            life.tell(supervisor.READY)
            await life.stop.wait()
