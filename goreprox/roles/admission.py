"""Admits clients to an edge: accept, PROXY header, access rules, ClientHello, TLS, in this order.

A client that does not pass a step is reset.
"""

import contextlib
import functools
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Final, Protocol

from loguru import logger

from brokers import LimitedLog
from goreprox.config.addresses import Address, Listener, Scheme
from goreprox.config.clients import ClientConfig
from goreprox.config.defaults import DEFAULT_SERVICE
from goreprox.config.routes import Routes, name_of
from goreprox.endpoint import Endpoint, ip_of
from goreprox.http.writer import refusal
from goreprox.net import sockets
from goreprox.net.access import Access, Cause
from goreprox.net.certificates import LINK_ALPN, Certificates, Proofs, reason
from goreprox.net.client_hello import UNRECOGNIZED_NAME, ClientHello
from goreprox.net.handshakes import MOST_HANDSHAKES, Handshakes
from goreprox.net.hellos import Arrival, Hellos
from goreprox.net.identity import Identity
from goreprox.net.link_tls import LinkTransport
from goreprox.net.listeners import Listeners, Open
from goreprox.net.poller import Poller
from goreprox.net.proxies import Proxies
from goreprox.net.sockets import Socket, taken_from_spare
from goreprox.net.tls import TlsSocket
from goreprox.status.document import CertificateStatus

_NOT_HTTPS: Final = refusal(HTTPStatus.BAD_REQUEST, "this port speaks HTTPS; write https://")
_HTTPS_PORT: Final = 443


class Stored(Protocol):
    """Certificates that were asked for (acme.Acme)."""

    def file_of(self, host: str) -> Path | None:
        """Return the file of a host's certificate, if it is one of ours; it may not be there yet."""

    def proof_of(self, host: str) -> Path | None:
        """Return the file of the certificate that answers a challenge, if it is there."""


@dataclass(frozen=True, slots=True)
class Client:
    """A client that was admitted, and what is known of it."""

    sock: Socket
    address: Endpoint
    """Of a client of a proxy, as the proxy says."""
    destination: Endpoint
    """Where it connected to."""
    listener: Listener
    certificate: Identity | None = None
    service: str | None = None
    """Of a client whose TLS is passed on: the service of its host."""

    @property
    def is_http(self) -> bool:
        """Whether its requests are parsed."""
        scheme = self.listener.scheme
        return scheme.is_http or (scheme is Scheme.SNI and self.service is None)


class Admission:
    """Owns the sockets of clients until they are admitted, and counts those that were."""

    def __init__(
        self,
        clients: ClientConfig,
        poller: Poller,
        access: Access,
        *,
        has_room: Callable[[Listener], bool],
        admitted: Callable[[Client], None],
        inherited: Sequence[Open] = (),
        shared: Address | None = None,
        acme: Stored | None = None,
    ) -> None:
        """Listen on all addresses of `clients`; `listeners.start` begins to accept, as long as it `has_room`.

        Listening sockets that are `inherited` are used where they fit.

        `admitted` takes clients over; `leave` is to be called at their end. `linked` is to take over links, which come
        to the listener at the address `shared`. `acme` has certificates that were asked for, and answers to challenges.

        Raises:
            StartError: an address cannot be listened on, or a certificate not be used.
        """
        self._clients = clients
        self._access = access
        self._admitted = admitted
        self._acme = acme
        self._proofs = None if acme is None else Proofs(acme.proof_of)
        self._shared = shared
        self.linked: Callable[[LinkTransport, str], None] | None = None
        self._draining = False
        self._room = has_room
        self._certificates = self._read(clients)
        self._routes = Routes(clients.routes)
        self.published: Callable[[bytes], str | None] = lambda _: None
        """Returns the service that a host is published for as one whose TLS is passed on; to be set before."""
        self.listeners = Listeners(
            clients.listeners,
            poller,
            reuse_port=clients.reuse_port,
            accepted=self._accepted,
            has_room=self._has_room,
            inherited=inherited,
        )
        self.listeners.for_links = self._is_shared
        self.proxies = Proxies(
            poller,
            accepted=self._identified,
            left=self.listeners.start,
            refused=functools.partial(access.refuse, Cause.PROXY_HEADER),
        )
        self.handshakes = Handshakes(poller)
        self.hellos = Hellos(poller, heard=self._heard, lose=self._handshake_failed)
        self._holds_tls = False
        """Whether no further handshake is begun."""
        self._log = LimitedLog()

    def reconfigured(self, clients: ClientConfig) -> Callable[[], None]:
        """Prepare for another configuration; return what applies it, which cannot fail.

        Raises:
            StartError: an address cannot be listened on, or a certificate not be used; nothing has changed.
        """
        is_same = (clients.tls, clients.acme) == (self._clients.tls, self._clients.acme)
        certificates = self._certificates if is_same else self._read(clients)
        opened = self.listeners.open(clients.listeners)

        def apply() -> None:
            self.listeners.switch(opened)  # those in the backlog of a removed listener are admitted as it was
            self._clients = clients
            self._routes = Routes(clients.routes)
            self._certificates = certificates or self._certificates  # for handshakes that have begun

        return apply

    @property
    def certificates(self) -> list[CertificateStatus]:
        """Those that clients are shown."""
        used = self._certificates.all if self._certificates is not None and self._clients.tls.certs else []
        return [{"option": "tls-cert", "file": str(each.file), "expires_at": each.expires_at()} for each in used]

    def secured(self, host: bytes) -> bytes | None:
        """Return where a host, with or without a port, is served by https:// with a certificate of its own, if it is.

        443 is left out.
        """
        name = name_of(host)
        text, used = name.decode(), self._used
        secure = (Scheme.HTTPS, Scheme.SNI) if self.terminates(text) else (Scheme.HTTPS,)
        ports = [port for listener, port in self.listeners.found if listener.scheme in secure]
        if not ports or used is None or used.named(text) is None:
            return None
        return name if _HTTPS_PORT in ports else b"%b:%d" % (name, ports[0])

    @property
    def _used(self) -> Certificates | None:
        """Those of the present configuration."""
        return self._certificates if self._clients.tls.certs or self._clients.acme.enabled else None

    def covers(self, host: str) -> bool:
        """Return whether an option has given a certificate for a host, or for the hosts of a pattern."""
        used = self._certificates if self._clients.tls.certs else None
        return used is not None and used.covers(host)

    def needs(self, host: str) -> bool:
        """Return whether clients of a host would get a certificate by ACME."""
        ends_here = any(listener.scheme.is_tls for listener in self._clients.listeners) or not self._passes(host)
        return ends_here and not self.covers(host)

    def terminates(self, host: str) -> bool:
        """Return whether TLS for a host ends here at sni:// ports: it has a certificate, or is to have one by ACME."""
        acme = self._acme if self._clients.acme.enabled else None
        if self.covers(host):
            route = self._routes.match(host.encode())
            return route is None or not route.passes
        return acme is not None and acme.file_of(host) is not None and not self._passes(host)

    def _passes(self, host: str) -> bool:
        """Return whether TLS for a host without a certificate of an option is passed on, though it could get one."""
        name = host.encode()
        route = self._routes.match(name)
        return self.published(name) is not None if route is None else route.passes

    def __len__(self) -> int:
        """Return the number of clients that are not admitted yet."""
        return len(self.proxies) + len(self.hellos) + len(self.handshakes)

    def _read(self, clients: ClientConfig) -> Certificates | None:
        tls, acme = clients.tls, self._acme if clients.acme.enabled else None
        if not tls.certs and acme is None:
            return None
        alpn = tls.alpn if self._shared is None else (*tls.alpn, LINK_ALPN)
        return Certificates(tls.pairs, tls.client_ca, alpn=alpn, stored=None if acme is None else acme.file_of)

    def _is_shared(self, listener: Listener) -> bool:
        """Whether links come to a listener, too."""
        return listener.scheme.is_tls and listener.address.within_tls == self._shared

    def _has_room(self, listener: Listener) -> bool:
        """Return whether another one may be accepted: clients wait in the backlog, but where links may be among them.

        There, those that turn out to be clients are reset after the handshake.
        """
        if self._room(listener) or not self._is_shared(listener):
            return self._room(listener)
        self.handshakes.make_room()
        return len(self.proxies) < MOST_HANDSHAKES

    def _accepted(self, sock: socket.socket, peer: Endpoint, listener: Listener) -> None:
        """Identify a client by its address, or by the PROXY header if it is a proxy."""
        try:
            sockets.adopt(sock)
            destination = Endpoint(*sock.getsockname()[:2])
        except OSError:  # the client has left already
            sock.close()
            return
        rules = self._clients.proxy_protocol_from
        if rules and any(rule.covers(ip_of(peer.host), self._scopes(listener)) for rule in rules):
            self.proxies.hear(sock, peer, destination, listener)
        else:
            self._identified(sock, peer, destination, listener)

    def _identified(self, sock: socket.socket, address: Endpoint, destination: Endpoint, listener: Listener) -> None:
        """Apply the access rules to a client whose address is known."""
        scopes = self._scopes(listener)
        if not self._access.admit(address.host, *scopes):
            objection = self._access.objection(address.host, *scopes)
            text = f"rejected client {address}: {objection and objection.text}"
            self._log.say("client_denied", text, client=str(address))
            sock.close()  # which resets it
        elif listener.scheme is Scheme.SNI:
            self.hellos.hear(Arrival(sock, address, destination, listener))
        elif listener.scheme.is_tls:
            self._shake_hands(sock, address, destination, listener)
        else:
            self._admitted(Client(sock, address, destination, listener))

    def _scopes(self, listener: Listener) -> tuple[str, str]:
        """Return what rules may name: the port, and the service unless the request decides about that."""
        return str(listener.address.port), "" if self._clients.routes_of(listener) else listener.service

    def _heard(self, arrival: Arrival, hello: ClientHello) -> bool:
        """Terminate TLS for a host with a certificate, pass it on for others; return whether the client was taken."""
        name, address, listener = hello.server_name, arrival.address, arrival.listener
        if name is not None and self.terminates(name):
            if not self._holds_tls:
                self._shake_hands(arrival.sock, address, arrival.destination, listener)
            return not self._holds_tls
        host = (name or "").encode()
        service = self._routes.find(host) or self.published(host)
        if service is None and listener.service != DEFAULT_SERVICE:
            service = listener.service
        if service is None:
            asked = "for no host" if name is None else f"for {name}, which has neither a certificate nor a service"
            self.hellos.reject(arrival, UNRECOGNIZED_NAME, f"it asks {asked}")
        elif self._access.denies(address.host, service):
            self._access.refuse(Cause.DENIED)
            self._log.say("client_denied", f"rejected client {address} of {service}: denied by --allow or --deny")
            arrival.sock.close()  # which resets it
            self.leave(address)
        else:
            self._admitted(Client(arrival.sock, address, arrival.destination, listener, service=service))
        return True

    def _shake_hands(self, sock: socket.socket, address: Endpoint, destination: Endpoint, listener: Listener) -> None:
        shared = self._is_shared(listener)

        def admit(tls: TlsSocket) -> None:
            if tls.was_chosen:  # it has seen the certificate, which was all that it wanted
                self._end_proof(tls, address)
                return
            if shared and self.linked is not None and tls.protocol == LINK_ALPN:
                self.leave(address)
                self.linked(LinkTransport(tls), address.host)
                return
            if shared and (self._draining or taken_from_spare(tls.fileno()) or not self._room(listener)):
                self._log.say("client_reset", f"reset client {address}: at a port of links, too, nobody waits for room")
                tls.close()
                self.leave(address)
                return
            certificate = tls.identity
            if certificate is not None:
                logger.debug(
                    "client {} has the certificate of {}", address, certificate.name, event="client_certificate"
                )
            self._admitted(Client(tls, address, destination, listener, certificate))

        assert self._certificates is not None
        scheme = Scheme.HTTPS if listener.scheme is Scheme.SNI else listener.scheme
        self.handshakes.begin(
            sock,
            self._certificates.context(scheme),
            admit=admit,
            lose=functools.partial(self._handshake_failed, address),
            plaintext=_NOT_HTTPS if scheme.is_http else b"",
            address=address.host if shared else None,
            choose=self._proofs.context if self._proofs is not None and self._clients.acme.enabled else None,
        )

    def _end_proof(self, tls: TlsSocket, address: Endpoint) -> None:
        logger.debug("{} has tried the answer to a challenge", address, event="challenge_tried")
        with contextlib.suppress(OSError):  # it may have left already
            tls.shutdown(socket.SHUT_WR)
        sockets.finish(tls)
        self.leave(address)

    def _handshake_failed(self, address: Endpoint, exc: OSError) -> None:
        why = reason(exc)
        logger.debug("no TLS with client {}: {}", address, why, event="tls_ended")
        if not isinstance(exc, ConnectionError):
            self._access.refuse(Cause.TLS)
            self._log.say("tls_failed", f"the TLS handshake with client {address} failed: {why}")
        self.leave(address)

    def hold_tls(self) -> None:
        """Let new clients that speak TLS with us wait from now on, in the backlog, or once their host is known."""
        self._holds_tls = True
        self.listeners.hold(lambda listener: listener.scheme.is_tls)

    def count(self, address: Endpoint) -> None:
        """Count a client that was admitted by the code before this one."""
        self._access.count(address.host)

    def leave(self, address: Endpoint) -> None:
        """Note that a client has left: there is room for another one."""
        self._access.release(address.host)
        self.listeners.start()

    def dismiss(self, client: Client) -> None:
        """Reset a client that was admitted, for which there is nothing any more."""
        client.sock.close()
        self.leave(client.address)

    def drain(self) -> None:
        """Stop accepting clients. Idempotent."""
        self._draining = True
        self.listeners.drain()

    def close(self) -> None:
        """Reset all clients that are not admitted yet."""
        self.listeners.close()
        self.proxies.close()
        self.hellos.close()
        self.handshakes.close()
