"""Links within TLS, in this process: what a link says of a port where it cannot be, and what a port bears."""

import asyncio
import contextlib
import datetime
import functools
import ssl
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from brokers import BrokerSecurity, Grant, KeyPair, Link, Role, Router
from brokers.connections import Connection
from brokers.relays import Relays
from goreprox.config.addresses import Address, Target
from goreprox.config.certificates import CertificateConfig
from goreprox.config.process import ProcessConfig
from goreprox.config.proxy import ProxyConfig
from goreprox.config.roles import ProviderConfig
from goreprox.net.certificates import StoredFile
from goreprox.net.handshakes import crowding
from goreprox.net.link_port import LinkCertificates, LinkPort
from goreprox.net.link_tls import LinkTls, Trust
from goreprox.roles.broker_check import Result, State
from goreprox.roles.doctor import examine
from goreprox.roles.member import advice
from tests.support.fabric import SLOW, Fabric, Recorder, name
from tests.support.sockets import HOST, stop_accepting
from tests.support.tls import NAME, Authority
from tests.support.waiting import DEADLINE_S, eventually

NO_TLS = ("it does not speak TLS", "it disconnects in the handshake")
"""A ROUTER may have sent its greeting before it takes ours for nonsense, or not."""
ANYWHERE = (Address(HOST, 1, tls=True),)


class Nobody:
    """An authority that knows no key."""

    def grant(self, public_key: bytes) -> Grant | None:
        return None

    def certified(self, public_key: bytes, attributes: Mapping[str, object]) -> Mapping[str, object]:
        return attributes

    def objection(self, public_key: bytes, attributes: Mapping[str, object]) -> str | None:
        return None


KEYS = BrokerSecurity(KeyPair.generate(), Nobody())
"""Without them libzmq takes other protocols for ZMTP 1.0, and may abort where its socket is closed meanwhile."""


class Broker:
    """A broker with a port for providers within TLS."""

    def __init__(self, authority: Authority, stored: StoredFile | None = None) -> None:
        self.authority = authority
        self.router = Router(timings=SLOW)
        self.router.bind_for_relays(Role.PROVIDER)
        self.router.bind(Role.EDGE, HOST, 0)
        files = CertificateConfig(certs=(authority.cert,), keys=(authority.key,))
        self.certificates = LinkCertificates(
            files if stored is None else CertificateConfig(), needed=True, stored=stored
        )
        carry = functools.partial(self.router.carry, Role.PROVIDER)
        self.port = LinkPort("providers", Address(HOST, 0, tls=True), self.certificates.context, carry)
        self._links: list[Link] = []

    def link(self, *, host: str = HOST, ca: Path | None = None, port: int = 0, tls: bool = True) -> Link:
        """Start a link that expects a certificate for `host`."""
        self.recorder = Recorder()
        where = port or self.port.number
        link = Link(
            *(name(Role.PROVIDER), {}, HOST, where, self.recorder),
            timings=SLOW,
            advise=advice(Role.PROVIDER, where),
            tls=LinkTls(host, Trust(ca or self.authority.ca_file, ANYWHERE)) if tls else None,
        )
        self._links.append(link)
        link.start()
        return link

    def connection(self) -> Connection:
        """Return the one that there is."""
        ((_, connection),) = self.router._ports[Role.PROVIDER.value].connections._peers.items()
        return connection

    async def close(self) -> None:
        for link in self._links:
            await link.close(linger_s=0)
        await self.port.close(linger_s=0)
        await self.router.close(linger_s=0)


async def test_a_certificate_may_be_there_later_and_for_one_name_alone(tmp_path: Path) -> None:
    authority, file = Authority(tmp_path, "links.example"), tmp_path / "links.example.pem"
    broker = Broker(authority, {"links.example": file}.get)
    try:
        early = broker.link(host="links.example")
        await eventually(lambda: "unrecognized name" in (early.problem or ""))
        new = tmp_path / "new"
        new.touch(mode=0o600)
        new.write_bytes(authority.key.read_bytes() + authority.cert.read_bytes())
        new.rename(file)
        await eventually(lambda: early.up)
        other = broker.link(host="other.example")
        await eventually(lambda: "unrecognized name" in (other.problem or ""))
    finally:
        await broker.close()


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    made = Broker(Authority(tmp_path))
    try:
        yield made
    finally:
        await made.close()


async def problem(link: Link) -> str:
    await eventually(lambda: link.problem, deadline_s=3 * DEADLINE_S)
    assert not link.up and link.problem is not None
    return link.problem


async def test_messages_pass_and_the_broker_knows_the_way(broker: Broker) -> None:
    link = broker.link(host=NAME)
    await eventually(lambda: link.up)
    connection = broker.connection()
    assert connection.address == HOST and link.label == f"tls://{HOST}:{broker.port.number}"
    for condition in (connection.condition, link.link_condition(b"")):
        assert condition is not None and condition.round_trip_s > 0
    assert HOST not in connection.socket.getpeername()[0], (
        "it comes from an address of its own, by which the log knows it"
    )
    source = connection.socket.getpeername()[0].removeprefix("::ffff:")
    assert broker.router._relays.address_of(source) == HOST
    await broker.router.close(linger_s=DEADLINE_S)
    await eventually(lambda: link.problem == "it was shut down", "the last message has come through")


async def test_another_process_of_this_machine_cannot_connect_past_tls(broker: Broker) -> None:
    inside = broker.router._ports[Role.PROVIDER.value].number
    reader, writer = await asyncio.open_connection(HOST, inside)
    with contextlib.suppress(ConnectionResetError):
        await asyncio.wait_for(reader.read(), DEADLINE_S)
    writer.close()
    assert not broker.router._ports[Role.PROVIDER.value].connections.greeting


async def test_a_certificate_for_another_name_or_of_another_authority_is_not_accepted(
    broker: Broker, tmp_path: Path
) -> None:
    said = await problem(broker.link(host="example.org"))
    assert "no TLS with" in said and "example.org" in said and "--server-ca" in said
    (tmp_path / "other").mkdir()
    said = await problem(broker.link(ca=Authority(tmp_path / "other").ca_file))
    assert "unable to get" in said or "self-signed" in said
    assert not broker.router.peers


async def test_an_expired_certificate_is_not_accepted_until_another_one_is_in_its_place(broker: Broker) -> None:
    authority = broker.authority
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    issued = authority.ca.issue_cert(HOST, not_after=past)
    authority.cert.write_bytes(issued.cert_chain_pems[0].bytes())
    authority.key.write_bytes(issued.private_key_pem.bytes())
    link = broker.link()
    assert "expired" in await problem(link)
    authority.renew()
    await eventually(lambda: link.up, "it tries again, and the file is read again", deadline_s=3 * DEADLINE_S)


@pytest.mark.parametrize(
    ("greeting", "text"),
    [
        (b"SSH-2.0-OpenSSH\r\n", "it does not speak TLS"),
        (b"", "it disconnects in the handshake"),
        (None, "the handshake is not complete within"),
    ],
)
async def test_what_does_not_speak_tls_is_reported(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, greeting: bytes | None, text: str
) -> None:
    if greeting is None:
        monkeypatch.setattr("goreprox.net.link_tls.HANDSHAKE_S", 0.2)
    writers = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        if greeting is not None:
            await reader.read(1)
            writer.write(greeting)
            writer.close()

    server = await asyncio.start_server(serve, HOST, 0)
    said = await problem(broker.link(port=server.sockets[0].getsockname()[1]))
    assert text in said and "--providers tls://" in said
    await broker.close()
    await stop_accepting(server)
    for writer in writers:
        writer.close()


async def test_a_link_with_tls_at_a_port_without_and_the_reverse_are_told_apart(broker: Broker) -> None:
    async with Fabric(security=KEYS) as plain:
        said = await problem(broker.link(port=plain.ports[Role.PROVIDER]))
    assert any(each in said for each in NO_TLS)
    said = await problem(broker.link(tls=False))
    assert "it speaks TLS" in said and "write tls:// before its address" in said


async def test_many_and_slow_handshakes_do_not_keep_links_out(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("goreprox.net.link_port.MOST_HANDSHAKES", 4)
    silent = [await asyncio.open_connection(HOST, broker.port.number) for _ in range(12)]
    for reader, _ in silent[:8]:  # the oldest ones are ended
        with contextlib.suppress(ConnectionResetError):
            assert not await asyncio.wait_for(reader.read(), DEADLINE_S)
    await eventually(lambda: len(broker.port._handshakes) <= 4)
    link = broker.link()
    await eventually(lambda: link.up)

    monkeypatch.setattr("goreprox.net.link_tls.HANDSHAKE_S", 0.2)
    slow, writer = await asyncio.open_connection(HOST, broker.port.number)
    writer.write(b"\x16\x03\x01")  # and no more
    with contextlib.suppress(ConnectionResetError):
        assert not await asyncio.wait_for(slow.read(), DEADLINE_S)
    for each in (*(writer for _, writer in silent), writer):
        each.close()
    assert link.up


def test_the_address_with_the_most_connections_gives_way_and_the_oldest_of_them() -> None:
    assert crowding(["a", "b", "c", "b", "a", "b"]) == 1
    assert crowding(["a"]) == 0


async def test_a_link_that_says_nothing_within_tls_is_ended(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    connections = broker.router._ports[Role.PROVIDER.value].connections
    monkeypatch.setattr(connections, "_greeting_s", 0.1)
    reader, writer = await asyncio.open_connection(HOST, broker.port.number, ssl=broker.authority.trusting())
    with contextlib.suppress(ConnectionResetError, ssl.SSLError):
        while await asyncio.wait_for(reader.read(1 << 10), DEADLINE_S):
            pass
    writer.transport.abort()
    await eventually(lambda: not broker.router._relays._relayed, "nothing is left of it")


async def test_without_descriptors_a_connection_is_closed(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("brokers.relays._bound", none)
    link = broker.link()
    await eventually(lambda: link.problem is not None)
    monkeypatch.undo()
    await eventually(lambda: link.up)
    assert isinstance(broker.router._relays, Relays)


# The doctor.


async def examined(tmp_path: Path, port: int, ca: Path) -> dict[str, Result]:
    config = ProviderConfig(
        targets=(Target("web", Address(HOST, 1)),),
        servers=(Address(HOST, port, tls=True),),
        process=ProcessConfig(runtime_dir=tmp_path / "run"),
        proxy=ProxyConfig(ca=ca),
    )
    return {each.check: each for each in await asyncio.to_thread(lambda: list(examine(config)))}


async def test_the_doctor_tells_each_step(broker: Broker, tmp_path: Path) -> None:
    port, ca = broker.port.number, broker.authority.ca_file
    found = await examined(tmp_path, port, ca)
    assert [found[each].state for each in ("resolve", "tcp", "tls", "zmtp", "join")] == [State.OK] * 5
    assert found["tcp"].subject == f"{HOST}:{port}" and found["tls"].subject == f"tls://{HOST}:{port}"

    (tmp_path / "other").mkdir()
    found = await examined(tmp_path, port, Authority(tmp_path / "other").ca_file)
    assert found["tcp"].state is State.OK and found["tls"].state is State.FAILED and "zmtp" not in found
    assert "certificate" in found["tls"].message and "--server-ca" in str(found["tls"].remedy)

    found = await examined(tmp_path, port, tmp_path / "missing.pem")
    assert found["tls"].state is State.FAILED and "server-ca" in found["tls"].message

    async with Fabric(security=KEYS) as plain:
        found = await examined(tmp_path, plain.ports[Role.PROVIDER], ca)
    assert found["tls"].message in NO_TLS and found["tls"].state is State.FAILED
