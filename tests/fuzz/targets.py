"""Fuzz targets, one for each kind of outside input: each takes any bytes, and raises only if the code is wrong."""

import contextlib
import functools
import io
import os
import ssl
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import h11

import goreprox.roles.broker
import goreprox.roles.edge
import goreprox.roles.provider
import goreprox.roles.server
import goreprox.roles.workers
from brokers import BadMessage, BadName, PeerName, Role
from brokers.carrier import Buffer
from brokers.envelope import CONTROL, control, parse_control
from brokers.nats.frames import pack, unpack
from brokers.nats.roster import Down, Roster, Up
from brokers.switch import Switch
from goreprox.cli import launch
from goreprox.cli import main as cli
from goreprox.config.addresses import Address, Listener, ProxyVersion, Target
from goreprox.config.networks import Rule
from goreprox.errors import ConfigError
from goreprox.http import commands
from goreprox.keys import join
from goreprox.keys.claims import NoClaims
from goreprox.net import client_hello, proxy_protocol
from goreprox.protocol import wire
from goreprox.protocol.budget import Budget
from goreprox.protocol.errors import RemoteProtocolError
from goreprox.protocol.events import Code
from goreprox.protocol.limits import KIB, MAX_HEAD, MIB, RAW_PAYLOAD, VERSION
from goreprox.protocol.notices import Kind
from goreprox.protocol.session import Session
from goreprox.protocol.state import State
from goreprox.protocol.stream import Stream
from goreprox.protocol.totals import EndCode
from tests.support.gateway import Talk

MAX_BYTES = 4096
"""Longer inputs find nothing that shorter ones do not; `test_bombs` measures what length costs."""


def frames_of(data: bytes) -> list[bytes]:
    """Return a message: the first byte is its number of raw frames, 0 to 3, the rest its first frame."""
    raws = data[0] % 4 if data else 0
    return [data[1:], *(bytes(RAW_PAYLOAD + index) for index in range(raws))]


def fuzz_wire(data: bytes) -> None:
    """Session messages: one that is accepted is one that we could have sent."""
    frames = frames_of(data)
    try:
        version, batch = wire.decode(frames)
    except RemoteProtocolError:
        return
    again = wire.encode(batch, version=version)
    assert len(again[0]) <= MAX_HEAD
    assert wire.decode(again) == (version, batch)


def fuzz_envelope(data: bytes) -> None:
    """Control messages of the fabric."""
    try:
        message = parse_control([CONTROL, data])
    except BadMessage:
        return
    again = parse_control(control(message))
    assert again == message or "nan" in repr(message)


def fuzz_names(data: bytes) -> None:
    """Routing ids."""
    try:
        name = PeerName.from_routing_id(data)
    except BadName:
        return
    assert PeerName.from_routing_id(name.routing_id(bytes(16))) == name


_PEERS = [PeerName(role, "name", bytes([index]) * 16) for index, role in enumerate([*Role, *Role])]
_MAX_PEERS = 3


def fuzz_switch(data: bytes) -> None:
    """A broker with four peers, any of which may say anything.

    Steps: a byte of who (modulo 4) and what (a control message, or one to a peer), a byte of length, the frame.
    """
    switch = Switch(lease_s=6.0, max_peers=_MAX_PEERS)
    now = 0.0
    stream = io.BytesIO(data)
    while head := stream.read(2):
        who = head[0] % 4
        body = stream.read(head[1] if len(head) > 1 else 0)
        first = CONTROL if head[0] < 128 else _PEERS[head[0] // 4 % 4].id
        now += 0.5
        try:
            outputs = switch.receive(who, _PEERS[who], [first, body], now)
        except BadMessage:
            outputs = []
        outputs += [output for key in switch.expired(now) for output in switch.lost(key, "expired")]
        assert len(switch.peers) <= _MAX_PEERS
        for _, frames in outputs:
            if frames[0] == CONTROL:
                parse_control(frames)


def fuzz_address(data: bytes) -> None:
    """Addresses, listeners, targets and rules: one that is accepted can be written and read again."""
    text = data.decode(errors="replace")
    parsers: Sequence[Callable[[str], Any]] = (
        Address.parse,
        lambda t: Address.parse(t, 9887),
        Listener.parse,
        Target.parse,
        lambda t: Rule.parse("allow", t),
    )
    for parser in parsers:
        try:
            parsed = parser(text)
        except ConfigError as exc:
            assert "\n" not in str(exc)
            continue
        if isinstance(parsed, Address):
            assert Address.parse(str(parsed)) == parsed


def fuzz_join(data: bytes) -> None:
    """Join strings: the text as it is, and with a correct checksum."""
    body, _, addresses = data.partition(b"@")
    text = addresses.decode(errors="replace")
    attempts: Sequence[Callable[[], join.Join | None]] = (
        lambda: join.Join.parse(data.decode(errors="replace")),
        lambda: join.Join._read(body, text) if len(body) > join._HEAD_BYTES else None,
    )
    for attempt in attempts:
        try:
            parsed = attempt()
        except ConfigError as exc:
            assert "\n" not in str(exc)
            continue
        if parsed is not None:
            assert join.Join.parse(parsed.text) == parsed


_ROLES = ("server", "edge", "broker", "provider")
_LEAST = {"edge": ["--broker", "b"], "provider": ["80", "--server", "s"]}


@cache
def _file() -> Path:
    folder = Path("/dev/shm")
    handle, path = tempfile.mkstemp(suffix=".toml", dir=folder if os.access(folder, os.W_OK) else None)
    os.close(handle)
    return Path(path)


async def _start(_configuration: object, _inherited: object) -> None:
    """Stand for a role's `run`."""


def fuzz_config(data: bytes) -> None:
    """A configuration file for one of the roles: it starts, or one line tells what is wrong."""
    role = _ROLES[data[0] % 4] if data else "server"
    _file().write_bytes(data[1:])
    printed = io.StringIO()
    with contextlib.ExitStack() as stack:
        for module in (
            goreprox.roles.server,
            goreprox.roles.edge,
            goreprox.roles.workers,
            goreprox.roles.broker,
            goreprox.roles.provider,
        ):
            stack.enter_context(patch.object(module, "run", _start))
        stack.enter_context(patch.object(launch, "configure"))
        stack.enter_context(patch.object(launch, "raise_file_limit"))
        stack.enter_context(patch.object(launch, "logger"))
        stack.enter_context(contextlib.redirect_stderr(printed))
        code = cli.main([role, *_LEAST.get(role, ()), "--insecure", "--config", str(_file())])
    assert code in (0, 2), (code, printed.getvalue())
    assert (code == 0) == (not printed.getvalue()), printed.getvalue()
    assert printed.getvalue().count("\n") <= 1, printed.getvalue()


class _End:
    """A session, its driver and its streams, facing a peer that may send anything."""

    def __init__(self, *, opener: bool, budget: Budget) -> None:
        self.now = 0.0
        self.session = Session(opener=opener, version=VERSION, budget=budget, grace_s=60.0, wake=lambda: None, now=0.0)
        self.session.path_up("a", 0.0)
        self.budget = budget
        self.streams: list[Stream] = []

    def turn(self) -> None:
        """Do what is due, send what is ready, and obey the notices."""
        session = self.session
        if (due := session.deadline()) is not None and due <= self.now:
            session.tick(self.now)
        for _, frames in session.flush(self.now):
            wire.decode(frames)  # however strange the peer, what we send is well-formed
        while session.notices:
            notice = session.notices.popleft()
            stream = notice.stream
            if notice.kind is Kind.OPENED:
                assert stream is not None
                self.streams.append(stream)
                if stream.state is State.CLOSED:
                    continue  # aborted by the same message
                if stream.id % 3 == 0:
                    stream.refuse(Code.OTHER, "no")
                else:
                    stream.accept()
            elif notice.kind is Kind.RESET:
                assert stream is not None
                stream.finish_reset()
            elif notice.kind is Kind.REFUSED:
                assert stream is not None
                stream.abort("refused")
        assert self.budget.pool_used_bytes >= 0
        if session.failed is not None:
            assert not session.streams

    def local(self, action: int) -> None:
        """Do what a local socket or a link may do."""
        session = self.session
        live = [stream for stream in self.streams if stream.state in (State.OPENING, State.OPEN)]
        stream = live[action // 8 % len(live)] if live else None
        match action % 8:
            case 0 if session.opener and session.failed is None:
                made = Stream(opener=True, service="s", client="c", budget=self.budget)
                self.streams.append(made)
                session.open(made)
            case 0 if action < 248:
                session.drain()
            case 0:
                session.goodbye("local")
            case 1 if stream is not None and stream.room:
                stream.write(bytes(min(stream.room, 1 + 100 * action)))
            case 2 if stream is not None:
                stream.write_eof()
            case 3 if stream is not None:
                stream.reset("local", now=self.now)
            case 4:
                for reader in self.streams:
                    read(reader, self.now)
            case 5:
                self.now += action / 8
            case 6:
                session.path_down("ab"[action // 128], self.now)
            case 7:
                session.path_up("ab"[action // 128], self.now)


def read(stream: Stream, now: float) -> None:
    """Let a socket take everything that was received."""
    if stream.host is None or stream.state not in (State.OPEN, State.RESET):
        return
    while chunks := stream.receive.chunks:
        stream.consume(len(chunks[0]), now=now)
    if stream.receive.eof_ready:
        stream.deliver_eof(now=now)


def fuzz_session(data: bytes) -> None:
    """A peer that sends anything at any time; another session of the same process must not be affected.

    The first byte selects the end. Each step has a byte for its kind and one for a length: an action of a local socket
    or a link, a message of that length, or the events of a message with the right numbers, so that more of them are
    accepted.
    """
    budget = Budget(total_bytes=MIB, max_streams=16)
    bystander = _End(opener=True, budget=budget)
    bystander.local(0)
    bystander.streams[0].write(bytes(KIB))
    end = _End(opener=bool(data) and data[0] % 2 == 1, budget=budget)
    stream = io.BytesIO(data[1:])
    while len(head := stream.read(2)) == 2:
        what, length = head
        if what < 64:
            end.local(length)
        else:
            path = end.session.path
            end.session.receive(
                path.path_id if path is not None else "a", _message(end, what, stream.read(length)), end.now
            )
        end.turn()
        end.now += 0.01
    held = sum(s.send.pool_used_bytes + s.receive.pool_used_bytes for s in (*end.streams, *bystander.streams))
    assert budget.pool_used_bytes == held, "the budget leaks"
    end.session.abandon("the end", EndCode.PEER_LEFT)
    end.turn()
    assert not end.session.streams
    assert bystander.streams[0].state is State.OPENING
    assert (
        budget.pool_used_bytes
        == bystander.streams[0].receive.pool_used_bytes + bystander.streams[0].send.pool_used_bytes
    )


def _message(end: _End, what: int, body: bytes) -> list[Buffer]:
    path = end.session.path
    frames = frames_of(bytes([what % 4]) + body)
    if what >= 128 and path is not None:
        epoch = path.epoch + (what // 4 % 8 == 7)
        numbers = (epoch, path.received if epoch == path.epoch else 0, path.seq if epoch == path.epoch else 0)
        head = [0x85, VERSION, *(byte for number in numbers for byte in _integer(number))]
        frames[0] = bytes(head) + body
    return list(frames)


def _integer(number: int) -> bytes:
    """Write as CBOR does (RFC 8949, 3.1, major type 0), not always as short as it could."""
    return b"\x1b" + number.to_bytes(8, "big")


def fuzz_http(data: bytes) -> None:
    """A client, a target and a link that send and do anything: no target ever gets a request that we did not see.

    Each step has a byte for its kind and one for a length: bytes of a client or of a target, or the end of something.
    """
    talk = Talk()
    stream = io.BytesIO(data)
    while len(head := stream.read(2)) == 2:
        what, length = head
        match what % 10:
            case 0 | 1 | 2 | 3 | 4:
                talk.client(stream.read(length) or b"x")
            case 5 | 6 | 7:
                talk.target(stream.read(length) or b"x")
            case 8:
                closes_idle = functools.partial(talk.target_eof, untouched=True)
                (talk.client_eof, talk.target_eof, talk.lost, closes_idle)[length % 4]()
            case _:
                talk.do((talk.gateway.timed_out, talk.gateway.drain, talk.gateway.client_lost)[length % 3]())
    if commands.SwitchProtocols() in talk.seen.others:
        return  # what follows is no HTTP
    asked = sum(isinstance(each, commands.Connect) for each in talk.seen.others)
    read_by_h11 = [event for index in range(len(talk.seen.to_target)) for event in talk.requests(index)]
    assert sum(isinstance(event, h11.Request) for event in read_by_h11) <= asked


def fuzz_proxyproto(data: bytes) -> None:
    """Headers of the PROXY protocol: one that is accepted is complete, and its addresses can be written again."""
    try:
        header = proxy_protocol.read(data)
    except proxy_protocol.Malformed:
        return
    if header is None:
        assert len(data) < proxy_protocol.MAX_BYTES
        return
    assert 0 < header.size <= len(data)
    if header.endpoints is not None:
        for version in ProxyVersion:
            told = proxy_protocol.read(proxy_protocol.write(version, *header.endpoints))
            assert told is not None
            assert told.endpoints == header.endpoints


@cache
def _server() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


def fuzz_hello(data: bytes) -> None:
    """First messages of TLS clients: OpenSSL, which has the last word at the target, reads the same name."""
    try:
        hello = client_hello.read(data)
    except client_hello.Malformed:
        return
    assert hello is not None or len(data) < client_hello.MAX_BYTES
    names: list[str | None] = []
    context, incoming = _server(), ssl.MemoryBIO()
    context.sni_callback = lambda _tls, name, _context: names.append(name)
    incoming.write(data)
    with contextlib.suppress(ssl.SSLError):
        context.wrap_bio(incoming, ssl.MemoryBIO(), server_side=True).do_handshake()
    for name in names:
        assert hello is not None
        assert hello.server_name == (name and name.lower().removesuffix("."))


def fuzz_nats(data: bytes) -> None:
    """What comes from NATS: in each line a subject and, behind a space, a payload, both as a message and as a sign."""
    roster, up, turn = Roster(10.0, NoClaims()), set[bytes](), 0
    for turn, line in enumerate(data.split(b"\n")):
        subject, _, payload = line.partition(b" ")
        with contextlib.suppress(BadMessage):
            assert b"".join(pack(unpack(payload))) == payload
        event: Up | Down | None = None
        with contextlib.suppress(BadMessage):
            event = roster.heard(subject.decode("latin-1"), payload, float(turn))
        for change in (event, *roster.expire(float(turn))):
            match change:
                case Up(info):
                    up.add(info.name.id)
                    assert roster.at(roster.place_of(info.name.id) or "") == info.name.id
                case Down(peer_id):
                    up.remove(peer_id)
                    assert roster.place_of(peer_id) is None
    over = range(turn, turn + 15)  # a later look alone would be one after a suspend
    assert {down.peer_id for second in over for down in roster.expire(float(second))} == up


TARGETS: dict[str, Callable[[bytes], None]] = {
    "wire": fuzz_wire,
    "session": fuzz_session,
    "envelope": fuzz_envelope,
    "switch": fuzz_switch,
    "names": fuzz_names,
    "address": fuzz_address,
    "join": fuzz_join,
    "config": fuzz_config,
    "http": fuzz_http,
    "proxyproto": fuzz_proxyproto,
    "hello": fuzz_hello,
    "nats": fuzz_nats,
}
