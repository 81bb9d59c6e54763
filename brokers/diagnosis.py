"""Why a link is down: found out, logged once, and kept for the status.

libzmq's events do not tell a web server from a broker with another key, or from one that goes away in mid-handshake.
The greeting of ZMTP (RFC 23) does, and a broker sends it to whoever connects, before any key is checked. So a plain TCP
connection reads it, within a few seconds of the failure.
"""

import asyncio
import enum
import os
import socket
from collections.abc import Callable
from typing import Final, NamedTuple

from loguru import logger

from brokers.errors import BadMessage
from brokers.limited_log import LimitedLog
from brokers.peers import Role
from brokers.resolver import SocketAddress

PROBE_S: Final = 3.0
"""For the connection and the greeting together."""
EXAMINE_AFTER_S: Final = 1.0
"""A handshake that takes longer is examined."""
EXAMINE_AGAIN_S: Final = 15.0
"""Between two probes while a link stays down: what answers may change."""
REJECTIONS: Final = 3
"""Failed handshakes with a peer that speaks ZMTP until the key is blamed: an outage may look the same."""
REPEAT_S: Final = 300.0
"""While the link stays down, its problems are logged again this often."""
PROBLEMS: Final = 16
"""Different problems logged in that time: a hostile broker may name any number of them."""
USUAL_PORTS: Final = {Role.PROVIDER: 9887, Role.EDGE: 9888}
"""Where brokers listen for each role unless told otherwise."""
_SIGNATURE: Final = b"\xff\0\0\0\0\0\0\0\1\x7f"
_QUESTION: Final = _SIGNATURE + b"\3"
"""As much of a greeting as makes a ZMTP 3 peer send all of its own. A broker logs nothing about a connection that ends
here."""
_GREETING_BYTES: Final = 64
_MECHANISM: Final = slice(12, 32)
_PROTOCOLS: Final = {b"HTTP/": "HTTP", b"<": "HTTP", b"SSH-": "SSH", b"\x15\x03": "TLS"}
"""How the responses of others to a greeting begin."""


class Responder(enum.Enum):
    """What is at an address where a broker should be. The value is the `cause` of log lines."""

    UNREACHABLE = "unreached"
    """Nothing: no connection."""
    SILENT = "silent"
    """It accepts connections and sends nothing."""
    OTHER_PROTOCOL = "other protocol"
    """It does not speak ZMTP."""
    PLAINTEXT = "no keys"
    """It speaks ZMTP in plaintext."""
    CURVE = "keys"
    """It speaks ZMTP and demands keys."""


class Finding(NamedTuple):
    """What is there, and details of it for people."""

    responder: Responder
    detail: str = ""


async def probe(address: SocketAddress) -> Finding:
    """Connect, read a greeting, and disconnect."""
    family, sockaddr = address
    loop = asyncio.get_running_loop()
    response = b""
    connected = False
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.setblocking(False)
            async with asyncio.timeout(PROBE_S):
                await loop.sock_connect(sock, sockaddr)
                connected = True
                await loop.sock_sendall(sock, _QUESTION)
                while (missing := _GREETING_BYTES - len(response)) and (more := await loop.sock_recv(sock, missing)):
                    response += more
    except TimeoutError:
        if not connected:
            return Finding(Responder.UNREACHABLE, f"no response within {PROBE_S:g} s")
        if not response:
            return Finding(Responder.SILENT, "it sends nothing")
    except OSError as exc:
        if not connected:
            return Finding(Responder.UNREACHABLE, os.strerror(exc.errno) if exc.errno else str(exc))
    return _classify(response)


def _classify(response: bytes) -> Finding:
    if not response:
        return Finding(Responder.OTHER_PROTOCOL, "it disconnects")
    if response[0] != _SIGNATURE[0] or response[9:10] not in (b"", _SIGNATURE[9:]):
        protocol = next((name for start, name in _PROTOCOLS.items() if response.startswith(start)), "something else")
        return Finding(Responder.OTHER_PROTOCOL, f"it speaks {protocol}")
    match response[_MECHANISM].rstrip(b"\0"):
        case b"CURVE":
            return Finding(Responder.CURVE)
        case b"NULL":
            return Finding(Responder.PLAINTEXT)
        case b"":
            return Finding(Responder.UNREACHABLE, "the connection was lost")
        case _:
            return Finding(Responder.OTHER_PROTOCOL, "it speaks ZeroMQ with another security mechanism")


class Diagnosis:
    """Is told what happens to a link, probes the address where libzmq cannot tell why, and logs it."""

    def __init__(
        self, role: Role, host: str, port: int, label: str, *, keyed: bool, changed: Callable[[], None]
    ) -> None:
        """Diagnose the link of a `role` to `label`, that is `host`:`port`; `keyed`: it demands keys.

        `changed` is called with each change of `problem`.
        """
        self._changed = changed
        self.problem: str | None = None
        """Why the link is down, for people; None if it is up, or nothing is known yet."""
        self._what = "broker" if role is Role.EDGE else "server"
        """What the other end is called; a provider does not know whether it is more than a broker."""
        self._at = f"the {self._what} at {label}"
        self._label = label
        self._role = role
        self._host, self._port = host, port
        self._keyed = keyed
        self._loop = asyncio.get_running_loop()
        self._log = LimitedLog(burst=PROBLEMS, period_s=REPEAT_S, summary=False, clock=self._loop.time)
        self.since = self._loop.time()
        """When the link came up or was lost, or this object was made; by the clock of the loop."""
        self._was_up = False
        self._broker_closes = False
        self._rejections = 0
        """Successive handshakes that the other end has ended."""
        self._timed_out = False
        """Whether the last handshake did."""
        self._finding: Finding | None = None
        self._probed_at: float | None = None
        self._probing: asyncio.Task[None] | None = None
        self._examine_timer: asyncio.TimerHandle | None = None

    def up(self) -> None:
        """Note that the broker has welcomed us."""
        self._log.reset()
        self.problem = self._finding = self._probed_at = None
        self._was_up = True
        self._broker_closes = False
        self.since = self._loop.time()
        self._rejections = 0
        logger.bind(event="link_up", broker=self._label).info("connected to {}", self._at)
        self._changed()

    def broker_closes(self) -> None:
        """Note that the broker is being shut down: the link is about to be lost."""
        self._broker_closes = True

    def lost(self, reason: str) -> None:
        """Note that a link is down which was up."""
        self.since = self._loop.time()
        if self._broker_closes:
            self.problem, level, text = "it was shut down", "DEBUG", f"{self._at} was shut down"
        else:
            self.problem, level, text = reason, "WARNING", f"lost {self._at}: {reason}"
        logger.bind(event="link_lost", broker=self._label).log(level, "{}; reconnecting", text)
        self._changed()

    def handshake_begins(self, address: SocketAddress | None) -> None:
        """Examine `address` if the handshake takes long."""
        self.handshake_ends()
        self._examine_timer = self._loop.call_later(EXAMINE_AFTER_S, self.examine, address)

    def handshake_ends(self) -> None:
        """Note that the handshake is over, one way or the other."""
        if self._examine_timer is not None:
            self._examine_timer.cancel()
            self._examine_timer = None

    def handshake_failed(self, address: SocketAddress | None, *, timed_out: bool) -> None:
        """Note that a handshake failed without a known reason."""
        self._timed_out = timed_out
        self._rejections = 0 if timed_out else self._rejections + 1
        self.examine(address)

    def examine(self, address: SocketAddress | None) -> None:
        """Find out what is at `address`, unless that is known; log it if it explains why the link is down."""
        now = self._loop.time()
        if self._probing is not None or address is None:
            return
        if self._probed_at is None or now - self._probed_at >= EXAMINE_AGAIN_S:
            self._finding = None
            self._probed_at = now
            self._probing = self._loop.create_task(self._probe(address), name=f"probe {self._label}")
        elif self._finding is not None:
            self._explain(self._finding)

    async def _probe(self, address: SocketAddress) -> None:
        finding = await probe(address)
        self._probing = None
        if self._probed_at is not None:  # the link has not come up meanwhile
            self._finding = finding
            self._explain(finding)

    def _explain(self, finding: Finding) -> None:
        cause = finding.responder.value
        match finding.responder:
            case Responder.UNREACHABLE:
                hint = "is it running, and does a firewall let this through?"
                self._report(cause, f"cannot reach {self._at}: {finding.detail}; {hint}")
            case Responder.SILENT if self._was_up:
                self._report(cause, f"{self._at} accepts connections but sends nothing; is it stopped or overloaded?")
            case Responder.SILENT | Responder.OTHER_PROTOCOL:
                text = f"nothing that speaks goreprox's protocol answers at {self._label} ({finding.detail})"
                self._report(cause, f"{text}; {self._advice}")
            case Responder.PLAINTEXT if self._keyed:
                self._report(cause, f"{self._at} has no keys; start it with keys, or this one with --insecure, too")
            case Responder.CURVE if not self._keyed:
                self._report(cause, f"{self._at} wants keys; get a join string from it")
            case Responder.CURVE if self._rejections >= REJECTIONS:
                text = f"{self._at} has another key than we expect; get a new join string from it"
                self._report("other key", text)
            case _ if self._timed_out:
                self._report("slow", f"{self._at} does not finish the handshake in time; is it overloaded?")
            case _:
                pass  # the next handshake may well succeed

    @property
    def _advice(self) -> str:
        if self._port != USUAL_PORTS[self._role]:
            return f"is that the port for clients? {self._role}s have {USUAL_PORTS[self._role]}"
        return f"is the {self._what} running there, or does a captive portal or a proxy answer in its place?"

    def not_resolved(self, reason: str) -> None:
        """Note that the host has no address."""
        self._report(
            "unresolved",
            f"the name {self._host} cannot be resolved ({reason}); if the {self._what} has another name, "
            f"give it by --{self._what} HOST",
        )

    def key_rejected(self) -> None:
        """Note that the broker rejected our key in the handshake."""
        self._rejections = 0
        self._report("unknown key", f"{self._at} does not know our key, or no longer, or not for this port")

    def refused(self, reason: str) -> None:
        """Note that the broker refused our hello, or has revoked our key."""
        self._report("refused", f"{self._at} refuses: {reason}", reason=reason)

    def not_understood(self, error: BadMessage) -> None:
        """Note that the broker sent a message that no broker would send."""
        self._report("malformed", f"{self._at} sends malformed messages: {error}")

    def _report(self, cause: str, text: str, **fields: str) -> None:
        """Log what keeps the link down: once until it is up again, but now and then if it stays so."""
        if text != self.problem:
            self.problem = text
            self._changed()
        self._log.say("link_down", f"{text}; retrying", broker=self._label, cause=cause, **fields)

    def close(self) -> None:
        """Stop examining."""
        self.handshake_ends()
        if self._probing is not None:
            self._probing.cancel()
