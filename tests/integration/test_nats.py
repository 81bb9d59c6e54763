"""The carrier over NATS with a real nats-server: who is there, what arrives, and what is lost."""

import asyncio
import contextlib
import os
import signal
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from brokers import Buffer, PeerName, Role
from brokers.carrier import Timings
from brokers.nats.carrier import NatsCarrier
from brokers.nats.client import OUTBOX_MESSAGES, NatsEngine
from brokers.nats.engine import Login, Server
from brokers.nats.frames import MAX_PAYLOAD
from goreprox.keys.claims import NoClaims
from tests.support.fabric import FAST, SLOW, Recorder, name
from tests.support.nats import NatsServer
from tests.support.programs import reserved_port
from tests.support.sockets import HOST
from tests.support.waiting import eventually

Join = Callable[..., tuple[NatsCarrier, Recorder]]
MIB = 1 << 20


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    with reserved_port() as port:
        server = NatsServer(tmp_path / "nats", port)
        await server.start()
        yield server
        await server.kill()


@pytest.fixture
async def join(server: NatsServer) -> AsyncIterator[Join]:
    async with contextlib.AsyncExitStack() as stack:

        def made(
            who: PeerName, *, timings: Timings = SLOW, attributes: dict[str, object] | None = None
        ) -> tuple[NatsCarrier, Recorder]:
            recorder = Recorder()
            engine = NatsEngine([Server(HOST, server.port, plaintext=True)], Login(), ssl.create_default_context)
            carrier = NatsCarrier(who, attributes or {}, engine, recorder, NoClaims(), timings=timings)
            stack.push_async_callback(carrier.close, linger_s=0)
            carrier.start()
            return carrier, recorder

        yield made


async def both(join: Join, **options: Timings) -> tuple[NatsCarrier, Recorder, NatsCarrier, Recorder]:
    """Return an edge and a provider that know of each other."""
    edge, at_edge = join(name(Role.EDGE), **options)
    provider, at_provider = join(name(Role.PROVIDER), **options)
    await eventually(lambda: bool(at_edge.peers) and bool(at_provider.peers))
    return edge, at_edge, provider, at_provider


def only(recorder: Recorder) -> bytes:
    (peer_id,) = recorder.peers
    return peer_id


async def test_peers_of_the_other_role_are_told_with_their_attributes_and_their_changes(join: Join) -> None:
    edge, at_edge = join(name(Role.EDGE, "an.edge"))
    join(name(Role.EDGE, "another"))
    provider, at_provider = join(name(Role.PROVIDER, "pi"), attributes={"services": ["web"]})
    await eventually(lambda: len(at_provider.peers) == 2 and len(at_edge.peers) == 1)
    assert sorted(info.name.name for info in at_provider.peers.values()) == ["an.edge", "another"]
    (info,) = at_edge.peers.values()
    assert info.name.name == "pi" and info.attributes == {"services": ["web"]}
    provider.announce({"services": ["ssh"]})
    await eventually(lambda: at_edge.peers[info.name.id].attributes == {"services": ["ssh"]})
    assert at_edge.peers[info.name.id].epoch == info.epoch, "nothing was lost"
    assert edge.up and edge.problem is None


async def test_messages_arrive_whole_and_in_order_with_their_sender(join: Join) -> None:
    edge, at_edge, provider, at_provider = await both(join)
    sent: list[list[bytes]] = [[b"%d" % number, os.urandom(number * 1000)] for number in range(60)]
    sent.append([b"", os.urandom(MIB), os.urandom(MIB), b"tail"])
    for frames in sent:
        assert edge.send(only(at_edge), frames)
    assert provider.send(only(at_provider), [b"back"])
    await eventually(lambda: len(at_provider.messages) == len(sent) and bool(at_edge.messages))
    assert at_provider.messages == [(only(at_provider), frames) for frames in sent]
    assert at_edge.messages == [(only(at_edge), [b"back"])]


async def test_frames_are_immutable_and_small_ones_do_not_keep_large_ones(join: Join) -> None:
    kept: list[list[Buffer]] = []
    edge, at_edge, _, at_provider = await both(join)
    at_provider.on_message = lambda _carrier, _peer, frames: kept.append(frames)
    edge.send(only(at_edge), [b"head", bytes(100_000), bytes(20_000)])
    await eventually(lambda: bool(kept))
    head, large, small = kept[0]
    assert isinstance(head, bytes) and isinstance(small, bytes)
    assert isinstance(large, memoryview) and large.readonly


async def test_a_peer_that_leaves_is_gone_at_once(join: Join) -> None:
    _, at_edge, provider, _ = await both(join)
    peer_id = only(at_edge)
    await provider.close(linger_s=5)
    await eventually(lambda: at_edge.gone == [(peer_id, "left")])


async def test_the_server_tells_that_nobody_receives_a_message_and_no_lease_has_to_end(join: Join) -> None:
    edge, at_edge, provider, _ = await both(join)
    peer_id = only(at_edge)
    assert provider._connection is not None and provider._task is not None
    provider._task.cancel()
    await provider._connection.close(linger_s=0)  # as if its process had been killed
    await eventually(lambda: not edge.send(peer_id, [b"hello?"]))
    assert at_edge.gone == [(peer_id, "nobody receives its messages")], "the lease is 40 s"


async def test_a_peer_that_says_nothing_is_gone_when_its_lease_is_over(join: Join) -> None:
    _, at_edge = join(name(Role.EDGE), timings=FAST)
    provider, _ = join(name(Role.PROVIDER))
    await eventually(lambda: bool(at_edge.peers))
    assert provider.up
    await eventually(lambda: bool(at_edge.gone))
    assert at_edge.gone[0][1] == "no sign of life"


async def test_a_lost_connection_is_made_anew_and_begins_new_epochs(join: Join, server: NatsServer) -> None:
    edge, at_edge, provider, at_provider = await both(join)
    before = at_edge.peers[only(at_edge)].epoch
    await server.kill()
    await eventually(lambda: len(at_edge.downs) == 1 and len(at_provider.downs) == 1)
    assert not edge.up and not edge.send(next(iter([provider._name.id])), [b"nowhere"])
    await eventually(lambda: edge.problem is not None and "Connection refused" in edge.problem)
    assert edge.problem is not None and "is it running" not in edge.problem, "who asked for no advice gets none"
    await server.start()
    await eventually(lambda: bool(at_edge.peers) and bool(at_provider.peers))
    assert at_edge.peers[only(at_edge)].epoch > before
    assert edge.send(only(at_edge), [b"again"])
    await eventually(lambda: at_provider.messages == [(only(at_provider), [b"again"])])


async def test_a_server_that_hangs_is_lost(join: Join, server: NatsServer) -> None:
    edge, at_edge = join(name(Role.EDGE), timings=FAST)
    await eventually(lambda: edge.up)
    server.signal(signal.SIGSTOP)
    try:
        await eventually(lambda: bool(at_edge.downs))
    finally:
        server.signal(signal.SIGCONT)
    assert at_edge.downs == ["the server is silent"]
    await eventually(lambda: edge.up)


async def test_what_waits_for_a_server_that_does_not_read_is_bounded(join: Join, server: NatsServer) -> None:
    edge, at_edge, _, _ = await both(join)
    peer_id = only(at_edge)
    server.signal(signal.SIGSTOP)
    try:
        payload = bytes(MIB)
        taken = 0
        while edge.send(peer_id, [payload]):
            taken += 1
            await asyncio.sleep(0)
            assert taken < OUTBOX_MESSAGES
    finally:
        server.signal(signal.SIGCONT)


async def test_a_server_for_shorter_messages_is_refused(join: Join, server: NatsServer) -> None:
    await server.kill()
    server.settings = "max_payload: 1MB\n"
    await server.start()
    edge, _ = join(name(Role.EDGE))
    await eventually(lambda: edge.problem is not None)
    assert edge.problem is not None and f"expected {MAX_PAYLOAD:,}" in edge.problem and not edge.up


async def test_a_peer_with_another_incarnation_of_the_same_name_is_another_peer(join: Join) -> None:
    _, at_edge = join(name(Role.EDGE))
    one, other = (join(name(Role.PROVIDER, "twin"))[0] for _ in range(2))
    await eventually(lambda: len(at_edge.peers) == 2)
    await one.close(linger_s=5)
    await eventually(lambda: [peer_id for peer_id, _ in at_edge.gone] == [one._name.id])
    assert list(at_edge.peers) == [other._name.id]
