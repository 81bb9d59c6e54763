"""Encoding of batches as frames in CBOR (RFC 8949).

Frame 0 is `[version, epoch, seq, ack, [event, ...]]`, an event is `[kind, field, ...]`. Payloads of 16 KiB or
more are frames of their own, in order; the event then holds their length instead of the bytes. `docs/protocol.md`
has the CDDL. All input is hostile: lengths are bounded before decoding, types are exact, anything else raises.
"""

from collections.abc import Callable, Sequence
from typing import Any, assert_never

import cbor2

from brokers import decode_cbor
from goreprox.protocol.errors import RemoteProtocolError
from goreprox.protocol.events import (
    Abort,
    Accept,
    Ack,
    Batch,
    Buffer,
    Code,
    Control,
    Data,
    Drain,
    Eof,
    Event,
    Goodbye,
    Live,
    Open,
    Probe,
    Refuse,
    Reset,
    Resume,
    Served,
)
from goreprox.protocol.limits import (
    MAX_EVENTS,
    MAX_HEAD,
    MAX_OFFSET,
    MAX_PAYLOAD,
    MAX_RAW_FRAMES,
    MAX_TEXT,
    RAW_PAYLOAD,
    RESUME_PAGE,
    VERSION,
    VERSION_LEAST,
)

DATA, ACK, OPEN, ACCEPT, REFUSE, EOF, RESET, ABORT, RESUME, DRAIN, GOODBYE, PROBE, SERVED = range(13)

MAX_DEPTH = 6
"""Batch, events, event, live streams, one of them: five, and one to spare."""
MAX_GRACE_S = 86_400.0


def encode(batch: Batch, *, version: int) -> list[Buffer]:
    """Return the frames of a batch. Raw payloads are referenced, not copied."""
    raw: list[Buffer] = []
    items: list[list[object]] = []
    for event in batch.events:
        if type(event) is Data:
            payload = event.payload
            if len(payload) >= RAW_PAYLOAD:
                raw.append(payload)
                items.append([DATA, event.stream, event.offset, len(payload)])
            else:
                items.append([DATA, event.stream, event.offset, payload if type(payload) is bytes else bytes(payload)])
        else:
            items.append(_item(event))  # type: ignore[arg-type]
    return [cbor2.dumps([version, batch.epoch, batch.seq, batch.ack, items]), *raw]


def _item(event: Control) -> list[object]:  # noqa: C901, PLR0911, PLR0912 -- a case for each event
    match event:
        case Ack(stream, delivered, limit):
            return [ACK, stream, delivered, limit]
        case Open(stream, service, client, destination, limit):
            return [OPEN, stream, service, client[:MAX_TEXT], destination[:MAX_TEXT], limit]
        case Accept(stream, limit):
            return [ACCEPT, stream, limit]
        case Refuse(stream, code, reason):
            return [REFUSE, stream, int(code), reason[:MAX_TEXT]]
        case Eof(stream, final):
            return [EOF, stream, final]
        case Reset(stream, final, reason):
            return [RESET, stream, final, reason[:MAX_TEXT]]
        case Abort(stream, code, reason):
            return [ABORT, stream, int(code), reason[:MAX_TEXT]]
        case Resume(grace_s, window, next_id, last, streams):
            lives = [[s.stream, s.accepted, s.received, s.delivered, s.limit, s.eof] for s in streams]
            return [RESUME, grace_s, window, next_id, last, lives]
        case Drain():
            return [DRAIN]
        case Goodbye(reason):
            return [GOODBYE, reason[:MAX_TEXT]]
        case Probe():
            return [PROBE]
        case Served(service, at, reason):
            return [SERVED, service, at[:MAX_TEXT], reason[:MAX_TEXT]]
        case _:
            assert_never(event)


def decode(frames: Sequence[Buffer]) -> tuple[int, Batch]:
    """Return version and batch of a message. Payloads refer to the frames.

    The version is looked at first: what another one than ours looks like, we cannot know.

    Raises:
        RemoteProtocolError: anything but exactly what `encode` makes.
    """
    if not 1 <= len(frames) <= 1 + MAX_RAW_FRAMES:
        raise RemoteProtocolError(f"{len(frames)} frames, expected 1 to {1 + MAX_RAW_FRAMES}")
    head = decode_cbor(frames[0], max_bytes=MAX_HEAD, max_depth=MAX_DEPTH, error=RemoteProtocolError)
    if type(head) is not list or not head:
        raise RemoteProtocolError("not a batch")
    version = _uint(head[0])
    if not VERSION_LEAST <= version <= VERSION:
        raise RemoteProtocolError(f"protocol version {version}, expected {VERSION_LEAST} to {VERSION}")
    if len(head) != 5 or type(head[4]) is not list:
        raise RemoteProtocolError("not a batch")
    _, epoch, seq, ack, items = head
    if len(items) > MAX_EVENTS:
        raise RemoteProtocolError(f"{len(items)} events, expected at most {MAX_EVENTS}")
    return version, Batch(_uint(epoch), _uint(seq), _uint(ack), tuple(_events(items, frames[1:])))


def _events(items: list[Any], frames: Sequence[Buffer]) -> list[Event]:
    """Return the events of a batch; data, of which there is most, is looked at right here."""
    raw = iter(frames)
    events: list[Event] = []
    for item in items:
        if type(item) is not list or not item or type(item[0]) is not int:
            raise RemoteProtocolError("not an event")
        if item[0] == DATA and len(item) == 4:
            _, stream, offset, payload = item
            if type(payload) is not bytes:
                payload = _raw_payload(payload, next(raw, None))
            elif not 0 < len(payload) < RAW_PAYLOAD:
                raise RemoteProtocolError(f"{len(payload)} bytes inside the CBOR, expected 1 to {RAW_PAYLOAD - 1}")
            if type(stream) is not int or type(offset) is not int or not 0 <= stream <= MAX_OFFSET >= offset >= 0:
                raise RemoteProtocolError(f"{_short(stream)} and {_short(offset)}, expected unsigned integers")
            events.append(Data(stream, offset, payload))
        else:
            events.append(_control(item))
    if next(raw, None) is not None:
        raise RemoteProtocolError("more frames than the events announce")
    return events


def _uint(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MAX_OFFSET:
        raise RemoteProtocolError(f"{_short(value)}, expected an unsigned integer")
    return value


def _text(value: Any) -> str:
    if type(value) is not str or len(value) > MAX_TEXT:
        raise RemoteProtocolError(f"{_short(value)}, expected at most {MAX_TEXT} characters")
    return value


def _code(value: Any) -> Code:
    return _CODES.get(_uint(value), Code.OTHER)


_CODES = {int(code): code for code in Code}


def _bool(value: Any) -> bool:
    if type(value) is not bool:
        raise RemoteProtocolError(f"{_short(value)}, expected true or false")
    return value


def _short(value: Any) -> str:
    return f"{type(value).__name__} {str(value)[:40]!r}" if isinstance(value, int | str) else type(value).__name__


def _raw_payload(length: Any, frame: Buffer | None) -> Buffer:
    _uint(length)
    if frame is None or len(frame) != length or not RAW_PAYLOAD <= length <= MAX_PAYLOAD:
        raise RemoteProtocolError(f"a payload of {length} bytes, expected a frame of that length")
    return frame


def _resume(fields: list[Any]) -> Resume:
    grace_s, window, next_id, last, lives = fields
    if type(grace_s) is not float or not 0.0 <= grace_s <= MAX_GRACE_S:
        raise RemoteProtocolError(f"a grace of {_short(grace_s)}, expected seconds")
    if type(lives) is not list or len(lives) > RESUME_PAGE:
        raise RemoteProtocolError("not a page of streams")
    return Resume(grace_s, _uint(window), _uint(next_id), _bool(last), tuple([_live(live) for live in lives]))


def _live(item: Any) -> Live:
    if type(item) is not list or len(item) != 6:
        raise RemoteProtocolError("not a live stream")
    stream, accepted, received, delivered, limit, eof = item
    return Live(_uint(stream), _bool(accepted), _uint(received), _uint(delivered), _uint(limit), _bool(eof))


_DECODERS: dict[int, tuple[int, Callable[[list[Any]], Control]]] = {
    ACK: (3, lambda f: Ack(_uint(f[0]), _uint(f[1]), _uint(f[2]))),
    OPEN: (5, lambda f: Open(_uint(f[0]), _text(f[1]), _text(f[2]), _text(f[3]), _uint(f[4]))),
    ACCEPT: (2, lambda f: Accept(_uint(f[0]), _uint(f[1]))),
    REFUSE: (3, lambda f: Refuse(_uint(f[0]), _code(f[1]), _text(f[2]))),
    EOF: (2, lambda f: Eof(_uint(f[0]), _uint(f[1]))),
    RESET: (3, lambda f: Reset(_uint(f[0]), _uint(f[1]), _text(f[2]))),
    ABORT: (3, lambda f: Abort(_uint(f[0]), _code(f[1]), _text(f[2]))),
    RESUME: (5, _resume),
    DRAIN: (0, lambda _: Drain()),
    GOODBYE: (1, lambda f: Goodbye(_text(f[0]))),
    PROBE: (0, lambda _: Probe()),
    SERVED: (3, lambda f: Served(_text(f[0]), _text(f[1]), _text(f[2]))),
}


def _control(item: list[Any]) -> Control:
    arity, decoder = _DECODERS.get(item[0], (-1, None))
    if decoder is None or len(item) != arity + 1:
        raise RemoteProtocolError(f"event of kind {item[0]} with {len(item) - 1} fields")
    return decoder(item[1:])
