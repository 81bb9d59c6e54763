"""Published names: providers ask, brokers check their keys, edges serve, and providers are told where."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from brokers import BrokerSecurity, Link, LinkSecurity, PeerName, Role, Router
from goreprox.config.addresses import Address, Listener, Scheme, Target
from goreprox.config.publish import Publish, PublishConfig
from goreprox.config.published import Ports, parse_grants
from goreprox.config.roles import EdgeConfig, ProviderConfig
from goreprox.config.routes import Route
from goreprox.config.target_checks import Check
from goreprox.keys.authority import Watcher
from goreprox.keys.join import Join
from goreprox.keys.state import StateDir
from goreprox.process import handover
from goreprox.process.handover import Inherited
from goreprox.roles.edge import Edge
from goreprox.roles.edge_state import EdgeState, restored_listeners
from goreprox.roles.provider import Provider
from goreprox.roles.publication import Publication
from goreprox.status.document import PublishedStatus
from tests.support.configs import configured
from tests.support.sockets import HOST, closed_port
from tests.support.tunnel import PROTOCOL, TIMINGS
from tests.support.waiting import DEADLINE_S, eventually

APP = "http://app.example.com"
SERVED_NOWHERE: PublishedStatus = {"at": [], "problem": None}


class Member:
    """What introduces a role to its broker (roles.member.Member)."""

    def __init__(self, role: Role, name: str) -> None:
        self.name = PeerName(role, name, os.urandom(16))
        self.attributes: dict[str, object] = {**PROTOCOL, "services": []}
        self.link: Link

    def announce(self, attributes: dict[str, object]) -> None:
        self.attributes = {**self.attributes, **attributes}
        self.link.announce(self.attributes)


class Cluster:
    """A broker with keys, and edges and providers with links to it, all in the process of the test."""

    def __init__(self, tmp: Path) -> None:
        self.stack = contextlib.AsyncExitStack()
        self.state = StateDir(tmp / "state")
        self._watcher = Watcher(self.state)
        security = BrokerSecurity(self._watcher.server_keys.present, self._watcher)
        self.router = Router(timings=TIMINGS, security=security)
        self._ports = {role: self.router.bind(role, HOST, 0) for role in Role}
        self.stack.push_async_callback(self.router.close, linger_s=0)

    def add_key(self, role: Role, name: str, *publish: str, services: list[str] | None = None) -> bytes:
        """Add a key, which may share names with others; return the public one."""
        self.state.add(role, name, services, publish=parse_grants(publish), share=True)
        self.reread()
        return self.state.key(name).public

    def port(self) -> int:
        """Return a port at which only this test may listen."""
        return self.stack.enter_context(closed_port())

    def reread(self) -> None:
        """Let the broker notice that keys have changed."""
        self._watcher.look()
        self.router.reauthorise()

    def _security(self, name: str) -> LinkSecurity | None:
        return Join.parse(self.state.join_file(name).read_text()).security

    def link(self, member: Member, receiver: Any) -> Link:
        """Connect a member to the broker."""
        port, security = self._ports[member.name.role], self._security(member.name.name)
        member.link = Link(member.name, member.attributes, HOST, port, receiver, timings=TIMINGS, security=security)
        self.stack.push_async_callback(member.link.close, linger_s=0)
        member.link.start()
        return member.link

    def edge(self, name: str, *, services: list[str] | None = None, handed_over: bool = False, **options: Any) -> Edge:
        """Start an edge with an HTTP port, and a key of its own. One that is `handed_over` is not closed."""
        self.add_key(Role.EDGE, name, services=services)
        defaults: dict[str, Any] = {"listeners": (Listener(Address(HOST, 0), scheme=Scheme.HTTP),), "grace_s": 30.0}
        made = {"brokers": (Address(HOST, 1),), "addresses": (Address("tunnel.example.org", 1),)}
        edge = Edge(configured(EdgeConfig, security=self._security(name), **defaults | made | options))
        member = Member(Role.EDGE, name)
        member.attributes["services"] = ["default"]
        edge.introduce(member)  # type: ignore[arg-type]
        self.link(member, edge.driver)
        if not handed_over:
            self.stack.push_async_callback(edge.close, drain_s=0)
        edge.listeners.start()
        return edge

    async def provider(self, name: str, *publish: str, service: str = "default", **options: Any) -> Provider:
        """Start a provider that publishes; its target says the provider's name."""
        config = configured(
            ProviderConfig,
            targets=(Target(service, Address(HOST, await self._target(name))),),
            servers=(Address(HOST, 1),),
            names=tuple(map(Publish.parse, publish)),
            name=name,
            security=self._security(name),
            **options,
        )
        provider, member = Provider(config), Member(Role.PROVIDER, name)
        provider.introduce(member)  # type: ignore[arg-type]
        self.link(member, provider.driver)
        self.stack.push_async_callback(provider.close, drain_s=0)
        return provider

    def hostile(self, name: str, services: list[str]) -> Member:
        """Start a provider that says of itself what it likes."""
        targets, servers = (Target("default", Address(HOST, 1)),), (Address(HOST, 1),)
        provider, member = (
            Provider(configured(ProviderConfig, targets=targets, servers=servers)),
            Member(Role.PROVIDER, name),
        )
        member.attributes |= {"services": services, "granted": [b"0", [[1, 65535]]]}
        self.link(member, provider.driver)
        self.stack.push_async_callback(provider.close, drain_s=0)
        return member

    async def _target(self, name: str) -> int:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(name), name.encode()))
                await reader.read()
            writer.close()

        self.target = await asyncio.start_server(serve, HOST, 0)
        self.stack.callback(self.target.close)
        port: int = self.target.sockets[0].getsockname()[1]
        return port


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path)
    async with made.stack:
        yield made


async def asked(port: int, host: str) -> str:
    """Ask for a host at a port; return who responded, or the status of an error, or "" after a reset."""
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        writer.write(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        async with asyncio.timeout(DEADLINE_S):
            head = await reader.readuntil(b"\r\n\r\n")
            status, body = (
                head.split(b" ")[1].decode(),
                await reader.readexactly(int(head.split(b"Length: ")[1].split()[0])),
            )
    except (ConnectionResetError, asyncio.IncompleteReadError):
        return ""
    finally:
        writer.close()
    return body.decode() if status == "200" else status


def web(edge: Edge) -> int:
    """Return its HTTP port."""
    return next(port for listener, port in edge.listeners.found if listener.scheme.is_http)


def ports(edge: Edge) -> set[int]:
    """Return its published ports."""
    return {port for listener, port in edge.listeners.found if listener.is_published}


def range_of(port: int) -> tuple[Ports, ...]:
    return (Ports(port, port),)


async def told(provider: Provider, name: str, *, at: list[str] | None = None, problem: str = "") -> None:
    """Wait until a provider knows where a name is served, or why it is not."""
    status = SERVED_NOWHERE

    def is_told() -> bool:
        nonlocal status
        status = provider.metrics().published.get(name, SERVED_NOWHERE)
        return (
            status["at"] == (at or [])
            and problem in (status["problem"] or "")
            and bool(status["problem"]) == bool(problem)
        )

    await eventually(is_told, lambda: f"{name} at {at} ({problem}), which is {status}")


# HTTP


async def test_a_host_is_served_as_long_as_its_provider_is_there_whatever_its_case(cluster: Cluster) -> None:
    edge = cluster.edge("edge", routes=(Route("static.example.com", "web"),), queue_timeout_s=0.1)
    cluster.add_key(Role.PROVIDER, "laptop", "http://*.example.com", "http://xn--bcher-kva.example")
    provider = await cluster.provider("laptop", "http://App.Example.com.", "http://bücher.example")
    await told(provider, f"{APP}@laptop", at=[f"http://app.example.com:{web(edge)}"])
    for host in ("app.example.com", "APP.example.COM.", f"app.example.com:{web(edge)}", "xn--bcher-kva.example"):
        assert await asked(web(edge), host) == "laptop"
    assert await asked(web(edge), "other.example.com") == "404"
    await provider.close(drain_s=0)
    assert await asked(web(edge), "app.example.com") == "503", "it is known for the grace"


async def test_a_wildcard_is_served_but_for_exact_hosts_of_others_and_routes_of_the_edge(cluster: Cluster) -> None:
    edge = cluster.edge("edge", routes=(Route("static.example.com", "web"),), queue_timeout_s=0.1)
    for name in ("wide", "exact"):
        cluster.add_key(Role.PROVIDER, name, "http://*.example.com")
    wide = await cluster.provider("wide", "http://*.example.com")
    exact = await cluster.provider("exact", APP, "http://static.example.com")
    where = f"http://*.example.com:{web(edge)}"
    await told(wide, "http://*.example.com@wide", at=[where], problem="exact has app.example.com, which is more exact")
    await told(exact, "http://static.example.com@exact", problem="a --route of this edge has it")
    assert [await asked(web(edge), host) for host in ("app.example.com", "a.example.com", "a.b.example.com")] == [
        "exact",
        "wide",
        "wide",
    ]
    assert await asked(web(edge), "static.example.com") == "503"
    assert await asked(web(edge), "example.com") == "404"


async def test_a_host_is_withdrawn_while_the_target_fails_its_check_and_kept_for_the_grace(cluster: Cluster) -> None:
    edge = cluster.edge("edge", queue_timeout_s=0.1)
    cluster.add_key(Role.PROVIDER, "laptop", APP)
    checked: dict[str, Any] = {"checks": (Check.parse("tcp"),), "interval_s": 0.1, "failures": 1, "successes": 1}
    provider = await cluster.provider("laptop", APP, **checked)
    at = [f"http://app.example.com:{web(edge)}"]
    await told(provider, f"{APP}@laptop", at=at)
    cluster.target.close()
    (peer,) = edge.driver.peers.values()
    await eventually(lambda: not peer.services)
    assert edge.publication.status == {f"{APP}@laptop": {"at": at, "problem": None}}
    assert await asked(web(edge), "app.example.com") == "503"


async def test_providers_of_one_key_share_a_name(cluster: Cluster) -> None:
    edge = cluster.edge("edge")
    cluster.add_key(Role.PROVIDER, "laptop", APP)
    first, second = await cluster.provider("laptop", APP), await cluster.provider("laptop", APP)
    for provider in (first, second):
        await told(provider, f"{APP}@laptop", at=[f"http://app.example.com:{web(edge)}"])
    await first.close(drain_s=0)
    assert await asked(web(edge), "app.example.com") == "laptop"


async def test_edges_choose_between_two_keys_alike_in_whatever_order_they_come(cluster: Cluster) -> None:
    keys = {cluster.add_key(Role.PROVIDER, name, "http://*.example.com"): name for name in ("one", "two")}
    low, high = (keys[key] for key in sorted(keys))
    early = cluster.edge("early")
    loser = await cluster.provider(high, APP)
    await told(loser, f"{APP}@{high}", at=[f"http://app.example.com:{web(early)}"])
    assert await asked(web(early), "app.example.com") == high
    winner = await cluster.provider(low, APP)
    late = cluster.edge("late")
    both = sorted(f"http://app.example.com:{web(edge)}" for edge in (early, late))
    await told(winner, f"{APP}@{low}", at=both)
    await told(loser, f"{APP}@{high}", problem=f"{low} has it, whose public key is the lower one")
    for edge in (early, late):
        assert await asked(web(edge), "app.example.com") == low
    cluster.state.revoke(low)
    cluster.reread()
    await told(loser, f"{APP}@{high}", at=both)
    for edge in (early, late):
        assert await asked(web(edge), "app.example.com") == high


# Ports


async def test_a_port_opens_with_its_provider_and_waits_for_it_for_the_grace(cluster: Cluster) -> None:
    port = cluster.port()
    edge = cluster.edge("edge", publish_ports=range_of(port))
    cluster.add_key(Role.PROVIDER, "laptop", f"tcp://{port}")
    assert not ports(edge)
    provider = await cluster.provider("laptop", "tcp://", service="ssh")
    await told(provider, "tcp://*/ssh@laptop", at=[f"tunnel.example.org:{port}"])
    assert await asked(port, "anything") == "laptop"
    await provider.close(drain_s=0)
    await eventually(lambda: not edge.publication.status["tcp://*/ssh@laptop"]["problem"])
    waiting = asyncio.create_task(asked(port, "anything"))
    await eventually(lambda: edge.assignment.pending == 1, "the client waits")
    again = await cluster.provider("laptop", "tcp://", service="ssh")
    assert await waiting == "laptop"
    await told(again, "tcp://*/ssh@laptop", at=[f"tunnel.example.org:{port}"])


async def test_a_port_closes_after_the_grace_and_clients_that_wait_are_reset(cluster: Cluster) -> None:
    port = cluster.port()
    edge = cluster.edge("edge", publish_ports=range_of(port), grace_s=0.2)
    cluster.add_key(Role.PROVIDER, "laptop", f"tcp://{port}")
    provider = await cluster.provider("laptop", f"tcp://{port}")
    await eventually(lambda: ports(edge) == {port})
    await provider.close(drain_s=0)
    assert await asked(port, "anything") in ("", "laptop")
    await eventually(lambda: not ports(edge))


async def test_a_revoked_key_loses_its_names_and_connections_at_once(cluster: Cluster) -> None:
    port = cluster.port()
    edge = cluster.edge("edge", publish_ports=range_of(port), routes=(Route("static.example.com", "web"),))
    cluster.add_key(Role.PROVIDER, "laptop", APP, f"tcp://{port}")
    provider = await cluster.provider("laptop", APP, f"tcp://{port}")
    await told(provider, f"tcp://{port}@laptop", at=[f"tunnel.example.org:{port}"])
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(b"\r\n\r\n")
    await asyncio.wait_for(reader.readexactly(4), DEADLINE_S)
    cluster.state.revoke("laptop")
    cluster.reread()
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(reader.read(), DEADLINE_S)
    writer.close()
    await eventually(lambda: not ports(edge) and not edge.publication.status)
    assert await asked(web(edge), "app.example.com") == "404"


async def test_a_port_that_another_program_has_is_said_to_be_taken_and_opened_once_it_is_free(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("goreprox.roles.publication.RETRY_S", 0.05)
    with socket.create_server(("", 0)) as taken:
        port: int = taken.getsockname()[1]
        edge = cluster.edge("edge", publish_ports=range_of(port))
        cluster.add_key(Role.PROVIDER, "laptop", f"tcp://{port}")
        provider = await cluster.provider("laptop", f"tcp://{port}")
        await told(provider, f"tcp://{port}@laptop", problem="Address already in use")
        assert not ports(edge)
    await told(provider, f"tcp://{port}@laptop", at=[f"tunnel.example.org:{port}"])
    assert await asked(port, "anything") == "laptop"


async def test_edges_that_open_the_same_ports_choose_the_same_one(cluster: Cluster) -> None:
    opened = (Ports(*sorted(cluster.port() for _ in range(2))),)
    edges = [cluster.edge(name, publish_ports=opened, addresses=(Address(name, 1),)) for name in ("a", "b")]
    cluster.add_key(Role.PROVIDER, "laptop", f"tcp://{opened[0].text}")
    await cluster.provider("laptop", "tcp://")
    await eventually(lambda: all(edge.publication.status for edge in edges))
    chosen = {str(*edge.publication._settled.ports) for edge in edges}
    assert len(chosen) == 1


# What may not be published, and by whom it may be served


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ([f"{APP}@laptop"], "does not allow to publish http://app.example.com"),
        (["http://mine.example.com@other"], "does not allow to publish http://mine.example.com"),
        (["http://mine.example.com@laptop", "tcp://80@laptop"], "does not allow to publish tcp://80"),
        (["http://*@laptop"], "all hosts cannot be published"),
        (["http://MINE.example.com@laptop"], "published name 'http://MINE.example.com@laptop'"),
        ([f"tcp://{number}@laptop" for number in range(2000, 2200)], "it publishes 200 names, expected at most 64"),
    ],
    ids=range(6),
)
async def test_a_hostile_provider_publishes_nothing_that_is_not_its_own(
    cluster: Cluster, names: list[str], reason: str
) -> None:
    edge = cluster.edge("edge", publish_ports=(Ports(80, 80), Ports(2000, 3000)))
    cluster.add_key(Role.PROVIDER, "laptop", "http://mine.example.com", "tcp://2500")
    cluster.add_key(Role.PROVIDER, "other", "http://*.example.com")
    at_hello = cluster.hostile("laptop", names)
    at_announce = cluster.hostile("laptop", ["http://mine.example.com@laptop"])
    await eventually(lambda: edge.publication.status, "what it may have is served")
    at_announce.announce({"services": names})
    for member in (at_hello, at_announce):
        await eventually(lambda member=member: reason in (member.link.problem or ""), "refused")  # type: ignore[misc]
    await eventually(lambda: not edge.publication.status)
    assert not ports(edge)


async def test_a_provider_cannot_say_which_ports_its_key_has(cluster: Cluster) -> None:
    port = cluster.port()
    edge = cluster.edge("edge", publish_ports=range_of(port))
    cluster.add_key(Role.PROVIDER, "laptop", APP)
    cluster.hostile("laptop", [f"{APP}@laptop"])
    await eventually(lambda: edge.publication._held)
    (held,) = edge.publication._held.values()
    assert (held.claim.key, held.claim.ports) == (cluster.state.key("laptop").public, ())


async def test_an_edge_whose_key_is_limited_to_services_serves_no_published_names(cluster: Cluster) -> None:
    friend = cluster.edge("friend", services=["default"], queue_timeout_s=0.1)
    edge = cluster.edge("edge")
    cluster.add_key(Role.PROVIDER, "laptop", APP)
    await cluster.provider("laptop", APP)
    await eventually(lambda: edge.publication.status and friend.publication.status)
    assert await asked(web(edge), "app.example.com") == "laptop"
    assert await asked(web(friend), "app.example.com") == "502"


async def test_other_grants_count_at_once(cluster: Cluster) -> None:
    one, two = cluster.port(), cluster.port()
    edge = cluster.edge("edge", publish_ports=(*range_of(one), *range_of(two)))
    cluster.add_key(Role.PROVIDER, "laptop", f"tcp://{one}")
    provider = await cluster.provider("laptop", "tcp://")
    await told(provider, "tcp://*/default@laptop", at=[f"tunnel.example.org:{one}"])
    cluster.state.allow("laptop", publish=parse_grants([f"tcp://{two}"]))
    cluster.reread()
    await told(provider, "tcp://*/default@laptop", at=[f"tunnel.example.org:{two}"])
    assert ports(edge) == {two}


# Reload and upgrade


async def test_a_reload_opens_and_closes_ports_and_keeps_the_rest(cluster: Cluster) -> None:
    port = cluster.port()
    edge = cluster.edge("edge")
    cluster.add_key(Role.PROVIDER, "laptop", APP, f"tcp://{port}")
    provider = await cluster.provider("laptop", APP, f"tcp://{port}")
    await told(provider, f"tcp://{port}@laptop", problem=f"this edge does not open port {port}")
    listeners = edge._clients.listeners
    opened = configured(EdgeConfig, brokers=(Address(HOST, 1),), listeners=listeners, publish_ports=range_of(port))
    await edge.reconfigure(opened)
    await told(provider, f"tcp://{port}@laptop", at=[f"tunnel.example.org:{port}"])
    await edge.reconfigure(opened)
    assert ports(edge) == {port}, "a reload leaves it open"
    assert await asked(port, "anything") == "laptop" == await asked(web(edge), "app.example.com")
    await edge.reconfigure(configured(EdgeConfig, brokers=(Address(HOST, 1),), listeners=listeners))
    await eventually(lambda: not ports(edge))
    assert await asked(web(edge), "app.example.com") == "laptop"


async def test_a_reload_of_a_provider_asks_for_other_names(cluster: Cluster) -> None:
    edge = cluster.edge("edge", queue_timeout_s=0.1, grace_s=0.1, routes=(Route("static.example.com", "web"),))
    cluster.add_key(Role.PROVIDER, "laptop", "http://*.example.com")
    provider = await cluster.provider("laptop", APP)
    await told(provider, f"{APP}@laptop", at=[f"http://app.example.com:{web(edge)}"])
    other = PublishConfig(names=(Publish.parse("http://other.example.com"),))
    await provider.reconfigure(replace(provider._config, publish=other))
    await told(provider, "http://other.example.com@laptop", at=[f"http://other.example.com:{web(edge)}"])
    assert await asked(web(edge), "other.example.com") == "laptop"
    await eventually(lambda: list(edge.publication.status) == ["http://other.example.com@laptop"], "after the grace")
    assert await asked(web(edge), "app.example.com") == "404"


async def test_an_upgrade_hands_over_the_ports_and_who_waits_there(cluster: Cluster) -> None:
    port = cluster.port()
    edge = cluster.edge("edge", handed_over=True, publish_ports=range_of(port))
    cluster.add_key(Role.PROVIDER, "laptop", APP, f"tcp://{port}")
    provider = await cluster.provider("laptop", APP, f"tcp://{port}")
    await told(provider, f"tcp://{port}@laptop", at=[f"tunnel.example.org:{port}"])
    config = configured(
        EdgeConfig, brokers=(Address(HOST, 1),), listeners=edge._clients.listeners, publish_ports=range_of(port)
    )
    edge.driver.leave("upgrade")
    before = edge.publication.status
    waiting = asyncio.create_task(asked(port, "anything"))
    await eventually(lambda: edge.bridges.connections, "a client has come")
    descriptor = handover.write(list(EdgeState(edge).export(payload=True)))
    try:
        items = Inherited(descriptor, trial=False).items()
        after = Edge(config, restored_listeners(items))
        EdgeState(after).restore(items, trial=False)
    finally:
        os.close(descriptor)
    await eventually(lambda: after.publication.status.keys() == before.keys())
    assert ports(after) == {port}
    assert after.assignment.pending_services == {f"tcp://{port}@laptop"}
    await after.close(drain_s=0)
    assert await waiting == ""


# Warnings


async def test_a_provider_says_so_if_edges_are_of_a_version_that_serves_no_published_names(
    cluster: Cluster, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("goreprox.roles.publishing.SILENT_S", 0.01)
    monkeypatch.setattr(Publication, "update", lambda _self, _peer: None)
    cluster.edge("edge", listeners=(Listener(Address(HOST, 0)),))
    cluster.add_key(Role.PROVIDER, "laptop", APP)
    await cluster.provider("laptop", APP)
    await eventually(lambda: any("none of the edges serves published names" in text for text in warnings))


async def test_over_a_broker_that_knows_no_published_names_nothing_is_published(
    cluster: Cluster, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("goreprox.roles.publishing.SILENT_S", 0.01)
    monkeypatch.setattr(Watcher, "certified", lambda _self, _key, attributes: attributes)
    edge = cluster.edge("edge", queue_timeout_s=0.1)
    cluster.add_key(Role.PROVIDER, "laptop", APP)
    await cluster.provider("laptop", APP)
    await eventually(lambda: any("a broker of an earlier version" in text for text in warnings))
    assert not edge.publication.status
    assert await asked(web(edge), "app.example.com") == "503"


async def test_a_port_for_published_hosts_alone_needs_no_provider_of_the_default_service(
    cluster: Cluster, warnings: list[str]
) -> None:
    edge = cluster.edge("edge")
    cluster.add_key(Role.PROVIDER, "laptop", APP)
    provider = await cluster.provider("laptop", APP)
    await told(provider, f"{APP}@laptop", at=[f"http://app.example.com:{web(edge)}"])
    edge.assignment.check.needed("default")
    assert not [text for text in warnings if "no provider offers" in text]
    edge.assignment.check.needed("web")
    assert [text for text in warnings if "no provider offers the service web" in text]
