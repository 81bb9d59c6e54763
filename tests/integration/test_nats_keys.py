"""Keys at NATS, with a real nats-server: what a key allows, what a hostile peer tries, and what a revoked one loses."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import cbor2
import pytest
from nats.aio.msg import Msg

from brokers import REVOKED, LinkSecurity, PeerName, Role
from brokers.nats import NatsCarrier, nkey, permissions, subjects
from brokers.nats.client import NatsEngine, _cancellable, _Client
from brokers.nats.engine import Login, Server
from brokers.nats.subjects import HERE, NO_KEY, Station
from goreprox.config.addresses import Address
from goreprox.config.published import GRANTED, PUBLISHES, parse_grants
from goreprox.keys.claims import KeyClaims, claims_of, key_token
from goreprox.keys.join import Join
from goreprox.keys.state import StateDir
from goreprox.roles.nats_users import NatsUsers
from tests.support.fabric import SLOW, Recorder, name
from tests.support.nats import NatsServer
from tests.support.nats_operator import Operator
from tests.support.programs import reserved_port
from tests.support.sockets import HOST
from tests.support.tls import Authority
from tests.support.waiting import DEADLINE_S, eventually


class Keyed:
    """A server that knows keys, and peers that have some."""

    def __init__(self, tmp: Path, server: NatsServer, stack: contextlib.AsyncExitStack) -> None:
        self.state = StateDir(tmp / "state")
        self.server = server
        self.stack = stack
        self.users = NatsUsers(
            self.state,
            server.directory / "users.conf",
            pid_file=server.directory / "nats.pid",
            servers=[Address(HOST, server.port, nats=True)],
            ca=None,
        )

    async def apply(self) -> None:
        """Let the server know the present keys."""
        count = self.server.reloads
        await asyncio.to_thread(self.users.update)
        await eventually(lambda: self.server.reloads > count, "the configuration is read")

    def join(self, of: str) -> Join:
        return Join.parse(self.state.join_file(of).read_text())

    def peer(
        self,
        join: Join,
        *,
        plaintext: bool = True,
        context: ssl.SSLContext | None = None,
        credentials: Path | None = None,
        **attributes: object,
    ) -> tuple[NatsCarrier, Recorder]:
        recorder = Recorder()
        who = name(join.role, join.name)
        made = context or ssl.create_default_context()
        login = Login(join.keys, credentials)
        engine = NatsEngine([Server(HOST, self.server.port, plaintext)], login, lambda: made)
        carrier = NatsCarrier(
            who,
            attributes,
            engine,
            recorder,
            KeyClaims(who, LinkSecurity(join.keys, ())),
            key=key_token(join.keys.public),
            timings=SLOW,
        )
        self.stack.push_async_callback(carrier.close, linger_s=0)
        carrier.start()
        return carrier, recorder

    async def hostile(self, join: Join) -> "Hostile":
        client = _Client(Server(HOST, self.server.port, plaintext=True), lambda _reason: None)
        hostile = Hostile(client, join)

        async def failed(error: Exception) -> None:
            hostile.errors.append(str(error))

        await client.connect(self.server.url, error_cb=failed, allow_reconnect=False, **client.login(Login(join.keys)))
        self.stack.push_async_callback(client.abandon)
        return hostile


class Hostile:
    """A peer with a key that says what it wants."""

    def __init__(self, client: _Client, join: Join) -> None:
        self.client = client
        self.key = key_token(join.keys.public)
        self.errors: list[str] = []
        self.heard: list[str] = []

    async def says(self, subject: str, payload: bytes = b"") -> bool:
        """Publish; return whether the server lets it."""
        before = len(self.errors)
        await self.client.publish(subject, payload)
        await self.client.flush()
        await self.client.flush()  # nats-py may send the first PING before what was published
        return len(self.errors) == before

    async def hears(self, subject: str) -> bool:
        """Subscribe; return whether the server lets it."""

        async def receive(message: Msg) -> None:
            self.heard.append(message.subject)

        before = len(self.errors)
        await self.client.subscribe(subject, cb=receive)
        await self.client.flush()
        await self.client.flush()
        return len(self.errors) == before


@pytest.fixture
async def keyed(tmp_path: Path) -> AsyncIterator[Keyed]:
    async with contextlib.AsyncExitStack() as stack:
        port = stack.enter_context(reserved_port())
        server = NatsServer(tmp_path / "nats", port, 'authorization { include "./users.conf" }\npid_file: "nats.pid"\n')
        made = Keyed(tmp_path, server, stack)
        made.state.add(Role.EDGE, "edge", None)
        made.state.add(Role.PROVIDER, "pi", ["web"], publish=parse_grants(["http://*.pi.example"]))
        made.users.update()
        stack.push_async_callback(server.kill)
        await server.start()
        yield made


async def test_peers_with_keys_meet_with_what_their_keys_grant(keyed: Keyed) -> None:
    _, at_edge = keyed.peer(keyed.join("edge"), publishes=True)
    offered = ["web", "http://a.pi.example@pi"]
    _, at_provider = keyed.peer(keyed.join("pi"), services=offered, weight=2)
    await eventually(lambda: bool(at_edge.peers) and bool(at_provider.peers))
    (provider,), (edge,) = at_edge.peers.values(), at_provider.peers.values()
    assert provider.attributes == {
        "services": offered,
        "weight": 2,
        GRANTED: [keyed.join("pi").keys.public, []],
    }
    assert edge.name.name == "edge" and edge.attributes == {PUBLISHES: True, GRANTED: True}


async def test_who_announces_more_than_its_key_allows_is_not_there_and_is_told_why(keyed: Keyed) -> None:
    _, at_edge = keyed.peer(keyed.join("edge"))
    greedy, _ = keyed.peer(keyed.join("pi"), services=["web", "ssh"])
    await eventually(lambda: greedy.problem is not None)
    assert greedy.problem is not None and "does not allow the service ssh" in greedy.problem
    publisher, _ = keyed.peer(keyed.join("pi"), services=["http://other.example@pi"])
    await eventually(lambda: publisher.problem is not None)
    assert publisher.problem is not None and "does not allow to publish http://other.example" in publisher.problem
    assert not greedy.up and not publisher.up and not at_edge.seen


@pytest.mark.long
async def test_a_carrier_ends_whenever_it_is_closed_and_leaves_no_task(keyed: Keyed) -> None:
    """While it connects, logs in, subscribes, asks what it may, is there, and is refused."""
    before = asyncio.all_tasks()
    for moment in range(400):
        carrier, _ = keyed.peer(keyed.join("pi"), services=["other" if moment % 2 else "web"])
        for _ in range(moment):
            await asyncio.sleep(0)  # no time, but a turn of the loop
        async with asyncio.timeout(DEADLINE_S):
            await carrier.close(linger_s=0)
    await eventually(lambda: asyncio.all_tasks() == before, lambda: str(asyncio.all_tasks() - before))


async def test_a_cancellation_that_a_call_swallows_or_turns_into_an_error_is_one_after_it() -> None:
    async def swallows() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(DEADLINE_S)

    async def fails() -> None:
        try:
            await asyncio.sleep(DEADLINE_S)
        finally:
            raise OSError

    for call in (swallows, fails):
        task = asyncio.create_task(_cancellable(call()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await _cancellable(call())


async def test_a_hostile_peer_speaks_as_itself_alone(keyed: Keyed) -> None:
    keyed.state.add(Role.PROVIDER, "victim", None)
    await keyed.apply()
    edge, at_edge = keyed.peer(keyed.join("edge"))
    victim, at_victim = keyed.peer(keyed.join("victim"), services=["web"])
    await eventually(lambda: bool(at_edge.peers) and bool(at_victim.peers))
    hostile = await keyed.hostile(keyed.join("pi"))
    place, who = edge._station.place, victim._station
    own = Station(PeerName(Role.PROVIDER, "pi", bytes(16)), hostile.key, 1)
    here = cbor2.dumps([False, {"services": ["web"]}])
    for forged in (
        who.hi(HERE),
        who.hi("bye"),
        Station(who.name, hostile.key, who.number + 1).hi(HERE),
        Station(PeerName(Role.PROVIDER, "pi", who.name.incarnation), who.key, 1).hi(HERE),
        Station(PeerName(Role.PROVIDER, "pi", bytes(16)), NO_KEY, 1).hi(HERE),
        Station(PeerName(Role.EDGE, "edge", bytes(16)), hostile.key, 1).hi(HERE),
        who.message_to(place),
        own.message_to(who.place),
        own.hi("any"),
        own.hi("service:ssh"),
        own.hi("publish:http://+~example"),
        subjects.revoked(Role.PROVIDER, "victim"),
        edge._station.gone(who.place),
        "goreprox.m.>",
    ):
        assert not await hostile.says(forged, here), forged
    for overheard in (">", "goreprox.>", "goreprox.m.>", *who.subscriptions[:2], "goreprox.hi.p.>", f"{who.inbox}.>"):
        assert not await hostile.hears(overheard), overheard
    assert await hostile.says(own.message_to(place), b"\0\1\0\0\0\2hi"), "as nobody that is there"
    # What it may say harms nobody: another's incarnation, attributes without claims, and what is malformed.
    thief = Station(PeerName(Role.PROVIDER, "pi", who.name.incarnation), hostile.key, who.number + 1)
    for payload in (here, b"", b"\xff" * 5000):
        assert await hostile.says(own.hi(HERE), payload)
    assert await hostile.says(thief.hi(HERE), here)
    assert await hostile.says(own.message_to(place), b"\xff\xff")
    assert victim.send(next(iter(at_victim.peers)), [b"after all of it"])
    await eventually(lambda: bool(at_edge.messages))
    assert at_edge.messages == [(who.name.id, [b"after all of it"])] and not at_edge.gone
    assert {info.name.name for info in at_edge.seen} == {"victim"} and not hostile.heard


async def test_a_revoked_key_is_out_at_once_at_both_ends(keyed: Keyed) -> None:
    keyed.state.add(Role.PROVIDER, "other", None)
    await keyed.apply()
    _, at_edge = keyed.peer(keyed.join("edge"))
    pi, at_pi = keyed.peer(keyed.join("pi"), services=["web"])
    keyed.peer(keyed.join("other"), services=["web"])
    await eventually(lambda: len(at_edge.peers) == 2 and bool(at_pi.peers))
    keyed.state.revoke("pi")
    await asyncio.to_thread(keyed.users.update)
    assert at_edge.gone[0] == (pi._name.id, REVOKED) and at_pi.downs[0] == REVOKED, "so streams are not kept"
    await eventually(lambda: pi.problem is not None and "does not know our key" in pi.problem)
    await eventually(lambda: [info.name.name for info in at_edge.peers.values()] == ["other"])
    assert {peer_id for peer_id, _ in at_edge.gone} == {pi._name.id}


async def test_what_a_key_allows_changes_while_its_peers_are_connected(keyed: Keyed) -> None:
    _, at_edge = keyed.peer(keyed.join("edge"))
    pi, _ = keyed.peer(keyed.join("pi"), services=["web"])
    await eventually(lambda: bool(at_edge.peers))
    keyed.state.allow("pi", services=["ssh"])
    await keyed.apply()
    pi.announce({"services": ["web"], "weight": 3})
    await eventually(lambda: pi.problem is not None and "does not allow the service web" in pi.problem)
    await eventually(lambda: not at_edge.peers)
    pi.announce({"services": ["ssh"]})
    await eventually(lambda: [info.attributes for info in at_edge.peers.values()] == [{"services": ["ssh"]}])


async def test_a_server_that_lets_keys_say_anything_is_refused(keyed: Keyed) -> None:
    nkeys = [nkey.public_nkey(keyed.join(of).keys.public) for of in ("edge", "pi")]
    users = ", ".join(f"{{ nkey: {each} }}" for each in nkeys)
    (keyed.server.directory / "users.conf").write_text(f"users: [ {users} ]\n")
    await keyed.server.reload()
    edge, _ = keyed.peer(keyed.join("edge"))
    await eventually(lambda: edge.problem is not None and "lets this key say anything" in edge.problem)
    assert not edge.up


async def test_tls_is_demanded_before_anything_is_sent(keyed: Keyed, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    edge, _ = keyed.peer(keyed.join("edge"), plaintext=False, context=authority.trusting())
    await eventually(lambda: edge.problem is not None and "does not demand TLS" in edge.problem)
    await keyed.server.kill()
    keyed.server.more += f'tls {{ cert_file: "{authority.cert}", key_file: "{authority.key}" }}\n'
    await keyed.server.start()
    await eventually(lambda: edge.up)
    strange, _ = keyed.peer(keyed.join("pi"))
    await eventually(lambda: strange.problem is not None and "no TLS with the NATS server" in strange.problem)
    assert not strange.up, "its certificate is signed by nobody whom this one trusts"


async def test_peers_log_in_by_the_credentials_that_an_operator_gives_them_and_may_do_what_their_keys_allow(
    tmp_path: Path,
) -> None:
    operator = Operator()
    async with contextlib.AsyncExitStack() as stack:
        port = stack.enter_context(reserved_port())
        it = Keyed(tmp_path, NatsServer(tmp_path / "nats", port, operator.settings), stack)
        keys = {"edge": it.state.add(Role.EDGE, "edge", None), "pi": it.state.add(Role.PROVIDER, "pi", ["web"])}
        stack.push_async_callback(it.server.kill)
        await it.server.start()
        peers = {}
        for key in it.state.all():
            allowed = permissions(key.role, key.name, key_token(key.public), claims_of(key))
            credentials = operator.credentials(tmp_path / f"{key.name}.creds", allowed)
            peers[key.name] = it.peer(it.join(key.name), credentials=credentials, services=["web"])
        assert peers.keys() == keys.keys()
        for _, recorder in peers.values():
            await eventually(lambda recorder=recorder: bool(recorder.peers))  # type: ignore[misc] # of this turn
        narrow = operator.credentials(tmp_path / "narrow.creds", permissions(Role.PROVIDER, "pi", NO_KEY, ()))
        refused, _ = it.peer(it.join("pi"), credentials=narrow, services=["web"])
        await eventually(lambda: refused.problem is not None and "web" in refused.problem, lambda: str(refused.problem))
        unknown = Operator().credentials(tmp_path / "unknown.creds", permissions(Role.PROVIDER, "pi", NO_KEY, ()))
        stranger, _ = it.peer(it.join("pi"), credentials=unknown, services=["web"])
        await eventually(lambda: stranger.problem is not None)
        assert not stranger.up
