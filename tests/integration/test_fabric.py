"""The fabric over real ZeroMQ on loopback: links, routers, local peers, and what breaks between them."""

import asyncio
import contextlib
import dataclasses
import errno
import os
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest
import zmq

from brokers import (
    BindError,
    BrokerSecurity,
    Buffer,
    Carrier,
    Endpoint,
    Link,
    LinkSecurity,
    PeerInfo,
    PeerName,
    Role,
    Router,
    Timings,
    resolve,
)
from brokers.envelope import Hello, Refused, Welcome, control, parse_control
from brokers.link import State
from brokers.router import OUTBOX_BYTES, OUTBOX_MESSAGES
from tests.helpers import HOST, abort, closed_port, eventually, stop_accepting

FAST = Timings(link_timeout_s=1.5, reconnect_min_s=0.02, reconnect_max_s=0.1, connect_timeout_s=0.5)
PATIENT = dataclasses.replace(FAST, link_timeout_s=60.0)
"""For peers that a test plays itself: they never renew their leases, and no machine may be too slow for that."""
STEADY = dataclasses.replace(FAST, link_timeout_s=4.5)
"""For links that a busy machine must not lose."""
NOWHERE = "127.9.9.9"
MIB = 1024 * 1024


def name(role: Role, text: str = "web") -> PeerName:
    return PeerName(role, text, os.urandom(16))


@dataclass
class Recorder:
    """A receiver that writes down what it is told."""

    ups: int = 0
    downs: list[str] = field(default_factory=list)
    peers: dict[bytes, PeerInfo] = field(default_factory=dict)
    seen: list[PeerInfo] = field(default_factory=list)
    gone: list[tuple[bytes, str]] = field(default_factory=list)
    messages: list[tuple[bytes, list[bytes]]] = field(default_factory=list)
    on_message: Callable[[Carrier, bytes, list[Buffer]], object] | None = None

    def carrier_up(self, carrier: Carrier) -> None:
        self.ups += 1

    def carrier_down(self, carrier: Carrier, reason: str) -> None:
        self.downs.append(reason)
        self.peers.clear()

    def peer_up(self, carrier: Carrier, peer: PeerInfo) -> None:
        self.peers[peer.name.id] = peer
        self.seen.append(peer)

    def peer_down(self, carrier: Carrier, peer_id: bytes, reason: str) -> None:
        self.peers.pop(peer_id, None)
        self.gone.append((peer_id, reason))

    def message(self, carrier: Carrier, peer_id: bytes, frames: list[Buffer]) -> None:
        self.messages.append((peer_id, [bytes(frame) for frame in frames]))
        if self.on_message is not None:
            self.on_message(carrier, peer_id, frames)


class Relay:
    """Stands between a link and its broker, and does to the connection what networks do."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.flowing = asyncio.Event()
        """Cleared: bytes are held back, connections stay."""
        self.flowing.set()
        self.accepted = 0
        self.port = 0

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._accept, HOST, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def refuse(self) -> None:
        """Stop listening; `open` goes on at the same port."""
        assert self._server is not None
        self._server.close()

    def cut(self) -> None:
        """Reset all connections."""
        for writer in self._writers:
            sock: socket.socket = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):  # closed already
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            abort(writer)
        self._writers.clear()

    def inject(self, data: bytes) -> None:
        """Say something to both ends of all connections that nobody said."""
        for writer in self._writers:
            writer.write(data)

    def forget(self) -> None:
        """Let the present connections fall silent for ever, and carry new ones."""
        self.flowing = asyncio.Event()
        self.flowing.set()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self._writers.append(writer)
        task = asyncio.get_running_loop().create_task(self._carry(reader, writer, self.flowing))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flowing: asyncio.Event) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(HOST, self._target)
            self._writers.append(far_writer)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._copy(reader, far_writer, flowing))
                group.create_task(self._copy(far_reader, writer, flowing))
        except* OSError:
            abort(writer)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flowing: asyncio.Event) -> None:
        while data := await reader.read(MIB):
            await flowing.wait()
            writer.write(data)
            await writer.drain()
        writer.close()

    async def close(self) -> None:
        assert self._server is not None
        await stop_accepting(self._server)
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Fabric:
    """A broker with whatever a test connects to it; all is closed at the end."""

    def __init__(self, timings: Timings, security: BrokerSecurity | None = None) -> None:
        self.timings = timings
        self.router = Router(timings=timings, security=security)
        self.ports = {role: self.router.bind(role, HOST, 0) for role in Role}
        self.stack = contextlib.AsyncExitStack()
        self.stack.push_async_callback(self.router.close, linger_s=0)
        self._open: set[Link] = set()
        self.stack.push_async_callback(self._close_links)

    def link(
        self,
        who: PeerName,
        *,
        port: int | None = None,
        attributes: dict[str, object] | None = None,
        security: LinkSecurity | None = None,
    ) -> tuple[Link, Recorder]:
        return self.link_to(HOST, port or self.ports[who.role], who, attributes=attributes, security=security)

    def link_to(
        self,
        host: str,
        port: int,
        who: PeerName,
        *,
        attributes: dict[str, object] | None = None,
        security: LinkSecurity | None = None,
    ) -> tuple[Link, Recorder]:
        recorder = Recorder()
        link = Link(who, attributes or {}, host, port, recorder, timings=self.timings, security=security)
        self._open.add(link)
        link.start()
        return link, recorder

    async def close(self, link: Link, *, linger_s: float) -> None:
        self._open.discard(link)
        await link.close(linger_s=linger_s)

    async def _close_links(self) -> None:
        for link in self._open:
            await link.close(linger_s=0)

    async def relay(self, role: Role) -> Relay:
        relay = Relay(self.ports[role])
        await relay.open()
        self.stack.push_async_callback(relay.close)
        return relay

    def raw(self, role: Role, routing_id: bytes, **options: int) -> "zmq.Socket[bytes]":
        """Return a DEALER that says what a test wants it to."""
        dealer = self.socket(zmq.DEALER)
        dealer.setsockopt(zmq.ROUTING_ID, routing_id)
        for option, value in options.items():
            dealer.setsockopt(getattr(zmq, option), value)
        dealer.connect(f"tcp://{HOST}:{self.ports[role]}")
        return dealer

    def broker(self) -> tuple["zmq.Socket[bytes]", int]:
        """Return a ROUTER that says what a test wants it to, and its port."""
        router = self.socket(zmq.ROUTER)
        return router, router.bind_to_random_port(f"tcp://{HOST}")

    def socket(self, kind: int) -> "zmq.Socket[bytes]":
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.stack.callback(context.term)
        it = context.socket(kind)
        self.stack.callback(it.close, linger=0)
        return it


@contextlib.asynccontextmanager
async def fabric(timings: Timings = FAST) -> AsyncIterator[Fabric]:
    it = Fabric(timings)
    async with it.stack:
        yield it


def run(test: Callable[[Fabric], Awaitable[None]], timings: Timings = FAST) -> None:
    async def main() -> None:
        async with asyncio.timeout(60), fabric(timings) as it:
            await test(it)

    asyncio.run(main())


async def receive(dealer: "zmq.Socket[bytes]") -> list[bytes]:
    """Return the next message of a raw dealer that is no sign of life."""
    found: list[list[bytes]] = []

    def poll() -> bool:
        with contextlib.suppress(zmq.Again):
            found.append(dealer.recv_multipart(zmq.NOBLOCK))
        return bool(found)

    await eventually(poll)
    return found[0]


# -- being there, and talking


def test_peers_of_both_sides_learn_of_each_other_with_attributes() -> None:
    async def test(it: Fabric) -> None:
        edge, provider = name(Role.EDGE, "front"), name(Role.PROVIDER)
        _, at_edge = it.link(edge, attributes={"grace_s": 60})
        await eventually(lambda: at_edge.ups == 1)
        link, at_provider = it.link(provider, attributes={"services": ["default"]})
        await eventually(lambda: at_edge.peers and at_provider.peers)
        assert at_provider.peers[edge.id].attributes == {"grace_s": 60}
        assert at_edge.peers[provider.id].name == provider
        assert {peer.name for peer in it.router.peers} == {edge, provider}

        epoch = at_edge.peers[provider.id].epoch
        link.announce({"draining": True})
        await eventually(lambda: at_edge.peers[provider.id].attributes == {"draining": True})
        assert at_edge.peers[provider.id].epoch == epoch

    run(test)


def test_messages_pass_both_ways_whole_and_in_order() -> None:
    async def test(it: Fabric) -> None:
        edge, provider = name(Role.EDGE), name(Role.PROVIDER)
        at, at_edge = it.link(edge)
        far, at_provider = it.link(provider)
        await eventually(lambda: at_edge.peers and at_provider.peers)
        sent = [[b"%d" % i, os.urandom(size)] for i, size in enumerate([0, 1, 16383, 16384, MIB, 2 * MIB, 7])]
        for frames in sent:
            assert at.send(provider.id, [frames[0], memoryview(frames[1])])
            assert far.send(edge.id, frames)
        await eventually(lambda: len(at_provider.messages) == len(at_edge.messages) == len(sent))
        assert at_provider.messages == [(edge.id, frames) for frames in sent]
        assert at_edge.messages == [(provider.id, frames) for frames in sent]

    run(test)


def test_a_thousand_messages_at_once_all_arrive() -> None:
    async def test(it: Fabric) -> None:
        edge, provider = name(Role.EDGE), name(Role.PROVIDER)
        recorder = Recorder()
        it.router.attach(edge, {}, recorder)
        link, at_provider = it.link(provider)
        await eventually(lambda: at_provider.peers)
        sent = [[b"%d" % i] for i in range(900)]  # less than a pipe holds
        assert all(link.send(edge.id, frames) for frames in sent)
        await eventually(lambda: len(recorder.messages) == len(sent))
        assert recorder.messages == [(provider.id, frames) for frames in sent]

    run(test)


def test_an_embedded_peer_is_like_any_other() -> None:
    async def test(it: Fabric) -> None:
        edge, provider = name(Role.EDGE), name(Role.PROVIDER)
        at_edge = Recorder(on_message=lambda carrier, peer_id, frames: carrier.send(peer_id, frames))
        local = it.router.attach(edge, {"grace_s": 60}, at_edge)
        assert at_edge.ups == 0, "nobody is called from within his own call"
        link, at_provider = it.link(provider)
        await eventually(lambda: at_edge.peers and at_provider.peers)
        assert link.send(edge.id, [b"echo", b"x" * MIB])
        await eventually(lambda: at_provider.messages)
        assert at_provider.messages == [(edge.id, [b"echo", b"x" * MIB])]

        local.announce({"grace_s": 30})
        await eventually(lambda: at_provider.peers[edge.id].attributes == {"grace_s": 30})
        await local.close(linger_s=0)
        await eventually(lambda: at_provider.gone == [(edge.id, "left")])

    run(test)


def test_two_processes_of_one_name_both_live() -> None:
    async def test(it: Fabric) -> None:
        recorder = Recorder()
        local = it.router.attach(name(Role.EDGE), {}, recorder)
        twins = [name(Role.PROVIDER, "same") for _ in range(2)]
        receivers = [it.link(twin)[1] for twin in twins]
        await eventually(lambda: set(recorder.peers) == {twin.id for twin in twins})
        for twin in twins:
            assert local.send(twin.id, [twin.incarnation])
        await eventually(lambda: all(receiver.messages for receiver in receivers))
        assert [r.messages[0][1] for r in receivers] == [[twin.incarnation] for twin in twins]
        assert all(receiver.downs == [] for receiver in receivers)

    run(test)


def test_peers_of_one_role_neither_see_nor_reach_each_other() -> None:
    async def test(it: Fabric) -> None:
        first, second = name(Role.PROVIDER), name(Role.PROVIDER)
        link, at_first = it.link(first)
        _, at_second = it.link(second)
        edge = name(Role.EDGE)
        it.router.attach(edge, {}, Recorder())
        await eventually(lambda: edge.id in at_first.peers and edge.id in at_second.peers)
        link.send(second.id, [b"x"])
        link.announce({"after": "it"})
        await eventually(lambda: {"after": "it"} in [peer.attributes for peer in it.router.peers])
        assert at_second.messages == []
        assert list(at_second.peers) == [edge.id]

    run(test)


# -- links that break


def test_a_cut_link_comes_back_with_a_new_epoch() -> None:
    async def test(it: Fabric) -> None:
        recorder, provider = Recorder(), name(Role.PROVIDER)
        local = it.router.attach(name(Role.EDGE), {}, recorder)
        relay = await it.relay(Role.PROVIDER)
        _, at_provider = it.link(provider, port=relay.port)
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

    run(test)


def test_the_loss_of_a_peer_is_known_long_before_its_lease_is_over() -> None:
    async def test(it: Fabric) -> None:
        recorder, provider = Recorder(), name(Role.PROVIDER)
        it.router.attach(name(Role.EDGE), {}, recorder)
        relay = await it.relay(Role.PROVIDER)
        _, at_provider = it.link(provider, port=relay.port)
        await eventually(lambda: recorder.peers and at_provider.peers)
        relay.refuse()
        relay.cut()
        await eventually(lambda: recorder.gone == [(provider.id, "lost")], 4.0)
        await eventually(lambda: len(at_provider.downs) == 1, 4.0)
        await relay.open()
        await eventually(lambda: provider.id in recorder.peers)

    run(test, Timings(link_timeout_s=6.0, reconnect_max_s=0.2))


def test_a_peer_that_comes_back_takes_over_its_half_dead_connection() -> None:
    async def test(it: Fabric) -> None:
        recorder, provider = Recorder(), name(Role.PROVIDER)
        local = it.router.attach(name(Role.EDGE), {}, recorder)
        nonce = os.urandom(16)
        first = it.raw(Role.PROVIDER, provider.routing_id(nonce))
        first.send_multipart(control(Hello(1, 1, 1, {})))
        await eventually(lambda: recorder.peers)
        second = it.raw(Role.PROVIDER, provider.routing_id(nonce))
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

    run(test, PATIENT)


def test_a_silent_network_is_noticed_on_both_sides_and_overcome() -> None:
    async def test(it: Fabric) -> None:
        recorder, provider = Recorder(), name(Role.PROVIDER)
        it.router.attach(name(Role.EDGE), {}, recorder)
        relay = await it.relay(Role.PROVIDER)
        _, at_provider = it.link(provider, port=relay.port)
        await eventually(lambda: recorder.peers and at_provider.peers)
        epoch = recorder.seen[-1].epoch
        relay.flowing.clear()
        relay.forget()
        await eventually(lambda: at_provider.ups == 2 and recorder.seen[-1].epoch > epoch, 2 * FAST.link_timeout_s)

    run(test)


def test_a_peer_whose_process_hangs_expires_though_zeromq_answers_for_it() -> None:
    async def test(it: Fabric) -> None:
        recorder, provider = Recorder(), name(Role.PROVIDER)
        it.router.attach(name(Role.EDGE), {}, recorder)
        frozen = it.raw(Role.PROVIDER, provider.routing_id(os.urandom(16)))
        frozen.send_multipart(control(Hello(1, 1, 1, {})))
        await eventually(lambda: recorder.peers)
        await eventually(lambda: recorder.gone == [(provider.id, "expired")], 2 * FAST.link_timeout_s)

    run(test)


def test_a_broker_that_hangs_is_left_and_found_again() -> None:
    async def test(it: Fabric) -> None:
        broker, port = it.broker()
        _, at_provider = it.link_to(HOST, port, name(Role.PROVIDER))

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
        await eventually(lambda: at_provider.downs == ["the broker is silent"], 3 * FAST.link_timeout_s)
        await welcome()
        await eventually(lambda: at_provider.ups == 2)

    run(test)


def test_a_broker_that_is_restarted_at_the_same_port_is_found_again() -> None:
    async def test(it: Fabric) -> None:
        first = Router(timings=FAST)
        port = first.bind(Role.PROVIDER, HOST, 0)
        _, at_provider = it.link_to(HOST, port, name(Role.PROVIDER))
        await eventually(lambda: at_provider.ups == 1)
        await first.close(linger_s=0)
        await eventually(lambda: len(at_provider.downs) == 1)
        second = Router(timings=FAST)
        it.stack.push_async_callback(second.close, linger_s=0)
        assert second.bind(Role.PROVIDER, HOST, port) == port
        await eventually(lambda: at_provider.ups == 2)

    run(test)


def test_a_broker_closes_though_thousands_of_strangers_came_and_went_meanwhile() -> None:
    strangers = """
import asyncio, socket
from brokers import Role, Router
async def main():
    router = Router()
    port = router.bind(Role.PROVIDER, "127.0.0.1", 0)
    for _ in range(3000):  # in this thread: the loop stands still
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(b"garbage garbage\\r\\n")
            stranger.recv(1)
    await router.close(linger_s=0)
asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", strangers], check=True, timeout=120)  # where it hangs, threads do as well


# -- names of hosts


def test_a_name_that_hangs_while_it_is_resolved_holds_up_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(it: Fabric) -> None:
        hanging = asyncio.Event()

        async def slow(host: str, port: int) -> list[Endpoint]:
            if host == "slow.test":
                await hanging.wait()
                host = HOST
            return await resolve(host, port)

        monkeypatch.setattr("brokers.link.resolve", slow)
        _, at_slow = it.link_to("slow.test", it.ports[Role.PROVIDER], name(Role.PROVIDER))
        _, at_quick = it.link(name(Role.PROVIDER))
        await eventually(lambda: at_quick.ups == 1)
        assert at_slow.ups == 0
        hanging.set()
        await eventually(lambda: at_slow.ups == 1)

    run(test)


def test_a_link_that_is_back_is_kept_though_a_name_server_is_still_away(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(it: Fabric) -> None:
        relay = await it.relay(Role.PROVIDER)
        _, recorder = it.link(name(Role.PROVIDER), port=relay.port)
        await eventually(lambda: recorder.ups == 1)
        asked = asyncio.Event()

        async def away(*_: object, **__: object) -> object:
            asked.set()
            return await asyncio.Event().wait()

        relay.refuse()
        relay.cut()
        monkeypatch.setattr("brokers.link.resolve", away)
        await asyncio.wait_for(asked.wait(), 30.0)
        monkeypatch.undo()
        await relay.open()
        await eventually(lambda: recorder.ups == 2)
        downs = list(recorder.downs)
        await asyncio.sleep(2 * STEADY.lease_s)  # a lease that nobody renews is over by then
        assert recorder.downs == downs and it.router.peers

    run(test, STEADY)


async def two_addresses(_: str, port: int) -> list[Endpoint]:
    return [(socket.AF_INET, (address, port)) for address in (NOWHERE, HOST)]


def test_an_address_that_does_not_answer_gives_way_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(it: Fabric) -> None:
        monkeypatch.setattr("brokers.link.resolve", two_addresses)
        _, recorder = it.link_to("two.test", it.ports[Role.PROVIDER], name(Role.PROVIDER))
        await eventually(lambda: recorder.ups == 1)

    run(test)


def test_a_server_that_does_not_greet_gives_way_to_the_next_address(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(it: Fabric) -> None:
        hanging, port = it.socket(zmq.ROUTER), it.ports[Role.PROVIDER]
        hanging.bind(f"tcp://{NOWHERE}:{port}")
        monkeypatch.setattr("brokers.link.resolve", two_addresses)
        _, recorder = it.link_to("two.test", port, name(Role.PROVIDER))
        routing_id, *frames = await receive(hanging)
        await eventually(lambda: recorder.ups == 1)
        hello = parse_control(list(frames))
        assert isinstance(hello, Hello)
        with contextlib.suppress(zmq.ZMQError):  # it has hung up
            hanging.send_multipart([routing_id, *control(Welcome(1, hello.attempt, 1))])
        assert recorder.downs == []

    run(test)


def test_an_unknown_name_is_told_once_and_tried_again(monkeypatch: pytest.MonkeyPatch, warnings: list[str]) -> None:
    async def test(it: Fabric) -> None:
        tries = 0

        async def failing(_: str, port: int) -> list[Endpoint]:
            nonlocal tries
            tries += 1
            if tries <= 3:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            return await resolve(HOST, port)

        monkeypatch.setattr("brokers.link.resolve", failing)
        _, recorder = it.link_to("no.test", it.ports[Role.PROVIDER], name(Role.PROVIDER))
        await eventually(lambda: recorder.ups == 1)
        assert len([line for line in warnings if "no.test" in line]) == 1

    run(test)


# -- the ill-disposed


def test_a_version_mismatch_is_told_on_both_sides(warnings: list[str]) -> None:
    async def test(it: Fabric) -> None:
        dealer = it.raw(Role.PROVIDER, name(Role.PROVIDER, "newer").routing_id(os.urandom(16)))
        dealer.send_multipart(control(Hello(9, 8, 1, {})))
        refused = parse_control(await receive(dealer))
        assert isinstance(refused, Refused)
        assert "newer speaks fabric versions 8 to 9, this broker 1 to 1" in refused.reason
        assert any("a provider is refused: newer speaks fabric versions 8 to 9" in line for line in warnings)
        assert it.router.peers == []

    run(test)


def test_a_link_that_is_refused_says_why(warnings: list[str]) -> None:
    async def test(it: Fabric) -> None:
        broker, port = it.broker()
        link, recorder = it.link_to(HOST, port, name(Role.PROVIDER))
        routing_id, *_ = await receive(broker)
        broker.send_multipart([routing_id, *control(Refused("versions 8 to 9 here"))])
        await eventually(lambda: any("versions 8 to 9 here" in line for line in warnings))
        assert recorder.ups == 0
        assert link.state is State.GREETING, "it goes on asking"

    run(test)


def test_a_peer_at_the_port_for_the_other_role_is_told_so(warnings: list[str]) -> None:
    async def test(it: Fabric) -> None:
        it.link_to(HOST, it.ports[Role.EDGE], name(Role.PROVIDER, "astray"))
        await eventually(
            lambda: any("refuses: provider astray is on the port for edges; retrying" in line for line in warnings)
        )

    run(test)


def test_a_flood_of_garbage_costs_nobody_else_anything(warnings: list[str]) -> None:
    async def test(it: Fabric) -> None:
        recorder, provider = Recorder(), name(Role.PROVIDER)
        local = it.router.attach(name(Role.EDGE), {}, recorder)
        link, at_provider = it.link(provider)
        await eventually(lambda: recorder.peers and at_provider.peers)
        hostile = name(Role.PROVIDER, "hostile")
        senders = [
            it.raw(Role.PROVIDER, hostile.routing_id(os.urandom(16)), SNDHWM=0),
            it.raw(Role.PROVIDER, b"nobody", SNDHWM=0),
            it.raw(Role.PROVIDER, name(Role.EDGE).routing_id(os.urandom(16)), SNDHWM=0),  # on the wrong port
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

    run(test, PATIENT)


def test_a_frame_beyond_the_limit_costs_its_sender_the_connection() -> None:
    async def test(it: Fabric) -> None:
        recorder, good = Recorder(), name(Role.PROVIDER)
        local = it.router.attach(name(Role.EDGE), {}, recorder)
        it.link(good)
        bad = name(Role.PROVIDER, "big")
        dealer = it.raw(Role.PROVIDER, bad.routing_id(os.urandom(16)), RECONNECT_IVL=-1)
        dealer.send_multipart(control(Hello(1, 1, 1, {})))
        await eventually(lambda: len(recorder.peers) == 2)
        dealer.send_multipart([local.name.id, bytes(2 * MIB + 1)])
        await eventually(lambda: recorder.gone == [(bad.id, "lost")])
        assert list(recorder.peers) == [good.id]

    run(test, PATIENT)


# -- the slow


def test_one_slow_peer_overflows_alone_and_comes_back_in_a_new_epoch() -> None:
    async def test(it: Fabric) -> None:
        recorder, quick, slow = Recorder(), name(Role.PROVIDER), name(Role.PROVIDER, "slow")
        local = it.router.attach(name(Role.EDGE), {}, recorder)
        _, at_quick = it.link(quick)
        dealer = it.raw(Role.PROVIDER, slow.routing_id(os.urandom(16)), RCVHWM=1, RCVBUF=4096)
        dealer.send_multipart(control(Hello(1, 1, 1, {})))
        await eventually(lambda: len(recorder.peers) == 2)
        epoch = recorder.peers[slow.id].epoch
        payload, sent = bytes(64 * 1024), 0
        async with asyncio.timeout(30):
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

    run(test, PATIENT)


@pytest.mark.parametrize(("size", "most_messages"), [(1000, OUTBOX_MESSAGES), (64 * 1024, OUTBOX_BYTES // (64 * 1024))])
def test_an_outbox_is_bounded_by_messages_and_by_bytes_each_alone(size: int, most_messages: int) -> None:
    burst = 20

    async def test(it: Fabric) -> None:
        recorder, slow = Recorder(), name(Role.PROVIDER, "slow")
        local = it.router.attach(name(Role.EDGE), {}, recorder)
        dealer = it.raw(Role.PROVIDER, slow.routing_id(os.urandom(16)), RCVHWM=1, RCVBUF=4096)
        dealer.send_multipart(control(Hello(1, 1, 1, {})))
        await eventually(lambda: recorder.peers)
        most = 0
        while not recorder.gone:
            for _ in range(burst):
                local.send(slow.id, [bytes(size)])
            await asyncio.sleep(0)
            messages, held_bytes = it.router.outboxes.get(slow.id, (0, 0))
            assert messages <= OUTBOX_MESSAGES and held_bytes <= OUTBOX_BYTES
            most = max(most, messages)
        assert recorder.gone == [(slow.id, "overflow")]
        assert most > most_messages - 2 * burst, "it was used up before it was thrown away"

    run(test, PATIENT)


# -- ports, and the end


def test_a_port_in_use_is_an_error_that_says_so() -> None:
    async def test(it: Fabric) -> None:
        router = Router(timings=FAST)
        try:
            with pytest.raises(BindError) as caught:
                router.bind(Role.PROVIDER, HOST, it.ports[Role.PROVIDER])
        finally:
            await router.close(linger_s=0)
        assert caught.value.errno == errno.EADDRINUSE
        assert str(it.ports[Role.PROVIDER]) in str(caught.value)
        assert "in use" in str(caught.value)
        assert isinstance(caught.value, OSError)

    run(test)


@pytest.mark.parametrize("host", [None, HOST, "::1", "localhost"])
def test_a_router_listens_where_it_is_told(host: str | None) -> None:
    async def test(it: Fabric) -> None:
        router = Router(timings=FAST)
        it.stack.push_async_callback(router.close, linger_s=0)
        port = router.bind(Role.PROVIDER, host, 0)
        for address in {"::1"} if host == "::1" else {HOST} if host else {HOST, "::1"}:
            _, recorder = it.link_to(address, port, name(Role.PROVIDER))
            await eventually(lambda recorder=recorder: recorder.ups == 1)  # type: ignore[misc]

    if host in (None, "::1") and not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    run(test)


def test_the_port_stays_bound_whatever_happens_to_peers() -> None:
    async def test(it: Fabric) -> None:
        link, recorder = it.link(name(Role.PROVIDER))
        await eventually(lambda: recorder.ups == 1)
        await it.close(link, linger_s=0)
        _, other = it.link(name(Role.PROVIDER))
        await eventually(lambda: other.ups == 1)

    run(test)


def test_a_link_that_closes_says_so_after_its_last_message() -> None:
    async def test(it: Fabric) -> None:
        recorder, provider = Recorder(), name(Role.PROVIDER)
        it.router.attach(name(Role.EDGE), {}, recorder)
        link, at_provider = it.link(provider)
        await eventually(lambda: at_provider.peers)
        payload = os.urandom(MIB)
        for _ in range(20):
            assert link.send(next(iter(at_provider.peers)), [payload])
        await it.close(link, linger_s=10)
        await eventually(lambda: recorder.gone == [(provider.id, "left")])
        assert [body for _, body in recorder.messages] == [[payload]] * 20
        assert at_provider.downs == []
        assert not link.send(provider.id, [b"x"])

    run(test)


def test_closing_waits_for_nobody_beyond_the_linger() -> None:
    async def test(it: Fabric) -> None:
        relay = await it.relay(Role.PROVIDER)
        link, recorder = it.link(name(Role.PROVIDER), port=relay.port)
        it.router.attach(name(Role.EDGE), {}, Recorder())
        await eventually(lambda: recorder.peers)
        relay.flowing.clear()
        for _ in range(50):
            link.send(next(iter(recorder.peers)), [bytes(MIB)])
        async with asyncio.timeout(30):
            await it.close(link, linger_s=0.2)

    run(test)


def test_a_link_to_nobody_closes_at_once() -> None:
    async def test(it: Fabric) -> None:
        with socket.socket() as taken:  # bound and not listening: it refuses
            taken.bind((HOST, 0))
            link, recorder = it.link_to(HOST, taken.getsockname()[1], name(Role.PROVIDER))
            async with asyncio.timeout(30):
                await it.close(link, linger_s=60)
        assert recorder.ups == 0

    run(test)


def test_closing_twice_is_harmless() -> None:
    async def test(it: Fabric) -> None:
        link, _ = it.link(name(Role.PROVIDER))
        await it.close(link, linger_s=0)
        await link.close(linger_s=0)

    run(test)


def test_a_name_that_no_host_can_have_is_told_like_an_unknown_one(warnings: list[str]) -> None:
    async def test(it: Fabric) -> None:
        it.link_to("a" * 64 + ".test", 1, name(Role.PROVIDER))
        await eventually(lambda: any("a" * 64 in line for line in warnings))

    run(test)


def test_a_link_comes_back_after_garbage_on_its_connection() -> None:
    async def test(it: Fabric) -> None:
        relay = await it.relay(Role.PROVIDER)
        _, recorder = it.link(name(Role.PROVIDER), port=relay.port)
        for times in (1, 2):
            await eventually(lambda: recorder.ups == times)  # noqa: B023
            relay.inject(b"\x07garbage" * 9)

    run(test)


def test_a_refusal_is_told_even_after_the_server_was_out_of_reach(warnings: list[str]) -> None:
    async def test(it: Fabric) -> None:
        broker = it.socket(zmq.ROUTER)
        with closed_port() as port:
            it.link_to(HOST, port, name(Role.PROVIDER))
            await eventually(lambda: any("cannot reach the server" in line for line in warnings))
            broker.bind(f"tcp://{HOST}:{port}")
        routing_id, *_ = await receive(broker)
        broker.send_multipart([routing_id, *control(Refused("versions 8 to 9 here"))])
        await eventually(lambda: any("versions 8 to 9 here" in line for line in warnings))

    run(test)
