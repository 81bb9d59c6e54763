"""Why a link does not come up, whatever responds where its broker should."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Mapping

import pytest

from brokers import BrokerSecurity, Cause, Grant, KeyPair, Link, LinkSecurity, PeerInfo, PeerName, Role, Router, Timings
from brokers.carrier import Buffer, Carrier
from brokers.diagnosis import Diagnosis
from goreprox.roles.member import advice
from tests.support.servers import Handler
from tests.support.sockets import HOST, abort, closed_port, stop_accepting
from tests.support.waiting import eventually

STEADY = Timings(link_timeout_s=30, reconnect_min_s=0.02, reconnect_max_s=0.1)
Events = list[dict[str, object]]


class Nobody:
    """A receiver that nothing is told."""

    def carrier_up(self, carrier: Carrier) -> None: ...
    def carrier_down(self, carrier: Carrier, reason: str) -> None: ...
    def peer_up(self, carrier: Carrier, peer: PeerInfo) -> None: ...
    def peer_down(self, carrier: Carrier, peer_id: bytes, reason: str) -> None: ...
    def message(self, carrier: Carrier, peer_id: bytes, frames: list[Buffer]) -> None: ...


class Everybody:
    """An authority that knows one key."""

    def __init__(self, keys: KeyPair) -> None:
        self.keys = keys

    def grant(self, public_key: bytes) -> Grant | None:
        return Grant(Role.PROVIDER, "web") if public_key == self.keys.public else None

    def certified(self, public_key: bytes, attributes: Mapping[str, object]) -> Mapping[str, object]:
        return attributes

    def objection(self, public_key: bytes, attributes: object) -> str | None:
        return None


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Listen, as a tunnel without a provider does."""
    await reader.read()


async def web_server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n<html><h1>400 Bad Request</h1></html>")


async def captive_portal(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Respond with anything, as soon as there is a connection."""
    writer.write(b"HTTP/1.0 302 Found\r\nLocation: http://portal.invalid/\r\n\r\n")


async def ssh_server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n")
    await reader.readline()


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Be a balancer without a backend."""


@contextlib.asynccontextmanager
async def listening(handler: Handler) -> AsyncIterator[int]:
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(OSError):
            await handler(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, HOST, 0)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        await stop_accepting(server)
        for writer in writers:
            abort(writer)
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def linked(
    port: int, security: LinkSecurity | None, role: Role = Role.PROVIDER, host: str = HOST
) -> AsyncIterator[Link]:
    name, advise = PeerName(role, "web", bytes(16)), advice(role, port)
    link = Link(name, {}, host, port, Nobody(), timings=STEADY, security=security, advise=advise)
    link.start()
    try:
        yield link
    finally:
        await link.close(linger_s=0)


def keyed() -> LinkSecurity:
    return LinkSecurity(KeyPair.generate(), (KeyPair.generate().public,))


def down(events: Events, cause: str) -> list[dict[str, object]]:
    return [entry for entry in events if entry.get("event") == "link_down" and entry["cause"] == cause]


def causes(events: Events) -> set[object]:
    return {entry["cause"] for entry in events if entry.get("event") == "link_down"}


@pytest.mark.parametrize("with_keys", [True, False])
@pytest.mark.parametrize(
    ("handler", "cause"),
    [
        (silence, "silent"),
        (web_server, "other protocol"),
        (captive_portal, "other protocol"),
        (ssh_server, "other protocol"),
        (hang_up, "other protocol"),
    ],
)
async def test_another_protocol_at_the_port_is_not_reported_as_a_wrong_key(
    handler: Handler, cause: str, with_keys: bool, events: Events
) -> None:
    async with listening(handler) as port, linked(port, keyed() if with_keys else None) as link:
        await eventually(lambda: down(events, cause))
        entry = down(events, cause)[0]
        assert re.search(
            rf"responds at {HOST}:{port} .*is that the port for clients\? providers have 9887", str(entry["message"])
        )
        assert link.problem is not None and link.problem in str(entry["message"])
        assert causes(events) == {cause}


async def test_a_broker_with_another_key_is_reported_as_that(events: Events) -> None:
    keys = KeyPair.generate()
    router = Router(timings=STEADY, security=BrokerSecurity(KeyPair.generate(), Everybody(keys)))
    try:
        port = router.bind(Role.PROVIDER, HOST, 0)
        async with linked(port, LinkSecurity(keys, (KeyPair.generate().public,))):
            await eventually(lambda: down(events, "other key"))
        assert causes(events) == {"other key"}
    finally:
        await router.close(linger_s=0)


async def test_a_link_that_comes_up_has_no_problem_any_more(events: Events) -> None:
    keys, server = KeyPair.generate(), KeyPair.generate()
    with closed_port() as port:
        async with linked(port, LinkSecurity(keys, (server.public,))) as link:
            await eventually(lambda: down(events, "unreached"))
            assert "Connection refused" in str(link.problem)
            router = Router(timings=STEADY, security=BrokerSecurity(server, Everybody(keys)))
            try:
                router.bind(Role.PROVIDER, HOST, port)
                await eventually(lambda: any(entry.get("event") == "link_up" for entry in events))
                assert link.problem is None
            finally:
                await router.close(linger_s=0)


@pytest.mark.parametrize(("role", "option"), [(Role.PROVIDER, "--server HOST"), (Role.EDGE, "--broker HOST")])
async def test_an_unresolved_name_is_reported_with_the_option_to_change_it(
    role: Role, option: str, events: Events
) -> None:
    async with linked(9887, keyed(), role, host="a..b"):
        await eventually(lambda: down(events, "unresolved"))
        assert option in str(down(events, "unresolved")[0]["message"])


async def test_the_problem_of_a_link_is_logged_once_and_repeated_after_minutes(
    events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    now = round(loop.time())  # sums of whole seconds are exact
    monkeypatch.setattr(loop, "time", lambda: now)
    diagnosis = Diagnosis(
        HOST, f"{HOST}:9887", called="broker", keyed=True, advise=lambda _: None, changed=lambda: None
    )
    for _ in range(100):
        diagnosis.key_rejected()
    assert len(events) == 1
    now += 299
    diagnosis.key_rejected()
    assert len(events) == 1
    now += 1
    diagnosis.key_rejected()
    assert len(events) == 2
    for number in range(1000):
        diagnosis.refused(str(number))
    assert len(events) < 20, "what a broker makes us say is bounded"


@pytest.mark.parametrize(
    ("role", "port", "text"),
    [
        (Role.PROVIDER, 9887, "is the server running there, or does a captive portal or a proxy respond in its place?"),
        (Role.EDGE, 9888, "is the broker running there, or does a captive portal or a proxy respond in its place?"),
        (Role.PROVIDER, 9888, "is that the port for clients? providers have 9887"),
        (Role.EDGE, 9887, "is that the port for clients? edges have 9888"),
    ],
)
def test_the_usual_port_is_named_where_another_one_was_given(role: Role, port: int, text: str) -> None:
    for cause in (Cause.SILENT, Cause.OTHER_PROTOCOL):
        assert advice(role, port)(cause) == text
