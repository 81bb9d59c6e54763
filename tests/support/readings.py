"""How we and others read the same bytes, to be compared: which messages there are, and what each says."""

import random
from dataclasses import dataclass

import h11

from tests.support.gateway import OK, Talk
from tests.support.malformed import BODIES, HEAD, NEXT, ONE_READING, REFUSED
from tests.support.responses import BEGUN, CHUNKED, NOT_BEGUN, SERVED

_CHUNKED_REQUEST = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
REQUESTS = [
    *(request for _, request in REFUSED.values() if len(request) < 1000),
    *(request for request, _ in ONE_READING.values() if len(request) < 1000),
    *(_CHUNKED_REQUEST + body for body in BODIES.values() if len(body) < 1000),
    b"GET /a HTTP/1.0\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\n\r\nhello",
]
RESPONSES = [
    *(response for table in (SERVED, NOT_BEGUN) for response in table.values() if len(response) < 1000),
    *(CHUNKED + body for body in BEGUN.values() if len(body) < 1000),
    b"HTTP/1.1 200 OK\r\n\r\nhello",
    b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK,
]
TOKENS = [
    *(
        b"\r",
        b"\n",
        b"\r\n",
        b"\r\n\r\n",
        b" ",
        b"\t",
        b"\0",
        b"\x0b",
        b"\x7f",
        b"\x80",
        b":",
        b";",
        b",",
        b"_",
        b"#",
        b'"',
    ),
    *(b"0", b"1", b"5", b"a", b"+", b"-", b"0x", b"HTTP/1.0", b"HTTP/1.1", b"chunked", b"GET / ", b"http://b/"),
    *(b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n", b"Host: b\r\n"),
    *(b"Connection: close\r\n", b"Upgrade: x\r\n", b"0\r\n\r\n", b"5\r\nhello\r\n", b"X-A: 1\r\n", NEXT),
]


def mutant(chance: random.Random, bases: list[bytes]) -> bytes:
    """One of these with up to three changes; each puts a token, or nothing, in place of at most three bytes."""
    data = chance.choice(bases)
    for _ in range(chance.randint(0, 3)):
        at = chance.randint(0, len(data))
        data = data[:at] + chance.choice([b"", *TOKENS]) + data[at + chance.randint(0, 3) :]
    return data


@dataclass(frozen=True)
class Reading:
    """A request that was read to its end."""

    method: bytes
    target: bytes
    host: bytes
    body: bytes


def same(ours: Reading, theirs: Reading) -> bool:
    """Compare: absolute form is converted, and HTTP/1.0 gets a Host."""
    if not theirs.target.startswith(b"/"):
        return (ours.method, ours.body) == (theirs.method, theirs.body)
    return ours == theirs or (not theirs.host and (ours.target, ours.body) == (theirs.target, theirs.body))


def _reading(events: list[h11.Event]) -> Reading:
    head = events[0]
    assert isinstance(head, h11.Request)
    host = dict(head.headers).get(b"host", b"")
    body = b"".join(event.data for event in events if isinstance(event, h11.Data))
    return Reading(bytes(head.method), bytes(head.target), host, body)


def _next_message(reader: h11.Connection) -> list[h11.Event]:
    """Read one message; an unfinished or malformed one is empty."""
    events: list[h11.Event] = []
    try:
        while isinstance(event := reader.next_event(), h11.Event) and not isinstance(event, h11.ConnectionClosed):
            events.append(event)
            if isinstance(event, h11.EndOfMessage):
                return events
    except h11.RemoteProtocolError:
        pass
    return []


def requests_by_h11(raw: bytes) -> list[Reading]:
    """Read requests, blank lines before each skipped, to the first that is malformed or not whole."""
    readings: list[Reading] = []
    while True:
        while raw.startswith(b"\r\n"):
            raw = raw[2:]
        reader = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        reader.receive_data(raw)
        events = _next_message(reader)
        if not events:
            return readings
        readings.append(_reading(events))
        raw = reader.trailing_data[0]
        if reader.their_state is h11.MUST_CLOSE:
            return readings


def requests_by_us(raw: bytes) -> list[Reading]:
    """Return what targets that respond to each request at once read of a client, by h11."""
    talk = Talk().client(raw)
    readings: list[Reading] = []
    while True:
        readings = [each for stream in talk.seen.to_target for each in requests_by_h11(stream)]
        responses = talk.statuses.count(200)
        if len(readings) == responses:
            return readings
        talk.target(OK)
        assert talk.statuses.count(200) == responses + 1


def response_by_h11(raw: bytes, method: bytes) -> tuple[int, bytes] | None:
    """Read a final response and its body; None if it is malformed or not whole."""
    reader = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    reader.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
    reader.send(h11.EndOfMessage())
    if raw:
        reader.receive_data(raw)
    reader.receive_data(b"")
    return whole_response(_next_message(reader))


def response_by_us(raw: bytes, method: bytes) -> tuple[int, bytes] | None:
    """Return what the client of a target that sends this, and then ends its side, reads by h11; None as above.

    What is logged without an access log is a failure.
    """
    talk = Talk().client(method + b" / HTTP/1.1\r\nHost: a\r\n\r\n").target(raw)
    if not talk.gateway.over and not talk.gateway.idle:
        talk.target_eof()
    return None if talk.seen.logged else whole_response(talk.responses([method]))


def whole_response(events: list[h11.Event]) -> tuple[int, bytes] | None:
    """Return status and body of the final response; None if it is not whole."""
    status = next((event.status_code for event in events if isinstance(event, h11.Response)), None)
    if status is None or not isinstance(events[-1], h11.EndOfMessage):
        return None
    return status, b"".join(event.data for event in events if isinstance(event, h11.Data))
