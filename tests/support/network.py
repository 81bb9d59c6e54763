"""A network for two sessions on virtual time, with every fault a fabric may have; deterministic from its seed."""

import functools
import random
from collections import deque
from collections.abc import Hashable

import cbor2

from goreprox.process.handover import moved
from goreprox.protocol.budget import Budget
from goreprox.protocol.events import Buffer, Code
from goreprox.protocol.export import export_session, restore_session
from goreprox.protocol.notices import Kind
from goreprox.protocol.session import Session
from goreprox.protocol.state import State
from goreprox.protocol.stream import Stream

KIB = 1024


def pattern(seed: int, start: int, count: int) -> bytes:
    """Return bytes `start` to `start + count` of an endless text that no other seed has."""
    offset = start % 251
    return (_period(seed % 251) * (2 + count // 251))[offset : offset + count]


@functools.cache
def _period(seed: int) -> bytes:
    return bytes((seed * 7 + i * 31 + (i >> 3)) % 251 for i in range(251))


class Socket:
    """What a bridge is to a stream, with a far end that the test plays: it writes, reads, half-closes and resets."""

    def __init__(self, stream: Stream, seed: int) -> None:
        self.stream = stream
        self.seed = seed
        self.written = 0
        self.eof_written = False
        self.read = bytearray()
        self.eof_read = False
        self.was_reset = False
        """The far end saw a reset that it did not make."""
        self.did_reset = False
        self.reset_pending = False
        stream.owner = self

    @property
    def over(self) -> bool:
        return self.was_reset or self.did_reset or (self.eof_written and self.eof_read)

    def write(self, count: int) -> None:
        if not self.over and not self.eof_written and self.stream.state is not State.RESET:
            count = min(count, self.stream.room)
            if count:
                self.stream.write(pattern(self.seed, self.written, count))
                self.written += count

    def write_eof(self) -> None:
        if not self.over and not self.eof_written and self.stream.state is not State.RESET:
            self.stream.write_eof()
            self.eof_written = True

    def reset(self, now: float) -> None:
        if not self.over and self.stream.state in (State.OPENING, State.OPEN):
            self.did_reset = True
            self.stream.reset("test", now=now)

    def deliver(self, count: int, now: float) -> None:
        """Let the far end read at most `count` bytes, then what follows them."""
        if self.was_reset or self.did_reset:
            return
        chunks = self.stream.receive.chunks
        while chunks and count:
            piece = bytes(chunks[0][:count])
            self.read += piece
            count -= len(piece)
            self.stream.consume(len(piece), now=now)
        if chunks:
            return
        if self.reset_pending:
            self.was_reset = True
            self.stream.finish_reset()
        elif self.stream.receive.eof_ready:
            self.eof_read = True
            self.stream.deliver_eof(now=now)

    def notice(self, kind: Kind) -> None:
        if kind is Kind.RESET:
            self.reset_pending = True
        elif kind is Kind.ABORTED and not (self.eof_written and self.eof_read):
            self.was_reset = True


class Network:
    """An edge's session and a provider's, and the carriers between them."""

    def __init__(
        self, seed: int, *, grace_s: float = 60.0, memory: int = 4 * 1024 * KIB, max_streams: int = 64
    ) -> None:
        self.random = random.Random(seed)
        self.grace_s = grace_s
        self.now = 0.0
        self.budgets = {end: Budget(total_bytes=memory, max_streams=max_streams) for end in ("edge", "provider")}
        self.sessions = {
            end: Session(opener=end == "edge", version=1, budget=budget, grace_s=grace_s, wake=lambda: None, now=0.0)
            for end, budget in self.budgets.items()
        }
        self.queues: dict[tuple[str, Hashable], deque[list[Buffer]]] = {}
        self.up: set[Hashable] = set()
        self.mute: set[str] = set()
        """Ends whose messages are lost without notice."""
        self.loss = self.doubling = self.disorder = 0.0
        """How probable it is that a message is lost, arrives twice, or overtakes the one before it."""
        self.clients: list[Socket] = []
        self.targets: dict[int, Socket] = {}
        self.settle_s = 0.5
        """How long a path is up before the edge moves to it."""
        self.refuse = False
        self.refused: list[Stream] = []
        self.failures: list[str] = []

    def open(self) -> Socket:
        stream = Stream(opener=True, service="default", client="test", budget=self.budgets["edge"])
        client = Socket(stream, seed=len(self.clients) * 2)
        self.clients.append(client)
        self.sessions["edge"].open(stream)
        return client

    def connect(self, path: Hashable) -> None:
        """Bring a path up; the edge prefers later ones by name, and soon moves to them."""
        self.up.add(path)
        for end, session in self.sessions.items():
            self.queues[end, path] = deque()
            session.epochs._paths._settle_s = min(session.epochs._paths._settle_s, self.settle_s)
            session.path_up(path, self.now, rank=ord(str(path)[0]) << 16 if end == "edge" else 0)

    def cut(self, path: Hashable, *, unseen_by: str = "") -> None:
        """Lose what is on its way; one end may not notice."""
        self.up.discard(path)
        for end, session in self.sessions.items():
            self.queues[end, path] = deque()
            if end != unseen_by:
                session.path_down(path, self.now)

    def upgrade(self, end: str, *, unseen: bool) -> None:
        """Replace the process of `end` by one that has nothing but its export; its links come up anew.

        The other end may not notice that they were down.
        """
        other = "provider" if end == "edge" else "edge"
        paths = list(self.up)
        for path in paths:
            self.cut(path, unseen_by=other if unseen else "")
        self._notices("edge")
        self._notices("provider")
        before = self.sessions[end]
        for path in list(before.epochs._paths):
            before.path_down(path, self.now)
        self._notices(end)
        owners = {stream_id: stream.owner for stream_id, stream in before.streams.items()}
        trial = list(export_session(before, payload=False))
        items = [cbor2.dumps(item) for item in moved(export_session(before, payload=True))]
        budget = self.budgets[end]
        budget = self.budgets[end] = Budget(total_bytes=2 * budget.pool_bytes, max_streams=budget.max_streams)
        after = self.sessions[end] = restore_session(
            map(cbor2.loads, items),
            opener=end == "edge",
            budget=budget,
            grace_s=self.grace_s,
            wake=lambda: None,
            now=self.now,
        )
        assert list(export_session(after, payload=False)) == trial
        for stream_id, stream in after.streams.items():
            owners[stream_id].stream = stream
            stream.owner = owners[stream_id]
        for path in paths:
            self.connect(path)

    def step(self, dt: float = 0.01, *, deliver: bool = True) -> None:
        """Let time pass; exchange messages; check what must hold always."""
        self.now += dt
        for end, session in self.sessions.items():
            due = session.deadline()
            if due is not None and due <= self.now:
                session.tick(self.now)
            for path, frames in session.flush(self.now):
                if path in self.up and end not in self.mute and self.random.random() >= self.loss:
                    queue = self.queues[end, path]
                    for _ in range(1 + (self.random.random() < self.doubling)):
                        queue.append([bytes(frame) for frame in frames])
                    if len(queue) > 1 and self.random.random() < self.disorder:
                        queue[-1], queue[-2] = queue[-2], queue[-1]
            self._notices(end)
        if deliver:
            for (end, path), queue in list(self.queues.items()):
                other = self.sessions["provider" if end == "edge" else "edge"]
                while queue:
                    other.receive(path, queue.popleft(), self.now)
                    self._notices("provider" if end == "edge" else "edge")
        self.check()

    def _notices(self, end: str) -> None:
        session = self.sessions[end]
        while session.notices:
            notice = session.notices.popleft()
            stream = notice.stream
            if notice.kind is Kind.FAILED:
                self.failures.append(notice.reason)
            elif notice.kind is Kind.OPENED:
                assert stream is not None
                if self.refuse:
                    stream.refuse(Code.TARGET, "refused by the test")
                else:
                    self.targets[stream.id] = Socket(stream, seed=stream.id * 2 - 1)
                    stream.accept()
            elif notice.kind is Kind.REFUSED:
                assert stream is not None
                self.refused.append(stream)
            elif notice.kind is Kind.UNSENT:
                assert stream is not None
                if stream.state is not State.CLOSED:
                    session.open(stream)
            elif stream is not None and stream.owner is not None:
                stream.owner.notice(notice.kind)

    def check(self) -> None:
        """What was received is a prefix of what was written, buffers fit their windows, and no end is invented."""
        assert not self.failures, self.failures
        for client in self.clients:
            target = self.targets.get(client.stream.id)
            if target is None:
                assert not client.read and not client.eof_read
                continue
            for a, b in ((client, target), (target, client)):
                assert bytes(a.read) == pattern(b.seed, 0, len(a.read))
                assert len(a.read) <= b.written
                if a.eof_read:
                    assert b.eof_written and len(a.read) == b.written
                assert a.stream.send.end - a.stream.send.acked <= max(a.stream.send.limit - a.stream.send.acked, 0)
        for budget in self.budgets.values():
            assert 0 <= budget.pool_used_bytes <= budget.pool_bytes

    def settle(self, *, seconds: float = 120.0) -> None:
        """Heal everything and let all sockets read, until both sessions are empty and at rest."""
        self.loss = self.doubling = self.disorder = 0.0
        self.mute.clear()
        if not self.up:
            self.connect("healed")
        end = self.now + seconds
        while any(session.streams or session.notices for session in self.sessions.values()):
            assert self.now < end, [session.streams for session in self.sessions.values()]
            self.step(0.02)
            for socket in [*self.clients, *self.targets.values()]:
                socket.deliver(1 << 30, self.now)
                socket.write_eof()
        for budget in self.budgets.values():
            assert budget.pool_used_bytes == 0

    def finish(self) -> None:
        """Heal, let everything end, and compare every end with what the other side did."""
        self.settle()
        for client in self.clients:
            target = self.targets.get(client.stream.id)
            assert client.over
            if target is None:
                continue
            assert target.over
            if not (client.did_reset or target.did_reset):
                assert not client.was_reset and not target.was_reset, "an end was invented"
                assert len(client.read) == target.written and len(target.read) == client.written
            for a, b in ((client, target), (target, client)):
                if a.did_reset and not b.did_reset:
                    assert b.was_reset or (b.eof_written and b.eof_read), "a reset was lost"
                    assert len(b.read) == a.written, "bytes before a reset were lost"
