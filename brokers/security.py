"""Who may be on the fabric: CURVE's keys at the handshake, and the same key behind every message.

Whom a key belongs to is asked of an `Authority`; nothing here knows of files. Keys are Z85 texts of 40 bytes, as
libzmq takes them (zmq_curve(7)). libzmq falls open in two places, and both are shut here: without a ZAP handler it lets
everybody in unless ZAP_ENFORCE_DOMAIN is set, and it lets any authenticated peer choose any routing id.
"""

import ctypes
import secrets
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import zmq
from zmq.utils import z85

from brokers.carrier import Buffer
from brokers.channel import Channel
from brokers.limited_log import LimitedLog
from brokers.names import Role

KEY_CHARS = 40
"""32 bytes in Z85."""
ZAP_ENDPOINT = "inproc://zeromq.zap.01"
_ZAP_FRAMES = 9
"""Route, delimiter, version, request, domain, address, routing id, mechanism, key (RFC 27, behind a ROUTER)."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A public key and its secret, which no representation shows."""

    public: bytes
    secret: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> "KeyPair":
        """Draw a new pair."""
        return cls(*zmq.curve_keypair())

    @classmethod
    def from_secret(cls, secret: bytes) -> "KeyPair":
        """Derive the public key.

        Raises:
            ValueError: it is no secret key; the message does not say what it is instead.
        """
        if not is_key(secret):
            raise ValueError("not a secret key")
        return cls(zmq.curve_public(secret), secret)


@dataclass(frozen=True, slots=True)
class Grant:
    """What a key may be: one role and name, in as many processes as it likes."""

    role: Role
    name: str


class Authority(Protocol):
    """Knows which keys are authorised, at this very moment. Called from the loop; must neither block nor raise."""

    def grant(self, public_key: bytes) -> Grant | None:
        """Return what the key may be; None if it is unknown or revoked."""

    def objection(self, public_key: bytes, attributes: Mapping[str, object]) -> str | None:
        """Return why a peer with this key may not have these attributes, or None if it may."""


@dataclass(frozen=True, slots=True)
class BrokerSecurity:
    """A broker's own keys, and who decides about those of others."""

    keys: KeyPair
    authority: Authority


@dataclass(frozen=True, slots=True)
class LinkSecurity:
    """A link's own keys, and those of the broker: the present one and, for a rotation, the next ones."""

    keys: KeyPair
    brokers: tuple[bytes, ...]


def is_key(text: bytes) -> bool:
    """Whether this is a key in Z85."""
    try:
        return len(text) == KEY_CHARS and len(z85.decode(text)) == KEY_CHARS * 4 // 5
    except (KeyError, ValueError, struct.error):
        return False


def secure_broker(socket: "zmq.Socket[bytes]", keys: KeyPair, role: Role) -> None:
    """Make a ROUTER demand keys of peers of `role`; to be called before it is bound."""
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
    socket.setsockopt(zmq.ZAP_DOMAIN, role.value)
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)


def draw_routing_ids() -> None:
    """Let nobody guess which routing ids ROUTER sockets made from now on give to peers without one.

    They count up from a number of `rand`, which libzmq never seeds (random.cpp of 4.3.5), and a peer may claim any id.
    Where it has claimed the next one, libzmq aborts the process (`add_out_pipe` in socket_base.cpp): two connections
    are enough for somebody who knows the number; without it, one that holds 1,000 ids needs two million more.
    """
    seed = ctypes.CDLL(None).srand
    seed.argtypes, seed.restype = [ctypes.c_uint], None
    seed(secrets.randbits(32))


def secure_link(socket: "zmq.Socket[bytes]", keys: KeyPair, broker: bytes) -> None:
    """Make a DEALER prove its key and demand that of `broker`; it counts for later calls of `connect`."""
    socket.setsockopt(zmq.CURVE_SERVERKEY, broker)
    socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public)
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)


class Gatekeeper:
    """Answers libzmq's questions about keys (ZAP, RFC 27) in one context: no, unless a grant says yes."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", authority: Authority, log: LimitedLog) -> None:
        """Begin to answer; must exist before the ports do."""
        self._authority = authority
        self._log = log
        socket = context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.bind(ZAP_ENDPOINT)
        self._channel = Channel(socket, self._decide)

    def _decide(self, frames: list[Buffer]) -> None:
        if len(frames) != _ZAP_FRAMES or frames[7] != b"CURVE" or len(frames[8]) != KEY_CHARS * 4 // 5:
            return  # only libzmq itself can ask here; without an answer its handshake fails
        route, delimiter, version, request, domain, address, _, _, raw = (bytes(frame) for frame in frames)
        key = z85.encode(raw)
        grant = self._authority.grant(key)
        allowed = grant is not None and grant.role.value == domain
        if not allowed:
            who = "an unknown or revoked key" if grant is None else f"{grant.role} {grant.name}"
            source = address.decode(errors="replace").removeprefix("::ffff:")
            port = next(str(role) for role in Role if role.value == domain)
            text = f"refused {who} at the port for {port}s, from {source}: key {key.decode()}"
            self._log.say("key_refused", text, address=source, key=key.decode(), port=port)
        status = (b"200", b"OK") if allowed else (b"400", b"unknown key")
        # The key itself is the user's id: it is what libzmq attaches to every message of this connection.
        self._channel.send([route, delimiter, version, request, *status, key if allowed else b"", b""])

    def close(self) -> None:
        """Answer no more: nobody is let in from now on."""
        self._channel.close(0)
