"""The sockets of HTTP clients: each drives a gateway, and obeys its commands, those for streams by its backend.

A client that reads slowly stops its target, and a target that reads slowly its client: nothing is read that there is no
room for.
"""

import socket
from collections.abc import Mapping
from typing import Final, assert_never

from goreprox.endpoint import Endpoint
from goreprox.http.backend import Backend
from goreprox.http.clients import ClientConnections
from goreprox.http.commands import (
    Ask,
    Command,
    Commands,
    Connect,
    CountRequest,
    Discard,
    Finish,
    HalfClose,
    LogRequest,
    Release,
    ResetClient,
    SwitchProtocols,
    ToClient,
    ToProvider,
)
from goreprox.http.exchange import Site
from goreprox.http.forward_auth import Verdict
from goreprox.http.gateway import Gateway
from goreprox.http.phases import CLOSED, CLOSING, EVENTS, LINGERING, SERVING, Phase
from goreprox.http.provider_stream import CLOSING_S, ProviderStream
from goreprox.http.write_buffer import WriteBuffer
from goreprox.net import sockets
from goreprox.net.identity import Identity
from goreprox.net.poller import READ, WRITE
from goreprox.net.sockets import Socket
from goreprox.protocol.limits import KIB
from goreprox.protocol.notices import Kind
from goreprox.protocol.state import State
from goreprox.tunnel.bridge import Bridge

HEAD_S: Final = 10.0
"""Timeout from the first byte of a header section to its last."""
IDLE_S: Final = 75.0
"""Timeout of a connection without a request."""
LINGER_S: Final = 2.0
"""Timeout for the client's end of file after the last response: RST before would take the response away from it."""
FEED_BYTES: Final = 256 * KIB
"""Bytes of a response that are passed on at once."""
CHUNK_OVERHEAD: Final = 32
"""Bytes by which a part of a body grows where it becomes a chunk: 16 digits, two line ends, and the last chunk."""


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
        begun: bytes = b"",
    ) -> None:
        """Begin to read the prepared socket of a client of `destination`; of a request this was `begun` already."""
        self._clients = clients
        self._bridges = clients.bridges
        self.sock = sock
        self._fd = sock.fileno()
        self.address = client
        self.destination = destination
        name = None if certificate is None else certificate.name
        self._backend = Backend(clients, self, client=client, destination=destination, certificate=name)
        self.gateway = Gateway(
            site,
            client=client.host,
            authority=str(destination),
            certificate=b"" if certificate is None else certificate.forwarded,
        )
        self.out = WriteBuffer(clients.budget)
        self._phase = SERVING
        self._watched = 0
        self._pulling = False
        """Whether `_pull` is running: what it does may call it again."""
        self.since = self._bridges.clock()
        clients.add(self)
        if begun:
            self._do(self.gateway.receive(begun))
        self._update()
        if clients.draining:
            self.drain()

    @property
    def open(self) -> bool:
        """Whether the socket is still ours."""
        return self._phase is not CLOSED

    # What others tell.

    def check(self, now: float) -> None:
        """End the connection if it takes too long."""
        gateway = self.gateway
        waited_s = now - self.since
        if self._phase is LINGERING:
            if waited_s >= LINGER_S:
                self._close(finish=True)
        elif gateway.paused or (gateway.half_closed and (self.out or self._backend.away)):
            self.since = now
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

    def pause(self) -> None:
        """Begin no further request for now."""
        self.gateway.paused = True
        self._update()

    def drain(self) -> None:
        """End the connection after the response that is due, if one is."""
        self._do(self.gateway.drain())

    def abort(self) -> None:
        """Reset the connection, and the stream of its request."""
        if self.open:
            self._close()

    def failed(self, reason: str) -> None:
        """Take note that the client has reset the connection."""
        self.abort()

    # What the stream tells (provider_stream.User).

    def readable(self) -> None:
        """Pass on what the target has sent."""
        self._pull()

    def writable(self) -> None:
        """Read more of the request: there is room."""
        self._settle()
        self._update()

    def judged(self, verdict: Verdict) -> None:
        """Go on with the request that a guard was asked about, or tell the client why not."""
        self._do(self.gateway.judged(verdict))

    @property
    def facts(self) -> Mapping[str, str]:
        """What is known of the client and its present request."""
        return self.gateway.facts | self._backend.facts

    def lost(self, provider_stream: ProviderStream, status: int, reason: str, *, again: bool) -> None:
        """Try again, or tell the client, that the stream of its request is over."""
        if provider_stream is self._backend.provider_stream:
            unsent = self._backend.unsent_request(provider_stream) if again else None
            self._backend.detach()
            if self._phase is Phase.SWITCHING:
                self.abort()  # there is nothing to join it with
            else:
                self._do(self.gateway.provider_lost(status, reason, again=again, unsent=unsent))

    # From the client.

    def _ready(self, events: int) -> None:
        if events & self._watched & WRITE:
            self._flush()
        if events & self._watched & READ:
            self._read()

    def _room(self) -> int:
        """Return how many bytes may be read: of a body no more than the stream takes."""
        provider_stream = self._backend.provider_stream
        room = min(self.gateway.reader.wanted, len(self._bridges.view))
        if provider_stream is not None and self.gateway.reader.in_body:
            room = min(room, provider_stream.room - CHUNK_OVERHEAD)
        return room

    def _read(self) -> None:
        view = self._bridges.view
        lingering = self._phase is LINGERING
        room = len(view) if lingering else self._room()
        if room <= 0:
            self._update()
            return
        try:
            count = self.sock.recv_into(view, room)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.abort()
            return
        if lingering:
            if not count:
                self._close(finish=True)
        elif count:
            if not self.gateway.idle:
                self._do(self.gateway.receive(bytes(view[:count])))
                return
            now = self._bridges.clock()
            self._backend.check(now)
            commands = self.gateway.receive(bytes(view[:count]))
            if commands or not self.gateway.idle:  # and not blank lines alone
                self.since = now
            self._do(commands)
        else:
            self._do(self.gateway.receive_eof())

    # To the client.

    def _flush(self) -> None:
        """Write as much as the socket takes."""
        try:
            self.out.send(self.sock)
        except OSError:
            self.abort()
            return
        self._settle()
        self._update()
        self._pull()

    def _settle(self) -> None:
        """Enter the next phase once everything is written."""
        if self.out:
            return
        if self._phase is Phase.FINISHING or self._phase is CLOSING:
            self._shut_down()
        elif (
            self._phase is Phase.SWITCHING
            and (provider_stream := self._backend.provider_stream) is not None
            and provider_stream.settled
        ):
            self._hand_over()

    def _shut_down(self) -> None:
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            self._phase = CLOSING
            return
        except OSError:
            self.abort()
            return
        self._backend.let_go()
        self._phase = LINGERING
        self.since = self._bridges.clock()

    # From the provider.

    def _pull(self) -> None:
        """Pass on what the target sends, as long as the client takes it."""
        if self._pulling:
            return
        self._pulling = True
        try:
            while (
                self._phase is SERVING
                and not self.out
                and (provider_stream := self._backend.provider_stream) is not None
            ):
                moved = provider_stream.stream.receive.delivered
                if data := provider_stream.take(min(FEED_BYTES, self._clients.budget.allowance(0, moved=moved))):
                    self._do(self.gateway.provider_data(data))
                elif provider_stream.take_eof():
                    self._do(self.gateway.provider_eof(unsent=self._backend.unsent_request(provider_stream)))
                else:
                    provider_stream.finish_reset()
                    break
        finally:
            self._pulling = False

    # What the gateway wants.

    def _do(self, commands: Commands) -> None:
        """Obey the gateway's commands, in order."""
        if commands:
            self.since = self._bridges.clock()
        for command in commands:
            self._obey(command)
        if not self.open:
            return
        if self.out:
            self._flush()
        else:
            self._settle()
            self._update()

    def _obey(self, command: Command) -> None:
        match command:
            case ToClient(data):
                self.out.append(data)
            case Ask() | Connect() | ToProvider() | HalfClose() | Release() | Discard():
                self._backend.obey(command, now=self.since)
            case LogRequest():
                self._backend.log(command)
            case CountRequest(service, status):
                self._backend.count(service, status, now=self._bridges.clock())
            case Finish() | SwitchProtocols():
                if self.open:
                    self._phase = Phase.FINISHING if isinstance(command, Finish) else Phase.SWITCHING
            case ResetClient():
                self.abort()
            case _:
                assert_never(command)

    def _hand_over(self) -> None:
        """Join socket and stream byte by byte."""
        released = self._backend.release()
        if released is None:
            self._close()
            return
        stream, ended = released
        self._let_go()
        bridge = Bridge(self._bridges, self.sock, stream, ended)
        bridge.notice(Kind.RESET if stream.state is State.RESET else Kind.READABLE)

    # Ends.

    def _update(self) -> None:
        """Poll the socket for what the phase needs."""
        if not self.open:
            return
        events = EVENTS[self._phase]
        if self._phase is SERVING and not (self.gateway.reading and self._room() > 0):
            events &= ~READ
        if not self.out and self._phase is not CLOSING:
            events &= ~WRITE
        before, self._watched = self._watched, events
        self._bridges.poller.change(self._fd, before, events, self._ready)
        if events & READ:
            self._bridges.unwatch(self._fd)
        else:
            self._bridges.watch(self._fd, self)

    def _let_go(self) -> None:
        """Poll the socket no longer, and leave it to others."""
        self._phase = CLOSED
        self._bridges.poller.change(self._fd, self._watched, 0, self._ready)
        self._bridges.unwatch(self._fd)
        self._watched = 0
        self._clients.live.discard(self)

    def _close(self, *, finish: bool = False) -> None:
        """Close the socket: with RST, unless it is finished."""
        if not self.open:
            return
        for command in self.gateway.client_lost():
            self._obey(command)
        self._let_go()
        self.out.clear()
        if finish:
            sockets.finish(self.sock)
        else:
            self.sock.close()
        self._backend.let_go()
        self._clients.providers.client_ended(self.address)
