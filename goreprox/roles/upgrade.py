"""Replaces the code of a running role, whose connections go on: docs/upgrade.md."""

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, Self

from loguru import logger

from brokers import LinkIdentity, RemoteCarrier
from goreprox import __version__
from goreprox.config.process import ProcessConfig
from goreprox.control.message import Request, encode_error, encode_result
from goreprox.control.socket import Commands
from goreprox.errors import ControlError, GoreproxError, StartError
from goreprox.process import handover
from goreprox.process.clock import clock
from goreprox.process.feed import Feed
from goreprox.process.handover import Handover, Inherited
from goreprox.process.instance import Instance
from goreprox.process.lifetime import Lifetime
from goreprox.process.log import counted
from goreprox.protocol.errors import ExportError
from goreprox.protocol.fields import Fields
from goreprox.roles.health import Health, Listening
from goreprox.tunnel.driver import Driver, wait_until

RESUME_S = 30.0
"""How long the report of an upgrade waits for the peers; they may be away for longer."""


class Portable(Protocol):
    """An owner of connections, or of workers, that other code may go on with."""

    @property
    def connections(self) -> int:
        """How many are open."""

    async def end_what_stays(self) -> None:
        """Give connections that cannot be handed over time to end, then reset them."""

    def leave(self) -> list[int]:
        """Take nothing more from other processes; return what is handed over: sockets, or pipes."""

    def export(self, *, payload: bool) -> Iterator[object]:
        """Yield its state; with `payload` it lets go of the descriptors, and is of no use any more."""

    async def resumed(self) -> "Moved | None":
        """Wait, at the end of an upgrade, until all that was handed over goes on.

        Returns what went on, unless it is `connections` since the pause began.

        Raises:
            ControlError: a part of it runs the code before.
        """


class Moved(NamedTuple):
    """What an upgrade has meant for connections."""

    connections: int
    paused_s: float


class Order(NamedTuple):
    """What a parent hands to its worker for the code that takes its place."""

    command: list[str]
    """Starts that code; the first one is what the interpreter is called."""
    job: bytes
    """What that code is to do, in a form of its own."""


async def sessions_resumed(driver: Driver) -> None:
    """Wait until the sessions that have streams go on, at most `RESUME_S`."""
    peers = [peer for peer in driver.peers.values() if peer.session.streams]
    await wait_until(lambda: all(peer.session.established or peer.gone for peer in peers), deadline_s=RESUME_S)


@dataclass(frozen=True, slots=True)
class Before:
    """What the code before this one has left of the process, and the items of its owner of connections."""

    inherited: Inherited
    items: Iterator[object]
    version: str
    name: str
    incarnation: bytes
    predecessor: bytes | None
    lock: int
    lock_path: Path
    links: dict[str, LinkIdentity]
    """By label."""
    ports: dict[str, tuple[str, list[int]]]
    """Of a broker: by option, the address and the descriptors of the listening sockets."""
    health: Listening
    client: int | None
    """The descriptor of the connection over which the upgrade was asked for."""
    paused_at: float
    was_ready: bool
    connections: int

    @classmethod
    def read(cls, inherited: Inherited) -> Self:
        """Read the first item; every descriptor is closed on `execve` again.

        Raises:
            ExportError: it is not what `Upgrade` writes.
        """
        items = inherited.items()
        head = Fields(next(items, None))
        if not inherited.trial:
            for descriptor in head.items("descriptors"):
                if not isinstance(descriptor, int):
                    raise ExportError("malformed descriptors in the export")
                os.set_inheritable(descriptor, False)
        return cls(
            inherited=inherited,
            items=items,
            version=head.text("version"),
            name=head.text("name"),
            incarnation=head.data("incarnation"),
            predecessor=head.data_or_none("predecessor"),
            lock=head.count("lock"),
            lock_path=Path(head.text("lock_path")),
            links=dict(map(_link, head.items("links"))),
            ports=_ports(head.items("ports")),
            health=_listening(head),
            client=head.count_or_none("client"),
            paused_at=head.seconds("paused_at"),
            was_ready=head.flag("was_ready"),
            connections=head.count("connections"),
        )

    def instance(self, config: ProcessConfig, what: str) -> Instance:
        """Return the lock of this process, which is a `what` (server, edge, broker, provider).

        Raises:
            StartError: the runtime directory or the name has changed.
        """
        if (config.own_name, config.lock_dir) != (self.name, self.lock_path.parent):
            raise StartError(
                f"--name and --runtime-dir were {self.name} and {self.lock_path.parent} so far, and cannot change in "
                "an upgrade; restart the process for that"
            )
        if not self.lock_path.name.startswith(f"{what}-"):  # an edge without workers, or their parent
            raise StartError("--workers cannot change in an upgrade; restart the process for that")
        return Instance(
            self.lock,
            self.lock_path,
            role=what,
            name=self.name,
            incarnation=self.incarnation,
            predecessor=self.predecessor,
        )


def _link(item: object) -> tuple[str, LinkIdentity]:
    match item:
        case [str(label), bytes(nonce), int(attempt)]:
            return label, LinkIdentity(nonce, attempt)
    raise ExportError("malformed link in the export")


def _listening(head: Fields) -> Listening:
    """Return where the process has listened for programs that watch it; versions without --health have no field."""
    address = head.text_or_none("health")
    descriptors = [] if address is None else head.items("health_sockets")
    return Listening(address, [each for each in descriptors if isinstance(each, int)])


def _ports(items: Iterable[object]) -> dict[str, tuple[str, list[int]]]:
    found: dict[str, tuple[str, list[int]]] = {}
    for item in items:
        match item:
            case [str(option), str(address), int(descriptor)]:
                found.setdefault(option, (address, []))[1].append(descriptor)
            case _:
                raise ExportError("malformed port in the export")
    return found


class Passed(NamedTuple):
    """What a worker has from its parent for the code that takes its place."""

    job: bytes
    unread: bytes
    """Orders that this code has read from its parent, but not obeyed."""


def passed(inherited: Inherited) -> Passed:
    """Return what the code before has passed on.

    Raises:
        ExportError: it was no worker.
    """
    head = Fields(next(inherited.items(), None))
    return Passed(head.data("job"), head.data("unread"))


class Upgrade:
    """Hands a process over to the code that is installed when it is asked to."""

    def __init__(
        self,
        life: Lifetime,
        owner: Portable | None,
        instance: Instance,
        health: Health,
        *,
        links: Sequence[RemoteCarrier] = (),
        ports: Callable[[], Iterable[tuple[str, str, int]]] = tuple,
        feed: Feed | None = None,
    ) -> None:
        """Hand over what `owner` has, if there is one, with the lock of `instance` and the identities of `links`.

        `ports` yields what a broker listens on: option, address, and a duplicate of a descriptor, which is handed over.
        `feed` is told of an upgrade.
        """
        self._health = health
        self._life = life
        self._owner = owner
        self._feed = feed
        self._instance = instance
        self._links = links
        self._ports = ports
        self._held: list[tuple[str, str, int]] = []
        """Listening sockets that stay open when the broker closes its own."""
        self._client: int | None = None
        self._order = Order(sys.orig_argv, b"")
        self.unread: Callable[[], bytes] = bytes
        """Returns what a worker has read from its parent, but not obeyed; to be set before."""
        self.told: Callable[[object, str | None], None] = lambda _result, _problem: None
        """Called at the end of an upgrade with its result, and with what has gone wrong; to be set before."""
        self._busy = False
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def commands(self) -> Commands:
        """What the control socket serves."""
        return {"upgrade": self._serve}

    async def _serve(self, request: Request) -> object:
        client = os.dup(request.client)
        try:
            await self.prepare()
        except BaseException:
            os.close(client)
            raise
        self._client = client
        return await asyncio.get_running_loop().create_future()  # the code that takes over replies

    def signalled(self) -> None:
        """Upgrade on SIGUSR2; an error is in the log."""
        self._start(self._upgrade())

    async def _upgrade(self) -> None:
        with contextlib.suppress(GoreproxError):
            await self.prepare()

    async def prepare(self, order: Order | None = None) -> None:
        """Do all that may fail, end what cannot be handed over, and have the process replaced, if need be by `order`.

        Raises:
            ControlError: something is wrong with the new code, or this is not the time; nothing has changed.
        """
        try:
            if self._busy or self._life.stop.is_set():
                raise ControlError("an upgrade is in progress" if self._busy else "it is shutting down")
            self._busy = True
            self._order = order or self._order
            try:
                await self._check()
            except MemoryError as exc:
                raise ControlError("no memory for the check of the new code; nothing has changed") from exc
            finally:
                self._busy = False
        except ControlError as exc:
            logger.bind(event="upgrade_failed").error("no upgrade: {}", exc)
            raise

    async def _check(self) -> None:
        state = handover.write(self._items([], self._health.listening, payload=False))
        try:
            version = await handover.preflight(state, self._order.command)
        finally:
            os.close(state)
        with self._reserved():
            logger.bind(event="upgrading", version=version).info("upgrading from {} to {}", __version__, version)
            if self._owner is not None:
                await self._life.unless_stopped(self._owner.end_what_stays())
        if self._life.stop.is_set():
            raise ControlError("it is shutting down")
        self._held = self._take_ports()
        self._life.replace()

    @contextlib.contextmanager
    def _reserved(self) -> Iterator[None]:
        """Reserve the descriptors of `_take_ports`, and no port: a rotation of keys opens each anew."""
        with contextlib.ExitStack() as stack:
            for *_, descriptor in self._take_ports():
                stack.callback(os.close, descriptor)
                os.dup2(self._instance.descriptor, descriptor)
            yield

    def _take_ports(self) -> list[tuple[str, str, int]]:
        found: list[tuple[str, str, int]] = []
        try:
            found.extend(self._ports())
        except OSError as exc:
            for *_, descriptor in found:
                os.close(descriptor)
            raise ControlError(f"no descriptor for a port: {exc.strerror}; raise ulimit -n") from exc
        return found

    def _items(self, descriptors: list[int], listening: Listening, *, payload: bool) -> Iterator[object]:
        instance = self._instance
        yield {
            "version": __version__,
            "name": instance.name,
            "incarnation": instance.incarnation,
            "predecessor": instance.predecessor,
            "lock": descriptors[0] if descriptors else 0,
            "lock_path": str(instance.path),
            "links": [[link.label, *link.identity] for link in self._links if link.identity is not None],
            "health": listening.address,
            "health_sockets": listening.descriptors,
            "client": self._client,
            "paused_at": clock(),
            "was_ready": self._life.was_ready,
            "ports": self._held,
            "job": self._order.job,
            "unread": self.unread(),
            "connections": 0 if self._owner is None else self._owner.connections,
            "descriptors": descriptors,
        }
        if self._owner is not None:
            yield from self._owner.export(payload=payload)

    def handover(self) -> Handover | None:
        """Return what the next code needs, None if none is to take over. The links are closed; nothing may follow."""
        if not self._life.replaced:
            return None
        listening = self._health.listening
        descriptors = [self._instance.detach(), *(descriptor for *_, descriptor in self._held), *listening.descriptors]
        if self._owner is not None:
            descriptors += self._owner.leave()
        if self._client is not None:
            descriptors.append(self._client)

        def items() -> Iterator[object]:
            return self._items(descriptors, listening, payload=True)

        try:
            return Handover(handover.write(items()), descriptors, self._order.command)
        except ControlError as exc:
            return Handover(-1, descriptors, kept=items, problem=str(exc))
        finally:
            self._health.release()

    def took_over(self, before: Before) -> None:
        """Report the upgrade that has led here, once all goes on."""
        before.inherited.close()
        self._life.was_ready = before.was_ready
        self._busy = True
        self._start(self._report(before))

    async def _report(self, before: Before) -> None:
        moved = None
        problem = before.inherited.problem
        if problem is None and self._owner is not None:
            try:
                moved = await self._owner.resumed()
            except ControlError as exc:
                problem = str(exc)
                logger.bind(event="upgrade_failed").error("{}", problem)
        self._busy = False
        connections, paused_s = moved or (before.connections, round(clock() - before.paused_at, 3))
        result = {"from": before.version, "to": __version__, "connections": connections, "paused_s": paused_s}
        if problem is None:
            went_on = f"{counted(connections, 'connection')} went on after {paused_s:g} s"
            text = f"upgraded from {before.version} to {__version__}: {went_on}"
            logger.bind(event="upgraded", **result).info("{}", text)
            if self._feed is not None:
                self._feed.add("upgraded", text, result)
        self.told(result, problem)
        if before.client is not None:
            reply = encode_result(result) if problem is None else encode_error(ControlError(problem))
            with contextlib.suppress(OSError):
                os.write(before.client, reply)  # small enough for the socket of a client that has read nothing yet
            os.close(before.client)

    def _start(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, name="upgrade")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
