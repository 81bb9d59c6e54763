"""Sessions on the fabric: gives them messages, paths and the time; sends what they say; passes notices on.

One driver in each process, for all its carriers and peers. It holds no stream state.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from loguru import logger

from brokers import REVOKED, Buffer, Carrier, PeerInfo, Role
from goreprox.columns import counted
from goreprox.process.clock import clock
from goreprox.protocol.budget import Budget
from goreprox.protocol.events import Code
from goreprox.protocol.limits import PATH_ACK_DELAY_S, VERSION, VERSION_LEAST
from goreprox.protocol.session import PROTOCOL_ERROR, Kind, Notice, Session
from goreprox.protocol.state import State
from goreprox.protocol.stream import Stream
from goreprox.tunnel.attributes import machine_of, process_of, services_of

MAX_TIMER_S = 5.0
"""Timers of the loop do not count suspend: look at the clock at least so often."""
FORGET_S = 120.0
"""An empty session is kept so long after its grace: a peer that returns finds its ids remembered."""
MAX_ABSENT = 1024
"""So many peers without a path and streams are kept meanwhile: 12 KiB each, most of it what they said of themselves."""
OPENED, ACCEPTED, REFUSED, READABLE = Kind.OPENED, Kind.ACCEPTED, Kind.REFUSED, Kind.READABLE
"""Looked up once: an attribute of an enumeration costs ten times as much as a global."""


def common_version(versions: object) -> int | None:
    """Return the session version that we and a peer write, the lower of our newest ones; None if one is too old.

    `versions` is what the peer says of itself: the oldest and the newest that it understands.
    """
    match versions:
        case [int(least), int(most)] if max(least, VERSION_LEAST) <= min(most, VERSION):
            return min(most, VERSION)
    return None


class Application(Protocol):
    """What an edge or a provider does with sessions. Called from the loop; must not raise."""

    def stream_opened(self, peer: "Peer", stream: Stream) -> None:
        """A peer wants a stream."""

    def stream_accepted(self, peer: "Peer", stream: Stream) -> None:
        """A peer has reached the target of a stream."""

    def stream_refused(self, peer: "Peer", stream: Stream, code: Code, reason: str) -> None:
        """A peer cannot serve a stream, of which nothing has reached its target."""

    def stream_unsent(self, stream: Stream) -> None:
        """A stream is as if it had never been opened: its path was lost before anything of it was sent."""

    def stream_dropped(self, stream: Stream) -> None:
        """A stream without an owner is over."""

    def peer_changed(self, peer: "Peer") -> None:
        """A session began to flow or no longer does; a peer is draining, says something else of itself, or is gone."""


@dataclass(slots=True, eq=False)
class Peer:
    """A process at the other end, and our session with it."""

    info: PeerInfo
    session: Session
    epochs: dict[Carrier, int] = field(default_factory=dict)
    """Over which carriers it is up, at which epoch."""
    timer: asyncio.TimerHandle | None = None
    due: float = float("inf")
    up_at: float | None = None
    """When its streams began to flow, if they do."""
    gone: bool = False
    """It has said goodbye, or is forgotten: nothing more is expected of it."""
    id: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.id = self.info.name.id

    @property
    def services(self) -> list[str]:
        """What it offers, or listens for."""
        return services_of(self.info.attributes)

    @property
    def title(self) -> str:
        """What people are told who it is: its process, name, machine if that has another name, and id."""
        name, attributes = self.info.name, self.info.attributes
        process = process_of(attributes) or str(name.role)
        machine = machine_of(attributes)
        where = f" on {machine}" if machine not in (None, name.name) else ""
        return f"{process} {name.name}{where} ({name.incarnation.hex()[:8]})"

    @property
    def available(self) -> bool:
        """Whether it takes new streams at this moment."""
        return self.session.established and not self.session.peer_draining and not self.gone


class Driver:
    """The receiver of all carriers of a process (brokers.Receiver)."""

    def __init__(self, application: Application, *, role: Role, budget: Budget, grace_s: float) -> None:
        """Drive the sessions of an edge (which opens streams) or of a provider."""
        self.peers: dict[bytes, Peer] = {}
        self._application = application
        self._role = role
        self._budget = budget
        self._grace_s = grace_s
        self._loop = asyncio.get_running_loop()
        self._dirty: dict[bytes, Peer] = {}
        self._absent: dict[bytes, Peer] = {}
        """Those that left without a stream, the longest away first."""
        self._batching = False
        self._draining = False
        self._mismatched: set[bytes] = set()
        self._by_session: dict[Session, Peer] = {}
        self.carriers: set[Carrier] = set()
        """Those that are up."""

    # What carriers tell.

    def carrier_up(self, carrier: Carrier) -> None:
        """Remember it; peers are announced one by one."""
        self.carriers.add(carrier)

    def carrier_down(self, carrier: Carrier, reason: str) -> None:
        """Every path over this carrier is down."""
        self.carriers.discard(carrier)
        for peer_id in [peer_id for peer_id, peer in self.peers.items() if carrier in peer.epochs]:
            self.peer_down(carrier, peer_id, reason)

    def peer_up(self, carrier: Carrier, info: PeerInfo) -> None:
        """A path to a peer is there."""
        if info.name.role is self._role:
            return
        version = common_version(info.attributes.get("protocol"))
        if version is None:
            self._mismatch(info)
            return
        self._bury(info)
        peer = self.peers.get(info.name.id)
        if peer is None:
            peer = self.peers[info.name.id] = self._meet(info, version)
        peer.info = info
        self._absent.pop(peer.id, None)
        if peer.epochs.get(carrier) == info.epoch:
            self._application.peer_changed(peer)
            return
        peer.epochs[carrier] = info.epoch
        peer.session.path_up(carrier, clock())
        self._wake(peer)

    def _mismatch(self, info: PeerInfo) -> None:
        if info.name.id not in self._mismatched and len(self._mismatched) < 1024:
            self._mismatched.add(info.name.id)
            logger.warning(
                "{} {} speaks protocol versions {}, we speak {} to {}: upgrade the older one",
                str(info.name.role),
                info.name.name,
                info.attributes.get("protocol"),
                VERSION_LEAST,
                VERSION,
            )

    def _bury(self, info: PeerInfo) -> None:
        """A successor that holds its predecessor's lock proves it dead: its streams end now."""
        predecessor = info.attributes.get("predecessor")
        peer = self.peers.get(info.name.role.value + predecessor) if isinstance(predecessor, bytes) else None
        if peer is not None and peer.info.name.name == info.name.name:
            if peer.session.streams:
                logger.bind(event="peer_restarted", peer=info.name.name).warning(
                    "{} died and was restarted: {} reset", peer.title, counted(len(peer.session.streams), "stream")
                )
            self._drop(peer, "the process that owned the connection died")

    def _drop(self, peer: Peer, reason: str) -> None:
        """End a session and say nothing more in it: its peer is dead, or may come back with a new one."""
        now = clock()
        for carrier in peer.epochs:
            peer.session.path_down(carrier, now)
        peer.epochs.clear()
        peer.session.abandon(reason)
        self._notices(peer)
        self._forget(peer)

    def _forget(self, peer: Peer) -> None:
        """Know a peer no more, so that nothing happens to a later one of its id in its name."""
        peer.gone = True
        self._by_session.pop(peer.session, None)
        if peer.timer is not None:
            peer.timer.cancel()
        for known in (self.peers, self._dirty, self._absent):
            if known.get(peer.id) is peer:
                del known[peer.id]
        self._application.peer_changed(peer)

    def _meet(self, info: PeerInfo, version: int) -> Peer:
        peer: Peer

        def wake() -> None:
            self._wake(peer)

        session = Session(
            opener=self._role is Role.EDGE,
            version=version,
            budget=self._budget,
            grace_s=self._grace_s,
            wake=wake,
            now=clock(),
        )
        peer = self._by_session[session] = Peer(info, session)
        if self._draining:
            session.drain()
        return peer

    def peer_down(self, carrier: Carrier, peer_id: bytes, reason: str) -> None:
        """A path is gone."""
        peer = self.peers.get(peer_id)
        if peer is None or carrier not in peer.epochs:
            return
        if reason == REVOKED and len(peer.epochs) == 1:
            logger.bind(event="peer_revoked", peer=peer.info.name.name).warning(
                "the key of {} was revoked, or ours: {} reset", peer.title, counted(len(peer.session.streams), "stream")
            )
            self._drop(peer, "the key was revoked")
            return
        del peer.epochs[carrier]
        flowed = peer.session.established
        peer.session.path_down(carrier, clock())
        if peer.gone:
            if not peer.epochs:
                self._forget(peer)
            return
        if flowed and not peer.session.established:
            logger.bind(event="peer_down", peer=peer.info.name.name).info(
                "{} is out of reach ({}): {} kept for up to {:g} s",
                peer.title,
                reason,
                counted(len(peer.session.streams), "stream"),
                peer.session.grace_s,
            )
        self._wake(peer)
        if not peer.epochs and not peer.session.streams:
            self._absent[peer_id] = peer
            if len(self._absent) > MAX_ABSENT:
                self._forget(next(iter(self._absent.values())))
        self._application.peer_changed(peer)

    def message(self, carrier: Carrier, peer_id: bytes, frames: list[Buffer]) -> None:
        """A message for one of our sessions."""
        peer = self.peers.get(peer_id)
        if peer is not None:
            now = clock()
            try:
                peer.session.receive(carrier, frames, now)
                self._notices(peer)
                self._schedule(peer, now)
            except Exception as exc:  # noqa: BLE001
                self._fault(peer, exc)

    # What sessions want.

    def _wake(self, peer: Peer) -> None:
        if not self._dirty and not self._batching:
            self._loop.call_soon(self._flush)
        self._dirty[peer.id] = peer

    def batch(self, work: Callable[[], None]) -> None:
        """Do `work`, then send what the sessions want to say because of it."""
        self._batching = True
        try:
            work()
        finally:
            self._batching = False
            if self._dirty:
                self._flush()

    def _flush(self) -> None:
        """Once a turn, for all peers that have something to say."""
        dirty, self._dirty = self._dirty, {}
        now = clock()
        for peer in dirty.values():
            try:
                for carrier, frames in peer.session.flush(now):
                    carrier.send(peer.id, frames)  # type: ignore[attr-defined]
                self._notices(peer)
                self._schedule(peer, now)
            except Exception as exc:  # noqa: BLE001
                self._fault(peer, exc)

    def _fault(self, peer: Peer, exc: Exception) -> None:
        """End a session in which something of ours was left half done; the other peers are to notice nothing."""
        self._tell_fault(peer, exc)
        if peer.session.failed is None:
            peer.session.fail("a fault in this process, which is in its log", clock())
            self._notices(peer)

    def _tell_fault(self, peer: Peer, exc: Exception) -> None:
        self._loop.call_exception_handler({"message": f"serving {peer.info.name.name}", "exception": exc})

    def _schedule(self, peer: Peer, now: float) -> None:
        if peer.due <= now + PATH_ACK_DELAY_S:
            return  # soon enough: nothing that is to be done later than at once is due before
        due = peer.session.deadline()
        if due is None:
            due = float("inf") if peer.epochs else now + MAX_TIMER_S
        if due < peer.due:
            peer.due = due
            if peer.timer is not None:
                peer.timer.cancel()
            peer.timer = self._loop.call_later(min(max(due - now, 0.001), MAX_TIMER_S), self._tick, peer)

    def _tick(self, peer: Peer) -> None:
        now = clock()
        peer.timer, peer.due = None, float("inf")
        peer.session.tick(now)
        self._notices(peer)  # after a long sleep streams end in the same turn in which their session is forgotten
        lost_at = peer.session.lost_at
        if (
            not peer.epochs
            and not peer.session.streams
            and lost_at is not None
            and now - lost_at > self._grace_s + FORGET_S
        ):
            self._forget(peer)
            return
        self._wake(peer)

    def _notices(self, peer: Peer) -> None:
        session = peer.session
        while session.notices:
            notices, session.notices = session.notices, []
            for notice in notices:
                try:
                    self._notice(peer, notice)
                except Exception as exc:  # noqa: BLE001
                    self._tell_fault(peer, exc)

    def _notice(self, peer: Peer, notice: Notice) -> None:
        kind, stream = notice.kind, notice.stream
        if stream is None:
            self._session_notice(peer, notice)
        elif kind is READABLE and stream.owner is not None:
            stream.owner.notice(READABLE)
        elif kind is OPENED:
            if stream.state is not State.CLOSED:  # the same message may have ended it
                self._application.stream_opened(peer, stream)
        elif kind is ACCEPTED:
            self._application.stream_accepted(peer, stream)
        elif kind is REFUSED:
            self._application.stream_refused(peer, stream, notice.code, notice.reason)
        elif kind is Kind.UNSENT:
            self._application.stream_unsent(stream)
        elif stream.owner is not None:
            stream.owner.notice(kind)
        elif kind in (Kind.ABORTED, Kind.CLOSED):
            self._application.stream_dropped(stream)

    def _session_notice(self, peer: Peer, notice: Notice) -> None:
        session = peer.session
        streams = counted(len(session.streams), "stream")
        log = logger.bind(peer=peer.info.name.name)
        if notice.kind is Kind.ESTABLISHED:
            peer.up_at = clock()
        if notice.kind is Kind.ESTABLISHED and not session.counters.outages:
            log.bind(event="peer_up").info("{} is connected", peer.title)
        elif notice.kind is Kind.ESTABLISHED:
            log.bind(event="peer_up", outages=session.counters.outages).info(
                "{} is connected again: {} resumed, {} so far",
                peer.title,
                streams,
                counted(session.counters.outages, "outage"),
            )
        elif notice.kind is Kind.GOODBYE:
            peer.gone = not notice.reason.startswith(PROTOCOL_ERROR)
            log.bind(event="peer_left").info("{} has ended: {}", peer.title, notice.reason)
        elif notice.kind is Kind.DRAINING:
            log.bind(event="peer_draining").log(
                "INFO" if session.streams else "DEBUG", "{} is draining: it gets no new streams", peer.title
            )
        elif notice.kind is Kind.FAILED:
            log.bind(event="peer_failed").warning(
                "the session with {} has failed, its streams are reset: {}", peer.title, notice.reason
            )
        self._application.peer_changed(peer)

    # Shutdown.

    def drain(self) -> None:
        """Tell all peers that no new streams are wanted."""
        self._draining = True
        for peer in self.peers.values():
            peer.session.drain()

    @property
    def settled(self) -> bool:
        """Whether all peers that can be reached have acknowledged all that was said to them."""
        return all(peer.session.settled or peer.session.failed for peer in self.peers.values())

    async def goodbye(self, reason: str, *, deadline_s: float) -> None:
        """End all sessions, and wait for the peers' acknowledgements for at most `deadline_s`."""
        for peer in self.peers.values():
            peer.session.goodbye(reason)
        give_up = self._loop.time() + deadline_s
        while self._loop.time() < give_up and not self.settled:  # noqa: ASYNC110 -- at shutdown, bounded
            await asyncio.sleep(0.01)

    async def wait_empty(self, is_empty: Callable[[], bool], *, deadline_s: float) -> None:
        """Wait until `is_empty`, for at most `deadline_s`."""
        give_up = self._loop.time() + deadline_s
        while self._loop.time() < give_up and not is_empty():  # noqa: ASYNC110 -- at shutdown, bounded
            await asyncio.sleep(0.02)

    # What people are shown.

    @property
    def budget(self) -> Budget:
        """The memory of all streams."""
        return self._budget

    @property
    def draining(self) -> bool:
        """Whether we have asked for no new streams."""
        return self._draining

    def peer_of(self, stream: Stream) -> Peer | None:
        """Return the peer whose session carries `stream`, if one does."""
        host = stream.host
        return self._by_session.get(host) if isinstance(host, Session) else None
