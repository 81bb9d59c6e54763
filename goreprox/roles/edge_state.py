"""The state of an edge for the code that takes its place (upgrade.Portable): docs/upgrade.md.

What goes on: listening sockets, byte streams, WebSockets, HTTP clients between two requests, clients that wait for a
provider, clients whose ClientHello is awaited, and proxies whose header is. TLS clients and requests in progress have
time to end before.
"""

import functools
import socket
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

from goreprox.config.addresses import Listener
from goreprox.endpoint import Endpoint
from goreprox.http.access_log import Upgraded
from goreprox.http.client import ClientConnection
from goreprox.http.clients import Client, ClientConnections
from goreprox.http.exchange import Site
from goreprox.http.provider_stream import ProviderStream
from goreprox.net import sockets
from goreprox.net.listeners import Open
from goreprox.protocol.errors import ExportError
from goreprox.protocol.export import export_stream, restore_stream
from goreprox.protocol.fields import Fields
from goreprox.protocol.stream import Stream
from goreprox.protocol.totals import EndCode
from goreprox.roles.admission import Admission
from goreprox.roles.assignment import Assignment, Refusals
from goreprox.roles.upgrade import sessions_resumed
from goreprox.tunnel.bridge import Bridge, Bridges
from goreprox.tunnel.driver import Driver, wait_until
from goreprox.tunnel.peer import Peer

RESET = "the edge was upgraded, and TLS cannot be handed over"


class Parts(Protocol):
    """What an edge consists of."""

    driver: Driver
    bridges: Bridges
    http_clients: ClientConnections
    admission: Admission
    assignment: Assignment
    drain_s: float

    @property
    def sites(self) -> Mapping[Listener, Site]:
        """What the requests of HTTP clients are served by."""

    @property
    def connections(self) -> int:
        """How many are open."""


def restored_listeners(items: Iterator[object]) -> list[Open]:
    """Return the listening sockets that come first in the state of an edge.

    Raises:
        ExportError: they are not what `EdgeState.export` yields.
    """
    return [Open.restore(item) for item in Fields(next(items, None)).items("listeners")]


class _Handed(NamedTuple):
    """Items that name descriptors."""

    listeners: list[object]
    proxies: list[object]
    hellos: list[object]
    clients: list[dict[str, object]]


class EdgeState:
    """What is handed over of an edge."""

    def __init__(self, edge: Parts) -> None:
        self._edge = edge
        self.driver = edge.driver
        self._handed: _Handed | None = None
        """What was handed over, once it was: the sockets are no longer ours then."""

    @property
    def connections(self) -> int:
        """How many are open."""
        return self._edge.connections

    async def end_what_stays(self) -> None:
        """Give TLS clients, and requests that are in progress, time to end; then reset them.

        New TLS clients wait in the backlog. Others are served as ever until those are over, then their requests wait,
        too, until those that have begun meanwhile are over.
        """
        edge, clients = self._edge, self._edge.http_clients
        edge.admission.hold_tls()
        for client in list(clients.live):
            if not _is_plain(client):
                client.drain()
        asked = {client: exchange for client in clients.live if (exchange := client.gateway.exchange) is not None}

        def remaining() -> list[Client]:
            return [client for client, exchange in asked.items() if client.gateway.exchange is exchange]

        await wait_until(lambda: not remaining() and not self._speaks_tls, deadline_s=edge.drain_s)
        edge.admission.handshakes.close()
        for bridge in edge.bridges.connections:
            if isinstance(bridge, Bridge) and not bridge.portable:
                bridge.abort(RESET, EndCode.SHUTDOWN)
        for client in [*remaining(), *(client for client in clients.live if not _is_plain(client))]:
            client.abort()
        clients.pause()
        busy = [client for client in clients.live if not _is_portable(client)]
        await wait_until(lambda: all(map(_is_portable, clients.live.intersection(busy))), deadline_s=edge.drain_s)
        for client in clients.live.intersection(busy):
            if not _is_portable(client):
                client.abort()

    @property
    def _speaks_tls(self) -> bool:
        """Whether a connection speaks TLS, or is about to."""
        edge = self._edge
        return (
            len(edge.admission.handshakes) > 0
            or not all(map(_is_plain, edge.http_clients.live))
            or any(isinstance(bridge, Bridge) and not bridge.portable for bridge in edge.bridges.connections)
        )

    async def resumed(self) -> None:
        """Wait for the sessions."""
        await sessions_resumed(self.driver)

    def leave(self) -> list[int]:
        """Leave all paths; return the sockets that are handed over."""
        self.driver.leave("this process is being upgraded")
        admission = self._edge.admission
        return [
            *admission.listeners.descriptors,
            *admission.proxies.descriptors,
            *admission.hellos.descriptors,
            *(bridge.descriptor for bridge, *_ in self._live_bridges() if bridge.descriptor is not None),
            *(client.sock.fileno() for client, _ in self._idle_clients()),
        ]

    def export(self, *, payload: bool) -> Iterator[object]:
        """Yield listeners, sessions and clients; with `payload` let go of all sockets at the end.

        It may begin anew even then, in case that memory is refused; nothing else may follow.
        """
        edge, bridges = self._edge, list(self._live_bridges())
        handed = self._handed or _Handed(
            edge.admission.listeners.export(payload=payload),
            list(edge.admission.proxies.export(payload=payload)),
            list(edge.admission.hellos.export(payload=payload)),
            [_exported(client, listener, payload=payload) for client, listener in self._idle_clients()],
        )
        if payload:
            self._handed = handed
        yield {"listeners": handed.listeners}
        finishing = [[peer.id, stream.id] for peer, stream in self._finishing()]
        yield from edge.driver.export(payload=payload)
        yield {
            "finishing": finishing,
            "requests": edge.http_clients.counters.export(),
            "proxies": len(handed.proxies),
            "hellos": len(handed.hellos),
            "bridges": len(bridges),
            "clients": len(handed.clients),
        }
        yield from handed.proxies
        yield from handed.hellos
        for bridge, peer, until in bridges:
            upgraded = edge.http_clients.upgraded.get(bridge.stream)
            refusals = edge.assignment.refusals.get(bridge.stream)
            yield {
                "peer": None if peer is None else peer.id,
                "stream": None if peer is None else bridge.stream.id,
                "until": until,
                "refused_by": refusals and refusals.export(),
                "upgraded": None if upgraded is None else upgraded.export(),
            } | bridge.export(payload=payload)
            if peer is None:
                yield from export_stream(bridge.stream, payload=payload)
        yield from handed.clients
        if payload:
            edge.admission.listeners.release()
            edge.admission.proxies.release()
            edge.admission.hellos.release()
            for client, _ in self._idle_clients():
                _plain(client).detach()
            edge.bridges.poller.close()

    def restore(self, items: Iterator[object], *, trial: bool) -> None:
        """Go on with what `export` has yielded behind the listeners; of a `trial` only look at it.

        Raises:
            ExportError: it is something else.
        """
        edge = self._edge
        edge.driver.restore(items)
        head = Fields(next(items, None))
        if (requests := head.fields_or_none("requests")) is not None:
            edge.http_clients.counters.take_over(requests)
        for number, restore in (
            (head.count("proxies"), self._restore_proxy),
            (head.count_or_none("hellos") or 0, self._restore_hello),  # versions without sni:// have none
            (head.count("bridges"), functools.partial(self._restore_bridge, items)),
            (head.count("clients"), self._restore_client),
        ):
            for _ in range(number):
                restore(Fields(next(items, None)), trial)
        for _ in items:
            raise ExportError("more in the export than expected")
        finishing = [self._stream(*_pair(item)) for item in head.items("finishing")]
        if trial:
            return
        for stream in finishing:
            edge.http_clients.provider_stream(stream, None).finish()
        for peer in list(edge.driver.peers.values()):
            for stream in list(peer.session.streams.values()):
                if stream.owner is None:  # its request was not over
                    edge.http_clients.provider_stream(stream, None).reset("the edge was upgraded", EndCode.SHUTDOWN)
            edge.assignment.restored(peer)

    def _restore_proxy(self, fields: Fields, trial: bool) -> None:
        listener = self._listener(fields)
        if not trial:
            sock = sockets.restored(fields.count("descriptor"))
            self._edge.admission.proxies.restore(sock, listener, fields)

    def _restore_hello(self, fields: Fields, trial: bool) -> None:
        listener, client = self._listener(fields), fields.endpoint("client")
        if not trial:
            self._edge.admission.count(client)
            self._edge.admission.hellos.restore(sockets.restored(fields.count("descriptor")), listener, fields)

    def _restore_bridge(self, items: Iterator[object], fields: Fields, trial: bool) -> None:
        edge, clients = self._edge, self._edge.http_clients
        peer = fields.data_or_none("peer")
        if peer is None:
            stream = restore_stream(items, edge.driver.budget)
        else:
            stream = self._stream(peer, fields.count("stream"))
        until, upgraded = fields.seconds_or_none("until"), fields.fields_or_none("upgraded")
        refusals = fields.fields_or_none("refused_by")
        client = Endpoint.parse(stream.client)
        if client is None:
            raise ExportError(f"client {stream.client!r} in the export, expected an address and a port")
        if trial:
            return
        if upgraded is not None:
            clients.upgraded[stream] = Upgraded.restore(upgraded)
        edge.admission.count(client)
        ended = functools.partial(clients.bridge_ended, client)
        bridge = Bridge.restore(
            edge.bridges, sockets.restored(fields.count_or_none("descriptor")), stream, ended, fields
        )
        if refusals is not None:
            edge.assignment.refusals[stream] = Refusals.restore(refusals)
        if until is not None:
            edge.assignment.restore(bridge, until)

    def _restore_client(self, fields: Fields, trial: bool) -> None:
        site = self._edge.sites.get(self._listener(fields))
        client, destination = fields.endpoint("client"), fields.endpoint("destination")
        begun, since = fields.data("begun"), fields.seconds("since")
        if trial:
            return
        sock = sockets.restored(fields.count("descriptor"))
        if site is None:  # there is no such listener any more
            sockets.finish(sock)
            return
        self._edge.admission.count(client)
        restored = ClientConnection(self._edge.http_clients, sock, client, destination, site, begun=begun)
        if _is_portable(restored):
            restored.since = since

    def _stream(self, peer_id: bytes, stream_id: int) -> Stream:
        peer = self._edge.driver.peers.get(peer_id)
        stream = peer and peer.session.streams.get(stream_id)
        if not stream:
            raise ExportError("a client of a stream that is not there, in the export")
        return stream

    def _listener(self, fields: Fields) -> Listener:
        """Return the listener that has the place of the one that accepted a client; that one if there is none."""
        before = Listener.restore(fields.text("listener"))
        listeners = [listener for listener, _ in self._edge.admission.listeners.found]
        if before in listeners:
            return before
        return next((listener for listener in listeners if listener.address == before.address), before)

    def _live_bridges(self) -> Iterator[tuple[Bridge, Peer | None, float | None]]:
        """Yield those whose stream has not ended, with its peer, or until when it waits for one."""
        for bridge in self._edge.bridges.connections:
            if not isinstance(bridge, Bridge):
                continue
            peer = self.driver.peer_of(bridge.stream)
            if peer is None:
                until = self._edge.assignment.pending_until(bridge)
                if until is not None:
                    yield bridge, None, until
            elif bridge.stream.id in peer.session.streams:
                yield bridge, peer, None

    def _idle_clients(self) -> Iterator[tuple[Client, Listener]]:
        """Yield HTTP clients between two requests, and their listeners."""
        listeners = {site: listener for listener, site in self._edge.sites.items()}
        for client in self._edge.http_clients.live:
            if _is_portable(client) and (listener := listeners.get(client.gateway.site)) is not None:
                yield client, listener

    def _finishing(self) -> Iterator[tuple[Peer, Stream]]:
        """Yield streams of requests that are over: only the ends of the connections to targets are still due."""
        for owner in self._edge.bridges.connections:
            if isinstance(owner, ProviderStream) and owner.finished:
                peer = self.driver.peer_of(owner.stream)
                if peer is not None and owner.stream.id in peer.session.streams:
                    yield peer, owner.stream


def _plain(client: Client) -> socket.socket:
    assert isinstance(client.sock, socket.socket)
    return client.sock


def _is_plain(client: Client) -> bool:
    return isinstance(client.sock, socket.socket)


def _is_portable(client: Client) -> bool:
    """Whether other code can go on with an HTTP client: it is between two requests, and speaks no TLS."""
    return client.gateway.between_requests and not client.out and _is_plain(client)


def _exported(client: Client, listener: Listener, *, payload: bool) -> dict[str, object]:
    """Return what has come of a client's next request, and with `payload` its descriptor."""
    return {
        "listener": listener.text,
        "descriptor": client.sock.fileno() if payload else None,
        "client": str(client.address),
        "destination": str(client.destination),
        "since": client.since,
        "begun": client.gateway.reader.begun,
    }


def _pair(item: object) -> tuple[bytes, int]:
    match item:
        case [bytes(peer), int(stream)]:
            return peer, stream
    raise ExportError("malformed stream in the export")
