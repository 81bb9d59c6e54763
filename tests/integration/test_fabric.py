"""The fabric over real ZeroMQ on loopback: links, routers, local peers, and what breaks between them."""

import asyncio
import contextlib
import errno
import os
import socket
import subprocess
import sys

import pytest
import zmq

from brokers import (
    BindError,
    Role,
    Router,
    SocketAddress,
    Timings,
    resolve,
)
from brokers.carrier import LinkState
from brokers.envelope import Hello, Refused, Welcome, control, parse_control
from brokers.outboxes import OUTBOX_BYTES, OUTBOX_MESSAGES
from tests.support.events import Events, logged, matching, message
from tests.support.fabric import FAST, SLOW, STEADY, Fabric, Recorder, name, receive
from tests.support.sockets import HOST, closed_port
from tests.support.waiting import DEADLINE_S, eventually

NOWHERE = "127.9.9.9"
MIB = 1024 * 1024


# -- peers and messages


async def test_peers_of_both_roles_learn_of_each_other_with_attributes(fabric: Fabric) -> None:
    edge, provider = name(Role.EDGE, "front"), name(Role.PROVIDER)
    _, at_edge = fabric.link(edge, attributes={"grace_s": 60})
    await eventually(lambda: at_edge.ups == 1)
    link, at_provider = fabric.link(provider, attributes={"services": ["default"]})
    await eventually(lambda: at_edge.peers and at_provider.peers)
    assert at_provider.peers[edge.id].attributes == {"grace_s": 60}
    assert at_edge.peers[provider.id].name == provider
    assert {peer.name for peer in fabric.router.peers} == {edge, provider}

    epoch = at_edge.peers[provider.id].epoch
    link.announce({"draining": True})
    await eventually(lambda: at_edge.peers[provider.id].attributes == {"draining": True})
    assert at_edge.peers[provider.id].epoch == epoch


@pytest.mark.pure
async def test_attributes_that_change_between_hello_and_welcome_are_announced(fabric: Fabric) -> None:
    provider = name(Role.PROVIDER)
    link, _ = fabric.link(provider, attributes={"services": ["web"]})
    greet = link._greet

    def greet_and_change() -> None:
        greet()
        link.announce({"services": []})

    link._greet = greet_and_change  # type: ignore[method-assign]
    await eventually(lambda: [peer.attributes for peer in fabric.router.peers] == [{"services": []}])


@pytest.mark.pure
async def test_attributes_that_a_full_pipe_has_refused_are_announced_later(
    fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, _ = fabric.link(name(Role.PROVIDER), attributes={"services": ["web"]})
    await eventually(lambda: link.up)
    with monkeypatch.context() as full:
        full.setattr(link, "_send", lambda _: False)
        link.announce({"services": []})
    await eventually(lambda: [peer.attributes for peer in fabric.router.peers] == [{"services": []}])


async def test_more_peers_are_accepted_once_the_limit_is_raised(fabric: Fabric) -> None:
    _, first = fabric.link(name(Role.EDGE, "first"))
    await eventually(lambda: first.ups)
    fabric.router.limit(1)
    second_link, second = fabric.link(name(Role.EDGE, "second"))
    await eventually(lambda: second_link.problem is not None)
    assert "1 peers already" in str(second_link.problem)
    fabric.router.limit(2)
    await eventually(lambda: second.ups)
    assert not first.downs


async def test_messages_arrive_whole_and_in_order_in_both_directions(fabric: Fabric) -> None:
    edge, provider = name(Role.EDGE), name(Role.PROVIDER)
    at, at_edge = fabric.link(edge)
    far, at_provider = fabric.link(provider)
    await eventually(lambda: at_edge.peers and at_provider.peers)
    sent = [[b"%d" % i, os.urandom(size)] for i, size in enumerate([0, 1, 16383, 16384, MIB, 2 * MIB, 7])]
    for frames in sent:
        assert at.send(provider.id, [frames[0], memoryview(frames[1])])
        assert far.send(edge.id, frames)
    await eventually(lambda: len(at_provider.messages) == len(at_edge.messages) == len(sent))
    assert at_provider.messages == [(edge.id, frames) for frames in sent]
    assert at_edge.messages == [(provider.id, frames) for frames in sent]


async def test_a_burst_of_messages_arrives_completely(fabric: Fabric) -> None:
    edge, provider = name(Role.EDGE), name(Role.PROVIDER)
    recorder = Recorder()
    fabric.router.attach(edge, {}, recorder)
    link, at_provider = fabric.link(provider)
    await eventually(lambda: at_provider.peers)
    sent = [[b"%d" % i] for i in range(900)]  # less than a pipe holds
    assert all(link.send(edge.id, frames) for frames in sent)
    await eventually(lambda: len(recorder.messages) == len(sent))
    assert recorder.messages == [(provider.id, frames) for frames in sent]


async def test_an_embedded_peer_behaves_like_a_remote_one(fabric: Fabric) -> None:
    edge, provider = name(Role.EDGE), name(Role.PROVIDER)
    at_edge = Recorder(on_message=lambda carrier, peer_id, frames: carrier.send(peer_id, frames))
    local = fabric.router.attach(edge, {"grace_s": 60}, at_edge)
    assert at_edge.ups == 0, "nobody is called from within his own call"
    link, at_provider = fabric.link(provider)
    await eventually(lambda: at_edge.peers and at_provider.peers)
    assert at_edge.peers[provider.id].address == HOST
    assert at_provider.peers[edge.id].address is None
    assert link.send(edge.id, [b"echo", b"x" * MIB])
    await eventually(lambda: at_provider.messages)
    assert at_provider.messages == [(edge.id, [b"echo", b"x" * MIB])]

    local.announce({"grace_s": 30})
    await eventually(lambda: at_provider.peers[edge.id].attributes == {"grace_s": 30})
    await local.close(linger_s=0)
    await eventually(lambda: at_provider.gone == [(edge.id, "left")])


async def test_two_processes_of_one_name_are_two_peers(fabric: Fabric) -> None:
    recorder = Recorder()
    local = fabric.router.attach(name(Role.EDGE), {}, recorder)
    twins = [name(Role.PROVIDER, "same") for _ in range(2)]
    receivers = [fabric.link(twin)[1] for twin in twins]
    await eventually(lambda: set(recorder.peers) == {twin.id for twin in twins})
    for twin in twins:
        assert local.send(twin.id, [twin.incarnation])
    await eventually(lambda: all(receiver.messages for receiver in receivers))
    assert [r.messages[0][1] for r in receivers] == [[twin.incarnation] for twin in twins]
    assert all(receiver.downs == [] for receiver in receivers)


async def test_peers_of_one_role_neither_see_nor_reach_each_other(fabric: Fabric) -> None:
    first, second = name(Role.PROVIDER), name(Role.PROVIDER)
    link, at_first = fabric.link(first)
    _, at_second = fabric.link(second)
    edge = name(Role.EDGE)
    fabric.router.attach(edge, {}, Recorder())
    await eventually(lambda: edge.id in at_first.peers and edge.id in at_second.peers)
    link.send(second.id, [b"x"])
    link.announce({"after": "it"})
    await eventually(lambda: {"after": "it"} in [peer.attributes for peer in fabric.router.peers])
    assert at_second.messages == []
    assert list(at_second.peers) == [edge.id]


# -- outages


async def test_a_reset_link_reconnects_with_a_new_epoch(fabric: Fabric) -> None:
    recorder, provider = Recorder(), name(Role.PROVIDER)
    local = fabric.router.attach(name(Role.EDGE), {}, recorder)
    relay = await fabric.relay(Role.PROVIDER)
    _, at_provider = fabric.link(provider, port=relay.port)
    await eventually(lambda: recorder.peers and at_provider.peers)

    async def cut_and_wait(lives: int) -> None:
        epoch = recorder.seen[-1].epoch
        relay.cut()
        await eventually(lambda: at_provider.ups == lives and recorder.seen[-1].epoch > epoch)
        await eventually(lambda: at_provider.peers)
        assert len(at_provider.downs) == lives - 1
        assert local.send(provider.id, [b"%d" % lives])
        await eventually(lambda: at_provider.messages[-1:] == [(local.name.id, [b"%d" % lives])])

    for lives in range(2, 6):
        await cut_and_wait(lives)


async def test_a_closed_connection_is_noticed_long_before_the_lease_expires() -> None:
    async with Fabric(Timings(link_timeout_s=600.0, reconnect_max_s=0.2)) as fabric:
        recorder, provider = Recorder(), name(Role.PROVIDER)
        fabric.router.attach(name(Role.EDGE), {}, recorder)
        relay = await fabric.relay(Role.PROVIDER)
        _, at_provider = fabric.link(provider, port=relay.port)
        await eventually(lambda: recorder.peers and at_provider.peers)
        relay.refuse()
        relay.cut()
        await eventually(lambda: recorder.gone == [(provider.id, "lost")])
        await eventually(lambda: len(at_provider.downs) == 1)
        await relay.open()
        await eventually(lambda: provider.id in recorder.peers)


async def test_a_peer_that_reconnects_replaces_its_half_open_connection() -> None:
    async with Fabric(SLOW) as fabric:
        recorder, provider = Recorder(), name(Role.PROVIDER)
        local = fabric.router.attach(name(Role.EDGE), {}, recorder)
        nonce = os.urandom(16)
        first = fabric.raw(Role.PROVIDER, provider.routing_id(nonce))
        first.send_multipart(control(Hello(1, 1, 1, {})))
        await eventually(lambda: recorder.peers)
        second = fabric.raw(Role.PROVIDER, provider.routing_id(nonce))
        second.send_multipart(control(Hello(1, 1, 2, {})))
        await eventually(lambda: len(recorder.seen) == 2)
        assert recorder.seen[1].epoch > recorder.seen[0].epoch
        assert isinstance(parse_control(await receive(second)), Welcome)
        assert local.send(provider.id, [b"for the new one"])

        async def body() -> bytes:
            while (frames := await receive(second))[0] == b"":
                pass
            return frames[1]

        assert await body() == b"for the new one"
        assert recorder.gone == []


async def test_a_silent_network_is_noticed_on_both_sides_and_the_link_reconnects() -> None:
    async with Fabric(FAST) as fabric:
        recorder, provider = Recorder(), name(Role.PROVIDER)
        fabric.router.attach(name(Role.EDGE), {}, recorder)
        relay = await fabric.relay(Role.PROVIDER)
        _, at_provider = fabric.link(provider, port=relay.port)
        await eventually(lambda: recorder.peers and at_provider.peers)
        epoch = recorder.seen[-1].epoch
        relay.flowing.clear()
        relay.forget()
        await eventually(lambda: at_provider.ups == 2 and recorder.seen[-1].epoch > epoch)


async def test_the_lease_of_a_hanging_process_expires() -> None:
    async with Fabric(FAST) as fabric:
        recorder, provider = Recorder(), name(Role.PROVIDER)
        fabric.router.attach(name(Role.EDGE), {}, recorder)
        frozen = fabric.raw(Role.PROVIDER, provider.routing_id(os.urandom(16)))
        frozen.send_multipart(control(Hello(1, 1, 1, {})))
        await eventually(lambda: recorder.peers)
        await eventually(lambda: recorder.gone == [(provider.id, "expired")])


async def test_a_link_reconnects_to_a_broker_that_hung() -> None:
    async with Fabric(FAST) as fabric:
        broker, port = fabric.broker()
        _, at_provider = fabric.link_to(HOST, port, name(Role.PROVIDER))

        async def welcome() -> None:
            latest: list[tuple[bytes, Hello]] = []

            def poll() -> bool:
                with contextlib.suppress(zmq.Again):
                    while True:
                        routing_id, *frames = broker.recv_multipart(zmq.NOBLOCK)
                        message = parse_control(frames)
                        if isinstance(message, Hello):
                            latest.append((routing_id, message))
                return bool(latest)

            await eventually(poll)
            routing_id, hello = latest[-1]
            broker.send_multipart([routing_id, *control(Welcome(1, hello.attempt, 1))])

        await welcome()
        await eventually(lambda: at_provider.ups == 1)
        await eventually(lambda: at_provider.downs == ["the broker is silent"])
        await welcome()
        await eventually(lambda: at_provider.ups == 2)


async def test_a_link_reconnects_to_a_restarted_broker(fabric: Fabric) -> None:
    first = Router(timings=SLOW)
    port = first.bind(Role.PROVIDER, HOST, 0)
    _, at_provider = fabric.link_to(HOST, port, name(Role.PROVIDER))
    await eventually(lambda: at_provider.ups == 1)
    await first.close(linger_s=0)
    await eventually(lambda: len(at_provider.downs) == 1)
    second = Router(timings=SLOW)
    fabric.stack.push_async_callback(second.close, linger_s=0)
    assert second.bind(Role.PROVIDER, HOST, port) == port
    await eventually(lambda: at_provider.ups == 2)


async def test_a_clean_stop_of_a_broker_is_no_warning(events: list[dict[str, object]], warnings: list[str]) -> None:
    async with Fabric(STEADY) as fabric:
        broker = Router(timings=STEADY)
        ports = {role: broker.bind(role, HOST, 0) for role in Role}
        links = [fabric.link_to(HOST, ports[role], name(role)) for role in Role]
        recorders = [recorder for _, recorder in links]
        await eventually(lambda: all(recorder.peers for recorder in recorders))
        await broker.close(linger_s=10)
        await eventually(lambda: all(recorder.downs for recorder in recorders))
        assert [link.problem for link, _ in links] == ["it was shut down"] * 2
        lost = [entry for entry in events if entry.get("event") == "link_lost"]
        assert len(lost) == 2
        assert not [line for line in warnings if "lost" in line]


def test_a_broker_closes_after_thousands_of_short_connections() -> None:
    connections = """
import asyncio, socket
from brokers import Role, Router
async def main():
    router = Router()
    port = router.bind(Role.PROVIDER, "127.0.0.1", 0)
    for _ in range(3000):  # in this thread: the loop stands still
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"garbage garbage\\r\\n")
            connection.recv(1)
    await router.close(linger_s=0)
asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", connections], check=True, timeout=120)  # where it hangs, threads do as well


# -- resolving host names


async def test_a_lookup_that_hangs_delays_no_other_link(fabric: Fabric, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = asyncio.Event()

    async def slow(host: str, port: int) -> list[SocketAddress]:
        if host == "slow.test":
            await hanging.wait()
            host = HOST
        return await resolve(host, port)

    monkeypatch.setattr("brokers.proxy.resolve", slow)
    _, at_slow = fabric.link_to("slow.test", fabric.ports[Role.PROVIDER], name(Role.PROVIDER))
    _, at_quick = fabric.link(name(Role.PROVIDER))
    await eventually(lambda: at_quick.ups == 1)
    assert at_slow.ups == 0
    hanging.set()
    await eventually(lambda: at_slow.ups == 1)


async def test_a_link_that_is_up_again_does_not_wait_for_a_name_server(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Fabric(STEADY) as fabric:
        relay = await fabric.relay(Role.PROVIDER)
        _, recorder = fabric.link(name(Role.PROVIDER), port=relay.port)
        await eventually(lambda: recorder.ups == 1)
        asked = asyncio.Event()

        async def away(*_: object, **__: object) -> object:
            asked.set()
            return await asyncio.Event().wait()

        relay.refuse()
        relay.cut()
        monkeypatch.setattr("brokers.proxy.resolve", away)
        await asyncio.wait_for(asked.wait(), DEADLINE_S)
        monkeypatch.undo()
        await relay.open()
        await eventually(lambda: recorder.ups == 2)
        downs = list(recorder.downs)
        await asyncio.sleep(2 * STEADY.lease_s)  # a lease that nobody renews is over by then
        assert recorder.downs == downs and fabric.router.peers


async def two_addresses(_: str, port: int) -> list[SocketAddress]:
    return [(socket.AF_INET, (address, port)) for address in (NOWHERE, HOST)]


async def test_the_next_address_is_tried_if_one_does_not_respond(
    fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("brokers.proxy.resolve", two_addresses)
    _, recorder = fabric.link_to("two.test", fabric.ports[Role.PROVIDER], name(Role.PROVIDER))
    await eventually(lambda: recorder.ups == 1)


async def test_the_next_address_is_tried_if_a_broker_sends_no_welcome(
    fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging, port = fabric.socket(zmq.ROUTER), fabric.ports[Role.PROVIDER]
    hanging.bind(f"tcp://{NOWHERE}:{port}")
    monkeypatch.setattr("brokers.proxy.resolve", two_addresses)
    _, recorder = fabric.link_to("two.test", port, name(Role.PROVIDER))
    routing_id, *frames = await receive(hanging)
    await eventually(lambda: recorder.ups == 1)
    hello = parse_control(list(frames))
    assert isinstance(hello, Hello)
    with contextlib.suppress(zmq.ZMQError):  # it has hung up
        hanging.send_multipart([routing_id, *control(Welcome(1, hello.attempt, 1))])
    assert recorder.downs == []


async def test_an_unknown_name_is_logged_once_and_resolved_again(
    fabric: Fabric, monkeypatch: pytest.MonkeyPatch, events: Events
) -> None:
    tries = 0

    async def failing(_: str, port: int) -> list[SocketAddress]:
        nonlocal tries
        tries += 1
        if tries <= 3:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return await resolve(HOST, port)

    monkeypatch.setattr("brokers.proxy.resolve", failing)
    _, recorder = fabric.link_to("no.test", fabric.ports[Role.PROVIDER], name(Role.PROVIDER))
    await eventually(lambda: recorder.ups == 1)
    (entry,) = matching(events, "link_down")
    assert entry["cause"] == "unresolved" and "no.test" in message(entry)


# -- refusals and hostile peers


async def test_a_version_mismatch_is_reported_on_both_sides(fabric: Fabric, events: Events) -> None:
    dealer = fabric.raw(Role.PROVIDER, name(Role.PROVIDER, "newer").routing_id(os.urandom(16)))
    dealer.send_multipart(control(Hello(9, 8, 1, {})))
    refused = parse_control(await receive(dealer))
    assert isinstance(refused, Refused)
    assert "newer speaks fabric versions 8 to 9, this broker 1 to 1" in refused.reason
    assert matching(events, "peer_refused", peer="newer", address=HOST, reason=refused.reason)
    assert fabric.router.peers == []


async def test_a_refused_link_logs_the_reason(fabric: Fabric, events: Events) -> None:
    broker, port = fabric.broker()
    link, recorder = fabric.link_to(HOST, port, name(Role.PROVIDER))
    routing_id, *_ = await receive(broker)
    broker.send_multipart([routing_id, *control(Refused("versions 8 to 9 here"))])
    await logged(events, "link_down", cause="refused", reason="versions 8 to 9 here")
    assert recorder.ups == 0
    assert link.state is LinkState.GREETING, "it goes on asking"


async def test_a_peer_at_the_port_for_the_other_role_is_refused(fabric: Fabric, events: Events) -> None:
    fabric.link_to(HOST, fabric.ports[Role.EDGE], name(Role.PROVIDER, "misplaced"))
    await logged(events, "link_down", cause="refused", reason="provider misplaced is on the port for edges")


async def test_a_flood_of_garbage_does_not_affect_other_peers(warnings: list[str]) -> None:
    async with Fabric(SLOW) as fabric:
        recorder, provider = Recorder(), name(Role.PROVIDER)
        local = fabric.router.attach(name(Role.EDGE), {}, recorder)
        link, at_provider = fabric.link(provider)
        await eventually(lambda: recorder.peers and at_provider.peers)
        hostile = name(Role.PROVIDER, "hostile")
        senders = [
            fabric.raw(Role.PROVIDER, hostile.routing_id(os.urandom(16)), SNDHWM=0),
            fabric.raw(Role.PROVIDER, b"nobody", SNDHWM=0),
            fabric.raw(Role.PROVIDER, name(Role.EDGE).routing_id(os.urandom(16)), SNDHWM=0),  # on the wrong port
        ]
        senders[0].send_multipart(control(Hello(1, 1, 1, {})))
        for _ in range(500):
            for sender in senders:
                for frames in (
                    [b""],
                    [b"", b"\xff"],
                    [b"", b"\x81" * 20000],
                    [b"x"],
                    [b"x"] * 200,
                    [local.name.id],
                ):
                    sender.send_multipart(frames)
                sender.send_multipart(control(Welcome(1, 1, 1)))
        for i in range(200):
            assert link.send(local.name.id, [b"%d" % i])
            assert local.send(provider.id, [b"%d" % i])
        await eventually(lambda: len(recorder.messages) == len(at_provider.messages) == 200)
        senders[0].send_multipart([local.name.id, b"last"])
        await eventually(lambda: (hostile.id, [b"last"]) in recorder.messages)
        assert recorder.gone == []
        assert at_provider.downs == []
        assert len(warnings) <= 64


async def test_an_oversized_frame_ends_its_connection() -> None:
    async with Fabric(SLOW) as fabric:
        recorder, good = Recorder(), name(Role.PROVIDER)
        local = fabric.router.attach(name(Role.EDGE), {}, recorder)
        fabric.link(good)
        bad = name(Role.PROVIDER, "big")
        dealer = fabric.raw(Role.PROVIDER, bad.routing_id(os.urandom(16)), RECONNECT_IVL=-1)
        dealer.send_multipart(control(Hello(1, 1, 1, {})))
        await eventually(lambda: len(recorder.peers) == 2)
        dealer.send_multipart([local.name.id, bytes(2 * MIB + 1)])
        await eventually(lambda: recorder.gone == [(bad.id, "lost")])
        assert list(recorder.peers) == [good.id]


# -- slow peers


async def test_a_slow_peer_overflows_without_affecting_others() -> None:
    async with Fabric(SLOW) as fabric:
        recorder, quick, slow = Recorder(), name(Role.PROVIDER), name(Role.PROVIDER, "slow")
        local = fabric.router.attach(name(Role.EDGE), {}, recorder)
        _, at_quick = fabric.link(quick)
        dealer = fabric.raw(Role.PROVIDER, slow.routing_id(os.urandom(16)), RCVHWM=1, RCVBUF=4096)
        dealer.send_multipart(control(Hello(1, 1, 1, {})))
        await eventually(lambda: len(recorder.peers) == 2)
        epoch = recorder.peers[slow.id].epoch
        payload, sent = bytes(64 * 1024), 0
        async with asyncio.timeout(DEADLINE_S):
            while not recorder.gone:
                for _ in range(100):
                    local.send(slow.id, [payload])
                local.send(quick.id, [b"%d" % sent])
                sent += 1
                dealer.send_multipart([local.name.id, b"alive"])
                await asyncio.sleep(0)
        assert set(recorder.gone) == {(slow.id, "overflow")}
        await eventually(lambda: slow.id in recorder.peers and recorder.peers[slow.id].epoch > epoch)
        await eventually(lambda: [body for _, body in at_quick.messages] == [[b"%d" % i] for i in range(sent)])


@pytest.mark.parametrize(("size", "most_messages"), [(1000, OUTBOX_MESSAGES), (64 * 1024, OUTBOX_BYTES // (64 * 1024))])
async def test_an_outbox_is_bounded_by_messages_and_by_bytes(size: int, most_messages: int) -> None:
    burst = 20
    async with Fabric(SLOW) as fabric:
        recorder, slow = Recorder(), name(Role.PROVIDER, "slow")
        local = fabric.router.attach(name(Role.EDGE), {}, recorder)
        dealer = fabric.raw(Role.PROVIDER, slow.routing_id(os.urandom(16)), RCVHWM=1, RCVBUF=4096)
        dealer.send_multipart(control(Hello(1, 1, 1, {})))
        await eventually(lambda: recorder.peers)
        most = 0
        while not recorder.gone:
            for _ in range(burst):
                local.send(slow.id, [bytes(size)])
            await asyncio.sleep(0)
            messages, held_bytes = fabric.router.outboxes.get(slow.id, (0, 0))
            assert messages <= OUTBOX_MESSAGES and held_bytes <= OUTBOX_BYTES
            most = max(most, messages)
        assert recorder.gone == [(slow.id, "overflow")]
        assert most > most_messages - 2 * burst, "it was used up before it was thrown away"


# -- ports and closing


async def test_a_port_in_use_raises_bind_error(fabric: Fabric) -> None:
    router = Router(timings=SLOW)
    try:
        with pytest.raises(BindError) as caught:
            router.bind(Role.PROVIDER, HOST, fabric.ports[Role.PROVIDER])
    finally:
        await router.close(linger_s=0)
    assert caught.value.errno == errno.EADDRINUSE
    assert str(fabric.ports[Role.PROVIDER]) in str(caught.value)
    assert "in use" in str(caught.value)
    assert isinstance(caught.value, OSError)


@pytest.mark.parametrize("host", [None, HOST, "::1", "localhost"])
async def test_a_router_listens_on_the_given_address(fabric: Fabric, host: str | None) -> None:

    if host in (None, "::1") and not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    router = Router(timings=SLOW)
    fabric.stack.push_async_callback(router.close, linger_s=0)
    port = router.bind(Role.PROVIDER, host, 0)
    for address in {"::1"} if host == "::1" else {HOST} if host else {HOST, "::1"}:
        _, recorder = fabric.link_to(address, port, name(Role.PROVIDER))
        await eventually(lambda recorder=recorder: recorder.ups == 1)  # type: ignore[misc]


async def test_a_port_stays_open_when_a_peer_leaves(fabric: Fabric) -> None:
    link, recorder = fabric.link(name(Role.PROVIDER))
    await eventually(lambda: recorder.ups == 1)
    await fabric.close(link, linger_s=0)
    _, other = fabric.link(name(Role.PROVIDER))
    await eventually(lambda: other.ups == 1)


async def test_a_closing_link_leaves_after_its_last_message(fabric: Fabric) -> None:
    recorder, provider = Recorder(), name(Role.PROVIDER)
    fabric.router.attach(name(Role.EDGE), {}, recorder)
    link, at_provider = fabric.link(provider)
    await eventually(lambda: at_provider.peers)
    payload = os.urandom(MIB)
    for _ in range(20):
        assert link.send(next(iter(at_provider.peers)), [payload])
    await fabric.close(link, linger_s=10)
    await eventually(lambda: recorder.gone == [(provider.id, "left")])
    assert [body for _, body in recorder.messages] == [[payload]] * 20
    assert at_provider.downs == []
    assert not link.send(provider.id, [b"x"])


async def test_closing_takes_no_longer_than_the_linger(fabric: Fabric) -> None:
    relay = await fabric.relay(Role.PROVIDER)
    link, recorder = fabric.link(name(Role.PROVIDER), port=relay.port)
    fabric.router.attach(name(Role.EDGE), {}, Recorder())
    await eventually(lambda: recorder.peers)
    relay.flowing.clear()
    for _ in range(50):
        link.send(next(iter(recorder.peers)), [bytes(MIB)])
    async with asyncio.timeout(DEADLINE_S):
        await fabric.close(link, linger_s=0.2)


async def test_a_link_that_is_down_closes_at_once(fabric: Fabric) -> None:
    with socket.socket() as taken:  # bound and not listening: it refuses
        taken.bind((HOST, 0))
        link, recorder = fabric.link_to(HOST, taken.getsockname()[1], name(Role.PROVIDER))
        async with asyncio.timeout(DEADLINE_S):
            await fabric.close(link, linger_s=60)
    assert recorder.ups == 0


async def test_closing_twice_is_harmless(fabric: Fabric) -> None:
    link, _ = fabric.link(name(Role.PROVIDER))
    await fabric.close(link, linger_s=0)
    await link.close(linger_s=0)


async def test_an_invalid_host_name_is_logged_like_an_unknown_one(fabric: Fabric, events: Events) -> None:
    fabric.link_to("a" * 64 + ".test", 1, name(Role.PROVIDER))
    assert "a" * 64 in await logged(events, "link_down", cause="unresolved")


async def test_a_link_reconnects_after_garbage_on_its_connection(fabric: Fabric) -> None:
    relay = await fabric.relay(Role.PROVIDER)
    _, recorder = fabric.link(name(Role.PROVIDER), port=relay.port)
    for times in (1, 2):
        await eventually(lambda: recorder.ups == times)  # noqa: B023
        relay.inject(b"\x07garbage" * 9)


async def test_a_refusal_is_logged_after_the_server_was_unreachable(fabric: Fabric, events: Events) -> None:
    broker = fabric.socket(zmq.ROUTER)
    with closed_port() as port:
        fabric.link_to(HOST, port, name(Role.PROVIDER))
        await logged(events, "link_down", cause="unreached")
        broker.bind(f"tcp://{HOST}:{port}")
    routing_id, *_ = await receive(broker)
    broker.send_multipart([routing_id, *control(Refused("versions 8 to 9 here"))])
    await logged(events, "link_down", cause="refused", reason="versions 8 to 9 here")
