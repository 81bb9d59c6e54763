"""The sockets on which clients are accepted. Clients beyond the limit wait in the kernel's backlog."""

import asyncio
import contextlib
import errno
import functools
import socket
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from brokers import LimitedLog
from goreprox.config.addresses import Address, Listener
from goreprox.endpoint import Endpoint
from goreprox.errors import StartError
from goreprox.net import sockets
from goreprox.net.poller import READ, Poller
from goreprox.protocol.errors import ExportError

ACCEPTS = 16
"""Connections accepted per socket in one turn of the loop: provider and target begin to serve these while others are
accepted."""
BACKLOG = 1024
FD_PAUSE_S = 0.5
"""How long accepting pauses when there are no file descriptors, unless a connection ends earlier."""
_NO_FDS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

Accepted = Callable[[socket.socket, Endpoint, Listener], None]
"""Takes over a client's socket, with its address and the listener that accepted it."""


@dataclass(frozen=True, slots=True, eq=False)
class Open:
    """The sockets of a listener: one for each version of IP."""

    listener: Listener
    sockets: list[socket.socket]

    @classmethod
    def restore(cls, item: object) -> "Open":
        """Return the sockets of an item of `Listeners.export`, which this process has inherited.

        Raises:
            ExportError: it is something else.
        """
        match item:
            case [str(text), [*descriptors]]:
                found = [sockets.restored(each) for each in descriptors if isinstance(each, int)]
                return cls(Listener.restore(text), found)
        raise ExportError("malformed listener in the export")

    def close(self) -> None:
        """Close them."""
        for sock in self.sockets:
            sock.close()


class Listeners:
    """Owns the listening sockets, and accepts clients while there is room for them."""

    def __init__(
        self,
        listeners: Sequence[Listener],
        poller: Poller,
        *,
        reuse_port: bool,
        accepted: Accepted,
        has_room: Callable[[Listener], bool],
        inherited: Sequence[Open] = (),
    ) -> None:
        """Listen on all addresses; `start` begins to accept. With `reuse_port` other processes may do so, too.

        Sockets that are `inherited` are used where they fit, and closed otherwise.

        Raises:
            StartError: an address cannot be listened on.
        """
        self._poller = poller
        self._accepted = accepted
        self._has_room = has_room
        self._loop = asyncio.get_running_loop()
        self._watched: set[socket.socket] = set()
        """Sockets at which clients are accepted."""
        self._accepting = False
        """Whether these are all."""
        self._closed = False
        self._log = LimitedLog()
        self._retry: asyncio.TimerHandle | None = None
        """Ends the pause for want of file descriptors."""
        self._reuse_port = reuse_port
        self._held: Callable[[Listener], bool] = lambda _listener: False
        """Whether clients of a listener wait in its backlog for now."""
        self._draining = False
        self.for_links: Callable[[Listener], bool] = lambda _listener: False
        """Whether links come to a listener, too: it may use spare descriptors, and stays open while clients drain."""
        self._open = list(inherited)
        self._open = self.open(listeners)
        kept = {sock for each in self._open for sock in each.sockets}
        for each in inherited:
            if not kept.issuperset(each.sockets):
                each.close()

    @property
    def _sockets(self) -> list[tuple[socket.socket, Listener]]:
        return [(sock, each.listener) for each in self._open for sock in each.sockets]

    def open(self, listeners: Sequence[Listener]) -> list["Open"]:
        """Return sockets for other listeners, for `switch`: those that are open already, and new ones.

        Published ports stay, unless a listener has the port.

        Raises:
            StartError: an address cannot be listened on; nothing has changed.
        """
        kept, rest = _kept(self._open, listeners)
        static = [each for each in rest if not each.listener.is_published]
        found: list[Open] = []
        try:
            for listener, before in zip(listeners, kept, strict=True):
                found.append(self._opened(listener, static) if before is None else Open(listener, before.sockets))
        except StartError:
            for each, before in zip(found, kept, strict=False):
                if before is None:
                    each.close()
            raise
        return [*found, *(each for each in rest if each.listener.is_published)]

    def publish(self, ports: Collection[int]) -> dict[int, str]:
        """Accept clients at these published ports, and at no other ones; return why some cannot be listened at."""
        if self._closed or self._draining:
            return {}
        opened = [each for each in self._open if not each.listener.is_published or each.listener.address.port in ports]
        present = {each.listener for each in opened}
        failed: dict[int, str] = {}
        for port in ports:
            listener = Listener(Address(None, port), "")
            if listener not in present:
                try:
                    opened.append(self._opened(listener, ()))
                except StartError as exc:
                    failed[port] = str(exc)
        if opened != self._open:
            self.switch(opened)
        return failed

    def _opened(self, listener: Listener, removed: Sequence["Open"]) -> "Open":
        for each in removed:
            if each.listener.address.overlaps(listener.address):
                raise StartError(
                    f"listen {listener.text}: this process has the port as listen {each.listener.text}; remove that in "
                    "a reload of its own, and then add this"
                )
        return Open(listener, bound("listen", listener.address, reuse_port=self._reuse_port, listening=True))

    def successors(self, opened: Sequence["Open"]) -> dict[Listener, Listener]:
        """Return which listeners have the sockets of which ones, after a `switch`."""
        after = {sock: each.listener for each in opened for sock in each.sockets}
        return {listener: after[sock] for sock, listener in self._sockets if sock in after}

    def switch(self, opened: list["Open"]) -> None:
        """Accept at the sockets of `open` from now on; close the others, once their backlogs are accepted."""
        was_accepting = self._accepting or bool(self._watched)
        self._pause()
        before, self._open = self._open, opened
        kept = {sock for each in opened for sock in each.sockets}
        for each in before:
            if not kept.issuperset(each.sockets):
                self._drain(each)
                each.close()
        if was_accepting:
            self.start()

    @property
    def ports(self) -> list[int]:
        """The ports, in the order of the configuration."""
        return list(dict.fromkeys(sock.getsockname()[1] for sock, _ in self._sockets))

    @property
    def found(self) -> list[tuple[Listener, int]]:
        """The listeners, each with the port of its socket."""
        return [(listener, sock.getsockname()[1]) for sock, listener in self._sockets]

    @property
    def addresses(self) -> list[tuple[Listener, Endpoint]]:
        """The listeners, each with the address of its socket; empty once they are closed."""
        return [(listener, Endpoint(*sock.getsockname()[:2])) for sock, listener in self._sockets]

    def start(self) -> None:
        """Accept clients, or accept them again: there is room."""
        if not self._accepting and not self._closed:
            self._accepting = True
            for sock, listener in self._sockets:
                if sock not in self._watched and not self._held(listener):
                    self._watched.add(sock)
                    self._poller.watch(sock.fileno(), READ, functools.partial(self._ready, sock, listener))

    def hold(self, held: Callable[[Listener], bool]) -> None:
        """Let the clients of these listeners wait in the backlogs from now on."""
        was_accepting = self._accepting or bool(self._watched)
        self._pause()
        self._held = held
        if was_accepting:
            self.start()

    def export(self, *, payload: bool) -> list[object]:
        """Return the listeners, with `payload` also the descriptors of their sockets; `Open.restore` reads each."""
        return [
            [each.listener.text, [sock.fileno() for sock in each.sockets] if payload else []] for each in self._open
        ]

    def release(self) -> None:
        """Leave the sockets to the code that takes over; nothing may follow."""
        self._pause()
        self._closed = True
        for sock, _ in self._sockets:
            sock.detach()
        self._open = []

    @property
    def descriptors(self) -> list[int]:
        """Those of all sockets."""
        return [sock.fileno() for sock, _ in self._sockets]

    def _pause(self) -> None:
        self._accepting = False
        for sock in list(self._watched):
            self._leave(sock)

    def _leave(self, sock: socket.socket) -> None:
        """Accept at this socket no longer, until the next `start`."""
        self._accepting = False
        if sock in self._watched:
            self._watched.remove(sock)
            self._poller.forget(sock.fileno())

    def drain(self) -> None:
        """Accept the clients in the backlogs, which the kernel would reset, and close, but where links come."""
        self._draining = True
        kept = [each for each in self._open if self.for_links(each.listener)]
        if kept:
            self.switch(kept)
            return
        for each in self._open:
            self._drain(each)
        self.close()

    def _drain(self, listening: "Open") -> None:
        for sock in listening.sockets:
            try:
                self._accept(sock, listening.listener, BACKLOG)
            except OSError as exc:
                where = listening.listener.address
                self._log.say("drain", f"clients waiting at {where} were not accepted: {exc.strerror}")

    def close(self) -> None:
        """Close the listening sockets."""
        self._pause()
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
        for each in self._open:
            each.close()
        self._open = []

    def _ready(self, listening: socket.socket, listener: Listener, _: int) -> None:
        if listening in self._watched:  # it may have been closed in this turn
            self._accept(listening, listener, ACCEPTS)

    def _accept(self, listening: socket.socket, listener: Listener, most: int) -> None:
        for _ in range(most):
            if not self._has_room(listener):
                self._leave(listening)
                return
            try:
                if not self.for_links(listener):
                    sockets.keep_spare_descriptors(listening)
                sock, address = listening.accept()
            except ConnectionAbortedError:
                continue  # others may be waiting behind this one
            except (BlockingIOError, InterruptedError):
                return
            except OSError as exc:
                if exc.errno not in _NO_FDS:
                    raise
                self._pause_without_descriptors(exc)
                return
            self._accepted(sock, Endpoint(*address[:2]), listener)

    def _pause_without_descriptors(self, exc: OSError) -> None:
        text = f"no file descriptor for another client ({exc.strerror}): new clients wait; raise ulimit -n"
        self._log.say("no_descriptors", text)
        self._pause()
        if self._retry is None:
            self._retry = self._loop.call_later(FD_PAUSE_S, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        self.start()


def _kept(opened: Sequence[Open], listeners: Sequence[Listener]) -> tuple[list[Open | None], list[Open]]:
    """Return the sockets that each listener can have, and the rest: those of the same one, else of the same address."""
    rest = list(opened)
    kept: list[Open | None] = [None] * len(listeners)
    for exactly in (True, False):
        for index, listener in enumerate(listeners):
            if kept[index] is None:
                kept[index] = next((each for each in rest if _fits(each.listener, listener, exactly=exactly)), None)
                rest = [each for each in rest if each is not kept[index]]
    return kept, rest


def _fits(before: Listener, after: Listener, *, exactly: bool) -> bool:
    return before == after if exactly else before.address == after.address


def try_address(option: str, address: Address) -> None:
    """Find out whether an address, the value of `option`, could be listened on; nobody can connect meanwhile.

    Raises:
        StartError: it is taken, not allowed, or not an address of this machine.
    """
    for sock in bound(option, address, reuse_port=False, listening=False):
        sock.close()


def bound(option: str, address: Address, *, reuse_port: bool, listening: bool) -> list[socket.socket]:
    """Return sockets for an address, the value of `option`: one for IPv4 and one for IPv6 where the host is both.

    Raises:
        StartError: it is taken, not allowed, or not an address of this machine.
    """
    socks: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        port = address.port
        for family, _, _, _, where in dict.fromkeys(found):
            try:
                sock = socket.socket(family, socket.SOCK_STREAM)
            except OSError:
                continue  # this kernel has no IPv6
            socks.append(sock)
            sockets.prepare(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse_port:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                sock.bind((where[0], port, *where[2:]))
            except OSError as exc:
                if exc.errno == errno.EADDRNOTAVAIL and address.host is None:
                    socks.pop().close()  # no IPv6 address on this machine
                    continue
                raise
            if listening:
                sock.listen(BACKLOG)
            port = sock.getsockname()[1]
    except OSError as exc:
        for sock in socks:
            with contextlib.suppress(OSError):
                sock.close()
        what = f"cannot listen for {option} on" if option != "listen" else "cannot listen for clients on"
        raise StartError(f"{what} {address}: {exc.strerror}; {_advice(exc.errno, option)}") from exc
    return socks


def _advice(code: int | None, option: str) -> str:
    match code:
        case errno.EADDRINUSE:
            return f"choose another port with --{option}, or stop the program that has it"
        case errno.EACCES:
            return (
                f"ports below 1024 need privileges: choose a higher one with --{option}, or grant CAP_NET_BIND_SERVICE"
            )
        case _:
            return f"give an address of this machine to --{option}"
