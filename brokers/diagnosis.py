"""Why a link is down: found out, logged once, and kept for the status.

libzmq's events do not tell a web server from a broker with another key, or from one that goes away in mid-handshake.
The greeting of ZMTP (RFC 23) does, and a broker sends it to every client, before any key is checked. So a plain TCP
connection reads it, within a few seconds of the failure.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable
from typing import Final, NamedTuple

from loguru import logger

from brokers.causes import OF_PROXY, Cause
from brokers.errors import BadMessage
from brokers.limited_log import LimitedLog
from brokers.proxy import OpenError, Proxy, open_connection
from brokers.resolver import SocketAddress
from brokers.transport import Tls

PROBE_S: Final = 3.0
"""For the connection, if no proxy makes it, and again for the greeting."""
EXAMINE_AFTER_S: Final = 1.0
"""A handshake that takes longer is examined."""
EXAMINE_AGAIN_S: Final = 15.0
"""Between two probes while a link stays down: what responds may change."""
REJECTIONS: Final = 3
"""Failed handshakes with a peer that speaks ZMTP until the key is blamed: an outage may look the same."""
REPEAT_S: Final = 300.0
"""While the link stays down, its problems are logged again this often."""
PROBLEMS: Final = 16
"""Different problems logged in that time: a hostile broker may name any number of them."""
_SIGNATURE: Final = b"\xff\0\0\0\0\0\0\0\1\x7f"
_QUESTION: Final = _SIGNATURE + b"\3"
"""As much of a greeting as makes a ZMTP 3 peer send all of its own. A broker logs nothing about a connection that ends
here."""
_GREETING_BYTES: Final = 64
_MECHANISM: Final = slice(12, 32)
_TLS: Final = "TLS"
_PROTOCOLS: Final = {b"HTTP/": "HTTP", b"<": "HTTP", b"SSH-": "SSH", b"\x15\x03": _TLS}
"""How the responses of others to a greeting begin."""


class Finding(NamedTuple):
    """What a probe has found: a cause that may keep the link down, and details for people."""

    cause: Cause
    detail: str = ""


async def probe(address: SocketAddress, proxy: Proxy | None = None, tls: Tls | None = None) -> Finding:
    """Connect, read a greeting, and disconnect."""
    try:
        transport = await open_connection(address, proxy, tls, timeout_s=PROBE_S)
    except OpenError as exc:
        return Finding(exc.cause, str(exc))
    except TimeoutError:
        return Finding(Cause.UNREACHABLE, f"no response within {PROBE_S:g} s")
    except OSError as exc:
        return Finding(Cause.UNREACHABLE, os.strerror(exc.errno) if exc.errno else str(exc))
    response = memoryview(bytearray(_GREETING_BYTES))
    size = 0
    with contextlib.closing(transport):
        try:
            async with asyncio.timeout(PROBE_S):
                await transport.send_all(_QUESTION)
                while size < _GREETING_BYTES and (count := await transport.receive_into(response[size:])):
                    size += count
        except TimeoutError:
            if not size:
                return Finding(Cause.SILENT, "it sends nothing")
        except OSError:
            pass  # what it has sent tells more
    return _classify(bytes(response[:size]))


def _classify(response: bytes) -> Finding:
    if not response:
        return Finding(Cause.OTHER_PROTOCOL, "it disconnects")
    if response[0] != _SIGNATURE[0] or response[9:10] not in (b"", _SIGNATURE[9:]):
        protocol = next((name for start, name in _PROTOCOLS.items() if response.startswith(start)), "something else")
        cause = Cause.TLS_PORT if protocol == _TLS else Cause.OTHER_PROTOCOL
        return Finding(cause, f"it speaks {protocol}")
    match response[_MECHANISM].rstrip(b"\0"):
        case b"CURVE":
            return Finding(Cause.CURVE)
        case b"NULL":
            return Finding(Cause.PLAINTEXT)
        case b"":
            return Finding(Cause.UNREACHABLE, "the connection was lost")
        case _:
            return Finding(Cause.OTHER_PROTOCOL, "it speaks ZeroMQ with another security mechanism")


class Diagnosis:
    """Is told what happens to a link, probes the address where libzmq cannot tell why, and logs it."""

    def __init__(
        self,
        host: str,
        label: str,
        *,
        called: str,
        keyed: bool,
        advise: Callable[[Cause], str | None],
        changed: Callable[[], None],
        proxy: Proxy | None = None,
        tls: Tls | None = None,
    ) -> None:
        """Diagnose the link to the broker at `label`, on `host`, which is `called` so in texts.

        `keyed`: the link demands keys. `advise` returns what to do about a cause, if anything. `changed` is called with
        each change of `problem`. Probes go through `proxy`, if there is one, and speak `tls`.
        """
        self.proxy = proxy
        self._tls = tls
        self._advise = advise
        self._changed = changed
        self.problem: str | None = None
        """Why the link is down, for people; None if it is up, or nothing is known yet."""
        self._called = called
        self._at = f"the {called} at {label}"
        self._label = label
        self._host = host
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
        finding = await probe(address, self.proxy, self._tls)
        self._probing = None
        if self._probed_at is not None:  # the link has not come up meanwhile
            self._finding = finding
            self._explain(finding)

    def _explain(self, finding: Finding) -> None:
        match finding.cause:
            case cause if cause is Cause.UNREACHABLE or cause in OF_PROXY:
                self._report(cause, f"cannot reach {self._at}: {finding.detail}")
            case Cause.TLS | Cause.CERTIFICATE as cause:
                self._report(cause, f"no TLS with {self._at}: {finding.detail}")
            case Cause.SILENT if self._was_up:
                self._report(Cause.STALLED, f"{self._at} accepts connections but sends nothing")
            case Cause.SILENT | Cause.OTHER_PROTOCOL | Cause.TLS_PORT as cause:
                self._report(cause, f"no {self._called} responds at {self._label} ({finding.detail})")
            case Cause.PLAINTEXT if self._keyed:
                self._report(Cause.PLAINTEXT, f"{self._at} has no keys")
            case Cause.CURVE if not self._keyed:
                self._report(Cause.CURVE, f"{self._at} wants keys")
            case Cause.CURVE if self._rejections >= REJECTIONS:
                self._report(Cause.OTHER_KEY, f"{self._at} has another key than we expect")
            case _ if self._timed_out:
                self._report(Cause.SLOW, f"{self._at} does not finish the handshake in time")
            case _:
                pass  # the next handshake may well succeed

    def not_resolved(self, reason: str) -> None:
        """Note that the host has no address."""
        self._report(Cause.UNRESOLVED, f"the name {self._host} cannot be resolved ({reason})")

    def unreached(self, error: OpenError) -> None:
        """Note that we have not got a connection."""
        self._explain(Finding(error.cause, str(error)))

    def key_rejected(self) -> None:
        """Note that the broker rejected our key in the handshake."""
        self._rejections = 0
        self._report(Cause.UNKNOWN_KEY, f"{self._at} does not know our key, or no longer, or not for this port")

    def refused(self, reason: str) -> None:
        """Note that the broker refused our hello, or has revoked our key."""
        self._report(Cause.REFUSED, f"{self._at} refuses: {reason}", reason=reason)

    def not_understood(self, error: BadMessage) -> None:
        """Note that the broker sent a message that no broker would send."""
        self._report(Cause.MALFORMED, f"{self._at} sends malformed messages: {error}")

    def _report(self, cause: Cause, text: str, **fields: str) -> None:
        """Log what keeps the link down: once until it is up again, but now and then if it stays so."""
        advice = self._advise(cause)
        if advice is not None:
            text = f"{text}; {advice}"
        if text != self.problem:
            self.problem = text
            self._changed()
        self._log.say("link_down", f"{text}; retrying", broker=self._label, cause=cause.value, **fields)

    def close(self) -> None:
        """Stop examining."""
        self.handshake_ends()
        if self._probing is not None:
            self._probing.cancel()
