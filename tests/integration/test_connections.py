"""The bounds of a broker's connections: those without a hello, peers that are not read fast enough."""

import asyncio
import contextlib
import os
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import zmq

from brokers import BrokerSecurity, Carrier, Grant, KeyPair, PeerName, Role
from brokers import connections as bounds
from brokers.envelope import Hello, control
from brokers.peers import NONCE_BYTES
from brokers.sockets import secure_link
from tests.support.fabric import MIB, SLOW, STEADY, Fabric, Recorder, name
from tests.support.sockets import HOST, without_descriptors
from tests.support.waiting import DEADLINE_S, eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="TCP_INFO is Linux's")


class Anybody:
    """An authority that lets every key be the provider `web`."""

    def grant(self, public_key: bytes) -> Grant | None:
        return Grant(Role.PROVIDER, "web")

    def certified(self, public_key: bytes, attributes: Mapping[str, object]) -> Mapping[str, object]:
        return attributes

    def objection(self, public_key: bytes, attributes: object) -> str | None:
        return None


def hello(dealer: "zmq.Socket[bytes]") -> None:
    dealer.send_multipart(control(Hello(1, 1, 1, {})))


@pytest.mark.parametrize("secure", [False, True])
async def test_unread_bytes_are_counted_exactly(secure: bool) -> None:
    server = KeyPair.generate()
    async with Fabric(SLOW, BrokerSecurity(server, Anybody()) if secure else None) as it:
        heard = Recorder()
        edge = name(Role.EDGE)
        it.router.attach(edge, {}, heard)
        dealer = it.socket(zmq.DEALER)
        dealer.setsockopt(zmq.ROUTING_ID, name(Role.PROVIDER).routing_id(os.urandom(NONCE_BYTES)))
        if secure:
            secure_link(dealer, KeyPair.generate(), server.public)
        dealer.connect(f"tcp://{HOST}:{it.ports[Role.PROVIDER]}")
        hello(dealer)
        await eventually(lambda: heard.peers)
        sizes = [*range(260), 8192, 65_535, 65_536, MIB]
        for size in sizes:
            dealer.send_multipart([edge.id, bytes(size)])
        await eventually(lambda: len(heard.messages) == len(sizes))
        assert list(it.router.backlogs.values()) == [0]


def connect(it: Fabric, said: bytes) -> socket.socket:
    raw = socket.create_connection((HOST, it.ports[Role.PROVIDER]))
    it.stack.callback(raw.close)
    raw.setblocking(False)
    raw.send(said)
    return raw


async def is_ended(raw: socket.socket) -> bool:
    try:
        async with asyncio.timeout(DEADLINE_S):
            while await asyncio.get_running_loop().sock_recv(raw, 65536):
                pass
    except ConnectionError:
        return True
    return True


GREETING = b"\xff" + bytes(7) + b"\x01\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)


async def test_a_connection_that_announces_megabytes_before_its_hello_is_ended() -> None:
    async with Fabric(SLOW) as fabric:
        raw = connect(fabric, GREETING + b"\x06" + (2_000_000).to_bytes(8, "big"))  # a long command
        for _ in range(64):
            try:
                await asyncio.get_running_loop().sock_sendall(raw, bytes(1024))
            except ConnectionError:
                break
        assert await is_ended(raw)


async def test_a_connection_without_a_hello_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("brokers.port.GREETING_S", 0.2)
    async with Fabric(SLOW) as fabric:
        assert await is_ended(connect(fabric, b""))
        shaken = fabric.raw(Role.PROVIDER, name(Role.PROVIDER).routing_id(os.urandom(NONCE_BYTES)))
        monitor = shaken.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        await eventually(lambda: monitor.poll(0))
        shaken.disable_monitor()
        monitor.close(linger=0)


async def test_too_many_connections_without_a_hello_keep_no_peer_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "GREETING_CONNECTIONS", 8)
    async with Fabric(SLOW) as fabric:
        connections = [connect(fabric, GREETING) for _ in range(24)]
        for raw in connections[:16]:
            assert await is_ended(raw)
        _, recorder = fabric.link(name(Role.PROVIDER))
        await eventually(lambda: recorder.ups == 1)
        for raw in connections[-7:]:
            assert len(raw.recv(4096)) >= len(GREETING)
            with pytest.raises(BlockingIOError):  # still there
                raw.recv(4096)


@pytest.mark.parametrize("bound", ["BACKLOG_BYTES", "BACKLOGS_BYTES"])
async def test_a_peer_with_too_many_unread_bytes_is_disconnected_alone(
    monkeypatch: pytest.MonkeyPatch, bound: str, warnings: list[str]
) -> None:
    monkeypatch.setattr(bounds, bound, MIB)
    async with Fabric(SLOW) as fabric:
        _, recorder = fabric.link(name(Role.PROVIDER, "other"))
        await eventually(lambda: recorder.ups == 1)
        loop = asyncio.get_running_loop()
        identity = name(Role.PROVIDER).routing_id(os.urandom(NONCE_BYTES))
        metadata = b"\x0bSocket-Type\0\0\0\x06DEALER\x08Identity\0\0\0" + bytes([len(identity)]) + identity
        greeting = bytes(control(Hello(1, 1, 1, {}))[1])
        raw = connect(fabric, GREETING + b"\x04" + bytes([6 + len(metadata)]) + b"\x05READY" + metadata)
        received = b""
        while b"READY" not in received:
            received += await loop.sock_recv(raw, 4096)
        await loop.sock_sendall(raw, b"\x01\0\0" + bytes([len(greeting)]) + greeting)
        await eventually(lambda: len(fabric.router.peers) == 2)
        frame = b"\x03" + (MIB // 16).to_bytes(8, "big") + bytes(MIB // 16)  # long, and more to come: never the last

        async def flood() -> None:
            with contextlib.suppress(ConnectionError):
                for _ in range(400):
                    await loop.sock_sendall(raw, frame)

        flooding = asyncio.create_task(flood())
        await eventually(lambda: len(fabric.router.peers) == 1)
        flooding.cancel()  # it may wait: a closed window opens no more
        await asyncio.wait([flooding])
        assert recorder.downs == []


def test_a_stuck_connection_is_counted_until_it_closes() -> None:
    with socket.create_server((HOST, 0)) as listening:
        port = listening.getsockname()[1]
        connections = bounds.Connections(port, secure=False, greeting_s=1.0)
        with socket.create_connection((HOST, port)), listening.accept()[0] as accepted:
            connections.accepted(accepted.fileno(), 0.0)
            connections.enforce(2.0, elapsed_s=2.0)  # it has not said hello
            assert connections.stuck(time.monotonic() + bounds.STUCK_S - 1) == 0
            assert connections.stuck(time.monotonic() + bounds.STUCK_S + 1) == 1
            connections.closed(accepted.fileno())
            assert connections.stuck(time.monotonic() + bounds.STUCK_S + 1) == 0
        connections.close()


def test_a_connection_that_cannot_be_tracked_is_ended() -> None:
    """Else it could neither greet nor be ended, and would keep its descriptor from others for as long as it likes."""
    with socket.create_server((HOST, 0)) as listening:
        port = listening.getsockname()[1]
        connections = bounds.Connections(port, secure=False, greeting_s=1.0)
        with socket.create_connection((HOST, port)) as client, listening.accept()[0] as accepted:
            client.settimeout(10)
            with without_descriptors():
                connections.accepted(accepted.fileno(), 0.0)
            assert client.recv(1) == b""
            assert (connections.greeting, accepted.fileno() >= 0) == (0, True)
        with socket.create_server((HOST, 0)) as other, socket.create_connection(other.getsockname()) as client:
            with other.accept()[0] as reused, without_descriptors():
                connections.accepted(reused.fileno(), 0.0)  # not of this port: the number was reused meanwhile
                reused.send(b"still open")
            assert client.recv(10) == b"still open"


@pytest.mark.pure
async def test_a_socket_with_too_many_stuck_connections_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Fabric(SLOW) as fabric:
        port = fabric.ports[Role.EDGE]  # the first that is looked at
        _, recorder = fabric.link(name(Role.EDGE))
        await eventually(lambda: recorder.ups == 1)
        before = held(port)
        with monkeypatch.context() as patch:
            patch.setattr("brokers.router.STUCK_CONNECTIONS", 0)
            await eventually(lambda: recorder.downs)
        await eventually(lambda: recorder.ups > 1 and held(port) <= before)


def held(port: int) -> int:
    """Return how many descriptors of this process are sockets of a local port."""
    count = 0
    for entry in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(entry.name))) as duplicate:
            name_ = duplicate.getsockname()
            count += len(name_) > 1 and name_[1] == port
    return count


async def test_both_ends_know_what_has_not_left_on_the_way_to_the_other() -> None:
    """Of an edge in the broker's process, the way is the connection of its peer."""
    async with Fabric(STEADY) as fabric:
        edge, provider = name(Role.EDGE), name(Role.PROVIDER)
        local = fabric.router.attach(edge, {}, at_edge := Recorder())
        relay = await fabric.relay(Role.PROVIDER)
        link, at_provider = fabric.link_to(HOST, relay.port, provider)
        await eventually(lambda: at_edge.peers and at_provider.peers)
        for carrier, peer in ((local, provider), (link, edge)):
            condition = carrier.link_condition(peer.id)
            assert condition is not None
            assert condition.unsent_bytes == 0
            assert condition.round_trip_s > 0

        relay.flowing.clear()

        def unsent(carrier: Carrier, peer: PeerName) -> bool:
            """Send until it shows: the kernels and the relay between the two take some of it."""
            carrier.send(peer.id, [bytes(MIB)])
            condition = carrier.link_condition(peer.id)
            return condition is not None and condition.unsent_bytes > 0

        await eventually(lambda: unsent(local, provider))
        await eventually(lambda: unsent(link, edge))
        relay.cut()
        await eventually(lambda: at_provider.downs)
        assert local.link_condition(name(Role.PROVIDER).id) is None


async def test_a_link_without_a_connection_has_no_condition(fabric: Fabric) -> None:
    link, recorder = fabric.link(name(Role.PROVIDER))
    await eventually(lambda: recorder.ups)
    await link.close(linger_s=0)
    assert link.link_condition(name(Role.EDGE).id) is None
