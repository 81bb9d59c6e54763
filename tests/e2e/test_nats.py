"""Edges and providers that meet at real nats-servers: what happens to those, to their clusters and to what joins them.

Everything that the servers carry is checked by digests, and no connection may notice anything.
"""

import asyncio
import contextlib
import json
import os
import signal
from pathlib import Path

import nats
import pytest

from tests.e2e.nats_fleet import fleet, start_keyed
from tests.e2e.reloading import apply, configure
from tests.e2e.roles import ANY, echoed, start_broker
from tests.e2e.upgrading import start as start_upgradable
from tests.e2e.upgrading import upgrade
from tests.support.forks import Fork, run_command
from tests.support.nats import NatsCluster, NatsServer
from tests.support.processes import Process, Tunnel
from tests.support.programs import reserved_port
from tests.support.relay import Relay
from tests.support.sockets import HOST
from tests.support.tls import Authority
from tests.support.waiting import DEADLINE_S, eventually

NAMES = ("a", "b")


@pytest.mark.long
async def test_three_servers_killed_one_by_one_and_together_and_upgraded_lose_nothing(tmp_path: Path) -> None:
    async with fleet(tmp_path) as it, NatsCluster.run(tmp_path, 3) as cluster:
        await asyncio.gather(
            *(it.edge(*cluster.urls) for _ in NAMES), *(it.provider(name, *cluster.urls) for name in NAMES)
        )
        await it.connect(*NAMES)
        for server in cluster.servers:
            await server.kill()
            await it.flows()
            await server.start()
        await asyncio.gather(*(server.kill() for server in cluster.servers))
        ups = it.ups()
        await asyncio.gather(*(server.start() for server in cluster.servers))
        await eventually(lambda: all(now > before for now, before in zip(it.ups(), ups, strict=True)), "all are back")
        await it.flows()
        for server in cluster.servers:  # a rolling upgrade: each tells its clients, which leave before it ends
            await server.retire()
            await it.flows()
            await server.start()
        await it.end()
        for process in (*it.edges, *it.providers):
            assert process.events("nats_plaintext") == 1, "it says who can read what clients say"


async def test_sessions_resume_from_brokers_to_nats_and_back(tmp_path: Path) -> None:
    async with fleet(tmp_path) as it, NatsCluster.run(tmp_path, 1) as cluster:
        broker = await start_broker(it.made)
        providers, edges = await broker.port("providers"), await broker.port("edges")
        edge = await it.edge(f"{HOST}:{edges}", *cluster.urls)
        provider = await it.provider("a", f"{HOST}:{providers}", *cluster.urls)
        for process in (edge, provider):
            await eventually(lambda: process.events("link_up") == 2, "both links are up")  # noqa: B023
        await it.connect("a")
        for _ in range(2):
            broker.signal(signal.SIGKILL)
            await broker.wait()
            await it.flows()
            broker = await start_broker(it.made, providers, edges)
            ups = edge.events("link_up", broker=f"{HOST}:{edges}")
            await eventually(lambda: edge.events("link_up", broker=f"{HOST}:{edges}") >= min(ups, 2), "back")  # noqa: B023
            await cluster.servers[0].kill()
            await it.flows()
            await cluster.servers[0].start()
            await it.flows()
        await it.end()


@pytest.mark.long
async def test_a_consumer_that_the_server_drops_for_being_slow_resumes(tmp_path: Path) -> None:
    async with fleet(tmp_path) as it, NatsCluster.run(tmp_path, 1) as cluster:
        (server,) = cluster.servers
        await it.edge(*cluster.urls)
        provider = await it.provider("a", *cluster.urls)
        await it.connect("a")
        other = await nats.connect(server.url, allow_reconnect=False)
        sign = await (await other.subscribe("goreprox.hi.p.*.*.*.here")).next_msg(timeout=DEADLINE_S)
        provider.signal(signal.SIGSTOP)
        try:
            while "Slow Consumer Detected" not in server.log:  # what nobody that it knows sends to it, fills its queue
                await other.publish(f"goreprox.m.p.a.{sign.subject.split('.')[5]}.e.nobody.0-0", bytes(1 << 20))
                await other.flush()
        finally:
            provider.signal(signal.SIGCONT)
        await other.close()
        await provider.logged("link_lost")
        await it.flows()
        await it.end()


USERS = "{ users: [ { user: all, password: all } ] }"
FLEET = f"accounts {{ SYS {{}}, FLEET {USERS} }}\nsystem_account: SYS\nno_auth_user: all\n"


def gateway(name: str, port: int, other: str, relay: int) -> str:
    remote = f'{{ name: "{other}", url: "nats://{HOST}:{relay}" }}'
    return (
        f'server_name: "{name}"\ngateway {{ name: "{name}", listen: "{HOST}:{port}", gateways: [{remote}] }}\n{FLEET}'
    )


@pytest.mark.long
async def test_clusters_that_a_gateway_joins_and_a_leaf_at_a_site_are_one_fabric(tmp_path: Path) -> None:
    async with fleet(tmp_path) as it, contextlib.AsyncExitStack() as stack:
        ports = [stack.enter_context(reserved_port()) for _ in range(6)]
        relays = [Relay(port) for port in ports[3:6]]  # before the gateways of west and east, and the leaf port of east
        for relay in relays:
            await relay.start()
            stack.push_async_callback(relay.stop)
        west = NatsServer(tmp_path / "west", ports[0], gateway("west", ports[3], "east", relays[1].port))
        leaves = f'leafnodes {{ listen: "{HOST}:{ports[5]}", authorization {{ account: FLEET }} }}\n'
        east = NatsServer(tmp_path / "east", ports[1], gateway("east", ports[4], "west", relays[0].port) + leaves)
        remote = f'{{ url: "nats-leaf://{HOST}:{relays[2].port}", account: FLEET }}'
        site = NatsServer(
            tmp_path / "site", ports[2], f'leafnodes {{ reconnect: "1s", remotes: [ {remote} ] }}\n{FLEET}'
        )
        for server in (west, east, site):
            stack.push_async_callback(server.kill)
            await server.start()
        edge = await it.edge(west.url)
        await asyncio.gather(it.provider("a", east.url), it.provider("b", site.url))
        await it.connect(*NAMES, transfers=3)
        for broken, cut_off in ((relays[:2], 2), (relays[2:], 1)):
            downs = edge.events("peer_down")
            for relay in broken:
                relay.refusing = True
                relay.cut()
            await eventually(lambda: edge.events("peer_down") >= downs + cut_off, "the edge notices")  # noqa: B023
            for relay in broken:
                relay.resume()
            await it.flows()
        await it.end()


async def test_a_reload_changes_the_servers_and_connections_continue(tmp_path: Path) -> None:
    async with fleet(tmp_path) as it, NatsCluster.run(tmp_path, 2) as cluster:
        configure(tmp_path, "edge", broker=cluster.urls[:1])
        edge = await it.made.start("edge", "--listen", ANY, "--config", str(tmp_path / "edge.toml"))
        it.edges.append(edge)
        await it.provider("a", *cluster.urls)
        await it.connect("a")
        await apply(tmp_path, "edge", broker=cluster.urls[1:])
        await edge.logged("link_removed")
        await it.flows()
        await cluster.servers[0].kill()
        await it.flows()
        await it.end()


@pytest.mark.long
async def test_workers_take_part(tmp_path: Path) -> None:
    async with fleet(tmp_path) as it, NatsCluster.run(tmp_path, 1) as cluster:
        with reserved_port() as port:
            where = ("--listen", f"{HOST}:{port}", *cluster.options("--broker"))
            edge = await it.made.start("edge", "--workers", "2", "--drain", "0.2", *where)
            await it.provider("a", *cluster.urls)
            await eventually(lambda: edge.events("peer_up", peer="a") >= 2, "both workers know the provider")
            client = await it.made.connect(port)
            await echoed(client, b"hello")
            client[1].close()


@pytest.mark.long
async def test_roles_at_nats_are_upgraded_in_place_with_their_connections(tmp_path: Path) -> None:
    async with fleet(tmp_path) as it, NatsCluster.run(tmp_path, 1) as cluster:
        (url,) = cluster.urls
        edge = await start_upgradable(it.made, "edge", "--listen", ANY, "--broker", url)
        provider = await start_upgradable(it.made, "provider", str(it.made.target_port), "--server", url, "--name", "a")
        it.edges.append(edge)
        it.providers.append(provider)
        await it.connect("a")
        for role, process in (("provider", provider), ("edge", edge)):
            code, _, err = await upgrade(tmp_path, "--role", role)
            assert not code, err
            await process.logged("upgraded", connections=6)
            await it.flows()
        await it.end()


class Keyed:
    """A cluster of one with TLS that knows keys, and the command that lets it know of their changes."""

    def __init__(self, made: Tunnel, authority: Authority, port: int) -> None:
        self.made = made
        self.authority = authority
        self.state = made.tmp / "state"
        self.users = made.tmp / "nats" / "users.conf"
        self.url = f"nats://{authority.name}:{port}"
        tls = f'tls {{ cert_file: "{authority.cert}", key_file: "{authority.key}" }}\n'
        included = 'authorization { include "./users.conf" }\npid_file: "nats.pid"\n'
        self.server = NatsServer(made.tmp / "nats", port, tls + included)

    async def keys(self, *args: str, fails: bool = False) -> str:
        code, out, err = await run_command(self.made.tmp, "keys", *args, "--state-dir", str(self.state))
        assert bool(code) is fails, err
        return err if fails else out

    @property
    def trust(self) -> tuple[str, str]:
        return "--server-ca", str(self.authority.ca_file)

    async def start(self, command: str, key: str, *args: str) -> Process:
        """Start a role, which knows of the servers by its join string."""
        join = ("--join-file", str(self.state / "join" / f"{key}.join"))
        return await start_keyed(self.made, command, *args, *join, *self.trust)

    async def watch(self) -> None:
        """Run `keys nats-config --watch` until the end."""
        told = ("--output", str(self.users), "--pid-file", str(self.made.tmp / "nats/nats.pid"), "--server", self.url)
        arguments = ("keys", "nats-config", *told, *self.trust, "--watch", "--state-dir", str(self.state))
        process = await Fork.start(*arguments, env=dict(os.environ), cwd=self.made.tmp)

        async def end() -> None:
            process.kill()
            await process.wait()

        self.made._stack.push_async_callback(end)


async def test_a_join_string_is_all_that_a_peer_needs_and_a_revoked_one_is_worth_nothing(tmp_path: Path) -> None:
    async with fleet(tmp_path) as it, contextlib.AsyncExitStack() as stack:
        port = stack.enter_context(reserved_port())
        keyed = Keyed(it.made, Authority(tmp_path, "localhost"), port)
        at = ("--address", keyed.url)
        await keyed.keys("add", "edge", "--role", "edge", *at)
        await keyed.keys("add", "pi", "--services", "default", *at)
        await keyed.keys("nats-config", "--output", str(keyed.users))
        stack.push_async_callback(keyed.server.kill)
        await keyed.server.start()
        await keyed.watch()
        it.edges.append(await keyed.start("edge", "edge", "--listen", ANY))
        provider = await keyed.start("provider", "pi", str(it.made.target_port))
        await it.connect("pi")
        code, out, _ = await run_command(
            *(tmp_path, "doctor", "provider", str(it.made.target_port), "--json", *keyed.trust),
            *("--join-file", str(keyed.state / "join/pi.join"), "--runtime-dir", str(tmp_path / "run")),
        )
        states = {each["check"]: each["state"] for each in json.loads(out)["checks"]}
        assert not code and states["nats"] == states["service"] == "ok", out
        await it.end()
        client = await it.made.connect(await it.edges[0].port("clients"))
        await echoed(client, b"before")
        await keyed.keys("revoke", "pi")
        with pytest.raises(ConnectionResetError):
            await client[0].readexactly(1)
        await provider.logged("link_down", cause="refused")
        assert it.edges[0].events("peer_revoked") == 1
