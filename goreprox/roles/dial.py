"""Connections to targets: which address, the PROXY header, then TLS, all within the dial timeout."""

import asyncio
import errno
import functools
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Final

from brokers import NEXT_ADDRESS_S, LimitedLog, SocketAddress
from goreprox.config.addresses import Address, Target, TargetAddress, UnixPath
from goreprox.config.roles import DialConfig
from goreprox.config.target_checks import Check
from goreprox.endpoint import Endpoint
from goreprox.net import sockets
from goreprox.net.certificates import reason
from goreprox.net.names import Name
from goreprox.net.poller import WRITE, Poller
from goreprox.net.proxy_protocol import write
from goreprox.net.sockets import Socket
from goreprox.net.target_tls import TargetTls
from goreprox.process.clock import clock
from goreprox.process.machine import in_container
from goreprox.protocol.events import Code
from goreprox.protocol.notices import Kind
from goreprox.protocol.stream import Stream
from goreprox.protocol.totals import EndCode
from goreprox.roles.examination import UnwellError, examine
from goreprox.roles.loops import Loops

_CONNECTING: Final = (errno.EINPROGRESS, errno.EALREADY)
_CONNECTED: Final = (0, errno.EISCONN)


def advice(address: TargetAddress, why: str) -> str:
    """Return what else to try after `why` there is no connection to a target, after a semicolon; "" if nothing."""
    hint = ""
    if isinstance(address, UnixPath):
        return "; this user must be able to write to it" if why == os.strerror(errno.EACCES) else hint
    if why != os.strerror(errno.ECONNREFUSED) or not address.is_loopback:
        return hint
    if address.host == "127.0.0.1":
        hint = f"; if it listens on [::1] alone, give the target as localhost:{address.port}"
    if in_container():
        hint += (
            f"; if it runs outside this container, {address.host} is not where it is: give its address, like "
            f"host.docker.internal:{address.port}"
        )
    return hint


class Targets:
    """The target of each service, and its socket addresses."""

    def __init__(self, targets: dict[str, TargetAddress]) -> None:
        self.by_service = targets
        self._names = {service: Name(each) for service, each in targets.items() if isinstance(each, Address)}

    def known(self, service: str) -> list[SocketAddress] | None:
        """Return the addresses of a service, or None if they have to be resolved first."""
        target = self.by_service[service]
        if isinstance(target, UnixPath):
            return [(socket.AF_UNIX, target.path)]
        return self._names[service].known

    async def resolve(self, service: str) -> list[SocketAddress]:
        """Resolve the target's name.

        Raises:
            OSError: it has no address.
            UnicodeError: it is not a valid host name.
        """
        return await self._names[service].resolve()


class Dialer:
    """Connects streams to their targets. Owns each stream until it is connected, refused or aborted."""

    def __init__(
        self,
        targets: Sequence[Target],
        config: DialConfig,
        poller: Poller,
        loops: Loops,
        log: LimitedLog,
        *,
        connected: Callable[[Stream, Socket], None],
        failed: Callable[[Stream], None],
        before: "Dialer | None" = None,
    ) -> None:
        """Dial for streams from now on, in place of the dialer `before`, which finishes what it has begun.

        `connected` takes over the stream and the target's socket; `failed` is called for one that has ended.

        Raises:
            StartError: the file of `--target-ca` cannot be used.
        """
        self.config = config
        self.poller = poller
        self.loops = loops
        self.log = log
        self.connected = connected
        self.failed = failed
        self.targets = Targets({target.service: target.address for target in targets})
        self.tls = TargetTls(
            targets,
            poller,
            ca=config.ca,
            insecure=config.insecure,
            timeout_s=config.timeout_s,
        )
        self.dials: set[_Dial] = set() if before is None else before.dials
        """Those of the dialers before, too."""

    def dial(self, stream: Stream) -> None:
        """Connect to the target of a stream; `connected` or `failed` may be called at once."""
        dial = _Dial(self, stream)
        self.dials.add(dial)
        dial.start()

    async def examine(self, target: Target, check: Check, timeout_s: float) -> None:
        """Check one of the targets, which is reached as it is for a stream.

        Raises:
            UnwellError: it is not well, or this took longer than `timeout_s`.
            OSError: nothing could be found out about it.
        """
        try:
            async with asyncio.timeout(timeout_s):
                addresses = self.targets.known(target.service) or await self.targets.resolve(target.service)
                await examine(
                    target,
                    addresses,
                    timeout_s=timeout_s,
                    context=self.tls.context,
                    path=check.path,
                    proxy_protocol=self.config.proxy_protocol,
                )
        except TimeoutError:
            raise UnwellError(f"no response within {timeout_s:g} s") from None
        except socket.gaierror as exc:
            raise UnwellError(f"the name cannot be resolved: {exc.strerror}") from exc
        except UnicodeError as exc:
            raise UnwellError("the name cannot be resolved: it is not a valid host name") from exc

    def hand_back(self) -> None:
        """Leave all streams to other providers: nothing of them has reached a target."""
        for dial in list(self.dials):
            dial.hand_back()


class _Dial:
    """One stream's (tunnel.connections.StreamOwner).

    It tries the next address once one has failed, or has been silent for `NEXT_ADDRESS_S` (RFC 8305).
    """

    def __init__(self, dialer: Dialer, stream: Stream) -> None:
        self._dialer = dialer
        self.stream = stream
        self._loop = asyncio.get_running_loop()
        self._attempts: dict[socket.socket, SocketAddress] = {}
        """Connections that are being made; the poller watches them."""
        self._rest: list[SocketAddress] = []
        """Addresses that are not tried yet."""
        self._next_address: asyncio.TimerHandle | None = None
        timeout_s = dialer.config.timeout_s
        self.began_at = clock()
        self._deadline = self._loop.call_later(timeout_s, self._refuse, f"no response within {timeout_s:g} s")
        self._cancels: list[Callable[[], object]] = [self._deadline.cancel]
        """What ends each step that was begun; no effect on those that are done."""
        stream.owner = self

    def start(self) -> None:
        """Begin; it may be over at once."""
        addresses = self._dialer.targets.known(self.stream.service)
        if addresses is not None:
            self._try(addresses)
        else:
            lookup = self._loop.create_task(self._resolve(), name=f"resolve {self.stream.service}")
            self._cancels.append(lookup.cancel)

    def abort(self, reason: str, code: EndCode) -> None:
        """Give up, and end the stream."""
        self._abandon()
        self.stream.abort(reason, code)
        self._dialer.failed(self.stream)

    def notice(self, kind: Kind) -> None:
        """Give up when the stream is aborted; everything else waits for the target."""
        if kind is Kind.ABORTED:
            self._abandon()
            self._dialer.failed(self.stream)

    def hand_back(self) -> None:
        """Give up, and let the edge choose another provider."""
        self._abandon()
        self.stream.refuse(Code.DRAINING, "the provider is shutting down")

    async def _resolve(self) -> None:
        try:
            addresses = await self._dialer.targets.resolve(self.stream.service)
        except (OSError, UnicodeError) as exc:
            why = exc.strerror if isinstance(exc, OSError) else "it is not a valid host name"
            self._refuse(f"the name cannot be resolved: {why}")
        else:
            self._try(addresses)

    # The addresses.

    def _try(self, addresses: Sequence[SocketAddress]) -> None:
        """Try the first one; those after it follow."""
        first, *self._rest = addresses
        family, address = first
        sock = None
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
            if sockets.taken_from_spare(sock.fileno()):
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            sockets.prepare(sock)
            code = sock.connect_ex(address)
            if code == errno.EINPROGRESS:
                code = sock.connect_ex(address)  # a target on this machine has accepted it by now
            self._dialer.loops.add(self.stream, sock, address)
        except OSError as exc:
            code = exc.errno or errno.EIO
        if code == errno.EAGAIN and family == socket.AF_UNIX and sock is not None:  # its backlog is full
            sock.close()
            self._next_address = self._loop.call_later(NEXT_ADDRESS_S, self._try, addresses)
        elif code in _CONNECTING and sock is not None:
            self._attempts[sock] = first
            self._dialer.poller.watch(sock.fileno(), WRITE, functools.partial(self._connected, sock))
            if self._rest:
                self._next_address = self._loop.call_later(NEXT_ADDRESS_S, self._try_next, "")
        else:
            self._tried(sock, first, code)

    def _connected(self, sock: socket.socket, _: int) -> None:
        address = self._attempts.pop(sock, None)
        if address is not None:  # it was not given up in this turn
            self._dialer.poller.forget(sock.fileno())
            self._tried(sock, address, sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def _tried(self, sock: socket.socket | None, address: SocketAddress, code: int) -> None:
        """Use the socket, or close it and try the next address."""
        if sock is not None and code in _CONNECTED:
            try:
                _check_other_end(sock, address)
                self._send_proxy_header(sock)
            except OSError as exc:
                code = exc.errno or errno.EIO
            else:
                self._rest = [*self._give_up_attempts(), *self._rest]
                self._dialer.loops.add(self.stream, sock, address[1])
                self._reached(sock)
                return
        if sock is not None:
            sock.close()
        self._try_next(os.strerror(code))

    def _try_next(self, why: str) -> None:
        """Try the next address, as another one has failed, or is silent."""
        self._cancel_next()
        if self._rest:
            self._try(self._rest)
        elif not self._attempts:
            self._refuse(why)

    def _send_proxy_header(self, sock: socket.socket) -> None:
        """Tell the target who the client is, if it is to know.

        Raises:
            OSError: the header was not sent whole, so nothing may follow: it would be taken for the header.
        """
        version = self._dialer.config.proxy_protocol
        if version is not None:
            header = write(version, Endpoint.parse(self.stream.client), Endpoint.parse(self.stream.destination))
            if sock.send(header) < len(header):  # never, with 104 bytes and an empty send queue
                raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

    def _reached(self, sock: socket.socket) -> None:
        service, tls = self.stream.service, self._dialer.tls
        if tls.speaks(service):
            self._cancels.append(tls.begin(service, sock, admit=self._join, lose=self._handshake_failed))
        else:
            self._join(sock)

    def _handshake_failed(self, exc: OSError) -> None:
        if self in self._dialer.dials:
            hint = "; --target-ca names who signs it" if isinstance(exc, ssl.SSLCertVerificationError) else ""
            self._try_next(f"TLS: {reason(exc)}{hint}")

    # The end.

    def _join(self, sock: Socket) -> None:
        self._finish()
        self._dialer.connected(self.stream, sock)

    def _refuse(self, why: str) -> None:
        self._abandon()
        address = self._dialer.targets.by_service[self.stream.service]
        self._dialer.log.say(
            "target_failed",
            f"cannot reach the target {address} for {self.stream.client}: {why}{advice(address, why)}",
            service=self.stream.service,
            target=str(address),
        )
        self.stream.refuse(Code.TARGET, f"target {address}: {why}")
        self._dialer.failed(self.stream)

    def _abandon(self) -> None:
        self._finish()
        self._dialer.loops.discard(self.stream)

    def _finish(self) -> None:
        self._dialer.dials.discard(self)
        for cancel in self._cancels:
            cancel()
        self._give_up_attempts()

    def _give_up_attempts(self) -> list[SocketAddress]:
        """End all attempts; return their addresses."""
        self._cancel_next()
        for sock in self._attempts:
            self._dialer.poller.forget(sock.fileno())
            sock.close()
        addresses = list(self._attempts.values())
        self._attempts.clear()
        return addresses

    def _cancel_next(self) -> None:
        if self._next_address is not None:
            self._next_address.cancel()
            self._next_address = None


def _check_other_end(sock: socket.socket, address: SocketAddress) -> None:
    """Check that somebody listened.

    Raises:
        OSError: the socket is connected to itself (RFC 9293, 3.5, figure 7): the target's port is among those that the
            kernel assigns to clients, it assigned this very one, and nobody listens there.
    """
    if sock.getsockname() == address[1]:
        raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
