"""Runs the sessions of a process on the fabric: one session for each peer, over all carriers that reach it.

It gives sessions messages, paths and the time, sends their messages, and passes their notices on to the owners of
streams and to the application. What a stream holds is the session's matter. What a session goes through, its way to
another process included, is all here, hence so long.
"""

import asyncio
from collections.abc import Callable, Iterator
from typing import Protocol

from brokers import REVOKED, BadName, Buffer, Carrier, LimitedLog, PeerInfo, PeerName, Role
from goreprox.config.published import GRANTED, MAX_NAMES
from goreprox.process.clock import clock
from goreprox.process.feed import Feed
from goreprox.protocol.budget import Budget
from goreprox.protocol.errors import ExportError
from goreprox.protocol.events import Code
from goreprox.protocol.export import export_session, restore_session
from goreprox.protocol.fields import Fields
from goreprox.protocol.limits import IN_FLIGHT_MIN, PATH_ACK_DELAY_S
from goreprox.protocol.notices import Kind, Notice
from goreprox.protocol.path import Path
from goreprox.protocol.paths import rank
from goreprox.protocol.session import PROTOCOL_ERROR, Session
from goreprox.protocol.state import State
from goreprox.protocol.stream import Host, Stream
from goreprox.protocol.totals import EndCode
from goreprox.tunnel.peer import Peer, common_version
from goreprox.tunnel.peer_log import PeerLog, log_incompatible

MAX_TIMER_S = 5.0
"""Timers of the loop stand still during suspend: look at the clock at least this often."""
FORGET_S = 120.0
"""How long a session without streams is kept after its grace, so that a peer that returns can resume it."""
MAX_ABSENT = 1024
"""How many such sessions are kept: 12 KiB each, most of it the peer's attributes."""
OPENED, ACCEPTED, REFUSED, READABLE = Kind.OPENED, Kind.ACCEPTED, Kind.REFUSED, Kind.READABLE
"""Looked up once: an attribute of an enum costs ten times as much as a global."""


class Application(Protocol):
    """What an edge or a provider does for its sessions. An exception is logged, and what it left undone stays so."""

    def stream_opened(self, peer: Peer, stream: Stream) -> None:
        """Serve a stream that a peer has opened: `accept` or `refuse` it."""

    def stream_accepted(self, peer: Peer, stream: Stream) -> None:
        """Take note that the provider has connected to the target of a stream."""

    def stream_refused(self, peer: Peer, stream: Stream, code: Code, reason: str) -> None:
        """Find another provider for a stream of which nothing has reached a target."""

    def stream_unsent(self, stream: Stream) -> None:
        """Find a provider for a stream whose path was lost before its Open was sent."""

    def stream_dropped(self, stream: Stream) -> None:
        """Forget a stream that ended before it had an owner."""

    def peer_changed(self, peer: Peer) -> None:
        """Take note that a peer is connected, disconnected, draining or gone, or has new attributes."""


class Driver:
    """Receives from all carriers of a process (brokers.Receiver), and owns its peers.

    It has a method for each event of a carrier and for each step of a session's life, hence so many.
    """

    def __init__(self, application: Application, *, role: Role, budget: Budget, grace_s: float) -> None:
        """Run the sessions of an edge, which opens streams, or of a provider."""
        self.peers: dict[bytes, Peer] = {}
        self.carriers: set[Carrier] = set()
        """Those that are connected to their broker."""
        self.budget = budget
        """The memory of all streams."""
        self.draining = False
        """Whether we have asked for no new streams."""
        self.own_id = b""
        """Our id as a peer, from which it follows which path an edge prefers to each provider."""
        self._application = application
        self._role = role
        self.grace_s = grace_s
        self._loop = asyncio.get_running_loop()
        self._dirty: dict[bytes, Peer] = {}
        """Peers whose sessions have something to send in this turn of the loop."""
        self._absent: dict[bytes, Peer] = {}
        """Peers without a path and without streams, the one that left first in front."""
        self._batching = False
        self._log = LimitedLog()
        self.feed = Feed()
        """What happens to links, peers and streams."""
        self._peer_log = PeerLog(self.feed)
        self._by_host: dict[Host, Peer] = {}

    def set_grace(self, grace_s: float) -> None:
        """Keep streams for `grace_s` in the epochs that begin from now on."""
        self.grace_s = grace_s
        for peer in self.peers.values():
            peer.session.set_grace(grace_s)

    # Events of carriers (brokers.Receiver).

    def carrier_up(self, carrier: Carrier) -> None:
        """Add a carrier; its peers follow by `peer_up`."""
        self.carriers.add(carrier)
        self._peer_log.link_up(carrier)

    def carrier_down(self, carrier: Carrier, reason: str) -> None:
        """Remove a carrier, and with it a path to each peer that it reached."""
        if carrier in self.carriers:
            self.carriers.remove(carrier)
            self._peer_log.link_lost(carrier, reason)
        for peer_id in [peer_id for peer_id, peer in self.peers.items() if carrier in peer.epochs]:
            self.peer_down(carrier, peer_id, reason)

    def peer_up(self, carrier: Carrier, info: PeerInfo) -> None:
        """Add a path to a peer, or take its new attributes; one that announces no version has no sessions."""
        if info.name.role is self._role or "protocol" not in info.attributes:
            return
        version = common_version(info.attributes.get("protocol"))
        if version is None:
            log_incompatible(self._log, info)
            return
        self._bury(info)
        peer = self.peers.get(info.name.id)
        if peer is not None and peer.info.name != info.name:
            return  # an incarnation of another key: who knows it gets no session that is not its own
        if peer is None:
            peer = self._meet(
                info,
                lambda wake: Session(
                    opener=self._role is Role.EDGE,
                    version=version,
                    budget=self.budget,
                    grace_s=self.grace_s,
                    wake=wake,
                    now=clock(),
                ),
            )
        peer.info = info
        peer.granted[carrier] = info.attributes.get(GRANTED)
        self._absent.pop(peer.id, None)
        if peer.epochs.get(carrier) != info.epoch:
            peer.epochs[carrier] = info.epoch
            now = clock()
            peer.session.path_up(carrier, now, rank=self._rank(carrier, peer))
            self._schedule(peer, now)
        self._application.peer_changed(peer)

    def _rank(self, carrier: Carrier, peer: Peer) -> int:
        """Return how much we prefer a path: only edges do, since the two ends know a broker by different addresses."""
        return 0 if self._role is Role.PROVIDER else rank(self.own_id, peer.id, carrier.label)

    def _bury(self, info: PeerInfo) -> None:
        """End the session with the predecessor of a peer, which has proven by its lock that the predecessor is dead."""
        predecessor = info.attributes.get("predecessor")
        peer = self.peers.get(info.name.role.value + predecessor) if isinstance(predecessor, bytes) else None
        if peer is not None and peer.info.name.name == info.name.name:
            self._peer_log.restarted(peer)
            self._drop(peer, "the process that owned the connection died", EndCode.PEER_DIED)

    def _drop(self, peer: Peer, reason: str, code: EndCode) -> None:
        """End a session and send nothing more in it: the peer is dead, or may come back with a new session."""
        now = clock()
        for carrier in peer.epochs:
            peer.session.path_down(carrier, now)
        peer.epochs.clear()
        peer.session.abandon(reason, code)
        self._notices(peer)
        self._forget(peer)

    def _forget(self, peer: Peer) -> None:
        """Remove a peer, so that nothing that is still due for it happens to a later peer with its id."""
        peer.gone = True
        self._by_host.pop(peer.session.multiplexer, None)
        if peer.timer is not None:
            peer.timer.cancel()
        for known in (self.peers, self._dirty, self._absent):
            if known.get(peer.id) is peer:
                del known[peer.id]
        self._application.peer_changed(peer)

    def _meet(self, info: PeerInfo, make: Callable[[Callable[[], None]], Session]) -> Peer:
        """Add a peer with the session that `make(wake)` returns."""
        peer: Peer

        def wake() -> None:
            self._wake(peer)

        session = make(wake)
        peer = self.peers[info.name.id] = self._by_host[session.multiplexer] = Peer(info, session)
        if self.draining:
            session.drain()
        return peer

    def peer_down(self, carrier: Carrier, peer_id: bytes, reason: str) -> None:
        """Remove a path to a peer."""
        peer = self.peers.get(peer_id)
        if peer is None or carrier not in peer.epochs:
            return
        if reason == REVOKED and len(peer.epochs) == 1:
            self._peer_log.revoked(peer)
            peer.revoked = True
            self._drop(peer, "the key was revoked", EndCode.REVOKED)
            return
        del peer.epochs[carrier]
        peer.granted.pop(carrier, None)
        flowed = peer.session.established
        peer.session.path_down(carrier, clock())
        if peer.gone:
            if not peer.epochs:
                self._forget(peer)
            return
        if flowed and not peer.session.established:
            self._peer_log.lost(peer, reason)
        self._wake(peer)
        if not peer.epochs and not peer.session.streams:
            self._absent[peer_id] = peer
            if len(self._absent) > MAX_ABSENT:
                self._forget(next(iter(self._absent.values())))
        self._application.peer_changed(peer)

    def message(self, carrier: Carrier, peer_id: bytes, frames: list[Buffer]) -> None:
        """Give a message to the session that it is for."""
        peer = self.peers.get(peer_id)
        if peer is not None:
            now = clock()
            try:
                peer.session.receive(carrier, frames, now)
                self._notices(peer)
                self._schedule(peer, now)
            except Exception as exc:  # noqa: BLE001 -- a fault of ours ends one session, not all
                self._fault(peer, exc)

    # Work of sessions.

    def _wake(self, peer: Peer) -> None:
        if not self._dirty and not self._batching:
            self._loop.call_soon(self._flush)
        self._dirty[peer.id] = peer

    def batch(self, work: Callable[[], None]) -> None:
        """Do `work`, then send all that the sessions have to send because of it."""
        self._batching = True
        try:
            work()
        finally:
            self._batching = False
            if self._dirty:
                self._flush()

    def _flush(self) -> None:
        """Send the messages of all sessions that have some, once in a turn of the loop."""
        dirty, self._dirty = self._dirty, {}
        now = clock()
        for peer in dirty.values():
            try:
                path = peer.session.epochs.path
                if path is not None and path.in_flight > IN_FLIGHT_MIN:
                    _follow_link(peer, path)
                for carrier, frames in peer.session.flush(now):
                    carrier.send(peer.id, frames)  # type: ignore[attr-defined] # opaque to sessions, so an object
                self._notices(peer)
                self._schedule(peer, now)
            except Exception as exc:  # noqa: BLE001 -- a fault of ours ends one session, not all
                self._fault(peer, exc)

    def _fault(self, peer: Peer, exc: Exception) -> None:
        """End a session that an error of ours left half done, so that the other peers notice nothing."""
        self._report_fault(peer, exc)
        if peer.session.failed is None:
            peer.session.fail("a fault in this process, which is in its log", clock())
            self._notices(peer)

    def _report_fault(self, peer: Peer, exc: Exception) -> None:
        self._loop.call_exception_handler({"message": f"serving {peer.info.name.name}", "exception": exc})

    def _schedule(self, peer: Peer, now: float) -> None:
        if peer.due <= now + PATH_ACK_DELAY_S:
            return  # nothing but what is due at once comes earlier
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
        self._notices(peer)  # after a long suspend, streams end in the turn in which their session is forgotten
        lost_at = peer.session.epochs.lost_at
        if (
            not peer.epochs
            and not peer.session.streams
            and lost_at is not None
            and now - lost_at > self.grace_s + FORGET_S
        ):
            self._forget(peer)
            return
        self._wake(peer)

    def _notices(self, peer: Peer) -> None:
        notices = peer.session.notices
        while notices:
            try:
                self._notice(peer, notices.popleft())
            except Exception as exc:  # noqa: BLE001 -- a fault of ours concerns one stream, not all
                self._report_fault(peer, exc)

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
        elif kind is REFUSED or kind is Kind.UNSENT:
            if stream.state is State.CLOSED:
                return  # its client has gone since: nobody may open it again
            if kind is REFUSED:
                self._application.stream_refused(peer, stream, notice.code, notice.reason)
            else:
                self._application.stream_unsent(stream)
        elif stream.owner is not None:
            stream.owner.notice(kind)
        elif kind in (Kind.ABORTED, Kind.CLOSED):
            self._application.stream_dropped(stream)

    def _session_notice(self, peer: Peer, notice: Notice) -> None:
        if notice.kind is Kind.ESTABLISHED:
            peer.up_at = clock()
            peer.served.clear()
        elif notice.served is not None:
            if len(peer.served) < MAX_NAMES or notice.served.service in peer.served:
                peer.served[notice.served.service] = notice.served
        elif notice.kind is Kind.GOODBYE:
            peer.gone = not notice.reason.startswith(PROTOCOL_ERROR)
        self._peer_log.notice(peer, notice)
        self._application.peer_changed(peer)

    # Upgrade.

    def leave(self, reason: str) -> None:
        """Leave all paths, as in an outage, so that the sessions can be exported."""
        for carrier in list(self.carriers):
            self.carrier_down(carrier, reason)

    def export(self, *, payload: bool) -> Iterator[object]:
        """Yield the sessions for the code that takes over; with `payload` they are of no use any more.

        Those that have ended for good are left out.
        """
        peers = [peer for peer in self.peers.values() if not peer.gone]
        yield {
            "told_bytes": self.budget.told_bytes,
            "max_streams": self.budget.max_streams,
            "totals": self.budget.totals.export(),
            "draining": self.draining,
            "events": self.feed.count,
            "peers": len(peers),
        }
        for peer in peers:
            name = peer.info.name
            yield {
                "role": name.role.value,
                "name": name.name,
                "incarnation": name.incarnation,
                "epoch": peer.info.epoch,
                "attributes": peer.info.attributes,
                "address": peer.info.address,
            }
            yield from export_session(peer.session, payload=payload)
            if payload and peer.timer is not None:
                peer.timer.cancel()

    def restore(self, items: Iterator[object]) -> None:
        """Go on with the sessions that come next in `items`.

        Raises:
            ExportError: they are not what `export` yields.
        """
        head = Fields(next(items, None))
        self.budget.take_over(told_bytes=head.count("told_bytes"), max_streams=head.count("max_streams"))
        self.draining = head.by_text().get("draining") is True
        self.feed.count = head.count_or_none("events") or 0
        if (totals := head.fields_or_none("totals")) is not None:
            self.budget.totals.take_over(totals)
        for _ in range(head.count("peers")):
            peer = self._meet(
                _restored_info(Fields(next(items, None))),
                lambda wake: restore_session(
                    items,
                    opener=self._role is Role.EDGE,
                    budget=self.budget,
                    grace_s=self.grace_s,
                    wake=wake,
                    now=clock(),
                ),
            )
            if not peer.session.streams:
                self._absent[peer.id] = peer
            self._wake(peer)

    # Shutdown.

    def drain(self) -> None:
        """Ask all peers for no new streams, those that are met later, too. Idempotent."""
        if self.draining:
            return
        self.draining = True
        for peer in self.peers.values():
            peer.session.drain()

    @property
    def settled(self) -> bool:
        """Whether all peers that can be reached have acknowledged all that we sent."""
        return all(peer.session.settled or peer.session.failed for peer in self.peers.values())

    async def goodbye(self, reason: str, *, deadline_s: float) -> None:
        """End all sessions, and wait for the peers' acknowledgements for at most `deadline_s`."""
        for peer in self.peers.values():
            peer.session.goodbye(reason)
        await wait_until(lambda: self.settled, deadline_s=deadline_s)

    @property
    def services(self) -> set[str]:
        """The services of all streams."""
        return {stream.service for peer in self.peers.values() for stream in peer.session.streams.values()}

    def peer_of(self, stream: Stream) -> Peer | None:
        """Return the peer whose session carries `stream`, if one does."""
        return None if stream.host is None else self._by_host.get(stream.host)


def _restored_info(fields: Fields) -> PeerInfo:
    try:
        name = PeerName(Role(fields.data("role")), fields.text("name"), fields.data("incarnation"))
    except (ValueError, BadName) as exc:
        raise ExportError(f"a peer in the export: {exc}") from exc
    attributes = fields.fields("attributes").by_text()
    return PeerInfo(name, fields.count("epoch"), attributes, fields.text_or_none("address"))


async def wait_until(is_so: Callable[[], bool], *, deadline_s: float) -> None:
    """Wait for a condition of a process that is shutting down, for at most `deadline_s`."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + deadline_s
    while loop.time() < give_up and not is_so():  # noqa: ASYNC110 -- depends on every stream; polled only at shutdown
        await asyncio.sleep(0.01)


def _follow_link(peer: Peer, path: Path) -> None:
    carrier: Carrier = path.path_id  # type: ignore[assignment] # opaque to sessions, so an object
    condition = carrier.link_condition(peer.id)
    if condition is not None:
        path.congestion.link(unsent_bytes=condition.unsent_bytes, round_trip_s=condition.round_trip_s)
