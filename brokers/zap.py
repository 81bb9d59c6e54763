"""The ZAP handler (RFC 27): accepts or rejects the keys of peers in CURVE handshakes.

It attaches the key to all messages of the connection as its user id, and `identities` compares it with the routing id.
"""

from collections.abc import Callable
from typing import Final

import zmq
from zmq.utils import z85

from brokers.carrier import Buffer
from brokers.channel import Channel
from brokers.keys import KEY_CHARS, Authority
from brokers.limited_log import LimitedLog
from brokers.peers import Role

ZAP_ENDPOINT: Final = "inproc://zeromq.zap.01"
_ZAP_FRAMES: Final = 9
"""Route, delimiter, version, request, domain, address, routing id, mechanism, key (RFC 27, behind a ROUTER)."""


class ZapHandler:
    """Handles the ZAP requests of one context: a key is rejected unless the authority grants it the port's role."""

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        authority: Authority,
        log: LimitedLog,
        address_of: Callable[[str], str],
    ) -> None:
        """Begin to handle requests; create it before the ports. `address_of` returns the peer's for one of ours."""
        self._authority = authority
        self._address_of = address_of
        self._log = log
        socket = context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.bind(ZAP_ENDPOINT)
        self._channel = Channel(socket, self._decide)

    def _decide(self, frames: list[Buffer]) -> None:
        if len(frames) != _ZAP_FRAMES or frames[7] != b"CURVE" or len(frames[8]) != KEY_CHARS * 4 // 5:
            return  # only libzmq can send requests; without a response its handshake fails
        route, delimiter, version, request, domain, address, _, _, raw = (bytes(frame) for frame in frames)
        key = z85.encode(raw)
        grant = self._authority.grant(key)
        allowed = grant is not None and grant.role.value == domain
        if not allowed:
            who = "an unknown or revoked key" if grant is None else f"{grant.role} {grant.name}"
            source = self._address_of(address.decode(errors="replace").removeprefix("::ffff:"))
            port = next(str(role) for role in Role if role.value == domain)
            text = f"refused {who} at the port for {port}s, from {source}: key {key.decode()}"
            self._log.say("key_refused", text, address=source, key=key.decode(), port=port)
        status = (b"200", b"OK") if allowed else (b"400", b"unknown key")
        self._channel.send([route, delimiter, version, request, *status, key if allowed else b"", b""])

    def close(self) -> None:
        """Stop: from now on all handshakes fail."""
        self._channel.close(0)
