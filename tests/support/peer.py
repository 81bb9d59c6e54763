"""The far end of a session, played by a test."""

from goreprox.protocol import wire
from goreprox.protocol.budget import Budget
from goreprox.protocol.congestion import LEAST_QUEUE_S, Congestion
from goreprox.protocol.events import (
    Accept,
    Batch,
    Event,
    Live,
    Open,
    Resume,
)
from goreprox.protocol.limits import MIB
from goreprox.protocol.notices import Kind, Notice
from goreprox.protocol.session import Session
from goreprox.protocol.stream import Stream

GRACE_S = 60.0
WINDOW = 1 << 30


def hello(*lives: Live, next_id: int = 1, last: bool = True, grace_s: float = GRACE_S) -> Resume:
    return Resume(grace_s, WINDOW, next_id, last, lives)


def live(stream: int, *, accepted: bool = True, received: int = 0, delivered: int = 0, eof: bool = False) -> Live:
    return Live(stream, accepted, received, delivered, WINDOW, eof)


def establish(session: Session, *events: Event, path: object = "a", now: float = 0.0) -> None:
    """Begin an epoch on this path, and play the peer's part in it: its page, then `events`."""
    session.path_up(path, now)
    ((_, frames),) = session.flush(now)
    _, batch = wire.decode(frames)
    session.receive(path, wire.encode(Batch(batch.epoch, 0, 1, (hello(), *events)), version=1), now)


class Peer:
    """The far end of a session under test. It numbers and acknowledges as a peer does, and says what it is told to."""

    def __init__(self, *, opener: bool = True, memory: int = 64 * MIB, max_streams: int = 64) -> None:
        self.now = 0.0
        self.budget = Budget(total_bytes=memory, max_streams=max_streams)
        self.wakes = 0
        self.session = Session(opener=opener, version=1, budget=self.budget, grace_s=GRACE_S, wake=self.woken, now=0.0)
        self.epoch = self.seq = self.received = 0
        self.acked = 0
        self.path: object = None

    @property
    def path_in_use(self) -> object:
        return None if self.session.path is None else self.session.path.path_id

    def woken(self) -> None:
        self.wakes += 1

    def heard(self) -> list[Event]:
        """Take what the session sends now."""
        events: list[Event] = []
        for path, frames in self.session.flush(self.now):
            _, batch = wire.decode(frames)
            if batch.epoch != self.epoch:
                self.epoch, self.seq, self.received = batch.epoch, 0, 0
            assert batch.seq == self.received
            self.received += bool(batch.events)
            self.acked = batch.ack
            self.path = path
            events += batch.events
        return events

    def say(self, *events: Event, path: object = "a", seq: int | None = None) -> None:
        batch = Batch(self.epoch, self.seq if seq is None else seq, self.received, events)
        self.seq += bool(events)
        self.session.receive(path, wire.encode(batch, version=1), self.now)

    def begin(self, *events: Event, epoch: int, path: object = "a") -> None:
        """Begin an epoch of the peer's."""
        self.epoch, self.seq, self.received = epoch, 0, 0
        self.say(*events, path=path)

    def connect(self, *lives: Live, next_id: int = 1) -> list[Event]:
        """Bring a path up, resume, and return what the session says in this epoch."""
        self.session.path_up("a", self.now)
        events = self.heard()
        self.say(hello(*lives, next_id=next_id))
        return events + self.heard()

    def notices(self) -> list[Notice]:
        notices = list(self.session.notices)
        self.session.notices.clear()
        return notices

    def kinds(self) -> list[Kind]:
        return [notice.kind for notice in self.notices()]

    def open(self) -> Stream:
        stream = Stream(opener=True, service="web", client="test", budget=self.budget)
        self.session.open(stream)
        return stream


def edge() -> Peer:
    """Give the peer of an opener, connected."""
    peer = Peer(opener=True)
    peer.connect()
    peer.notices()
    return peer


def provider() -> Peer:
    """Give the peer of an acceptor, connected."""
    peer = Peer(opener=False)
    peer.connect()
    peer.notices()
    return peer


def opened() -> tuple[Peer, Stream]:
    """Give the peer of an opener, and a stream that was accepted."""
    peer = edge()
    stream = peer.open()
    peer.heard()
    peer.say(Accept(1, WINDOW))
    peer.notices()
    return peer, stream


def accepted() -> tuple[Peer, Stream]:
    """Give the peer of an acceptor, and a stream whose target responded."""
    peer, stream = dialing()
    stream.accept()
    peer.heard()
    return peer, stream


def dialing() -> tuple[Peer, Stream]:
    """Give the peer of an acceptor, and a stream whose target was not reached yet."""
    peer = provider()
    peer.say(Open(1, "web", "test", "", WINDOW))
    (notice,) = peer.notices()
    assert notice.kind is Kind.OPENED
    assert notice.stream is not None
    return peer, notice.stream


def failure(peer: Peer) -> str:
    """Give why the session failed; it told so last."""
    notice = peer.notices()[-1]
    assert notice.kind is Kind.FAILED
    assert peer.session.failed == notice.reason
    return notice.reason


def congestion(bound_bytes: int, now: float = 0.0) -> Congestion:
    """Return one that lets so many bytes be in flight, as if it had been measured."""
    measured = Congestion(now)
    rate = (bound_bytes + 0.5) / 2 / LEAST_QUEUE_S  # half a byte more, as it is rounded down
    measured.acknowledged(LEAST_QUEUE_S, rate, limited=False, now=now)
    return measured


def bound(peer: Peer, bound_bytes: int) -> None:
    """Let so many bytes be in flight."""
    path = peer.session.path
    assert path is not None
    path.congestion = congestion(bound_bytes, peer.now)
