"""The fabric with keys: who is let in, who is not, and what neither can do to the others. Real sockets throughout."""

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import pytest
import zmq

from brokers import REVOKED, BrokerSecurity, Grant, KeyPair, LimitedLog, Link, LinkSecurity, Role, Router, Timings
from brokers.carrier import LinkState
from brokers.envelope import MAX_FRAME, Hello, Refused, Welcome, control, parse_control
from brokers.errors import BindError
from brokers.peers import NONCE_BYTES
from brokers.port import Port
from brokers.sockets import secure_broker, secure_link
from brokers.zap import ZapHandler
from goreprox.config.addresses import Address
from goreprox.keys.guard import Guard
from goreprox.keys.join import Join
from goreprox.keys.reach import Reach
from goreprox.keys.state import StateDir
from tests.support.events import Events, logged
from tests.support.fabric import SLOW, Fabric, Recorder, name, receive
from tests.support.sockets import HOST, abort, read_to_end, stop_accepting, without_descriptors
from tests.support.waiting import DEADLINE_S, eventually

SERVER = KeyPair.generate()
HALF_OPEN = 300
MIB = 1024 * 1024


class Keys:
    """An authority that a test changes its mind for."""

    def __init__(self) -> None:
        self.grants: dict[bytes, Grant] = {}
        self.services: set[str] = {"default"}

    def add(self, role: Role, text: str) -> LinkSecurity:
        keys = KeyPair.generate()
        self.grants[keys.public] = Grant(role, text)
        return LinkSecurity(keys, (SERVER.public,))

    def grant(self, public_key: bytes) -> Grant | None:
        return self.grants.get(public_key)

    def certified(self, public_key: bytes, attributes: Mapping[str, object]) -> Mapping[str, object]:
        return attributes

    def objection(self, public_key: bytes, attributes: Mapping[str, object]) -> str | None:
        services = attributes.get("services", [])
        assert isinstance(services, list)
        more = set(services) - self.services
        return f"this key may not offer {', '.join(sorted(more))}" if more else None


class Guarded(Fabric):
    """A fabric with keys, an edge on it, and a provider named web."""

    def __init__(self, timings: Timings = SLOW) -> None:
        self.keys = Keys()
        super().__init__(timings, BrokerSecurity(SERVER, self.keys))
        self.edge, self.provider = name(Role.EDGE, "front"), name(Role.PROVIDER)
        self.edge_keys = self.keys.add(Role.EDGE, "front")
        self.provider_keys = self.keys.add(Role.PROVIDER, "web")

    async def up(self) -> tuple[Recorder, Recorder]:
        self.edge_link, at_edge = self.link(self.edge, security=self.edge_keys)
        self.provider_link, at_provider = self.link(self.provider, security=self.provider_keys)
        await eventually(lambda: at_edge.peers and at_provider.peers)
        return at_edge, at_provider

    def keyed(self, role: Role, routing_id: bytes, security: LinkSecurity) -> "zmq.Socket[bytes]":
        """Return a DEALER with keys that says what a test wants it to."""
        dealer = self.socket(zmq.DEALER)
        dealer.setsockopt(zmq.ROUTING_ID, routing_id)
        secure_link(dealer, security.keys, security.brokers[0])
        dealer.connect(f"tcp://{HOST}:{self.ports[role]}")
        return dealer


@pytest.fixture
async def guarded() -> AsyncIterator[Guarded]:
    async with Guarded() as guarded:
        yield guarded


async def works(guarded: Guarded, at_provider: Recorder, text: bytes) -> None:
    """The edge reaches the provider."""
    await eventually(
        lambda: guarded.edge_link.state is LinkState.UP and guarded.edge_link.send(guarded.provider.id, [text])
    )
    await eventually(lambda: (guarded.edge.id, [text]) in at_provider.messages)


@contextlib.asynccontextmanager
async def relay(
    port: int, *, host: str = HOST, delay_s: float = 0.0
) -> AsyncIterator[tuple[int, bytearray, bytearray]]:
    """Pass connections on to `port`; yield the port of the relay, what clients have said so far, and all that was."""
    said, seen = bytearray(), bytearray()
    writers: list[asyncio.StreamWriter] = []
    tasks: list[asyncio.Task[None]] = []

    async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter, *kept: bytearray) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(MIB):
                for each in kept:
                    each.extend(data)
                await asyncio.sleep(delay_s)
                sink.write(data)
        sink.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        tasks.append(asyncio.create_task(carry(reader, writer)))

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(HOST, port)
        writers.append(far_writer)
        await asyncio.gather(copy(reader, far_writer, said, seen), copy(far_reader, writer, seen))

    server = await asyncio.start_server(accept, host, 0)
    try:
        yield server.sockets[0].getsockname()[1], said, seen
    finally:
        await stop_accepting(server)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in writers:
            abort(writer)
        await asyncio.sleep(0)


# -- authentication


async def test_messages_of_authorised_peers_are_encrypted_on_the_wire(guarded: Guarded) -> None:
    guarded.edge_link, at_edge = guarded.link(guarded.edge, security=guarded.edge_keys)
    async with relay(guarded.ports[Role.PROVIDER]) as (port, _, seen):
        attributes: dict[str, object] = {"hello": "attribute"}
        link, at_provider = guarded.link(
            guarded.provider, port=port, security=guarded.provider_keys, attributes=attributes
        )
        await eventually(lambda: at_edge.peers)
        await works(guarded, at_provider, b"to the provider" * 100)
        assert link.send(guarded.edge.id, [b"to the edge" * 100])
        await eventually(lambda: at_edge.messages)
    assert len(seen) > 2000
    for text in (b"to the", b"attribute", guarded.provider.name.encode(), guarded.provider.incarnation):
        assert text not in seen


async def test_an_unknown_key_is_rejected_in_the_handshake_until_it_is_authorised(
    guarded: Guarded, events: Events
) -> None:
    del guarded.keys.grants[guarded.provider_keys.keys.public]
    link, recorder = guarded.link(guarded.provider, security=guarded.provider_keys)
    await logged(events, "link_down", cause="unknown key")
    await logged(events, "key_refused", port="provider", address=HOST)
    assert recorder.ups == 0 and link.state is LinkState.DOWN and not guarded.router.peers
    guarded.keys.grants[guarded.provider_keys.keys.public] = Grant(Role.PROVIDER, "web")
    await eventually(lambda: recorder.ups == 1)


async def test_without_a_zap_handler_all_handshakes_fail(guarded: Guarded) -> None:
    for frames in (0, 1):
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        router = context.socket(zmq.ROUTER)
        if frames:  # a ZAP handler that is gone
            ZapHandler(context, guarded.keys, LimitedLog(), str).close()
        secure_broker(router, SERVER, Role.PROVIDER)
        port = router.bind_to_random_port(f"tcp://{HOST}")
        dealer = guarded.socket(zmq.DEALER)
        secure_link(dealer, guarded.provider_keys.keys, SERVER.public)
        monitor = dealer.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)
        dealer.connect(f"tcp://{HOST}:{port}")
        event = await asyncio.to_thread(monitor.recv_multipart)
        assert int.from_bytes(event[0][:2], "little") == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        dealer.disable_monitor()
        monitor.close(linger=0)
        router.close(linger=0)
        context.term()


@pytest.mark.parametrize("role", Role)
async def test_a_key_of_one_role_does_not_work_at_the_port_of_the_other(
    guarded: Guarded, role: Role, events: Events
) -> None:
    keys = guarded.keys.add(role.other, "mallory")
    _link, recorder = guarded.link(name(role, "mallory"), security=keys)
    assert "mallory" in await logged(events, "key_refused", port=str(role), address=HOST)
    await logged(events, "link_down", cause="unknown key")
    assert recorder.ups == 0 and not guarded.router.peers


async def test_a_key_is_valid_for_its_own_name_only(guarded: Guarded, events: Events) -> None:
    at_edge, at_provider = await guarded.up()
    _link, recorder = guarded.link(name(Role.PROVIDER, "web"), security=guarded.keys.add(Role.PROVIDER, "laptop"))
    await logged(events, "message_dropped", reason="the key of provider laptop is not for provider web")
    await logged(events, "link_down", reason="the key of provider laptop is not for provider web")
    assert recorder.ups == 0 and len(at_edge.peers) == 1
    await works(guarded, at_provider, b"still here")


async def test_a_service_that_the_key_does_not_allow_is_refused_in_hello_and_in_announcements(
    guarded: Guarded, events: Events
) -> None:
    at_edge, _ = await guarded.up()
    _link, recorder = guarded.link(
        name(Role.PROVIDER, "web"), security=guarded.provider_keys, attributes={"services": ["default", "ssh"]}
    )
    await logged(events, "link_down", cause="refused", reason="this key may not offer ssh")
    assert recorder.ups == 0 and len(at_edge.peers) == 1

    guarded.provider_link.announce({"services": ["ssh"]})
    await eventually(lambda: (guarded.provider.id, "revoked") in at_edge.gone)
    assert not at_edge.peers
    assert all("ssh" not in str(peer.attributes) for peer in at_edge.seen)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_handshake_succeeds_over_a_round_trip_of_a_second(host: str) -> None:
    # Where the name has two addresses, the other one must not be tried while this one is about to respond.
    async with (
        Guarded(Timings()) as guarded,
        relay(guarded.ports[Role.PROVIDER], host=host, delay_s=0.5) as (port, _, _),
    ):
        _, recorder = guarded.link_to(host, port, guarded.provider, security=guarded.provider_keys)
        await eventually(lambda: recorder.ups == 1)


# -- revocation


async def test_a_peer_is_disconnected_when_its_key_is_revoked(guarded: Guarded, events: Events) -> None:
    at_edge, at_provider = await guarded.up()
    del guarded.keys.grants[guarded.provider_keys.keys.public]
    guarded.router.reauthorise()
    await eventually(lambda: at_edge.gone == [(guarded.provider.id, "revoked")])
    await eventually(lambda: at_provider.downs == ["revoked"])
    await logged(events, "link_down", cause="refused")
    await logged(events, "link_down", cause="unknown key")
    assert guarded.provider_link.state is LinkState.DOWN and at_provider.ups == 1

    guarded.keys.grants[guarded.provider_keys.keys.public] = Grant(Role.PROVIDER, "web")
    await eventually(lambda: at_provider.ups == 2)


async def test_a_revoked_peer_that_ignores_it_is_disconnected(guarded: Guarded) -> None:
    guarded.edge_link, at_edge = guarded.link(guarded.edge, security=guarded.edge_keys)
    dealer = guarded.keyed(Role.PROVIDER, guarded.provider.routing_id(os.urandom(NONCE_BYTES)), guarded.provider_keys)
    monitor = dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    dealer.send_multipart(control(Hello(1, 1, 1, {})))
    assert isinstance(parse_control([b"", (await receive(dealer))[1]]), Welcome)
    await eventually(lambda: at_edge.peers)
    del guarded.keys.grants[guarded.provider_keys.keys.public]
    guarded.router.reauthorise()
    await eventually(lambda: not at_edge.peers)
    for attempt in range(2, 50):
        with contextlib.suppress(zmq.Again):
            dealer.send_multipart([guarded.edge.id, b"heard?"], zmq.NOBLOCK)
            dealer.send_multipart(control(Hello(1, 1, attempt, {})), zmq.NOBLOCK)
    await eventually(lambda: monitor.poll(0))
    assert not at_edge.messages and len(at_edge.seen) == 1
    dealer.disable_monitor()
    monitor.close(linger=0)


async def test_a_narrowed_key_affects_only_peers_that_use_what_it_lost(guarded: Guarded, events: Events) -> None:
    guarded.keys.services = {"default", "ssh"}
    at_edge, _ = await guarded.up()
    ssh = name(Role.PROVIDER, "ssh")
    _, _at_ssh = guarded.link(ssh, security=guarded.keys.add(Role.PROVIDER, "ssh"), attributes={"services": ["ssh"]})
    await eventually(lambda: len(at_edge.peers) == 2)
    guarded.keys.services = {"default"}
    guarded.router.reauthorise()
    await eventually(lambda: at_edge.gone == [(ssh.id, "revoked")])
    await logged(events, "link_down", cause="refused", reason="this key may not offer ssh")
    assert guarded.provider.id in at_edge.peers


# -- impostors


async def test_a_server_with_another_key_is_rejected(guarded: Guarded, events: Events) -> None:
    wrong = LinkSecurity(guarded.provider_keys.keys, (KeyPair.generate().public,))
    link, recorder = guarded.link(guarded.provider, security=wrong)
    await logged(events, "link_down", cause="other key")
    await logged(events, "handshake_failed", cause="server key")
    assert recorder.ups == 0 and link.state is LinkState.DOWN and not guarded.router.peers


async def test_a_peer_without_keys_is_refused_by_a_broker_with_keys(guarded: Guarded, events: Events) -> None:
    _link, recorder = guarded.link(guarded.provider)
    await logged(events, "link_down", cause="keys")
    await logged(events, "handshake_failed", cause="keys")
    assert recorder.ups == 0 and not guarded.router.peers


async def test_a_peer_with_keys_rejects_a_broker_without(guarded: Guarded, events: Events) -> None:
    plain = Fabric(SLOW)
    async with plain.stack:
        _link, recorder = plain.link(guarded.provider, security=guarded.provider_keys)
        await logged(events, "link_down", cause="no keys")
        await logged(events, "handshake_failed", cause="keys")
        assert recorder.ups == 0 and not plain.router.peers


async def test_the_routing_id_of_another_peer_is_rejected(guarded: Guarded, events: Events) -> None:
    nonce = os.urandom(NONCE_BYTES)
    guarded.edge_link, at_edge = guarded.link(guarded.edge, security=guarded.edge_keys)
    victim = guarded.keyed(Role.PROVIDER, guarded.provider.routing_id(nonce), guarded.provider_keys)
    victim.send_multipart(control(Hello(1, 1, 1, {})))
    await eventually(lambda: at_edge.peers)
    # Even whoever learnt the secret part of the routing id: libzmq hands the connection over, we do not.
    mallory = guarded.keyed(
        Role.PROVIDER, guarded.provider.routing_id(nonce), guarded.keys.add(Role.PROVIDER, "mallory")
    )
    mallory.send_multipart([guarded.edge.id, b"as web"])
    mallory.send_multipart(control(Hello(1, 1, 2, {"by": "mallory"})))
    refusal = parse_control(await receive(mallory))
    assert refusal == Refused("the key of provider mallory is not for provider web")
    await logged(events, "message_dropped", reason="the key of provider mallory is not for provider web")
    await eventually(lambda: guarded.provider.id not in at_edge.peers)
    assert not at_edge.messages and all(not peer.attributes for peer in at_edge.seen)


# -- key rotation


async def test_links_follow_a_key_rotation_and_reject_the_old_key_afterwards(guarded: Guarded, events: Events) -> None:
    following = KeyPair.generate()
    keys = guarded.provider_keys.keys
    guarded.edge_keys = LinkSecurity(guarded.edge_keys.keys, (SERVER.public, following.public))
    guarded.provider_keys = LinkSecurity(keys, (SERVER.public, following.public))
    at_edge, at_provider = await guarded.up()
    ports = dict(guarded.ports)
    await guarded.router.rekey(following)
    await eventually(lambda: at_edge.ups == 2 and at_provider.ups == 2)
    await works(guarded, at_provider, b"after the rotation")
    assert ports == guarded.ports

    _old, at_old = guarded.link(name(Role.PROVIDER), security=LinkSecurity(keys, (SERVER.public,)))
    await logged(events, "handshake_failed", cause="server key")
    assert at_old.ups == 0

    await guarded.router.rekey(SERVER)  # as somebody would who has stolen the old key
    await eventually(lambda: at_old.ups == 1)
    await logged(events, "link_down", cause="other key")
    assert (at_edge.ups, at_provider.ups) == (2, 2)


@pytest.mark.parametrize("rotation_s", [600.0, 0.0])
async def test_a_handshake_with_the_earlier_key_is_no_warning_just_after_a_rotation(
    guarded: Guarded, events: Events, warnings: list[str], monkeypatch: pytest.MonkeyPatch, rotation_s: float
) -> None:
    monkeypatch.setattr("brokers.port.ROTATION_S", rotation_s)
    following = KeyPair.generate()
    guarded.provider_keys = LinkSecurity(guarded.provider_keys.keys, (SERVER.public, following.public))
    _, at_provider = guarded.link(guarded.provider, security=guarded.provider_keys)
    await eventually(lambda: at_provider.ups == 1)
    await guarded.router.rekey(following)
    await eventually(lambda: at_provider.ups == 2)
    said = await logged(events, "handshake_failed", cause="server key")
    assert (said in warnings) is (rotation_s == 0)


async def test_a_repeated_rotation_disconnects_no_link_with_the_new_key(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    following = KeyPair.generate()
    guarded.edge_keys = LinkSecurity(guarded.edge_keys.keys, (SERVER.public, following.public))
    guarded.provider_keys = LinkSecurity(guarded.provider_keys.keys, (SERVER.public, following.public))
    at_edge, at_provider = await guarded.up()
    recorders = {Role.EDGE: at_edge, Role.PROVIDER: at_provider}
    first, last = Role
    reopened = Port.reopened

    async def without_descriptors_for_the_last(port: Port, keys: KeyPair | None) -> Port:
        if port.role is last:
            raise BindError(errno.EMFILE, "no descriptors")
        return await reopened(port, keys)

    with monkeypatch.context() as patch:
        patch.setattr(Port, "reopened", without_descriptors_for_the_last)
        with pytest.raises(BindError):
            await guarded.router.rekey(following)
    await eventually(lambda: recorders[first].ups == 2)
    await guarded.router.rekey(following)
    await eventually(lambda: recorders[last].ups == 2)
    await works(guarded, at_provider, b"after the rotation")
    assert (at_edge.ups, at_provider.ups) == (2, 2)


@pytest.mark.pure
async def test_a_rotation_reaches_a_port_that_is_being_replaced(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    following = KeyPair.generate()
    reopened, begun, may_go_on = Port.reopened, asyncio.Event(), asyncio.Event()

    async def slowly(port: Port, keys: KeyPair | None) -> Port:
        begun.set()
        await may_go_on.wait()
        return await reopened(port, keys)

    with monkeypatch.context() as patch:
        patch.setattr(Port, "reopened", slowly)
        with monkeypatch.context() as stuck:
            stuck.setattr("brokers.router.STUCK_CONNECTIONS", 0)
            await begun.wait()
        rotating = asyncio.create_task(guarded.router.rekey(following))
        may_go_on.set()
        await rotating
    both = (guarded.edge, guarded.edge_keys), (guarded.provider, guarded.provider_keys)
    links = [guarded.link(who, security=LinkSecurity(keys.keys, (following.public,))) for who, keys in both]
    await eventually(lambda: all(recorder.ups == 1 for _, recorder in links))


@pytest.mark.parametrize("host", [None, HOST])
async def test_a_rotation_without_descriptors_disconnects_nobody_and_can_be_repeated(host: str | None) -> None:
    async with contextlib.AsyncExitStack() as stack:
        keys, following = Keys(), KeyPair.generate()
        security = LinkSecurity(keys.add(Role.PROVIDER, "web").keys, (SERVER.public, following.public))
        router = Router(timings=SLOW, security=BrokerSecurity(SERVER, keys))
        stack.push_async_callback(router.close, linger_s=0)
        port = router.bind(Role.PROVIDER, host, 0)
        edge, provider, at_edge, at_provider = name(Role.EDGE), name(Role.PROVIDER), Recorder(), Recorder()
        local = router.attach(edge, {}, at_edge)
        link = Link(provider, {}, HOST, port, at_provider, timings=SLOW, security=security)
        stack.push_async_callback(link.close, linger_s=0)
        link.start()
        await eventually(lambda: at_edge.peers and at_provider.peers)

        async def reaches(text: bytes) -> None:
            local.send(provider.id, [text])
            await eventually(lambda: at_provider.messages[-1:] == [(edge.id, [text])])

        failed, codes = 0, set[int | None]()
        with without_descriptors() as taken:
            while True:
                try:
                    await router.rekey(following)
                    break
                except BindError as exc:
                    codes.add(exc.errno)
                failed += 1
                await reaches(b"%d failed" % failed)
                assert (at_edge.gone, at_provider.ups, at_provider.downs) == ([], 1, [])
                os.close(taken.pop())
        assert codes == {errno.EMFILE}
        await eventually(lambda: at_provider.ups == 2 and at_edge.peers and at_provider.peers)
        await reaches(b"after the rotation")


# -- hostile input


async def test_an_oversized_frame_ends_the_connection_before_and_after_the_handshake(guarded: Guarded) -> None:
    at_edge, at_provider = await guarded.up()
    with socket.create_connection((HOST, guarded.ports[Role.PROVIDER])) as raw:
        raw.sendall(GREETING + bytes([0x06]) + (1 << 40).to_bytes(8, "big"))
        assert await ended(raw)
    dealer = guarded.keyed(Role.PROVIDER, guarded.provider.routing_id(os.urandom(NONCE_BYTES)), guarded.provider_keys)
    monitor = dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    dealer.send_multipart([guarded.edge.id, bytes(MAX_FRAME + 1)])
    await eventually(lambda: monitor.poll(0))
    dealer.disable_monitor()
    monitor.close(linger=0)
    assert not at_edge.messages
    await works(guarded, at_provider, b"undisturbed")


GREETING = b"\xff" + bytes(7) + b"\x01\x7f" + b"\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32)
"""Of ZMTP 3.1, as a client sends it."""


def zmtp_2(identity: bytes) -> bytes:
    return b"\xff" + bytes(7) + b"\x01\x7f\x01\x05\x00" + bytes([len(identity)]) + identity


def null(identity: bytes) -> bytes:
    greeting = b"\xff" + bytes(7) + b"\x01\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
    metadata = b"\x0bSocket-Type\0\0\0\x06DEALER\x08Identity\0\0\0" + bytes([len(identity)]) + identity
    return greeting + b"\x04" + bytes([6 + len(metadata)]) + b"\x05READY" + metadata


async def say_hello(it: Fabric, handshake: bytes, until: bytes) -> socket.socket:
    """Be a provider by hand, as far as the broker goes along."""
    raw = socket.create_connection((HOST, it.ports[Role.PROVIDER]))
    it.stack.callback(raw.close)
    raw.sendall(handshake)
    raw.setblocking(False)
    got = b""
    with contextlib.suppress(ConnectionError):
        while until not in got and (data := await asyncio.get_running_loop().sock_recv(raw, 4096)):
            got += data
        hello = bytes(control(Hello(1, 1, 1, {}))[1])
        raw.send(b"\x01\x00\x00" + bytes([len(hello)]) + hello)  # two frames of ZMTP: empty, more to come; the last
    return raw


@pytest.mark.parametrize(("handshake", "until"), [(zmtp_2, b"\x01"), (null, b"READY")])
async def test_neither_an_older_protocol_nor_another_mechanism_bypasses_keys(
    guarded: Guarded, handshake: Callable[[bytes], bytes], until: bytes
) -> None:
    greeting = handshake(guarded.provider.routing_id(os.urandom(NONCE_BYTES)))
    plain = Fabric(SLOW)
    async with plain.stack:  # where there are no keys, the newer protocol is a way in
        raw = await say_hello(plain, greeting, until)
        if handshake is null:
            await eventually(lambda: [peer.name for peer in plain.router.peers] == [guarded.provider])
        else:
            needed = b"ZMTP 3 is needed"
            assert needed in await read_to_end(raw, until=needed)
            assert not plain.router.peers
    assert await ended(await say_hello(guarded, greeting, until))
    assert not guarded.router.peers


# -- with the state directory


async def test_changes_in_the_state_directory_take_effect_while_the_server_runs(tmp_path: Path) -> None:
    guard = Guard(tmp_path / "state")
    state = StateDir(tmp_path / "state")
    it = Fabric(SLOW, guard.security)
    async with it.stack:
        guard.start(it.router, Reach(providers=Address(HOST, it.ports[Role.PROVIDER])))
        it.stack.push_async_callback(guard.close, linger_s=0)
        join = Join.parse(state.join_file("default").read_text())
        assert (join.name, join.addresses) == ("default", (Address(HOST, it.ports[Role.PROVIDER]),))
        front = Join.parse(state.add(Role.EDGE, "front", None, join.addresses).read_text())

        edge, provider = name(Role.EDGE, "front"), name(Role.PROVIDER, "default")
        _, at_edge = it.link(edge, security=front.security)
        link, at_provider = it.link(provider, security=join.security)
        await eventually(lambda: at_edge.peers and at_provider.peers)

        state.rotate()
        await eventually(lambda: min(at_edge.ups, at_provider.ups) >= 2)
        await eventually(lambda: at_edge.peers and at_provider.peers)

        state.revoke("default")
        await eventually(lambda: at_edge.gone[-1:] == [(provider.id, REVOKED)])
        link.send(edge.id, [b"too late"])
        await eventually(lambda: at_provider.downs[-1:] == [REVOKED])
        assert not link.send(edge.id, [b"too late"]) and not at_edge.messages


@pytest.mark.parametrize("damaged", ["reach.toml", "join/laptop.join", "authorized/other.toml"])
async def test_a_server_with_keys_starts_with_damaged_files(
    tmp_path: Path, events: Events, monkeypatch: pytest.MonkeyPatch, damaged: str
) -> None:
    state = StateDir(tmp_path / "state")
    laptop = Join.parse(state.add(Role.PROVIDER, "laptop", None).read_text())
    (state.directory / damaged).write_text("damaged")
    (state.directory / damaged).chmod(0o600)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    guard = Guard(state.directory)
    it = Fabric(SLOW, guard.security)
    async with it.stack:
        guard.start(it.router, Reach())
        it.stack.push_async_callback(guard.close, linger_s=0)
        _, recorder = it.link(name(Role.PROVIDER, "laptop"), security=laptop.security)
        await eventually(lambda: recorder.ups == 1)
    assert damaged in await logged(events, "reach")


async def test_a_read_only_state_directory_is_not_written(
    tmp_path: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = StateDir(tmp_path / "state")
    state.add(Role.PROVIDER, "laptop", None)
    monkeypatch.setattr(StateDir, "is_read_only", True)  # permissions do not keep root out
    before = sorted(state.directory.rglob("*"))
    guard = Guard(state.directory)
    it = Fabric(SLOW, guard.security)
    async with it.stack:
        guard.start(it.router, Reach((Address("h", 0),)))
        await guard.close(linger_s=0)
    assert sorted(state.directory.rglob("*")) == before
    assert not warnings


async def test_if_watching_keys_fails_all_peers_are_disconnected(tmp_path: Path, events: Events) -> None:
    guard = Guard(tmp_path / "state")
    it = Fabric(SLOW, guard.security)
    async with it.stack:
        guard.start(it.router, Reach())
        it.stack.push_async_callback(guard.close, linger_s=0)
        join = Join.parse((tmp_path / "state/join/default.join").read_text())
        assert guard.security.authority.grant(join.keys.public), "the first key counts before anybody can use it"
        _, recorder = it.link(name(Role.PROVIDER, "default"), security=join.security)
        await eventually(lambda: recorder.ups == 1)
        guard._watcher.look = lambda: 1 // 0  # type: ignore[method-assign, assignment, return-value]
        await logged(events, "keys_unwatched")
        await eventually(lambda: recorder.downs == ["revoked"])
        await logged(events, "link_down", cause="unknown key")


async def ended(raw: socket.socket) -> bool:
    """Whether the other side closes the connection."""
    raw.setblocking(False)
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(DEADLINE_S):
            while await asyncio.get_running_loop().sock_recv(raw, 65536):
                pass
    return True


async def test_a_replayed_handshake_fails(guarded: Guarded, events: Events) -> None:
    guarded.edge_link, at_edge = guarded.link(guarded.edge, security=guarded.edge_keys)
    async with relay(guarded.ports[Role.PROVIDER]) as (port, said_by_provider, _):
        link, at_provider = guarded.link(guarded.provider, port=port, security=guarded.provider_keys)
        await eventually(lambda: at_edge.peers and at_provider.peers)
        assert link.send(guarded.edge.id, [b"once"])
        await eventually(lambda: at_edge.messages)
        recorded = bytes(said_by_provider)
        await guarded.close(link, linger_s=0)
    await eventually(lambda: not at_edge.peers)
    with socket.create_connection((HOST, guarded.ports[Role.PROVIDER])) as raw:
        raw.sendall(recorded)
        assert await ended(raw)
    await logged(events, "handshake_failed")
    assert len(at_edge.messages) == 1 and not at_edge.peers


async def test_half_open_connections_and_garbage_do_not_affect_a_link(guarded: Guarded) -> None:
    at_edge, at_provider = await guarded.up()
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        connections = [
            stack.enter_context(socket.create_connection((HOST, guarded.ports[Role.PROVIDER])))
            for _ in range(HALF_OPEN)
        ]
        for index, raw in enumerate(connections):
            raw.sendall((b"", GREETING[:20], GREETING, os.urandom(200))[index % 4])
        began = loop.time()
        count = 0
        while loop.time() - began < 1.0:
            count += 1
            await works(guarded, at_provider, b"number %d" % count)
        # The handshake deadline ends them all, those too that say nothing.
        for raw in connections:
            assert await ended(raw)
    assert (at_edge.ups, at_edge.downs, at_provider.downs) == (1, [], [])
    assert len(guarded.router.peers) == 2
