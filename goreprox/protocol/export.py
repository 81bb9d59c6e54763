"""A session as values, for the process that replaces this one, and back.

An export is a series of items that CBOR can carry: a map for the session, then one for each stream, followed by its
bytes. No epoch is in progress in it: what belongs to an epoch is lost as in an outage, and a resume repairs it.

An item is made when it is asked for. For bytes it is the queue that holds them: its reader moves each chunk out of it,
so that memory holds it once.
"""

from collections.abc import Callable, Iterator
from typing import Final

from goreprox.protocol.budget import Budget
from goreprox.protocol.errors import ExportError
from goreprox.protocol.events import Abort, Code, Refuse
from goreprox.protocol.fields import Fields
from goreprox.protocol.limits import MAX_PAYLOAD, MAX_TEXT
from goreprox.protocol.receiver import ReceiveHalf
from goreprox.protocol.sender import SendHalf
from goreprox.protocol.session import Session
from goreprox.protocol.state import State
from goreprox.protocol.stream import Stream
from goreprox.protocol.totals import EndCode

_COUNTERS: Final = ("outages", "replayed_bytes", "opened", "sent_bytes", "received_bytes")
_END_CODES: Final = {code.value: code for code in EndCode}
_STATES: Final = {state.value: state for state in State if state is not State.CLOSED}


def export_session(session: Session, *, payload: bool) -> Iterator[object]:
    """Yield a session and its streams, with `payload` the queues of their bytes, too; then it must have no path.

    What is restored from an export without payload is good for a check of the form only.
    """
    assert not payload or session.path is None
    multiplexer, epochs = session.multiplexer, session.epochs
    yield {
        "version": session.version,
        "failed": session.failed,
        "draining": session.draining,
        "peer_draining": session.peer_draining,
        "epoch": epochs.number,
        "grace_s": float(epochs.grace_s),
        "lost_at": epochs.lost_at,
        "next_id": multiplexer.next_id,
        "peer_window": multiplexer.peer_window,
        "counters": {name: getattr(session.counters, name) for name in _COUNTERS},
        "last_words": [
            [stream_id, isinstance(word, Refuse), int(word.code), word.reason[:MAX_TEXT]]
            for stream_id, word in session.endings.last_words.items()
        ],
        "streams": len(session.streams),
    }
    for stream in list(session.streams.values()):
        yield from export_stream(stream, opened_at=multiplexer.openings.sent_at(stream.id), payload=payload)


def export_stream(stream: Stream, *, payload: bool, opened_at: float | None = None) -> Iterator[object]:
    """Yield a stream, also one that no session carries; `opened_at` is when its Open was sent."""
    (unacked, unsent), received = stream.send.chunks, stream.receive.chunks
    yield {
        "id": stream.id,
        "number": stream.number,
        "outages_before": stream.outages_before,
        "opener": stream.opener,
        "service": stream.service,
        "client": stream.client,
        "destination": stream.destination,
        "state": stream.state.value,
        "accepted": stream.accepted,
        "end_reason": stream.end_reason[:MAX_TEXT],
        "end_code": stream.end_code.value,
        "opened_at": opened_at,
        "send": stream.send.export(),
        "receive": stream.receive.export(),
        "send_chunks": len(unacked) + len(unsent) if payload else 0,
        "receive_chunks": len(received) if payload else 0,
    }
    if payload:
        yield from (unacked, unsent, received)


def restore_session(
    items: Iterator[object],
    *,
    opener: bool,
    budget: Budget,
    grace_s: float,
    wake: Callable[[], None],
    now: float,
) -> Session:
    """Make the session whose items come next; it has no path. `grace_s` is ours from now on.

    Raises:
        ExportError: the items are not what `export_session` yields.
    """
    head = Fields(next(items, None))
    session = Session(opener=opener, version=head.count("version"), budget=budget, grace_s=grace_s, wake=wake, now=now)
    session.draining, session.peer_draining = head.flag("draining"), head.flag("peer_draining")
    multiplexer, epochs = session.multiplexer, session.epochs
    multiplexer.next_id, multiplexer.peer_window = head.count("next_id"), head.count("peer_window")
    counters = head.fields("counters")
    for name in _COUNTERS:
        setattr(session.counters, name, counters.count(name))
    for item in head.items("last_words"):
        word = _last_word(item)
        session.endings.last_words[word.stream] = word
    session.failed = head.text_or_none("failed")
    if session.failed is not None:
        epochs.fail(now)
    epochs.number = head.count("epoch")
    epochs.take_grace(head.seconds("grace_s"))
    if (lost_at := head.seconds_or_none("lost_at")) is not None:
        epochs.lost_at = lost_at
    for _ in range(head.count("streams")):
        fields = Fields(next(items, None))
        stream = _restored(fields, items, budget)
        if stream.opener is not opener:
            raise ExportError(f"stream {stream.id} in the export was opened at the other end")
        stream.host = multiplexer
        session.streams[stream.id] = stream
        if (opened_at := fields.seconds_or_none("opened_at")) is not None:
            multiplexer.openings.restore(stream.id, opened_at)
        if stream.state is State.RESETTING:
            session.endings.start_reset(stream.id, now)
    return session


def restore_stream(items: Iterator[object], budget: Budget) -> Stream:
    """Make the stream whose items come next; no session carries it.

    Raises:
        ExportError: the items are not what `export_stream` yields.
    """
    return _restored(Fields(next(items, None)), items, budget)


def _restored(fields: Fields, items: Iterator[object], budget: Budget) -> Stream:
    state = _STATES.get(fields.text("state"))
    if state is None:
        raise ExportError(f"state {fields.text('state')!r} in the export, expected one of {', '.join(_STATES)}")
    stream = Stream(
        opener=fields.flag("opener"),
        service=fields.text("service"),
        client=fields.text("client"),
        destination=fields.text("destination"),
        budget=budget,
        number=fields.count_or_none("number"),
    )
    stream.receive.discard()  # the one that follows has its window
    stream.id, stream.state = fields.count("id"), state
    stream.outages_before = fields.count_or_none("outages_before") or 0
    stream.accepted, stream.end_reason = fields.flag("accepted"), fields.text("end_reason")
    stream.end_code = _END_CODES.get(fields.text_or_none("end_code") or "", EndCode.DONE)
    stream.send = SendHalf.restore(budget, fields.fields("send"), _chunks(items, fields.count("send_chunks")))
    stream.receive = ReceiveHalf.restore(
        budget, fields.fields("receive"), _chunks(items, fields.count("receive_chunks"))
    )
    if state is State.RESETTING:
        stream.receive.discard()  # no socket is left for it
    return stream


def _chunks(items: Iterator[object], count: int) -> Iterator[bytes]:
    for _ in range(count):
        chunk = next(items, None)
        if not isinstance(chunk, bytes) or not 0 < len(chunk) <= MAX_PAYLOAD:
            raise ExportError(f"{type(chunk).__name__} in the export, expected 1 to {MAX_PAYLOAD} bytes")
        yield chunk


def _last_word(item: object) -> Refuse | Abort:
    match item:
        case [int(stream_id), bool(refused), int(code), str(reason)] if code in _CODES:
            return (Refuse if refused else Abort)(stream_id, Code(code), reason)
    raise ExportError("malformed last word in the export")


_CODES: Final = frozenset(map(int, Code))
