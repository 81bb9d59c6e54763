"""The sockets of HTTP clients: each drives a gateway, and does what it says, with streams by its backend.

Knows sockets and the poller; what the bytes mean, the gateway knows. A client that reads slowly stops its target, and
a target that reads slowly its client: nothing is read that there is no room for.
"""

import asyncio
import socket
from typing import Final, assert_never

from goreprox.endpoint import Endpoint
from goreprox.http.backend import Backend, Backends, Providers
from goreprox.http.commands import (
    Abort,
    Command,
    Commands,
    Connect,
    Discard,
    Finish,
    HalfClose,
    LogRequest,
    Release,
    Switch,
    ToClient,
    ToProvider,
)
from goreprox.http.exchange import Site
from goreprox.http.gateway import Gateway
from goreprox.http.provider_stream import CLOSING_S, Upstream
from goreprox.http.write_buffer import WriteBuffer
from goreprox.net import sockets
from goreprox.net.certificates import Identity
from goreprox.net.poller import READ, WRITE
from goreprox.net.sockets import Socket
from goreprox.protocol.budget import Budget
from goreprox.protocol.limits import KIB
from goreprox.protocol.notices import Kind
from goreprox.protocol.state import State
from goreprox.tunnel.bridge import Bridge, Bridges

HEAD_S: Final = 10.0
"""From the first byte of a head to its last."""
IDLE_S: Final = 75.0
"""Without a request."""
LINGER_S: Final = 2.0
"""After its last answer a client has so long to end its side. RST before would take the answer away from it."""
SWEEP_S: Final = 1.0
FEED_BYTES: Final = 256 * KIB
"""Of an answer, turned over at once."""
CHUNK_OVERHEAD: Final = 32
"""A part of a body grows by this where it becomes a chunk: 16 digits, two line ends, and the last chunk."""


class ClientConnections:
    """What all HTTP clients of a process share, and a watch over those who take too long."""

    def __init__(self, bridges: Bridges, providers: Providers, budget: Budget) -> None:
        """Serve clients on the running loop."""
        self.bridges = bridges
        self.providers = providers
        self.budget = budget
        self.backends = Backends(bridges, providers, budget)
        self.live: set[ClientConnection] = set()
        self.draining = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> int:
        """Clients without a stream."""
        return len(self.live) - len(self.backends.attached)

    def add(self, client: "ClientConnection") -> None:
        """Watch a client."""
        self.live.add(client)
        if self._timer is None:
            self._timer = self.bridges.loop.call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        now = self.bridges.clock()
        for client in list(self.live):
            client.look(now)
        if self.live:
            self._timer = self.bridges.loop.call_later(SWEEP_S, self._sweep)

    def drain(self) -> None:
        """End whoever has no request; the others after their answers."""
        self.draining = True
        for client in list(self.live):
            client.drain()

    def providers_changed(self) -> None:
        """Let go of streams that carry nothing, at providers that are about to end."""
        for client in list(self.live):
            client.check_backend()


class ClientConnection:
    """Owns a client's socket, and the stream that its requests go over."""

    def __init__(
        self,
        clients: ClientConnections,
        sock: Socket,
        client: Endpoint,
        destination: Endpoint,
        site: Site,
        *,
        certificate: Identity | None = None,
    ) -> None:
        """Take over `sock`, prepared, of a client who came to `destination`, and begin to read it.

        `certificate` is what is known of the client's, if it has shown one.
        """
        self._clients = clients
        self._bridges = clients.bridges
        self._sock = sock
        self._fd = sock.fileno()
        self._client = client
        self._backend = Backend(
            clients.backends,
            self,
            client=client,
            destination=destination,
            certificate=None if certificate is None else certificate.name,
        )
        self._gateway = Gateway(
            site,
            client=client.host,
            authority=str(destination),
            certificate=b"" if certificate is None else certificate.forwarded,
        )
        self._out = WriteBuffer(clients.budget)
        self._watched = 0
        self._ending: type[Finish | Switch] | None = None
        """What is to be done when everything is written."""
        self._parting = False
        """Its end waits for room in the socket, as TLS has something to say at it."""
        self._lingering = False
        self._pulling = False
        self._since = self._bridges.clock()
        """When it was last seen to do what it is waited for."""
        clients.add(self)
        self._update()
        if clients.draining:
            self.drain()

    @property
    def open(self) -> bool:
        """Whether the socket is still ours."""
        return self._fd >= 0

    # What others tell.

    def look(self, now: float) -> None:
        """End it if it takes too long."""
        gateway = self._gateway
        waited_s = now - self._since
        if self._lingering:
            if waited_s >= LINGER_S:
                self._close(finish=True)
        elif gateway.half_closed and (self._out or self._backend.away):
            self._since = now
        elif (
            (gateway.reader.in_head and waited_s >= HEAD_S)
            or (gateway.idle and waited_s >= IDLE_S)
            or (gateway.half_closed and waited_s >= CLOSING_S)
        ):
            self._do(gateway.timed_out())
        self._backend.check(now)

    def check_backend(self) -> None:
        """Let go of a stream that will carry no other request."""
        self._backend.check(self._bridges.clock())

    def drain(self) -> None:
        """Answer what was asked, and end."""
        self._do(self._gateway.drain())

    def abort(self) -> None:
        """Reset the client, and what it was doing."""
        if self.open:
            self._close()

    def failed(self, reason: str) -> None:
        """Take note that the client's socket was reset."""
        self.abort()

    # What the stream tells (upstream.User).

    def readable(self) -> None:
        """The target has said something."""
        self._pull()

    def writable(self) -> None:
        """There is room for more of the request."""
        self._settle()
        self._update()

    def lost(self, upstream: Upstream, status: int, reason: str, *, again: bool) -> None:
        """The stream is over before its time."""
        if upstream is self._backend.upstream:
            unsent = self._backend.unsent_request(upstream) if again else None
            self._backend.detach()
            if self._ending is Switch:
                self.abort()  # it has left HTTP, and so has nobody to be joined with
            else:
                self._do(self._gateway.provider_lost(status, reason, again=again, unsent=unsent))

    # From the client.

    def _ready(self, events: int) -> None:
        if events & self._watched & WRITE:
            self._flush()
        if events & self._watched & READ:
            self._read()

    def _room(self) -> int:
        """Return how many bytes may be read: of a body what the stream takes, too."""
        upstream = self._backend.upstream
        room = min(self._gateway.reader.wanted, len(self._bridges.view))
        if upstream is not None and self._gateway.reader.in_body:
            room = min(room, upstream.room - CHUNK_OVERHEAD)
        return room

    def _read(self) -> None:
        view = self._bridges.view
        room = len(view) if self._lingering else self._room()
        if room <= 0:
            self._update()
            return
        try:
            count = self._sock.recv_into(view, room)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.abort()
            return
        if self._lingering:
            if not count:
                self._close(finish=True)
        elif count:
            if not self._gateway.idle:
                self._do(self._gateway.receive(bytes(view[:count])))
                return
            now = self._bridges.clock()
            self._backend.check(now)
            commands = self._gateway.receive(bytes(view[:count]))
            if commands or not self._gateway.idle:  # and not blank lines alone
                self._since = now
            self._do(commands)
        else:
            self._do(self._gateway.receive_eof())

    # To the client.

    def _flush(self) -> None:
        """Give the socket what it takes."""
        try:
            self._out.send(self._sock)
        except OSError:
            self.abort()
            return
        self._settle()
        self._update()
        self._pull()

    def _settle(self) -> None:
        """Do what was to be done once everything is written."""
        if self._out or self._lingering or not self.open:
            return
        if self._ending is Finish:
            self._linger()
        elif self._ending is Switch and (upstream := self._backend.upstream) is not None and upstream.settled:
            self._hand_over()

    def _linger(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            self._parting = True
            return
        except OSError:
            self.abort()
            return
        self._backend.let_go()
        self._parting, self._lingering = False, True
        self._since = self._bridges.clock()

    # From the provider.

    def _pull(self) -> None:
        """Turn over what the target says, as long as the client takes it."""
        if self._pulling:
            return
        self._pulling = True
        try:
            while (upstream := self._backend.upstream) is not None and not self._out and self._ending is None:
                moved = upstream.stream.receive.delivered
                if data := upstream.take(min(FEED_BYTES, self._clients.budget.allowance(0, moved=moved))):
                    self._do(self._gateway.provider_data(data))
                elif upstream.take_eof():
                    self._do(self._gateway.provider_eof(unsent=self._backend.unsent_request(upstream)))
                else:
                    upstream.finish_reset()
                    break
        finally:
            self._pulling = False

    # What the gateway wants.

    def _do(self, commands: Commands) -> None:
        """Do it, in order."""
        if commands:
            self._since = self._bridges.clock()
        for command in commands:
            self._obey(command)
        if not self.open:
            return
        if self._out:
            self._flush()
        else:
            self._settle()
            self._update()

    def _obey(self, command: Command) -> None:
        match command:
            case ToClient(data):
                self._out.append(data)
            case Connect() | ToProvider() | HalfClose() | Release() | Discard():
                self._backend.obey(command, now=self._since)
            case LogRequest():
                self._backend.log(command)
            case Finish() | Switch():
                self._ending = type(command)
            case Abort():
                self.abort()
            case _:
                assert_never(command)

    def _hand_over(self) -> None:
        """Join socket and stream: they have left HTTP."""
        released = self._backend.release()
        if released is None:
            self._close()
            return
        stream, ended = released
        self._unwatch()
        self._fd = -1
        self._clients.live.discard(self)
        bridge = Bridge(self._bridges, self._sock, stream, ended)
        bridge.notice(Kind.RESET if stream.state is State.RESET else Kind.READABLE)

    # Ends.

    def _update(self) -> None:
        """Poll for what there is to do."""
        if not self.open:
            return
        reading = self._lingering or (self._ending is None and self._gateway.reading and self._room() > 0)
        events = (READ if reading else 0) | (WRITE if self._out or self._parting else 0)
        watched, self._watched = self._watched, events
        self._bridges.poller.change(self._fd, watched, events, self._ready)
        if reading:
            self._bridges.unwatch(self._fd)
        else:
            self._bridges.watch(self._fd, self)

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = 0
            self._bridges.poller.forget(self._fd)
        self._bridges.unwatch(self._fd)

    def _close(self, *, finish: bool = False) -> None:
        """Let go of the socket: with RST, unless it is finished."""
        if not self.open:
            return
        for command in self._gateway.client_lost():
            self._obey(command)
        self._unwatch()
        self._fd = -1
        self._out.clear()
        self._clients.live.discard(self)
        if finish:
            sockets.finish(self._sock)
        else:
            self._sock.close()
        self._backend.let_go()
        self._clients.providers.client_ended(self._client)
