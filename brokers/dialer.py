"""The connection of a DEALER to its broker: made by libzmq, or by us where there is a proxy or TLS.

Also what the kernel says of it.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable

import zmq

from brokers.carrier import LinkCondition
from brokers.causes import Cause
from brokers.proxy import OpenError, Proxy, open_connection
from brokers.relay import Relay
from brokers.resolver import SocketAddress
from brokers.tcp_info import link_condition
from brokers.transport import Tls


class Dialer:
    """Makes one connection at a time."""

    def __init__(
        self,
        dealer: "zmq.Socket[bytes]",
        proxy: Proxy | None,
        tls: Tls | None,
        failed: Callable[[OpenError], None],
        *,
        connect_s: float,
    ) -> None:
        """Connect `dealer`; call `failed` if we do not get a connection: libzmq reports its own failures.

        Without a proxy, a connection has `connect_s` seconds.
        """
        self.proxy = proxy
        self._tls = tls
        self._connect_s = connect_s
        self._dealer = dealer
        self._failed = failed
        self._endpoint: str | None = None
        """What the DEALER is to be connected to."""
        self._connection: socket.socket | None = None
        """A duplicate of libzmq's descriptor, to ask the kernel about it; closed when libzmq has closed its own."""
        self._dialing: asyncio.Task[None] | None = None
        """Runs while we make the connection."""
        self._relay: Relay | None = None

    @property
    def connects(self) -> bool:
        """Whether we make the connection, and know why there is none, instead of libzmq."""
        return self.proxy is not None or self._tls is not None

    @property
    def dialed(self) -> bool:
        """Whether the DEALER connects, or is connected."""
        return self._endpoint is not None

    @property
    def dialing(self) -> bool:
        """Whether we are making the connection, which has deadlines of its own."""
        return self._dialing is not None

    def dial(self, address: SocketAddress) -> None:
        """Connect to an address, having hung up; libzmq reconnects by itself where it makes the connection."""
        if not self.connects:
            self._connect(_endpoint(address))
        else:
            self._dialing = asyncio.get_running_loop().create_task(
                self._dial(self.proxy, address), name="dial a broker"
            )

    async def _dial(self, proxy: Proxy | None, address: SocketAddress) -> None:
        try:
            try:
                far = await open_connection(address, proxy, self._tls, timeout_s=self._connect_s)
            except TimeoutError:
                raise OpenError(Cause.UNREACHABLE, f"no response within {self._connect_s:g} s") from None
            except OSError as exc:
                raise OpenError(Cause.UNREACHABLE, os.strerror(exc.errno) if exc.errno else str(exc)) from exc
            try:
                self._relay = Relay(far)
            except OSError as exc:
                raise OpenError(Cause.UNREACHABLE, f"no connection within this process: {exc.strerror}") from exc
        except OpenError as exc:
            self._dialing = None
            self._failed(exc)
        else:
            self._dialing = None
            self._connect(self._relay.endpoint)

    def _connect(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._dealer.connect(endpoint)

    def connected(self, descriptor: int) -> bool:
        """Note that libzmq has a connection; False if it is not what it should be."""
        self.disconnected()
        with contextlib.suppress(OSError):  # closed meanwhile, or there are no descriptors
            self._connection = socket.socket(fileno=os.dup(descriptor))
        if self._relay is None:
            return True
        return self._connection is not None and self._relay.start(self._connection.getsockname()[1])

    def disconnected(self) -> None:
        """Note that libzmq has lost its connection, and closed the descriptor."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def stop(self) -> None:
        """Dial no more. The connection lasts as long as libzmq keeps it."""
        self.disconnected()
        if self._dialing is not None:
            self._dialing.cancel()
            self._dialing = None

    def hang_up(self) -> None:
        """End the connection, or the attempt to make one."""
        self.stop()
        if self._endpoint is not None:
            self._dealer.disconnect(self._endpoint)
            self._endpoint = None
        if self._relay is not None:
            self._relay.close()
            self._relay = None

    @property
    def condition(self) -> LinkCondition | None:
        """The condition of the connection to the broker, or to the proxy; None if there is none, or it is unknown."""
        if self._connection is None:
            return None
        local = link_condition(self._connection)
        return local if self._relay is None or local is None else self._relay.condition(local)

    async def finish(self, *, linger_s: float) -> None:
        """Once libzmq has closed its connection: what it has sent has `linger_s` seconds to go out."""
        if self._relay is not None:
            await self._relay.finish(linger_s)


def _endpoint(address: SocketAddress) -> str:
    host, port = address[1][:2]
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
