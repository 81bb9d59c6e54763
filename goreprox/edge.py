"""The edge: accepts clients and gives each to a provider of its service, at once or when one comes."""

import asyncio
import contextlib
import errno
import random
import socket

from loguru import logger

from brokers import Role
from goreprox import sockets
from goreprox.bridge import Bridge, Bridges
from goreprox.config import Address, Listener, ServerConfig
from goreprox.driver import Driver, Peer, clock
from goreprox.errors import StartError
from goreprox.protocol.budget import Budget
from goreprox.protocol.stream import Stream

ACCEPTS = 64
"""Connections accepted in one turn of the loop, per listener."""
BACKLOG = 1024
FD_PAUSE_S = 0.5
"""Without file descriptors accepting pauses so long, unless a connection ends before."""
_NO_FDS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Edge:
    """Owns the listening sockets and the client connections (driver.Application)."""

    def __init__(self, config: ServerConfig) -> None:
        """Listen on all addresses of `config`; `start` begins to accept.

        Raises:
            StartError: an address cannot be listened on.
        """
        self._config = config
        self._budget = Budget(total_bytes=config.memory_bytes, max_streams=config.max_connections)
        self.driver = Driver(self, role=Role.EDGE, budget=self._budget, grace_s=config.grace_s)
        self.bridges = Bridges(clock=clock, half_closed_timeout_s=config.half_closed_timeout_s)
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[Bridge, float] = {}
        """Clients for whom there is no provider yet, and until when they wait; in this order."""
        self._waiting_timer: asyncio.TimerHandle | None = None
        self._refused_by: dict[Stream, set[bytes]] = {}
        self._accepting = False
        self._stopped = False
        self._warned = False
        self._listeners: list[tuple[socket.socket, Listener]] = []
        try:
            for listener in config.listeners:
                self._listeners += [(sock, listener) for sock in _listen(listener.address)]
        except StartError:
            self.stop_accepting()
            raise

    @property
    def ports(self) -> list[int]:
        """Where clients are accepted, in the order of the configuration."""
        return list(dict.fromkeys(sock.getsockname()[1] for sock, _ in self._listeners))

    def start(self) -> None:
        """Begin to accept."""
        self._accept_again()

    def stop_accepting(self) -> None:
        """Close the listening sockets; clients in the backlog are reset by the kernel."""
        self._pause_accepting()
        self._stopped = True
        for sock, _ in self._listeners:
            sock.close()
        self._listeners.clear()

    def _accept_again(self) -> None:
        if not self._accepting and not self._stopped:
            self._accepting = True
            for sock, listener in self._listeners:
                self._loop.add_reader(sock, self._accept, sock, listener)

    def _pause_accepting(self) -> None:
        if self._accepting:
            self._accepting = False
            for sock, _ in self._listeners:
                self._loop.remove_reader(sock)

    def _accept(self, listening: socket.socket, listener: Listener) -> None:
        for _ in range(ACCEPTS):
            if len(self.bridges.live) >= self._config.max_connections:
                self._warn_once(
                    f"{self._config.max_connections} connections are open: new ones wait; raise --max-connections"
                )
                self._pause_accepting()
                return
            try:
                sock, address = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as exc:
                if exc.errno not in _NO_FDS:
                    raise
                self._warn_once(
                    f"no file descriptor for another client ({exc.strerror}): new ones wait; raise ulimit -n"
                )
                self._pause_accepting()
                self._loop.call_later(FD_PAUSE_S, self._accept_again)
                return
            self._welcome(sock, address, listener.service)

    def _warn_once(self, text: str) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("{}", text)

    def _welcome(self, sock: socket.socket, address: tuple[str, int], service: str) -> None:
        try:
            sockets.prepare(sock)
        except OSError:  # the client is gone already
            sock.close()
            return
        stream = Stream(opener=True, service=service, client=str(Address(address[0], address[1])), budget=self._budget)
        bridge = Bridge(self.bridges, sock, stream, self._ended)
        if not self._assign(stream):
            self._wait(bridge)

    def _ended(self, bridge: Bridge) -> None:
        stream = bridge.stream
        self._refused_by.pop(stream, None)
        self._waiting.pop(bridge, None)
        logger.debug("stream {} of {} ended: {}", stream.id, stream.client, stream.end_reason or "done")
        self._accept_again()

    # Which provider.

    def _assign(self, stream: Stream) -> bool:
        """Open `stream` at the provider with the fewest streams, ties at random; return whether there is one."""
        refused = self._refused_by.get(stream, set())
        peers = [
            peer
            for peer in self.driver.peers.values()
            if peer.session.established
            and not peer.session.peer_draining
            and stream.service in peer.services
            and peer.info.name.id not in refused
        ]
        if not peers:
            return False
        least = min(len(peer.session.streams) for peer in peers)
        random.choice([peer for peer in peers if len(peer.session.streams) == least]).session.open(stream)
        return True

    def _wait(self, bridge: Bridge) -> None:
        if not self._waiting:
            logger.info("no provider for {}: clients wait up to {:g} s", bridge.stream.service, self._config.grace_s)
        self._waiting[bridge] = clock() + self._config.grace_s
        self._watch_waiting()

    def _watch_waiting(self) -> None:
        if self._waiting and self._waiting_timer is None:
            delay_s = max(next(iter(self._waiting.values())) - clock(), 0.01)
            self._waiting_timer = self._loop.call_later(delay_s, self._expire_waiting)

    def _expire_waiting(self) -> None:
        self._waiting_timer = None
        now = clock()
        for bridge, until in list(self._waiting.items()):
            if until > now:
                break
            bridge.abort(f"no provider within {self._config.grace_s:g} s")
        self._watch_waiting()

    # What the driver tells.

    def peers_changed(self) -> None:
        """Give waiting clients to whoever is there now."""
        for bridge in list(self._waiting):
            if self._assign(bridge.stream):
                del self._waiting[bridge]

    def stream_opened(self, peer: Peer, stream: Stream) -> None:
        """Providers open no streams; the session refuses them before this."""
        stream.abort("edges take no streams")

    def stream_refused(self, peer: Peer, stream: Stream, reason: str) -> None:
        """Try the next provider with the bytes so far, none of which has reached a target; reset when all refused."""
        refused = self._refused_by.setdefault(stream, set())
        refused.add(peer.info.name.id)
        bridge: Bridge = stream.owner
        if not self._assign(stream):
            logger.warning("client {} is reset: {}", stream.client, reason)
            bridge.abort(reason)

    def stream_dropped(self, stream: Stream) -> None:
        """Every stream here has an owner."""

    async def close(self, *, drain_s: float) -> None:
        """Stop accepting, let streams end for `drain_s`, reset the rest."""
        self.stop_accepting()
        self.driver.drain()
        for bridge in list(self._waiting):
            bridge.abort("the server is shutting down")
        await self.driver.wait_empty(lambda: not self.bridges.live, deadline_s=drain_s)
        for bridge in list(self.bridges.live):
            bridge.abort("the server is shutting down")
        await self.driver.goodbye("the server was shut down", deadline_s=1.0)


def _listen(address: Address) -> list[socket.socket]:
    """Return listening sockets for an address: one for IPv4 and one for IPv6 where the host is both.

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
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                sock.bind((where[0], port, *where[2:]))
            except OSError as exc:
                if exc.errno == errno.EADDRNOTAVAIL and address.host is None:
                    socks.pop().close()  # no IPv6 address on this machine
                    continue
                raise
            sock.listen(BACKLOG)
            port = sock.getsockname()[1]
    except OSError as exc:
        for sock in socks:
            with contextlib.suppress(OSError):
                sock.close()
        raise StartError(f"cannot listen for clients on {address}: {exc.strerror}; {_advice(exc.errno)}") from exc
    return socks


def _advice(code: int | None) -> str:
    match code:
        case errno.EADDRINUSE:
            return "choose another port with --listen, or stop the program that has it"
        case errno.EACCES:
            return "ports below 1024 need privileges: choose a higher one with --listen, or grant CAP_NET_BIND_SERVICE"
        case _:
            return "give an address of this machine to --listen"
