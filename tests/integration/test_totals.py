"""Why streams ended, by code, and what else is counted, where edge, broker and provider are real."""

import contextlib
import socket
from collections import Counter
from pathlib import Path

import pytest

from brokers import REVOKED
from goreprox.config.addresses import Address, Listener
from goreprox.config.networks import Rule
from goreprox.roles.edge import Edge
from goreprox.roles.provider import Provider
from tests.support.sockets import HOST, closed_port
from tests.support.tls import Authority
from tests.support.tunnel import Tunnel
from tests.support.waiting import eventually


def ends(of: Edge | Provider) -> Counter[str]:
    return of.driver.budget.totals.ends


async def test_clean_ends_and_resets_of_both_sides_are_told_apart_at_both_ends(tunnel: Tunnel) -> None:
    provider = await tunnel.provide()
    client, target = await tunnel.pair()
    client.half_close()
    assert await target.receive_all() == b""
    target.half_close()
    client, target = await tunnel.pair()
    client.reset()
    await target.receive_to_reset()
    client, target = await tunnel.pair()
    target.reset()
    await client.receive_to_reset()
    await tunnel.at_rest(provider)
    assert ends(tunnel.edge) == ends(provider) == {"done": 1, "client_reset": 1, "target_reset": 1}


async def test_a_target_that_cannot_be_reached_counts_at_both_ends_and_by_service(tunnel: Tunnel) -> None:
    with closed_port() as port:
        provider = await tunnel.provide(port=port)
        client = await tunnel.client()
        await client.receive_to_reset()
    await tunnel.at_rest(provider)
    assert ends(tunnel.edge) == ends(provider) == {"refused": 1}
    assert provider.driver.budget.totals.dial_failures == {"default": 1}
    assert tunnel.edge.driver.budget.totals.dial_failures == {}


async def test_a_client_that_finds_no_provider_in_time_is_counted() -> None:
    async with Tunnel(grace_s=0.1) as tunnel:
        client = await tunnel.client()
        await client.receive_to_reset()
        assert ends(tunnel.edge) == {"no_provider": 1}


async def test_what_is_left_at_a_shutdown_is_counted_at_both_ends(tunnel: Tunnel) -> None:
    provider = await tunnel.provide()
    client, target = await tunnel.pair()
    await client.send(b"x")
    assert await target.receive(1) == b"x"
    await provider.close(drain_s=0)
    await client.receive_to_reset()
    assert ends(provider) == {"shutdown": 1}
    await eventually(lambda: ends(tunnel.edge).total())
    (code,) = ends(tunnel.edge)
    assert code in ("aborted", "peer_left")  # its abort may arrive before its goodbye, or with it


async def test_streams_of_a_process_that_died_are_counted_once_its_successor_has_proven_it(tunnel: Tunnel) -> None:
    await tunnel.provide()
    client, _ = await tunnel.pair()
    (peer,) = tunnel.edge.driver.peers.values()
    await tunnel.provide(more={"predecessor": peer.info.name.incarnation})
    await client.receive_to_reset()
    assert ends(tunnel.edge) == {"peer_died": 1}


async def test_streams_of_a_peer_whose_key_was_revoked_are_counted(tunnel: Tunnel) -> None:
    await tunnel.provide()
    client, _ = await tunnel.pair()
    (peer,) = tunnel.edge.driver.peers.values()
    (carrier,) = peer.epochs
    tunnel.edge.driver.peer_down(carrier, peer.id, REVOKED)
    await client.receive_to_reset()
    assert ends(tunnel.edge) == {"revoked": 1}


async def test_streams_of_a_peer_that_breaks_the_protocol_are_counted_at_both_ends(tunnel: Tunnel) -> None:
    provider = await tunnel.provide()
    client, target = await tunnel.pair()
    (peer,) = tunnel.edge.driver.peers.values()
    (carrier,) = peer.epochs
    tunnel.edge.driver.message(carrier, peer.id, [b"this is no message"])
    await client.receive_to_reset()
    await target.receive_to_reset()
    assert ends(tunnel.edge) == {"failed": 1}
    await eventually(lambda: ends(provider) == {"aborted": 1})


async def test_a_request_that_its_client_breaks_off_is_counted() -> None:
    async with Tunnel(listeners=(Listener.parse(f"http://{HOST}:0"),)) as tunnel:
        await tunnel.provide()
        client = await tunnel.client()
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nsome")
        target = await tunnel.targets.accept()
        assert await target.receive(4) == b"POST"
        client.reset()
        await target.receive_to_reset()
        await eventually(lambda: ends(tunnel.edge) == {"incomplete": 1})


async def test_a_half_closed_connection_that_is_silent_is_counted() -> None:
    async with Tunnel(half_closed_timeout_s=0.1) as tunnel:
        await tunnel.provide()
        client, _ = await tunnel.pair()
        client.half_close()
        await client.receive_to_reset()
        assert ends(tunnel.edge) == {"timeout": 1}


async def test_refused_clients_are_counted_by_cause(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    listeners = (Listener(Address(HOST, 0)), Listener.parse(f"tls://{HOST}:0"))
    files = {"certs": (authority.cert,), "keys": (authority.key,)}
    async with Tunnel(listeners=listeners, **files, max_connections_per_address=1) as tunnel:
        refused = tunnel.edge.driver.budget.totals.refused_clients
        plain, secure = tunnel.edge.listeners.ports
        with socket.create_connection((HOST, secure)) as stranger:
            stranger.send(b"this is no TLS\n")
            await eventually(lambda: refused == {"tls": 1})
        with socket.create_connection((HOST, plain)):
            await eventually(lambda: tunnel.edge.connections)
            with socket.create_connection((HOST, plain)):
                await eventually(lambda: refused == {"tls": 1, "address_limit": 1})


@pytest.mark.parametrize(("option", "cause"), [("deny", "denied"), ("proxy_protocol_from", "proxy_header")])
async def test_clients_denied_by_rules_or_without_a_proxy_header_are_counted(option: str, cause: str) -> None:
    async with Tunnel(**{option: (Rule.parse(option, HOST),)}) as tunnel:
        with socket.create_connection((HOST, tunnel.edge.listeners.ports[0])) as client:
            with contextlib.suppress(ConnectionError):  # it may be reset already
                client.send(b"GET / HTTP/1.1\r\n\r\n")
            await eventually(lambda: tunnel.edge.driver.budget.totals.refused_clients == {cause: 1})


async def test_outages_resumes_and_bytes_sent_again_are_counted_for_the_process(tunnel: Tunnel) -> None:
    provider = await tunnel.provide()
    client, target = await tunnel.pair()
    await client.send(b"before")
    assert await target.receive(6) == b"before"
    for _ in range(2):
        outages = tunnel.edge.driver.budget.totals.outages
        tunnel.relay.cut()
        await eventually(lambda outages=outages: tunnel.edge.driver.budget.totals.outages > outages)  # type: ignore[misc]
        await client.send(b"x")
        assert await target.receive(1) == b"x"
    for owner in (tunnel.edge, provider):
        totals = owner.driver.budget.totals
        assert totals.outages == totals.resumes >= 2
        assert totals.resume_s > 0
    assert tunnel.edge.driver.budget.totals.sent_bytes == provider.driver.budget.totals.received_bytes == 8
