"""Certificates by ACME, from a real server: pebble."""

import asyncio
import contextlib
import dataclasses
import json
import signal
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from goreprox.acme.store import Store
from goreprox.process.files import write_secret
from tests.e2e.roles import addresses, echoed, start_broker
from tests.e2e.upgrading import start, upgrade
from tests.support.forks import run_command
from tests.support.pebble import NOBODY, VALID_S, Pebble, pebble
from tests.support.processes import WAIT_S, Process, Tunnel, nothing_yet
from tests.support.programs import output_of
from tests.support.servers import serving
from tests.support.sockets import HOST, closed_port
from tests.support.tls import Authority
from tests.support.traffic import echo
from tests.support.waiting import eventually
from tests.support.web import curl, polite

AUTHORITY = "Pebble"


class Site:
    """Where certificates are asked for: the ports of an edge, and an ACME server that knows them."""

    def __init__(self, made: Tunnel, tmp: Path, web: int, tls: int) -> None:
        self.made, self.tmp, self.web, self.tls = made, tmp, web, tls
        self.state = tmp / "state"

    def options(self, authority: Pebble) -> tuple[str, ...]:
        """Of a role that serves HTTP, with TLS and without, and gets certificates."""
        listen = ("--listen", f"http://{HOST}:{self.web}", "--listen", f"https://{HOST}:{self.tls}")
        return (*listen, "--acme", "me@example.test", "--state-dir", str(self.state), *authority.options)

    def store(self, authority: Pebble) -> Store:
        return Store(self.state, authority.url)

    async def shown(self, host: str) -> x509.Certificate:
        """Return the certificate that a client gets who asks for a host, be it expired."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return await self._shown(host, context)

    async def trusted(self, host: str, authority: Pebble, port: int | None = None) -> x509.Certificate:
        """Return it, once it is found valid, and for the host."""
        return await self._shown(host, ssl.create_default_context(cadata=await authority.root()), port)

    async def _shown(self, host: str, context: ssl.SSLContext, port: int | None = None) -> x509.Certificate:
        async with asyncio.timeout(WAIT_S):
            _, writer = await asyncio.open_connection(HOST, port or self.tls, ssl=context, server_hostname=host)
        der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.transport.abort()
        return x509.load_der_x509_certificate(der)

    async def status(self) -> list[dict[str, Any]]:
        """Return what the processes say."""
        code, out, err = await run_command(self.tmp, "status", "--json", "--runtime-dir", str(self.tmp / "run"))
        assert code == 0, err
        documents: list[dict[str, Any]] = json.loads(out)
        return documents


@contextlib.asynccontextmanager
async def site(tmp: Path) -> AsyncIterator[Site]:
    with closed_port() as web, closed_port() as tls:
        async with nothing_yet(tmp) as made:
            yield Site(made, tmp, web, tls)


@contextlib.asynccontextmanager
async def authority_of(it: Site, *, valid_s: int = VALID_S, **env: str) -> AsyncIterator[Pebble]:
    async with pebble(it.tmp, http_port=it.web, tls_port=it.tls, valid_s=valid_s, env=env) as authority:
        yield authority


async def asked(process: Process, event: str, times: int = 1, **fields: object) -> None:
    await eventually(lambda: process.events(event, **fields) >= times, lambda: str(process.log), deadline_s=WAIT_S)


@pytest.mark.long
async def test_hosts_of_routes_get_certificates_and_no_other_ones_do(tmp: Path) -> None:
    async with site(tmp) as it, authority_of(it, PEBBLE_WFE_NONCEREJECT="40") as authority:
        routes = ("--route", "a.test=web", "--route", "b.test=web", "--route", "*.c.test=web")
        server = await start(it.made, "server", *it.options(authority), "--providers", f"tls://{HOST}:0", *routes)
        await asked(server, "certificate_issued", 2)
        before = [await it.trusted(host, authority) for host in ("a.test", "b.test")]
        links = await server.port("providers")
        assert await it.trusted("a.test", authority, links) == before[0], "links are shown it, too"
        for host in ("unknown.test", "x.c.test"):
            with pytest.raises(ssl.SSLError):
                await it.shown(host)
        assert "dns-01" in await server.logged("no_certificate", host="*.c.test")
        assert server.events("challenge_tried") >= 2, "tls-alpn-01 was preferred"

        code, _, err = await upgrade(tmp)
        assert not code, err
        assert [await it.trusted(host, authority) for host in ("a.test", "b.test")] == before
        assert await it.trusted("a.test", authority, links) == before[0]
        (document,) = await it.status()
        assert document["acme"].keys() == {"a.test", "b.test", "*.c.test"}
        assert document["acme"]["a.test"]["problem"] is None
        assert [each["option"] for each in document["certificates"]] == ["acme", "acme"]
        assert it.store(authority).ledger().hosts.keys() == {"a.test", "b.test"}
        assert server.events("certificate_issued") == 2, "what is there is not asked for again"
        secrets = [path for path in (it.state / "acme").rglob("*") if path.is_file()]
        assert all(path.stat().st_mode & 0o777 == 0o600 for path in secrets)


@pytest.mark.long
async def test_failures_are_told_and_retried_and_an_old_certificate_serves_until_there_is_a_new_one(tmp: Path) -> None:
    async with site(tmp) as it:
        async with authority_of(it, valid_s=15) as authority:
            await authority.lead_astray("a.test")
            where = ("--providers", f"{HOST}:0", "--route", "a.test=web")
            server = await it.made.start("server", *it.options(authority), *where)
            failed = await server.logged("certificate_failed", host="a.test")
            assert f"no certificate for a.test: unauthorized: Failed to connect to {NOBODY}" in failed
            assert "let all A and AAAA records of the host lead to this edge alone (retrying at " in failed
            _, out, _ = await run_command(tmp, "status", "--runtime-dir", str(tmp / "run"))
            assert f"  certificate of a.test: unauthorized: Failed to connect to {NOBODY}" in out

            await authority.lead_astray("a.test", back=True)
            store = it.store(authority)
            ledger = store.ledger()
            hosts = {host: dataclasses.replace(record, retry_at=0) for host, record in ledger.hosts.items()}
            write_secret(store.ledger_file, dataclasses.replace(ledger, hosts=hosts).text, replace=True)
            server.signal(signal.SIGHUP)  # it looks at the ledger again
            await asked(server, "certificate_issued")
            assert server.events("challenge_tried") == 0, "the second attempt is by http-01"
            first = await it.shown("a.test")
            await asked(server, "certificate_issued", 2)
            await eventually_another(it, first)

        failures = server.events("certificate_failed")
        await asked(server, "certificate_failed", failures + 1)
        last = await it.shown("a.test")
        assert AUTHORITY in last.issuer.rfc4514_string()
        (document,) = await it.status()
        assert "cannot be asked" in document["acme"]["a.test"]["problem"]


async def eventually_another(it: Site, first: x509.Certificate) -> None:
    """Wait until clients get another certificate."""
    async with asyncio.timeout(WAIT_S):
        while (await it.shown("a.test")).serial_number == first.serial_number:  # noqa: ASYNC110 -- a file is its sign
            await asyncio.sleep(0.05)


@pytest.mark.long
async def test_workers_share_the_certificates_of_published_names_and_their_budget(tmp: Path) -> None:
    async with site(tmp) as it, authority_of(it) as authority:
        broker = await start_broker(it.made)
        edges = await addresses([broker], "edges", "--broker")
        edge = await it.made.start(
            "edge", *it.options(authority), *edges, "--workers", "2", "--acme-budget", "1", "--address", HOST
        )
        assert "need this directory" in await edge.logged("acme_shared")
        servers = await addresses([broker], "providers", "--server")
        names = [text for host in ("one.test", "two.test", "*.three.test") for text in ("--publish", f"http://{host}")]
        await it.made.start("provider", f"{HOST}:1", *servers, *names)
        await asked(edge, "certificate_issued")
        ledger = it.store(authority).ledger()
        (served,) = ledger.hosts
        for _ in range(8):  # the kernel gives them to either
            await it.trusted(served, authority)
        waits = ({"one.test", "two.test"} - {served}).pop()
        documents = [document for document in await it.status() if document["role"] == "edge"]
        assert len(documents) == 2
        for document in documents:
            assert "raise --acme-budget" in document["acme"][waits]["problem"]
            assert "dns-01" in document["acme"]["*.three.test"]["problem"]
            assert document["acme"][served]["problem"] is None
        assert edge.events("certificate_issued") == 1


@pytest.mark.long
async def test_a_port_ends_tls_of_hosts_with_such_certificates_and_passes_on_that_of_others(tmp: Path) -> None:
    own = Authority(tmp)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    own.ca.issue_cert("*.passed.test").configure_cert(context)
    async with site(tmp) as it, authority_of(it) as authority, serving(echo, context) as target:
        passing = f"{HOST}:{target}"
        acme = ("--acme-agree", "--state-dir", str(it.state), *authority.options)
        routes = ("--route", "web.test=web", "--route", "tls://a.passed.test=tls")
        listen = ("--listen", f"sni://{HOST}:{it.tls}", "--providers", f"{HOST}:0")
        server = await start(it.made, "server", *listen, *acme, *routes)
        where = ("--server", f"{HOST}:{await server.port('providers')}")
        web = f"web={HOST}:{await it.made.target(polite)}"
        names = ("--publish", "web=http://page.test", "--publish", "tls=tls://b.passed.test")
        await it.made.start("provider", web, f"tls={passing}", *where, *names)
        await asked(server, "certificate_issued", 2)
        for again in range(2):
            for host in ("web.test", "page.test"):
                (tmp / "root.pem").write_text(await authority.root())
                get = curl("--cacert", str(tmp / "root.pem"), "--resolve", f"{host}:{it.tls}:{HOST}")
                assert await output_of(*get, f"https://{host}:{it.tls}/{host}") == f"/{host}"
            for host in ("a.passed.test", "b.passed.test"):
                client = await asyncio.open_connection(HOST, it.tls, ssl=own.trusting(), server_hostname=host)
                await echoed(client, b"end to end")
                client[1].transport.abort()
            with pytest.raises(ssl.SSLError, match="UNRECOGNIZED_NAME"):
                await it.shown("unknown.test")
            if not again:
                code, _, err = await upgrade(tmp, "--role", "server")
                assert not code, err
        assert it.store(authority).ledger().hosts.keys() == {"web.test", "page.test"}
        assert server.events("challenge_tried") >= 2, "the port itself has answered the challenges"


@pytest.mark.long
async def test_an_order_ends_with_its_process_and_before_an_upgrade_while_the_authority_is_silent(tmp: Path) -> None:
    own = Authority(tmp)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    own.ca.issue_cert(HOST).configure_cert(context)
    asked_by = asyncio.Queue[None]()

    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked_by.put_nowait(None)
        await reader.read()

    async with site(tmp) as it, serving(silent, context) as port:
        acme = ("--acme-agree", "--acme-directory", f"https://{HOST}:{port}/dir", "--acme-ca", str(own.ca_file))
        listen = ("--listen", f"https://{HOST}:0", "--route", "a.test=web", "--state-dir", str(it.state))
        server = await start(it.made, "server", *listen, *acme, "--providers", f"{HOST}:0")
        for last in (False, True):
            async with asyncio.timeout(WAIT_S):
                await asked_by.get()
            (order,) = _children(server.process.pid)
            if last:
                server.signal(signal.SIGTERM)
                assert await server.wait() == 0
            else:
                code, _, err = await upgrade(tmp)
                assert not code, err
            assert not Path(f"/proc/{order}").exists()


def _children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
