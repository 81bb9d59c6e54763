"""An edge, a broker and providers in the process of the test, which plays clients and targets."""

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Self

from brokers import Link, PeerName, Role, Router, Timings
from goreprox.config.addresses import Address, Listener, Target
from goreprox.config.roles import ProviderConfig, ServerConfig
from goreprox.protocol.limits import VERSION, VERSION_LEAST
from goreprox.roles.edge import Edge
from goreprox.roles.provider import Provider
from tests.support.configs import configured
from tests.support.relay import Relay
from tests.support.sockets import HOST
from tests.support.waiting import DEADLINE_S, eventually

KIB, MIB = 1 << 10, 1 << 20
PROTOCOL: dict[str, object] = {"protocol": [VERSION_LEAST, VERSION]}
TIMINGS = Timings(reconnect_min_s=0.02, reconnect_max_s=0.1)


class End:
    """A plain socket at one end of the tunnel, a client's or a target's."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._loop = asyncio.get_running_loop()

    async def send(self, data: bytes) -> None:
        async with asyncio.timeout(DEADLINE_S):
            await self._loop.sock_sendall(self.sock, data)

    async def receive(self, count: int) -> bytes:
        """Receive `count` bytes, or fewer if an end of file comes before."""
        data = bytearray()
        async with asyncio.timeout(DEADLINE_S):
            while len(data) < count and (more := await self._some(count - len(data))):
                data += more
        return bytes(data)

    async def receive_all(self) -> bytes:
        """Receive to the end of file."""
        data = bytearray()
        async with asyncio.timeout(DEADLINE_S):
            while more := await self._some():
                data += more
        return bytes(data)

    async def _some(self, most: int = MIB) -> bytes:
        return await self._loop.sock_recv(self.sock, min(most, MIB))

    async def receive_to_reset(self) -> bytes:
        """Receive what comes before a reset; an end of file is none."""
        data = bytearray()
        with contextlib.suppress(ConnectionResetError):
            async with asyncio.timeout(DEADLINE_S):
                while more := await self._some():
                    data += more
            raise AssertionError(f"end of file after {bytes(data)!r}, expected a reset")
        return bytes(data)

    def half_close(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


class Targets:
    """A listening socket that a provider dials, and the connections that it got."""

    def __init__(self) -> None:
        self._listening = socket.create_server((HOST, 0), backlog=256)
        self._listening.setblocking(False)
        self._accepted: list[socket.socket] = []
        self.port: int = self._listening.getsockname()[1]

    async def accept(self) -> End:
        loop = asyncio.get_running_loop()
        sock, _ = await asyncio.wait_for(loop.sock_accept(self._listening), DEADLINE_S)
        self._accepted.append(sock)
        return End(sock)

    @property
    def nobody_waits(self) -> bool:
        """Whether the provider has dialled no more than was accepted."""
        try:
            sock, _ = self._listening.accept()
        except BlockingIOError:
            return True
        sock.close()
        return False

    def close(self) -> None:
        for sock in (self._listening, *self._accepted):
            sock.close()


class Tunnel:
    """The wiring: an edge with a broker, providers with a link each through a relay, and what tests connect to them."""

    def __init__(self, **options: Any) -> None:
        """Take options of `ServerConfig`."""
        self.stack = contextlib.AsyncExitStack()
        self.targets = Targets()
        self.stack.callback(self.targets.close)
        where: dict[str, Any] = {"listeners": (Listener(Address(HOST, 0)),), "providers": Address(HOST, 0)}
        self.edge = Edge(configured(ServerConfig, **where | options))
        self.router = Router(timings=TIMINGS)
        self._provider_port = self.router.bind(Role.PROVIDER, HOST, 0)
        self._local = self.router.attach(PeerName(Role.EDGE, "edge", os.urandom(16)), PROTOCOL, self.edge.driver)
        self.stack.push_async_callback(self._close)
        self.edge.listeners.start()

    async def __aenter__(self) -> Self:
        self.relay = Relay(self._provider_port)
        await self.relay.start()
        self.stack.push_async_callback(self.relay.stop)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stack.aclose()

    async def _close(self) -> None:
        await self.edge.close(drain_s=0)
        await self._local.close(linger_s=0)
        await self.router.close(linger_s=0)

    async def provide(
        self,
        *,
        port: int | None = None,
        connect: bool = True,
        more: Mapping[str, object] = MappingProxyType({}),
        **options: Any,
    ) -> Provider:
        """Add a provider of the targets, or of another port; wait for its session.

        `more` are attributes of it in the fabric, options those of `ProviderConfig`.
        """
        server = Address(HOST, self.relay.port)
        target = Target("default", Address(HOST, port or self.targets.port))
        provider = Provider(configured(ProviderConfig, targets=(target,), servers=(server,), **options))
        name = PeerName(Role.PROVIDER, "provider", os.urandom(16))
        attributes = {**PROTOCOL, "services": ["default"], **more}
        link = Link(name, attributes, HOST, self.relay.port, provider.driver, timings=TIMINGS)

        async def close() -> None:
            await provider.close(drain_s=0)
            await link.close(linger_s=0)

        self.stack.push_async_callback(close)
        link.start()
        if connect:
            peers = self.edge.driver.peers
            await eventually(lambda: name.id in peers and peers[name.id].session.established)
        return provider

    async def client(self) -> End:
        """Connect a client."""
        sock = socket.socket()
        self.stack.callback(sock.close)
        end = End(sock)
        await asyncio.get_running_loop().sock_connect(sock, (HOST, self.edge.listeners.ports[0]))
        return end

    async def pair(self) -> tuple[End, End]:
        """Connect a client, and give its target's end too."""
        client = await self.client()
        return client, await self.targets.accept()

    async def at_rest(self, *providers: Provider) -> None:
        """Wait until no connection is left at either end."""
        owners: list[Edge | Provider] = [self.edge, *providers]
        await eventually(lambda: not any(owner.bridges.connections for owner in owners))
