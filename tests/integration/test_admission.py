"""Clients on their way into an edge: PROXY header, access rules, TLS, in this order."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from goreprox.config.acme import AcmeConfig
from goreprox.config.addresses import Address, Listener, ProxyVersion
from goreprox.config.clients import ClientConfig, TlsConfig
from goreprox.config.networks import Rule
from goreprox.config.routes import Route
from goreprox.endpoint import Endpoint
from goreprox.net.access import Access
from goreprox.net.client_hello import UNRECOGNIZED_NAME, fatal_alert
from goreprox.net.link_tls import LinkTransport
from goreprox.net.poller import Poller
from goreprox.net.proxy_protocol import write
from goreprox.roles.admission import Admission, Client, Stored
from tests.support.client_hellos import first_bytes
from tests.support.sockets import HOST, closed_port
from tests.support.tls import NAME, Authority
from tests.support.waiting import DEADLINE_S, eventually

DENIED, ALLOWED = "192.0.2.1", "198.51.100.1"
HERE = Endpoint("203.0.113.1", 443)


class Entrance:
    """An admission, and those that it has admitted."""

    def __init__(
        self,
        clients: ClientConfig,
        *,
        limit: int | None = None,
        shared: Address | None = None,
        acme: Stored | None = None,
    ) -> None:
        """Where the port is `shared` with links, there is no room for clients."""
        self.clients: list[Client] = []
        self.links: list[tuple[LinkTransport, str]] = []
        self.access = Access(clients.allow, clients.deny, limit)
        self.admission = Admission(
            clients,
            Poller(lambda work: work()),
            self.access,
            has_room=lambda _: shared is None,
            admitted=self.clients.append,
            shared=shared,
            acme=acme,
        )
        self.admission.linked = lambda transport, address: self.links.append((transport, address))
        self.admission.listeners.start()

    async def connect(
        self, *, header: bytes = b"", tls: ssl.SSLContext | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        sock = socket.create_connection((HOST, self.admission.listeners.ports[0]))
        sock.sendall(header)
        return await asyncio.open_connection(sock=sock, ssl=tls, server_hostname=NAME if tls else None)

    def close(self) -> None:
        self.admission.listeners.close()
        self.admission.close()
        for client in self.clients:
            client.sock.close()
        for transport, _ in self.links:
            transport.close()


@contextlib.asynccontextmanager
async def entrance(
    clients: ClientConfig, *, limit: int | None = None, shared: Address | None = None
) -> AsyncIterator[Entrance]:
    made = Entrance(clients, limit=limit, shared=shared)
    try:
        yield made
    finally:
        made.close()


def header(client: str) -> bytes:
    return write(ProxyVersion.V2, Endpoint(client, 1234), HERE)


@pytest.fixture
def proxied(tmp_path: Path) -> tuple[ClientConfig, Authority]:
    """A `tls://` port behind a proxy, closed to one client of it."""
    authority = Authority(tmp_path)
    clients = ClientConfig(
        listeners=(Listener.parse(f"tls://{HOST}:0"),),
        deny=(Rule.parse("deny", DENIED),),
        proxy_protocol_from=(Rule.parse("proxy-protocol-from", HOST),),
        tls=TlsConfig(certs=(authority.cert,), keys=(authority.key,)),
    )
    return clients, authority


async def test_a_client_of_a_proxy_is_admitted_after_header_and_handshake(
    proxied: tuple[ClientConfig, Authority],
) -> None:
    clients, authority = proxied
    async with entrance(clients) as it:
        _, writer = await it.connect(header=header(ALLOWED), tls=authority.trusting())
        await eventually(lambda: it.clients)
        (client,) = it.clients
        assert (str(client.address), str(client.destination)) == (f"{ALLOWED}:1234", str(HERE))
        assert client.listener == clients.listeners[0]
        assert len(it.admission) == 0
        writer.transport.abort()


async def test_access_rules_apply_to_the_client_of_a_proxy_before_any_handshake(
    proxied: tuple[ClientConfig, Authority], warnings: list[str]
) -> None:
    clients, _ = proxied
    async with entrance(clients) as it:
        reader, writer = await it.connect(header=header(DENIED))
        with pytest.raises(ConnectionResetError):
            await reader.read()
        assert (it.clients, it.access.refused, len(it.admission)) == ([], {"denied": 1}, 0)
        assert any(f"rejected client {DENIED}:1234" in line for line in warnings)
        writer.transport.abort()


async def test_a_failed_handshake_frees_the_place_of_its_address(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    clients = ClientConfig(
        listeners=(Listener.parse(f"tls://{HOST}:0"),), tls=TlsConfig(certs=(authority.cert,), keys=(authority.key,))
    )
    async with entrance(clients, limit=1) as it:
        reader, writer = await it.connect()
        writer.write(b"this is no TLS\n")
        await reader.read()
        assert (it.clients, it.access.refused) == ([], {"tls": 1})
        _, later = await it.connect(tls=authority.trusting())
        await eventually(lambda: it.clients)
        for each in (writer, later):
            each.transport.abort()


async def test_links_come_in_at_a_full_port_behind_a_proxy_beside_silent_handshakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("goreprox.net.handshakes.MOST_HANDSHAKES", 3)
    authority = Authority(tmp_path)
    with closed_port() as port:
        clients = ClientConfig(
            listeners=(Listener.parse(f"tls://{HOST}:{port}"),),
            proxy_protocol_from=(Rule.parse("proxy-protocol-from", HOST),),
            tls=TlsConfig(certs=(authority.cert,), keys=(authority.key,)),
        )
        async with entrance(clients, shared=Address(HOST, port, tls=True)) as it:
            silent = [await it.connect(header=header(ALLOWED)) for _ in range(8)]
            for reader, _ in silent[:5]:
                with pytest.raises(ConnectionResetError):
                    await asyncio.wait_for(reader.read(), DEADLINE_S)
            assert len(it.admission.handshakes) == 3
            client, writer = await it.connect(header=header(ALLOWED), tls=authority.trusting())
            with pytest.raises((ConnectionResetError, ssl.SSLError)):
                await asyncio.wait_for(client.read(), DEADLINE_S)
            context = authority.trusting()
            context.set_alpn_protocols(["goreprox"])
            _, link = await it.connect(header=header(ALLOWED), tls=context)
            await eventually(lambda: it.links)
            assert (it.links[0][1], it.clients) == (ALLOWED, [])
            for each in (writer, link, *(writer for _, writer in silent)):
                each.transport.abort()


async def test_an_address_gets_its_place_back_when_its_client_leaves() -> None:
    async with entrance(ClientConfig(listeners=(Listener.parse(f"{HOST}:0"),)), limit=1) as it:
        _, first = await it.connect()
        await eventually(lambda: it.clients)
        reader, second = await it.connect()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        it.admission.leave(it.clients[0].address)
        _, third = await it.connect()
        await eventually(lambda: len(it.clients) == 2)
        for each in (first, second, third):
            each.transport.abort()


async def test_clients_of_an_sni_port_go_where_their_name_leads_and_leave_no_place_taken(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    clients = ClientConfig(
        listeners=(Listener.parse(f"sni://{HOST}:0"),),
        routes=(Route.parse("a.test=a"),),
        deny=(Rule.parse("deny", f"a={DENIED}"),),
        proxy_protocol_from=(Rule.parse("proxy-protocol-from", HOST),),
        tls=TlsConfig(certs=(authority.cert,), keys=(authority.key,)),
    )
    async with entrance(clients, limit=1) as it:
        it.admission.published = {b"p.test": "tls://p.test@laptop"}.get
        for host, service in (("A.test", "a"), ("p.test", "tls://p.test@laptop")):
            hello = first_bytes(host)
            _, writer = await it.connect(header=header(ALLOWED) + hello)
            await eventually(lambda: it.clients)
            client = it.clients.pop()
            assert (client.service, client.is_http, client.address.host) == (service, False, ALLOWED)
            assert isinstance(client.sock, socket.socket)
            assert client.sock.recv(4096) == hello
            it.admission.dismiss(client)
            writer.transport.abort()
        for nobodys in ("b.test", None):
            reader, writer = await it.connect(header=header(DENIED) + first_bytes(nobodys))
            assert await reader.read() == fatal_alert(UNRECOGNIZED_NAME)
            writer.close()
        reader, writer = await it.connect(header=header(DENIED) + first_bytes("a.test"))
        with pytest.raises(ConnectionResetError):
            await reader.read()
        assert it.access.refused == {"tls": 2, "denied": 1}
        _, terminated = await it.connect(header=header(DENIED), tls=authority.trusting())
        await eventually(lambda: it.clients)
        assert (it.clients[0].service, it.clients[0].is_http) == (None, True)
        it.admission.hold_tls()
        _, waiting = await it.connect(header=header(ALLOWED) + first_bytes(NAME))
        await eventually(lambda: len(it.admission.hellos) == 1 and not it.admission.hellos._timers)
        assert len(it.clients) == 1, "its TLS begins in the next code"
        for each in (writer, terminated, waiting):
            each.transport.abort()


class Ordered:
    """Certificates by ACME for some hosts, which are not there yet."""

    def __init__(self, *hosts: str) -> None:
        self._hosts = hosts

    def file_of(self, host: str) -> Path | None:
        return Path("/nowhere") / host if host in self._hosts else None

    def proof_of(self, host: str) -> Path | None:
        return None


@pytest.mark.parametrize("web", [(), ("https://",)], ids=["", "https"])
async def test_an_sni_port_ends_tls_of_hosts_with_certificates_by_acme_unless_a_route_or_a_name_passes_it_on(
    tmp_path: Path, web: tuple[str, ...]
) -> None:
    authority = Authority(tmp_path)
    routes = ("a.test=web", "*.b.test=web", "tls://c.test=far", "c.test=web", f"tls://{NAME}=far")
    clients = ClientConfig(
        listeners=tuple(Listener.parse(f"{scheme}{HOST}:0") for scheme in ("sni://", *web)),
        routes=tuple(map(Route.parse, routes)),
        acme=AcmeConfig(agree=True),
        tls=TlsConfig(certs=(authority.cert,), keys=(authority.key,)),
    )
    made = Entrance(clients, acme=Ordered("a.test", "c.test", "p.test", "q.test"))
    made.admission.published = {b"q.test": "tls://q.test@laptop"}.get
    hosts = ("a.test", "c.test", "p.test", "q.test", NAME)
    ends = {host for host in (*hosts, "x.b.test") if made.admission.terminates(host)}
    needs = set(filter(made.admission.needs, hosts))
    made.close()
    assert ends == {"a.test", "p.test"}
    assert needs == {"a.test", "p.test", *(("c.test", "q.test") if web else ())}
