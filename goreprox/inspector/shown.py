"""What of a kept request leaves the process: masked, and as text where it is text."""

import re
import zlib
from typing import Final, NamedTuple

from goreprox.http.messages import Fields, Request, Response
from goreprox.http.requests import upgrade_of
from goreprox.inspector.masking import Masker
from goreprox.inspector.records import BODY_BYTES, Record
from goreprox.process.clock import iso
from goreprox.status.ids import Ids
from goreprox.status.requests import BodyDetail, MessageDetail, RequestDetail, RequestRow, Timing

SHOWN: Final = 256
"""Characters of a path in a list."""
_GZIP_OR_ZLIB: Final = 47
_BOUNDARY: Final = re.compile(r'boundary="?([^";]{1,70})', re.IGNORECASE)
_LATIN: Final = re.compile(r"charset=\"?(?:iso-8859-1|latin-?1|windows-1252|us-ascii)", re.IGNORECASE)


class _Body(NamedTuple):
    """A body, as far as it is kept."""

    data: bytes
    size: int
    """All of it so far."""


def row(record: Record, ids: Ids, now: float) -> RequestRow:
    """Return what a list shows."""
    request = record.request
    return _row(record, request, _masker(record, request, _response(record)), ids, now)


def _row(record: Record, request: Request, masker: Masker, ids: Ids, now: float) -> RequestRow:
    path = masker.target(request.target)
    ended_at = now if record.ended_at is None else record.ended_at
    return {
        "id": ids.id_of(record.number),
        "at": iso(record.at),
        "method": request.method.decode("latin-1"),
        "host": (request.first(b"host") or record.origin.authority).decode("latin-1"),
        "path": path if len(path) <= SHOWN else path[:SHOWN] + "…",
        "service": record.service,
        "client": record.client,
        "token": record.token,
        "provider": record.provider,
        "status": record.status or None,
        "error": masker.text(record.error) or None,
        "over": record.is_over,
        "request_bytes": record.request_bytes,
        "response_bytes": record.response_bytes,
        "duration_s": round(ended_at - record.began, 6),
        "replay_of": record.replay_of.decode() or None,
    }


def detail(record: Record, ids: Ids, now: float) -> RequestDetail:
    """Return everything."""
    request, response = record.request, _response(record)
    masker = _masker(record, request, response)
    forwarding = record.origin.site.forwarding
    return {
        **_row(record, request, masker, ids, now),
        "path": masker.target(request.target),
        "scheme": "https" if forwarding.is_https(request, record.origin.address) else "http",
        "version": request.version.decode(),
        "reason": "" if response is None else response.reason.decode("latin-1"),
        "timing": timing(record),
        "request": _message(
            masker, request.fields, record.request_trailers, _Body(record.request_body, record.request_bytes)
        ),
        "response": None
        if response is None
        else _message(
            masker, response.fields, record.response_trailers, _Body(record.response_body, record.response_bytes)
        ),
        "not_replayable": not_replayable(record),
    }


def timing(record: Record) -> Timing:
    """Return how long it took to find a provider, until the target responded, and until the response was whole."""
    responded_at, ended_at = record.responded_at, record.ended_at
    assigned_at = record.assigned_at
    if assigned_at is None and record.is_over and record.provider is None:
        assigned_at = responded_at  # it has never left the edge
    return {
        "queue_s": _between(record.began, assigned_at),
        "target_s": _between(assigned_at, responded_at),
        "transfer_s": _between(responded_at, ended_at),
    }


def not_replayable(record: Record) -> str | None:
    """Return why a request cannot be sent once more, with the same bytes; None: it can."""
    if not record.request_whole:
        return "its body has not come to its end" if not record.is_over else "its body never came to its end"
    if record.request_bytes > len(record.request_body):
        return f"its body has {record.request_bytes} bytes, and only {BODY_BYTES} are kept"
    if upgrade_of(record.request) is not None:
        return "it asked for a change of protocols"
    return None


def _between(begin: float | None, end: float | None) -> float | None:
    return None if begin is None or end is None else round(max(end - begin, 0.0), 6)


def _response(record: Record) -> Response | None:
    return record.response if record.status else None


def _masker(record: Record, request: Request, response: Response | None) -> Masker:
    answered = [] if response is None else response.fields
    return Masker(request.target, [*request.fields, *answered], record.origin.site.secret)


def _message(masker: Masker, fields: Fields, trailers: Fields, body: _Body) -> MessageDetail:
    return {
        "fields": masker.fields(fields),
        "trailers": masker.fields(trailers),
        "body": _body(masker, {name.lower(): value.decode("latin-1") for name, value in fields}, body),
    }


def _body(masker: Masker, fields: dict[bytes, str], body: _Body) -> BodyDetail:
    kind, encoding = fields.get(b"content-type", ""), fields.get(b"content-encoding", "").strip().lower()
    found: BodyDetail = {
        "bytes": body.size,
        "kept_bytes": len(body.data),
        "type": masker.known(kind),
        "encoding": masker.known(encoding),
        "text": "" if not body.size else None,
    }
    if not body.size:
        return found
    try:
        data, is_cut = _decoded(body.data, encoding, is_cut=body.size > len(body.data))
        text = _text(data, kind, is_cut=is_cut)
    except ValueError as exc:
        found["note"] = str(exc)
        return found
    found["text"] = _masked(masker, text, kind, is_cut=is_cut)
    if is_cut:
        found["note"] = f"the first {len(data)} bytes"
    return found


def _decoded(data: bytes, encoding: str, *, is_cut: bool) -> tuple[bytes, bool]:
    """Undo a content coding; return at most `BODY_BYTES`, and whether there were more.

    Raises:
        ValueError: it is another one, or the body is malformed.
    """
    if encoding in ("", "identity"):
        return data, is_cut
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise ValueError(f"encoded: {encoding[:64]}, which is not decoded here")
    decoder = zlib.decompressobj(_GZIP_OR_ZLIB)
    try:
        decoded = decoder.decompress(data, BODY_BYTES)
    except zlib.error as exc:
        raise ValueError(f"it is not what its Content-Encoding says, {encoding}") from exc
    return decoded, is_cut or not decoder.eof


def _text(data: bytes, kind: str, *, is_cut: bool) -> str:
    """Return a body as text.

    Raises:
        ValueError: it is none.
    """
    if _LATIN.search(kind):
        return data.decode("latin-1")
    try:
        text = data.decode()
    except UnicodeDecodeError as exc:
        if not is_cut or exc.start < len(data) - 3:  # and not a character that is cut
            raise ValueError("no text") from None
        text = data[: exc.start].decode()
    if "\0" in text:
        raise ValueError("no text")
    return text


def _masked(masker: Masker, text: str, kind: str, *, is_cut: bool) -> str:
    media = kind.partition(";")[0].strip().lower()
    if media == "application/x-www-form-urlencoded":
        return masker.form(text)
    if media == "multipart/form-data" and (boundary := _BOUNDARY.search(kind)) is not None:
        return masker.parts(text, boundary[1])
    if not is_cut and (media.endswith("json") or text.lstrip()[:1] in ("{", "[")):
        found = masker.json(text)
        if found is not None:
            return found
    return masker.text(text)
