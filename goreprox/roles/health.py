"""Whether this process is alive and ready, for programs that watch it: at `--health` and on the control socket."""

import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator
from http import HTTPStatus
from typing import NamedTuple, Self

from loguru import logger

from goreprox.config.addresses import Address
from goreprox.control.message import Request as Ask
from goreprox.control.socket import Commands
from goreprox.errors import StartError
from goreprox.monitor.acceptor import listening
from goreprox.monitor.health import Report, probe
from goreprox.monitor.responder import Request, Responder, Response
from goreprox.net.listeners import try_address
from goreprox.process.lifetime import Lifetime


class Readiness:
    """Judges whether clients, or streams, can be given to this process."""

    def __init__(
        self,
        life: Lifetime,
        *,
        down_s: Callable[[], float] = lambda: 0.0,
        grace_s: Callable[[], float] = lambda: 0.0,
        missing: Callable[[], Iterable[str]] = tuple,
        draining: Callable[[], bool] = lambda: False,
    ) -> None:
        """Judge by `life`, and by how long no link to a broker has been up, where there are links.

        `missing` returns the services without a provider. They are told, but clients wait for one.
        """
        self._life = life
        self._down_s = down_s
        self._grace_s = grace_s
        self._missing = missing
        self._draining = draining

    async def __call__(self) -> Report:
        """Return what holds now."""
        return Report(self._reason, sorted(self._missing()))

    @property
    def _reason(self) -> str | None:
        life = self._life
        if life.stop.is_set() and not life.replaced:
            return "it is shutting down"
        if not life.was_ready:
            return "it is starting"
        if self._draining():
            return "it is draining"
        down_s = self._down_s()
        return None if down_s <= self._grace_s() else f"no link to a broker for {down_s:.0f} s"


class Listening(NamedTuple):
    """The sockets of an address, which the next code gets at an upgrade."""

    address: str | None
    """None if there is none."""
    descriptors: list[int]


class Health:
    """Listens at `--health`, if anywhere, and serves the command `ready`; a context, while it does."""

    def __init__(
        self, address: Address | None, judge: Callable[[], Awaitable[Report]], before: Listening | None = None
    ) -> None:
        """Listen at `address`; `judge` says whether the process is ready.

        If the code before this one has listened there, its sockets go on; if another address cannot be listened on
        after an upgrade, so do they.

        Raises:
            StartError: the address cannot be listened on, and this is no upgrade.
        """
        self._judge = judge
        self._responder = Responder(self._respond)
        self._address = address
        inherited = [] if before is None else [socket.socket(fileno=each) for each in before.descriptors]
        if before is not None and _written(address) == before.address:
            self._sockets = inherited
            return
        try:
            self._sockets = _bound(address)
        except StartError as exc:
            if before is None:
                raise
            logger.bind(event="health_failed").error("{}; the address before stays: {}", exc, before.address)
            self._address = None if before.address is None else Address.parse(before.address)
            self._sockets = inherited
            return
        _close(inherited)

    @property
    def commands(self) -> Commands:
        """What the control socket serves."""
        return {"ready": self._serve}

    async def _serve(self, _: Ask) -> object:
        return {"pid": os.getpid()} | (await self._judge()).encoded()

    async def _respond(self, request: Request) -> Response:
        return await probe(request, self._judge) or Response(HTTPStatus.NOT_FOUND, "there are /live and /ready\n")

    async def __aenter__(self) -> Self:
        self._serve_at(self._sockets)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._responder.close()
        _close(self._sockets)

    @contextlib.contextmanager
    def moved_to(self, address: Address | None) -> Iterator[None]:
        """Listen at another address, and from the end of the context on no longer at this one, unless it raises.

        Raises:
            StartError: it cannot be listened on; nothing has changed.
        """
        if address == self._address:
            yield
            return
        opened = _bound(address)
        try:
            yield
        except BaseException:
            _close(opened)
            raise
        before = self._sockets
        self._address, self._sockets = address, opened
        self._serve_at(opened)
        for sock in before:
            self._responder.leave(sock)
        _close(before)

    def _serve_at(self, socks: Iterable[socket.socket]) -> None:
        for sock in socks:
            self._responder.serve(sock)
        for port in {sock.getsockname()[1] for sock in socks}:
            logger.bind(event="health", health=port).info("responding to /live and /ready on port {}", port)

    @property
    def listening(self) -> Listening:
        """The address and its sockets, which the code that takes over gets once they are released."""
        return Listening(_written(self._address), [sock.fileno() for sock in self._sockets])

    def release(self) -> None:
        """Leave the sockets to the code that takes over; clients wait in their backlogs."""
        for sock in self._sockets:
            self._responder.leave(sock)
            sock.detach()
        self._sockets = []


def check_moved(address: Address | None, before: Listening) -> None:
    """Find out, for an upgrade, whether `address` could be listened on, unless the process has it already.

    Raises:
        StartError: it could not.
    """
    if address is not None and _written(address) != before.address:
        try_address("health", address)


def _written(address: Address | None) -> str | None:
    return None if address is None else str(address)


def _bound(address: Address | None) -> list[socket.socket]:
    return [] if address is None else listening("health", address)


def _close(socks: Iterable[socket.socket]) -> None:
    for sock in socks:
        sock.close()
