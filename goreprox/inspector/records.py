"""Keeps the last requests and their responses in bounded memory: heads, the first part of bodies, and times.

Nothing of it is ever written, exported or logged. What a client has sent is kept as it is, since a replay needs it:
`shown` masks secrets.
"""

import asyncio
import itertools
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from goreprox.http import writer
from goreprox.http.exchange import Exchange, Origin, Site
from goreprox.http.heads import parse_request, parse_response
from goreprox.http.messages import EndOfMessage, Fields, Request, Response
from goreprox.http.requests import has_body
from goreprox.protocol.limits import KIB, MIB
from goreprox.status.ids import MARK_DIGITS, Ids

KEPT: Final = 500
BODY_BYTES: Final = 64 * KIB
"""Of each body."""
TOTAL_BYTES: Final = 64 * MIB
"""In a process. 500 requests and responses whose bodies are longer than 64 KiB, with heads of 2 KiB each, hold
500 x (2 x (64 + 2) + 2) KiB = 65.4 MiB, so 489 of them are kept."""
RECORD_BYTES: Final = 2 * KIB
"""What one holds at most besides heads and bodies, as Python keeps it."""
FIELD_BYTES: Final = 256
"""What a field takes besides its bytes, as Python keeps it."""


class Record:
    """What is kept of one exchange (http.observer.Observer)."""

    __slots__ = (
        *("_kept", "_request_ended", "assigned_at", "at", "began", "ended_as", "client", "ended_at", "error", "held"),
        *("number", "origin", "provider", "replay_of", "request_body", "request_bytes", "request_head"),
        *("request_trailers", "responded_at", "response_body", "response_bytes", "response_start"),
        *("response_trailers", "service"),
        *("status", "token"),
    )

    def __init__(self, kept: "Records", number: int, exchange: Exchange, origin: Origin) -> None:
        """Begin with a request whose body is still to come; `kept` is told how many bytes it holds."""
        self._kept: Records | None = kept
        """None once it was forgotten: then it keeps nothing else."""
        self.number = number
        self.ended_as = 0
        """The number of its end among those of all; 0: it goes on."""
        self.at = time.time()
        """When it came, in seconds since 1970."""
        self.began = kept.clock()
        self.assigned_at: float | None = None
        """When a provider had it."""
        self.responded_at: float | None = None
        self.ended_at: float | None = None
        self.origin = origin
        self.replay_of = origin.site.forwarding.replay
        """The id of the request that it was sent in place of; empty: of none."""
        self.service, self.client, self.token = exchange.service, exchange.client, exchange.token
        self.provider: str | None = None
        self.error = ""
        """Why the response is ours, or not whole."""
        request = exchange.request
        self.request_head = request.raw or writer.plain_head(request, request.fields)
        """Not the request itself: this takes a quarter of the memory, and of the time for it."""
        self.request_body = b""
        """The first bytes of it."""
        self.request_bytes = 0
        """All that have come."""
        self._request_ended = False
        self.status = 0
        """0: there is no response yet."""
        self.response_start = b""
        """The head of the response."""
        self.response_body = b""
        self.response_bytes = 0
        self.request_trailers = self.response_trailers = _NONE
        self.held = RECORD_BYTES + len(self.request_head)

    @property
    def request(self) -> Request:
        """The head of the request."""
        return parse_request(self.request_head)

    @property
    def request_whole(self) -> bool:
        """Whether the request has come to its end."""
        return self._request_ended or not has_body(self.request)

    @property
    def response(self) -> Response:
        """The head of the response, which has begun."""
        return parse_response(self.response_start)

    @property
    def is_over(self) -> bool:
        """Whether nothing else follows."""
        return self.ended_at is not None

    # What passes (http.observer.Observer).

    def request_part(self, data: bytes, end: EndOfMessage | None) -> None:
        """Keep a part of the request's body."""
        if self._kept is None:
            return
        self.request_bytes += len(data)
        if room := BODY_BYTES - len(self.request_body):
            self.request_body += data[:room]
            self._hold(len(data[:room]))
        if end is not None:
            self._request_ended = True
            if end.trailers:
                self.request_trailers = end.trailers
                self._hold(_size(end.trailers))

    def response_head(self, status: int, head: bytes) -> None:
        """Keep the head of the response."""
        if self._kept is not None:
            self.status, self.response_start = status, head
            self.responded_at = self._kept.clock()
            self._hold(len(head))

    def response_part(self, data: bytes) -> None:
        """Keep a part of the response's body."""
        if self._kept is None:
            return
        self.response_bytes += len(data)
        if room := BODY_BYTES - len(self.response_body):
            self.response_body += data[:room]
            self._hold(len(data[:room]))

    def response_end(self, trailers: Fields) -> None:
        """Keep the trailers of the response."""
        if self._kept is not None:
            self.response_trailers = trailers
            self._hold(_size(trailers))

    def over(self, error: str) -> None:
        """Note when and why it has ended."""
        if self._kept is not None:
            self.ended_at, self.error = self._kept.clock(), error
            self._kept.note_end(self)

    def carried(self, provider: str | None, since: float) -> None:
        """Note which provider had it, and from when on."""
        if provider is not None:
            self.provider, self.assigned_at = provider, since

    # Memory.

    def forget(self) -> None:
        """Keep nothing of it from now on."""
        self._kept = None

    def _hold(self, count: int) -> None:
        """Count bytes that are kept; room is made for them."""
        if self._kept is not None:
            self.held += count
            self._kept.held += count
            if self._kept.held > TOTAL_BYTES:
                self._kept.make_room()


_NONE: Final[Fields] = []
"""Most have no trailers."""


def _size(fields: Fields) -> int:
    return sum(map(len, itertools.chain.from_iterable(fields))) + FIELD_BYTES * len(fields)


class Records:
    """Those of a process (http.observer.Inspector): the last `KEPT`, as far as `TOTAL_BYTES` allow."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.ids: Final = Ids(secrets.token_bytes(MARK_DIGITS // 2))
        """Not those of the process, which an upgrade keeps: the requests before one are gone."""
        self.held = 0
        """Bytes."""
        self.ended = 0
        self._last: deque[Record] = deque()
        self._next = 1
        self._any_ended = asyncio.Event()

    def __iter__(self) -> Iterator[Record]:
        return iter(self._last)

    def __len__(self) -> int:
        return len(self._last)

    def observer(self, exchange: Exchange, origin: Origin) -> Record | None:
        """Return what keeps an exchange; None if it is for a service whose requests are not kept."""
        if not origin.site.settings.inspects(exchange.service):
            return None
        if len(self._last) == KEPT:
            self._forget(self._last.popleft())
        record = Record(self, self._next, exchange, origin)
        self._next += 1
        self._last.append(record)
        self.held += record.held
        if self.held > TOTAL_BYTES:
            self.make_room()
        return record

    def find(self, number: int | None) -> Record | None:
        """Return the record of a number."""
        return next((record for record in self._last if record.number == number), None)

    def made_for(self, site: Site) -> Record | None:
        """Return the last record of a request by way of `site`."""
        return next((record for record in reversed(self._last) if record.origin.site is site), None)

    def replace(self, sites: Mapping[Site, Site]) -> None:
        """Replay requests by the sites that replace theirs, and forget those that are not to be kept any more."""
        for _ in range(len(self._last)):
            record = self._last.popleft()
            site = sites.get(record.origin.site, record.origin.site)
            record.origin = record.origin._replace(site=site)
            if site.inspector is not None and site.settings.inspects(record.service):
                self._last.append(record)
            else:
                self._forget(record)

    async def more(self, ended: int) -> None:
        """Wait until more than so many have ended."""
        while self.ended <= ended:
            self._any_ended.clear()
            await self._any_ended.wait()

    # What records tell.

    def make_room(self) -> None:
        """Forget the oldest ones until the rest is within `TOTAL_BYTES`."""
        while self.held > TOTAL_BYTES:
            self._forget(self._last.popleft())

    def note_end(self, record: Record) -> None:
        """Number the end of a record."""
        self.ended = record.ended_as = self.ended + 1
        if not self._any_ended.is_set():
            self._any_ended.set()

    def _forget(self, record: Record) -> None:
        record.forget()
        self.held -= record.held
