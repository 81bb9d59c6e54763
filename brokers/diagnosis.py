"""Why a link is down: logged once, and kept for whoever asks.

What answers where a broker should is asked with a plain TCP connection, within a few seconds. libzmq's events cannot
tell: a web server, a broker with another key and one that goes away in mid-handshake look the same to it. The greeting
of ZMTP (RFC 23) can: a broker sends it to whoever connects, before any key is looked at.
"""

import asyncio
import enum
import os
import socket
from collections.abc import Callable
from typing import NamedTuple

from loguru import logger

from brokers.errors import BadMessage
from brokers.peers import Role
from brokers.resolver import SocketAddress

ASK_S = 3.0
"""For the connection and the greeting together."""
LOOK_AFTER_S = 1.0
"""A handshake that takes longer makes us look at what answers."""
LOOK_AGAIN_S = 15.0
"""Between two looks while a link stays down: what answers may change."""
REJECTIONS = 3
"""So many handshakes must fail at what speaks our protocol before the key is blamed: an outage may look like this."""
SAY_AGAIN_S = 300.0
"""What keeps a link down is logged again so often."""
COMPLAINTS = 16
"""Different ones, until the link is up again: what a broker may make us say is bounded."""
USUAL_PORTS = {Role.PROVIDER: 9887, Role.EDGE: 9888}
"""Where brokers listen for each role unless told otherwise."""
_SIGNATURE = b"\xff\0\0\0\0\0\0\0\1\x7f"
_QUESTION = _SIGNATURE + b"\3"
"""As much of a greeting as makes a ZMTP 3 peer send all of its own; a broker logs nothing of a connection that stops
here."""
_GREETING_BYTES = 64
_MECHANISM = slice(12, 32)
_SPOKEN = {b"HTTP/": "HTTP", b"<": "HTTP", b"SSH-": "SSH", b"\x15\x03": "TLS"}
"""How others begin to answer a greeting."""


class Kind(enum.Enum):
    """Of what answers."""

    UNREACHED = "unreached"
    """Nothing: no connection."""
    SILENT = "silent"
    """It accepts connections and says nothing."""
    STRANGER = "stranger"
    """It does not speak ZMTP."""
    NO_KEYS = "no keys"
    """It speaks ZMTP in plaintext."""
    KEYS = "keys"
    """It speaks ZMTP and wants keys."""


class Finding(NamedTuple):
    """What answers, and what more is known of it, for people."""

    kind: Kind
    detail: str = ""


async def ask(endpoint: SocketAddress) -> Finding:
    """Connect to `endpoint`, read a greeting, and hang up."""
    family, address = endpoint
    loop = asyncio.get_running_loop()
    said = b""
    connected = False
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.setblocking(False)
            async with asyncio.timeout(ASK_S):
                await loop.sock_connect(sock, address)
                connected = True
                await loop.sock_sendall(sock, _QUESTION)
                while len(said) < _GREETING_BYTES and (more := await loop.sock_recv(sock, _GREETING_BYTES - len(said))):
                    said += more
    except TimeoutError:
        if not connected:
            return Finding(Kind.UNREACHED, f"no answer within {ASK_S:g} s")
        if not said:
            return Finding(Kind.SILENT, "it says nothing")
    except OSError as exc:
        if not connected:
            return Finding(Kind.UNREACHED, os.strerror(exc.errno) if exc.errno else str(exc))
    return _understand(said)


def _understand(said: bytes) -> Finding:
    if not said:
        return Finding(Kind.STRANGER, "it hangs up")
    if said[0] != _SIGNATURE[0] or said[9:10] not in (b"", _SIGNATURE[9:]):
        spoken = next((name for start, name in _SPOKEN.items() if said.startswith(start)), None)
        return Finding(Kind.STRANGER, f"it speaks {spoken}" if spoken else "it speaks something else")
    match said[_MECHANISM].rstrip(b"\0"):
        case b"CURVE":
            return Finding(Kind.KEYS)
        case b"NULL":
            return Finding(Kind.NO_KEYS)
        case b"":
            return Finding(Kind.UNREACHED, "the connection was lost")
        case _:
            return Finding(Kind.STRANGER, "it speaks ZeroMQ in another way")


class Diagnosis:
    """Is told what happens to a link, looks closer where libzmq cannot tell why, and logs it."""

    def __init__(
        self, role: Role, host: str, port: int, label: str, *, keyed: bool, changed: Callable[[], None]
    ) -> None:
        """Speak of the link of a `role` to `label`, that is `host`:`port`; `keyed`: it demands keys.

        `changed` is called with each change of `trouble`.
        """
        self._changed = changed
        self.trouble: str | None = None
        """Why the link is down, for people; None if it is up, or nothing is known yet."""
        self._what = "broker" if role is Role.EDGE else "server"
        """What people call the other end; a provider does not know whether it is more than a broker."""
        self._at = f"the {self._what} at {label}"
        self._label = label
        self._role = role
        self._host, self._port = host, port
        self._keyed = keyed
        self._loop = asyncio.get_running_loop()
        self._said: dict[str, float] = {}
        """What was logged since the link was last up, and when."""
        self.since = self._loop.time()
        """When the link came up or was lost, or this began; by the clock of the loop."""
        self._was_up = False
        self._rejected = 0
        """Handshakes that what answers has ended, one after another."""
        self._timed_out = False
        """Whether the last handshake did."""
        self._finding: Finding | None = None
        self._looked_at: float | None = None
        self._looking: asyncio.Task[None] | None = None
        self._soon: asyncio.TimerHandle | None = None

    def up(self) -> None:
        """Note that the broker has welcomed us."""
        self._said.clear()
        self.trouble = self._finding = self._looked_at = None
        self._was_up = True
        self.since = self._loop.time()
        self._rejected = 0
        logger.bind(event="link_up", broker=self._label).info("connected to {}", self._at)
        self._changed()

    def lost(self, reason: str, *, expected: bool) -> None:
        """Note that a link is down which was up; `expected`: all who could be reached over it had left before."""
        self.trouble = "it was shut down" if expected else reason
        self.since = self._loop.time()
        text = f"lost {self._at}: {self.trouble}; connections are kept, reconnecting"
        logger.bind(event="link_lost", broker=self._label).log("DEBUG" if expected else "WARNING", "{}", text)
        self._changed()

    def handshake_begins(self, endpoint: SocketAddress | None) -> None:
        """Look closer if it takes long."""
        self.handshake_ends()
        self._soon = self._loop.call_later(LOOK_AFTER_S, self.look, endpoint)

    def handshake_ends(self) -> None:
        """Look no closer because of the time that it takes."""
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None

    def failed(self, endpoint: SocketAddress | None, *, timed_out: bool) -> None:
        """Note that a handshake failed, and nobody said why."""
        self._timed_out = timed_out
        self._rejected = 0 if timed_out else self._rejected + 1
        self.look(endpoint)

    def look(self, endpoint: SocketAddress | None) -> None:
        """See what answers, unless that is known; say so if it explains why the link is not up."""
        now = self._loop.time()
        if self._looking is not None or endpoint is None:
            return
        if self._looked_at is None or now - self._looked_at >= LOOK_AGAIN_S:
            self._finding = None
            self._looked_at = now
            self._looking = self._loop.create_task(self._ask(endpoint), name=f"look at {self._label}")
        elif self._finding is not None:
            self._explain(self._finding)

    async def _ask(self, endpoint: SocketAddress) -> None:
        finding = await ask(endpoint)
        self._looking = None
        if self._looked_at is not None:  # not up meanwhile
            self._finding = finding
            self._explain(finding)

    def _explain(self, finding: Finding) -> None:
        match finding.kind:
            case Kind.UNREACHED:
                text = (
                    f"cannot reach {self._at}: {finding.detail}; is it running, and does a firewall let this through?"
                )
            case Kind.SILENT if self._was_up:
                text = f"{self._at} takes connections and says nothing; is it stopped or overloaded?"
            case Kind.SILENT | Kind.STRANGER:
                text = (
                    f"nothing that speaks goreprox's protocol answers at {self._label} ({finding.detail}); "
                    f"{self._doubt}"
                )
            case Kind.NO_KEYS if self._keyed:
                text = f"{self._at} has no keys; start it with keys, or this one with --insecure, too"
            case Kind.KEYS if not self._keyed:
                text = f"{self._at} wants keys; get a join string from it"
            case Kind.KEYS if self._rejected >= REJECTIONS:
                self._complain("other key", f"{self._at} has another key than we expect; get a new join string from it")
                return
            case _ if self._timed_out:
                self._complain("slow", f"{self._at} does not finish the handshake in time; is it overloaded?")
                return
            case _:
                return  # it may well come up
        self._complain(finding.kind.value, text)

    @property
    def _doubt(self) -> str:
        if self._port != USUAL_PORTS[self._role]:
            return f"is that the port for clients? {self._role}s have {USUAL_PORTS[self._role]}"
        return f"is the {self._what} running there, or does a captive portal or a proxy answer in its place?"

    def not_resolved(self, reason: str) -> None:
        """Note that the host has no address."""
        self._complain(
            "unresolved",
            f"the name {self._host} cannot be resolved ({reason}); if the {self._what} has another name, "
            f"give it by --{self._what} HOST",
        )

    def not_known(self) -> None:
        """Note that the broker does not let our key in."""
        self._rejected = 0
        self._complain("unknown key", f"{self._at} does not know our key, or no longer, or not for this port")

    def refused(self, reason: str) -> None:
        """Note that the broker does not take us."""
        self._complain("refused", f"{self._at} refuses: {reason}", reason=reason)

    def not_understood(self, error: BadMessage) -> None:
        """Note that what the broker says makes no sense."""
        self._complain("nonsense", f"{self._at} does not speak as a broker does: {error}")

    def _complain(self, cause: str, text: str, **fields: str) -> None:
        """Log what keeps the link down: once until it is up again, but now and then if it stays so."""
        if text != self.trouble:
            self.trouble = text
            self._changed()
        now = self._loop.time()
        said = self._said.get(text)
        if (said is None and len(self._said) < COMPLAINTS) or (said is not None and now - said >= SAY_AGAIN_S):
            self._said[text] = now
            bound = logger.bind(event="link_down", broker=self._label, cause=cause, **fields)
            bound.warning("{}; retrying", text)

    def close(self) -> None:
        """Look no more."""
        self.handshake_ends()
        if self._looking is not None:
            self._looking.cancel()
