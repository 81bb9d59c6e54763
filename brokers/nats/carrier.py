"""A carrier over NATS: the messages, and the peers that are there, over one connection after the other.

All servers of a process are one carrier, as each of them reaches every peer: when one is lost, the next takes its
place, and sessions resume. Peers say that they are there; one that comes asks the others to say so at once. That nobody
receives a message any more the server itself tells.
"""

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import cbor2

from brokers.carrier import Buffer, LinkCondition, LinkState, Receiver, Timings
from brokers.causes import Cause
from brokers.diagnosis import Diagnosis
from brokers.envelope import REVOKED
from brokers.errors import BadMessage
from brokers.limited_log import LimitedLog
from brokers.nats import subjects
from brokers.nats.engine import Connection, Engine
from brokers.nats.frames import pack, unpack
from brokers.nats.roster import Down, Policy, Roster, Up
from brokers.nats.subjects import BYE, HERE, Station
from brokers.peers import PeerName
from brokers.proxy import OpenError

REFUSED_MAX_S: Final = 8.0
"""Between two attempts while our key is refused: that may change."""
LINGER_S: Final = 1.0
"""For our last words at a server that we leave."""
ANSWER_S: Final = 0.25
"""Between two signs of life that others have asked for, however many ask."""
CLEAN_PAUSE_S: Final = 1.0
"""A connection that lasted so long is replaced at once; after a shorter one there is a pause."""
_MESSAGE: Final = f"{subjects.PREFIX}.m."
_GONE: Final = f"{subjects.PREFIX}.gone."
_REVOKED: Final = f"{subjects.PREFIX}.revoked."


class NatsCarrier:
    """A carrier. All its methods belong to one event loop."""

    def __init__(
        self,
        name: PeerName,
        attributes: Mapping[str, object],
        engine: Engine,
        receiver: Receiver,
        policy: Policy,
        *,
        key: str = subjects.NO_KEY,
        timings: Timings | None = None,
        advise: Callable[[Cause], str | None] = lambda _cause: None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """Be `name`, with a public `key` in hexadecimal if there are keys, to the peers at `engine`; call `start`.

        `policy` knows which claims `attributes` need. `changed` is called when the carrier comes up, and when there is
        another reason why it is down; log lines say what to do about one if `advise` returns something.
        """
        self.label = engine.label
        self.state = LinkState.DOWN
        self._name, self._key = name, key
        self._attributes = attributes
        self._engine = engine
        self._receiver = receiver
        self._policy = policy
        self._timings = timings or Timings()
        self._roster = Roster(self._timings.lease_s, policy)
        self._loop = asyncio.get_running_loop()
        self._log = LimitedLog()
        self._diagnosis = Diagnosis(
            self.label, self.label, called="NATS server", keyed=key != subjects.NO_KEY, advise=advise, changed=changed
        )
        self._station = Station(name, key, 0)
        self._connection: Connection | None = None
        self._lost: asyncio.Event = asyncio.Event()
        self._why = ""
        self._allowed: frozenset[str] | None = None
        """Claims that our key has; None: any, as there are no keys."""
        self._recheck = False
        """Whether the server has denied something, or we announce something new."""
        self._due = asyncio.Event()
        """Whether a sign of life is due before its time."""
        self._answered_at = 0.0
        self._task: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        """Connections that are being closed."""

    @property
    def up(self) -> bool:
        """Whether we are connected, and may be there."""
        return self.state is LinkState.UP

    @property
    def problem(self) -> str | None:
        """Why the carrier is down, for people; None if it is up, or nothing is known yet."""
        return self._diagnosis.problem

    @property
    def since_s(self) -> float:
        """For how long it has been up, or down."""
        return self._loop.time() - self._diagnosis.since

    @property
    def identity(self) -> None:
        """Nothing: each connection is another one to peers."""

    @property
    def proxied(self) -> None:
        """Nothing: NATS servers are reached directly."""

    def start(self) -> None:
        """Connect, and do so again until it is closed."""
        self._task = self._loop.create_task(self._run(), name=f"carrier {self.label}")

    def send(self, peer_id: bytes, frames: Sequence[Buffer]) -> bool:
        """Send without blocking; False if the peer is not there, or too much waits already."""
        place = self._roster.place_of(peer_id)
        if place is None or self._connection is None:
            return False
        subject, gone = self._station.message_to(place), self._station.gone(place)
        return self._connection.publish(subject, pack(frames), reply=gone)

    def link_condition(self, peer_id: bytes) -> LinkCondition | None:
        """Return None: what is between us and the peer is a network of servers."""
        return None

    def announce(self, attributes: Mapping[str, object]) -> None:
        """Replace our attributes, now and in later signs of life."""
        self._attributes, self._recheck = attributes, True
        self._due.set()

    async def close(self, *, linger_s: float) -> None:
        """Leave; what was sent has `linger_s` seconds to go out."""
        task, self._task = self._task, None
        if task is None:
            return
        self.state = LinkState.DOWN
        self._end(linger_s=linger_s)
        task.cancel()
        await asyncio.wait([task, *self._closing])
        self._diagnosis.close()

    # One connection after the other.

    async def _run(self) -> None:
        failures = 0
        while True:
            began = self._loop.time()
            self._lost.clear()
            self._station = Station(self._name, self._key, max(int(began * 1e6), self._station.number + 1))
            refused = False
            try:
                self._connection = await self._engine.connect(self._station.subscriptions, self._station.inbox, self)
                await self._serve(self._connection)
            except OpenError as exc:
                refused = exc.cause is Cause.REFUSED
                self._down(str(exc))
                if refused:
                    self._diagnosis.refused(str(exc))
                else:
                    self._diagnosis.unreached(exc)
            except Exception as exc:  # noqa: BLE001 -- a fault of ours ends one connection, not all that follow
                self._down("a fault in this process, which is in its log")
                self._loop.call_exception_handler({"message": f"serving {self.label}", "exception": exc})
            self._end()
            failures = 0 if self._loop.time() - began >= CLEAN_PAUSE_S and not refused else failures + 1
            most_s = REFUSED_MAX_S if refused else self._timings.reconnect_max_s
            pause_s = min(self._timings.reconnect_min_s * 2 ** min(failures, 16), most_s)
            await asyncio.sleep(pause_s * random.uniform(0.8, 1.0) if failures else 0)

    async def _serve(self, connection: Connection) -> None:
        """Be there until the connection is lost.

        Raises:
            OpenError: our key does not allow what we announce, or the server does not say.
        """
        await self._check_claims(connection)
        self.state = LinkState.UP
        self._diagnosis.up()
        self._receiver.carrier_up(self)
        self._say(asks=True)
        checks = self._loop.create_task(self._keep_checking(connection), name=f"check {self.label}")
        try:
            while not self._lost.is_set():
                self._due.clear()
                if not self._lost.is_set():
                    await self._wait_due()
                if self._recheck and not self._lost.is_set():
                    await self._check_claims(connection)
                self._say(asks=False)
                for down in self._roster.expire(self._loop.time()):
                    self._tell(down)
        finally:
            checks.cancel()
        self._down(self._why)
        self._diagnosis.lost(self._why)

    async def _wait_due(self) -> None:
        try:
            async with asyncio.timeout(self._timings.renew_s * random.uniform(0.8, 1.0)):
                await self._due.wait()
        except TimeoutError:
            return
        pause_s = self._answered_at + ANSWER_S - self._loop.time()
        if pause_s > 0 and not self._lost.is_set():
            await asyncio.sleep(pause_s)
        self._answered_at = self._loop.time()

    async def _check_claims(self, connection: Connection) -> None:
        """Ask the server what our key allows.

        Raises:
            OpenError: it does not allow what we announce, or the server does not say.
        """
        self._recheck = False
        if self._key != subjects.NO_KEY:
            allowed = await connection.allowed()
            self._allowed = None if allowed is None else subjects.allowed_claims(self._station, allowed)
            if allowed is None:
                raise OpenError(Cause.REFUSED, "it lets this key say anything; give it `goreprox keys nats-config`")
        claims = self._policy.claims(self._attributes, self._allowed)
        if isinstance(claims, str):
            raise OpenError(Cause.REFUSED, claims)

    async def _keep_checking(self, connection: Connection) -> None:
        """Take a server that does not respond for lost."""
        while True:
            await asyncio.sleep(self._timings.renew_s)
            try:
                await connection.check(self._timings.lease_s)
            except TimeoutError:
                self.lost("the server is silent")
                return

    def _say(self, *, asks: bool) -> None:
        """Say that we are there; what does not go out is repeated."""
        claims = self._policy.claims(self._attributes, self._allowed)
        if self._connection is None or isinstance(claims, str):
            return
        for claim in claims:
            self._connection.publish(self._station.hi(claim), ())
        self._connection.publish(self._station.hi(HERE), (cbor2.dumps([asks, self._attributes]),))

    def _end(self, *, linger_s: float = LINGER_S) -> None:
        """Leave and disconnect, without waiting for it."""
        connection, self._connection = self._connection, None
        self._roster.clear()
        if connection is not None:
            connection.publish(self._station.hi(BYE), ())
            task = self._loop.create_task(connection.close(linger_s=linger_s), name=f"close {self.label}")
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _down(self, reason: str) -> None:
        if self.state is LinkState.UP:
            self.state = LinkState.DOWN
            self._receiver.carrier_down(self, reason)

    # Events of the connection (engine.Listener).

    def lost(self, reason: str) -> None:
        """Let the next server take the place of this one."""
        if not self._lost.is_set():
            self._why = reason
            self._lost.set()
            self._due.set()

    def denied(self) -> None:
        """Ask again what we may do: that has changed, or a server is configured otherwise."""
        self._log.say("nats_denied", f"the NATS servers at {self.label} denied something to us; asking what we may do")
        self._recheck = True
        self._due.set()

    def received(self, subject: str, payload: bytes) -> None:
        """Pass on a message, or what a sign of life says."""
        if self.state is not LinkState.UP:
            return
        try:
            if subject.startswith(_MESSAGE):
                self._message(subject, payload)
            elif subject.startswith(_GONE):
                self._tell(self._roster.nobody_at(subject[len(_GONE) + len(self._station.place) + 1 :]))
            elif subject.startswith(_REVOKED):
                self._revoked(*subject[len(_REVOKED) :].split("."))
            else:
                self._tell(self._roster.heard(subject, payload, self._loop.time()))
        except BadMessage as exc:
            self._log.say("nats_message", f"ignoring a malformed message at {self.label}: {exc}")

    def _message(self, subject: str, payload: bytes) -> None:
        peer_id = self._roster.at(subject[len(_MESSAGE) + len(self._station.place) + 1 :])
        if peer_id is not None:
            self._receiver.message(self, peer_id, unpack(payload))

    def _revoked(self, role: str, name: str) -> None:
        if (role, name) == (self._name.role.value.decode(), subjects.token(self._name.name)):
            self._down(REVOKED)
            self.lost("our key was revoked")
            return
        for peer_id in self._roster.named(role, name):
            self._tell(self._roster.leave(peer_id, REVOKED))

    def _tell(self, event: Up | Down | None) -> None:
        match event:
            case Up(info, asks):
                self._receiver.peer_up(self, info)
                if asks:
                    self._due.set()
            case Down(peer_id, reason):
                self._receiver.peer_down(self, peer_id, reason)
            case None:
                pass
