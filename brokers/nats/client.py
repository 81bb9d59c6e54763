"""Connections to NATS by nats-py: one server at a time, with TLS and a key, and a bounded outbox.

nats-py would reconnect by itself, without telling sessions, and send what is no longer of use. So each `Client` is for
one connection. What it does not offer is in `_Client`, with the reasons; the extra `nats` is bound to the minor
version whose inner methods these are.
"""

import asyncio
import base64
import contextlib
import json
import os
import random
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from brokers.carrier import Buffer
from brokers.causes import Cause
from brokers.connect import NEXT_ADDRESS_S
from brokers.nats.engine import Connection, Listener, Login, Server
from brokers.nats.frames import MAX_PAYLOAD
from brokers.nats.nkey import public_nkey, sign
from brokers.nats.subjects import USER_INFO
from brokers.proxy import OpenError
from brokers.resolver import SocketAddress, resolve

CONNECT_S: Final = 5.0
"""For a connection, TLS and NATS's greeting, at one address of a server."""
MAX_ADDRESSES: Final = 8
"""Addresses of a server that are tried."""
INFO_S: Final = 5.0
"""For the response of the server that says what we may."""
OUTBOX_MESSAGES: Final = 1000
"""As many as a pipe of ZeroMQ has; sessions have 400 in flight at most."""
OUTBOX_BYTES: Final = 64 * 1024 * 1024
"""Two sessions with all that one may have in flight."""
PENDING_BYTES: Final = 64 * 1024 * 1024
"""Received and not yet passed on, of one subscription: nats-py reads 32 KiB at a time, so there never is so much."""
_T = TypeVar("_T")
_SAYS_NOTHING: Final = "it does not say what our key may; with an operator (JWT) it needs a system account"


async def _cancellable(call: Awaitable[_T]) -> _T:
    """Return what a call of nats-py returns; but a cancellation that it swallows is one after it, at the latest.

    So does `asyncio.wait_for`, on which nats-py relies, until Python 3.12.
    """
    task = asyncio.current_task()
    assert task is not None
    try:
        return await call
    finally:
        if task.cancelling():
            raise asyncio.CancelledError


class NatsEngine:
    """Connects to the servers of a cluster in turn (engine.Engine)."""

    def __init__(self, servers: Sequence[Server], login: Login, context: Callable[[], ssl.SSLContext]) -> None:
        """Connect to these servers, of which there is at least one; `context` returns that of TLS."""
        self.label = ",".join(map(str, servers))
        self._servers = deque(servers)
        self._servers.rotate(random.randrange(len(servers)))  # so that peers spread over the servers
        self._login = login
        self._context = context

    async def connect(self, subscriptions: Sequence[str], inbox: str, listener: Listener) -> Connection:
        """Return a connection to the next server that accepts one.

        Raises:
            OpenError: none does; why the last one does not.
        """
        last: OpenError | None = None
        for _ in range(len(self._servers)):
            server = self._servers[0]
            self._servers.rotate(-1)
            try:
                return await self._connect(server, subscriptions, inbox, listener)
            except OpenError as exc:
                last = exc
                if exc.cause is Cause.REFUSED:
                    break
        assert last is not None
        raise last

    async def _connect(
        self, server: Server, subscriptions: Sequence[str], inbox: str, listener: Listener
    ) -> "NatsConnection":
        try:
            async with asyncio.timeout(CONNECT_S):
                found = await resolve(server.host, server.port)
        except (OSError, UnicodeError) as exc:
            raise OpenError(Cause.UNRESOLVED, f"{server}: the name cannot be resolved: {exc}") from exc
        last: OpenError | None = None
        for address in found[:MAX_ADDRESSES]:
            connection = NatsConnection(server, listener)
            try:
                await connection.open(address, self._login, self._context, subscriptions, inbox)
            except OpenError as exc:
                last = exc
                await connection.close(linger_s=0)
            except BaseException:
                await connection.close(linger_s=0)
                raise
            else:
                return connection
        raise last or OpenError(Cause.UNRESOLVED, f"{server}: it has no address")


class NatsConnection:
    """A connection (engine.Connection)."""

    def __init__(self, server: Server, listener: Listener) -> None:
        self.at = str(server)
        self._server = server
        self._listener = listener
        self._client = _Client(server, self._lost)
        self._loop = asyncio.get_running_loop()
        self._outbox: deque[tuple[str, Sequence[Buffer], str, int]] = deque()
        self._outbox_bytes = 0
        self._filled = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None
        self._closed = False

    async def open(
        self,
        address: SocketAddress,
        login: Login,
        context: Callable[[], ssl.SSLContext],
        subscriptions: Sequence[str],
        inbox: str,
    ) -> None:
        """Connect, log in, subscribe.

        Raises:
            OpenError: one of these failed.
        """
        host, port = address[1][:2]
        try:
            async with asyncio.timeout(CONNECT_S):
                await _cancellable(
                    self._client.connect(
                        f"nats://[{host}]:{port}" if ":" in host else f"nats://{host}:{port}",
                        name="goreprox",
                        tls=context(),
                        tls_hostname=self._server.host,
                        allow_reconnect=False,
                        max_reconnect_attempts=1,
                        reconnect_time_wait=NEXT_ADDRESS_S,  # type: ignore[arg-type] # seconds, as it is used
                        ping_interval=3600,  # `check` does that
                        inbox_prefix=inbox,
                        error_cb=self._failed,
                        lame_duck_mode_cb=self._retires,
                        **self._client.login(login),
                    )
                )
                if self._client.max_payload < MAX_PAYLOAD:
                    raise OpenError(
                        Cause.REFUSED,
                        f"{self.at}: its max_payload is {self._client.max_payload:,} bytes, expected {MAX_PAYLOAD:,}; "
                        "set `max_payload: 4MB`, as deploy/nats does",
                    )
                for subject in subscriptions:
                    await _cancellable(
                        self._client.subscribe(
                            subject, cb=self._receive, pending_msgs_limit=0, pending_bytes_limit=PENDING_BYTES
                        )
                    )
                await _cancellable(self._client.flush())
        except (OSError, nats.errors.Error, ssl.SSLError, ValueError) as exc:
            raise self._explained(exc) from exc
        if self._closed:
            raise self._explained(ConnectionResetError("it disconnects"))
        self._pump = self._loop.create_task(self._send_all(), name=f"send to {self.at}")

    def _explained(self, exc: Exception) -> OpenError:
        """Return why there is no connection: the first error says more than those that follow from it."""
        known = self._client.seen or exc
        if isinstance(known, OpenError):
            return known
        match known:
            case ssl.SSLCertVerificationError(verify_message=why):
                cause = Cause.CERTIFICATE
            case ssl.SSLError(reason=reason):
                cause, why = Cause.TLS, f"the handshake fails: {reason}"
            case nats.errors.Error() if "authorization violation" in str(known).lower():
                cause, why = Cause.REFUSED, "it does not know our key, or no longer"
            case TimeoutError():
                cause, why = Cause.UNREACHABLE, f"no response within {CONNECT_S:g} s"
            case OSError(errno=number):
                cause, why = Cause.UNREACHABLE, os.strerror(number) if number else str(known)
            case _:
                cause, why = Cause.OTHER_PROTOCOL, str(known)
        return OpenError(cause, f"{self.at}: {why}")

    def publish(self, subject: str, parts: Sequence[Buffer], *, reply: str = "") -> bool:
        """Send without blocking; False if the outbox is full."""
        size = sum(map(len, parts))
        if (
            self._closed
            or len(self._outbox) >= OUTBOX_MESSAGES
            or (self._outbox and self._outbox_bytes + size > OUTBOX_BYTES)
        ):
            return False
        self._outbox.append((subject, parts, reply, size))
        self._outbox_bytes += size
        self._filled.set()
        return True

    async def _send_all(self) -> None:
        """Send what is in the outbox, as fast as the server takes it."""
        try:
            while not self._closed:  # nats-py swallows a cancellation
                await self._filled.wait()
                while self._outbox and not self._closed:
                    subject, parts, reply, size = self._outbox.popleft()
                    self._outbox_bytes -= size
                    await self._client.publish(subject, b"".join(parts), reply)
                self._filled.clear()
        except (nats.errors.Error, OSError) as exc:
            self._lost(str(exc))

    async def allowed(self) -> Sequence[str] | None:
        """Return the subjects that we may publish; None: all.

        Raises:
            OpenError: the server does not say.
        """
        try:
            response = await _cancellable(self._client.request(USER_INFO, timeout=INFO_S))
            match json.loads(response.data):
                case {"data": {"permissions": {"publish": {"allow": [*subjects]}}}}:
                    return [each for each in subjects if isinstance(each, str)]
                case {"data": {**data}} if "permissions" not in data:
                    return None
                case {"data": _}:
                    return []
        except (nats.errors.Error, ValueError, RecursionError) as exc:
            raise OpenError(Cause.REFUSED, f"{self.at}: {_SAYS_NOTHING}") from exc
        raise OpenError(Cause.REFUSED, f"{self.at}: {_SAYS_NOTHING}")

    async def check(self, timeout_s: float) -> None:
        """Wait for a response of the server.

        Raises:
            TimeoutError: there is none.
        """
        try:
            await _cancellable(self._client.flush(timeout=timeout_s))  # type: ignore[arg-type] # seconds, as it is used
        except nats.errors.Error as exc:
            raise TimeoutError(str(exc)) from exc

    async def _receive(self, message: Msg) -> None:
        self._listener.received(message.subject, message.data)

    async def _failed(self, error: Exception) -> None:
        """Take note of an error, which nats-py reports here before it acts on it."""
        if "permissions violation" in str(error).lower():
            self._listener.denied()
        elif isinstance(error, nats.errors.SlowConsumerError):
            self._lost("we are too slow")
        elif self._client.seen is None:
            self._client.seen = error

    async def _retires(self) -> None:
        """Leave a server that is about to end."""
        self._lost("the server is being shut down")

    def _lost(self, reason: str) -> None:
        if not self._closed:
            self._closed = True
            self._listener.lost(reason)

    async def close(self, *, linger_s: float) -> None:
        """Disconnect; what was published has `linger_s` seconds to go out."""
        if linger_s and not self._closed and self._pump is not None:
            with contextlib.suppress(TimeoutError, nats.errors.Error, OSError):
                async with asyncio.timeout(linger_s):
                    while self._outbox:  # noqa: ASYNC110 -- at the end of a process
                        await asyncio.sleep(0.01)
                    await self._client.flush()
                    await self._client.flush()  # the first PING may be sent before what is pending
        self._closed = True
        self._outbox.clear()
        await self._client.abandon()
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.wait([self._pump])


class _Client(Client):
    """One connection to one server."""

    def __init__(self, server: Server, lost: Callable[[str], None]) -> None:
        super().__init__()
        self.seen: Exception | None = None
        """The first error, which says more than those that follow from it."""
        self._server = server
        self._lost = lost

    def login(self, login: Login) -> dict[str, Any]:
        """Return the options of `connect` for a login."""
        if login.credentials is not None:
            return {"user_credentials": str(login.credentials)}
        if (keys := login.keys) is None:
            return {}
        # There is no option for a public key whose seed nats-py does not know.
        self._public_nkey = public_nkey(keys.public)
        return {"signature_cb": lambda nonce: base64.b64encode(sign(keys, nonce.encode()))}

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        """Require TLS before anything is sent: nats-py goes on without it where the server does not demand it."""
        if initial_connection and not info.get("tls_required") and not self._server.plaintext:
            self.seen = OpenError(Cause.TLS, f"{self._server}: it does not demand TLS")
            raise nats.errors.Error(str(self.seen))
        await super()._process_info(info, initial_connection)

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        """Tell at once that the connection is lost: closing may wait for a server that reads no more."""
        self._lost("the connection was lost")
        subscriptions = list(self._subs.values())
        try:
            with contextlib.suppress(OSError):
                await super()._close(status, do_cbs)
        finally:
            for subscription in subscriptions:  # which an error in between has left there
                subscription._stop_processing()  # noqa: SLF001

    async def abandon(self) -> None:
        """Disconnect without waiting for the server."""
        transport = self._transport
        writer = getattr(transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()
        if self._reading_task is None:
            return  # it was never connected, and would wait for an end of TLS that does not come
        with contextlib.suppress(TimeoutError, nats.errors.Error):
            async with asyncio.timeout(CONNECT_S):
                await self.close()
