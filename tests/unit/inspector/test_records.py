"""What is kept of exchanges, as a gateway sees them, how much of it, and what is shown."""

import gc
import gzip
import json
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goreprox.config.http import HttpConfig
from goreprox.config.routes import Route, Routes
from goreprox.http.auth import Auth
from goreprox.http.exchange import Site
from goreprox.http.forwarding import Forwarding
from goreprox.http.tokens import draw
from goreprox.inspector.masking import MASK
from goreprox.inspector.records import BODY_BYTES, KEPT, RECORD_BYTES, TOTAL_BYTES, Record, Records
from goreprox.inspector.replay import request_bytes
from goreprox.inspector.shown import detail, not_replayable, row
from goreprox.status.requests import RequestDetail, curl
from tests.support.gateway import CLIENT, OK, Talk, split

ALL = HttpConfig(inspect=("*",))
GET = b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def records(clock: Clock) -> Iterator[Records]:
    made = Records(clock)
    yield made
    assert made.held == sum(record.held for record in made) <= TOTAL_BYTES


def talk(records: Records, config: HttpConfig = ALL, **more: object) -> Talk:
    return Talk(Site("web", settings=config, inspector=records, **more))  # type: ignore[arg-type]


def only(records: Records) -> Record:
    (record,) = records
    return record


def shown(records: Records) -> RequestDetail:
    return detail(only(records), records.ids, records.clock())


def body(data: bytes, *fields: bytes) -> bytes:
    return b"".join(
        [
            b"HTTP/1.1 200 OK\r\n",
            *(b"%b\r\n" % each for each in fields),
            b"Content-Length: %d\r\n\r\n" % len(data),
            data,
        ]
    )


def test_request_and_response_are_kept_with_their_times(records: Records, clock: Clock) -> None:
    made = talk(records)
    made.client(b"POST /a?b=1 HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nwo")
    assert not shown(records)["over"]
    assert shown(records)["not_replayable"] == "its body has not come to its end"
    clock.now += 1
    made.client(b"rd").target(OK[:-1])
    clock.now += 2
    made.target(OK[-1:])
    only(records).carried("laptop", 100.25)
    found = shown(records)
    assert (found["method"], found["host"], found["path"], found["status"]) == ("POST", "a", "/a?b=1", 200)
    assert (found["over"], found["duration_s"], found["client"]) == (True, 3.0, CLIENT)
    assert found["timing"] == {"queue_s": 0.25, "target_s": 0.75, "transfer_s": 2.0}
    assert (found["request"]["body"]["text"], found["error"], found["not_replayable"]) == ("word", None, None)
    assert found["response"] is not None and found["response"]["body"]["text"] == "ok"
    assert found["response"]["fields"] == [("Content-Length", "2")]


def test_chunks_are_joined_and_trailers_kept(records: Records) -> None:
    made = talk(records)
    chunks = b"3\r\nabc\r\n2\r\nde\r\n0\r\nX-Sum: 5\r\n\r\n"
    head = b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    made.client(*split(head + chunks, range(60, 90)))
    made.target(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
    found = shown(records)
    for message in (found["request"], found["response"]):
        assert message is not None
        assert (message["body"]["text"], message["trailers"]) == ("abcde", [("X-Sum", "5")])
    assert request_bytes(only(records)).endswith(b"Connection: close\r\n\r\n5\r\nabcde\r\n0\r\nX-Sum: 5\r\n\r\n")


@given(st.binary(max_size=200), st.sets(st.integers(0, 400)), st.sets(st.integers(0, 400)))
def test_however_bytes_are_split_the_same_is_kept(data: bytes, up: set[int], down: set[int]) -> None:
    records = Records(Clock())
    made = talk(records)
    request = b"PUT / HTTP/1.1\r\nHost: a\r\nX: y\r\nContent-Length: %d\r\n\r\n%b" % (len(data), data)
    made.client(*split(request, up))
    made.target(*split(body(data), down))
    record = only(records)
    assert (record.request_body, record.response_body, record.is_over) == (data, data, True)
    again = talk(other := Records(Clock()))
    again.client(request_bytes(record))
    assert not_replayable(only(other)) is None
    assert only(other).request_body == data
    assert only(other).request.target == record.request.target


def test_of_a_long_body_the_beginning_is_kept_and_it_cannot_be_sent_again(records: Records) -> None:
    made = talk(records)
    made.client(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (BODY_BYTES + 1))
    for _ in range(BODY_BYTES // 64):
        made.client(b"x" * 64)
    made.client(b"y").target(body(b"z" * 3 * BODY_BYTES))
    found = shown(records)
    assert found["request"]["body"]["kept_bytes"] == BODY_BYTES and found["request_bytes"] == BODY_BYTES + 1
    assert found["response"] is not None and found["response"]["body"]["kept_bytes"] == BODY_BYTES
    assert found["response"]["body"]["note"] == f"the first {BODY_BYTES} bytes"
    assert found["not_replayable"] == f"its body has {BODY_BYTES + 1} bytes, and only {BODY_BYTES} are kept"
    assert "@BODY" in curl(found)
    assert only(records).held < 2 * BODY_BYTES + RECORD_BYTES + 1024


def test_the_last_500_are_kept(records: Records) -> None:
    made = talk(records)
    for number in range(KEPT + 3):
        made.client(GET % str(number).encode()).target(OK)
    assert [record.request.target for record in records][:1] == [b"/3"] and len(records) == KEPT
    assert records.find(3) is None
    assert records.find(4) is next(iter(records))


def test_all_of_them_stay_within_the_bound_whatever_they_hold(records: Records) -> None:
    heads = b"".join(b"X-%d: %b\r\n" % (each, b"v" * 150) for each in range(80))
    for _ in range(KEPT):
        made = talk(records)
        made.client(b"PUT / HTTP/1.1\r\nHost: a\r\n%bContent-Length: %d\r\n\r\n" % (heads, 2 * BODY_BYTES))
        made.client(b"x" * 2 * BODY_BYTES).target(body(b"y" * 2 * BODY_BYTES, *heads.splitlines()))
    assert TOTAL_BYTES - 200_000 < records.held <= TOTAL_BYTES
    assert 300 < len(records) < KEPT


def test_what_was_forgotten_while_it_went_on_keeps_nothing(records: Records) -> None:
    slow = talk(records)
    slow.client(b"PUT /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n")
    first = only(records)
    for number in range(KEPT):
        talk(records).client(GET % b"%d" % number).target(OK)
    slow.client(b"x" * 100_000).target(OK)
    assert first not in list(records)
    assert (first.request_bytes, first.status, first.is_over) == (0, 0, False)
    assert slow.statuses == [200]


SHORT = b"".join(b"a%d:\r\n" % number for number in range(98))
HOSTILE = {
    "many short fields": (SHORT, 1, 10),
    "a long field": (b"a: " + b"x" * 15_000 + b"\r\n", 1, 10),
    "a body in bytes": (b"", 1, 500),
    "long bodies": (b"", 40_000, 3),
}


@pytest.mark.pure
@pytest.mark.parametrize("kind", HOSTILE)
def test_memory_is_what_is_counted(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("goreprox.inspector.records.TOTAL_BYTES", 4 << 20)
    more, size, parts = HOSTILE[kind]
    kept = Records(Clock())
    head = b"PUT / HTTP/1.1\r\nHost: a\r\n%bContent-Length: %d\r\n\r\n" % (more, size * parts)

    def exchange() -> None:
        made = talk(kept)
        made.client(head)
        for _ in range(parts):
            made.client(b"x" * size)
        made.target(b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n" % (more, size * parts))
        for _ in range(parts):
            made.target(b"x" * size)

    exchange()
    gc.collect()
    tracemalloc.start()
    try:
        for _ in range(60):
            exchange()
        gc.collect()
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < 1.25 * kept.held  # a bytearray takes an eighth more than it has
    assert kept.held <= 4 << 20


def test_only_requests_for_the_services_that_are_named_are_kept(records: Records) -> None:
    routes = Routes((Route("a", "web"), Route("b", "api")))
    made = talk(records, HttpConfig(inspect=("api",)), routes=routes)
    made.client(GET % b"a").target(OK)
    made.client(b"GET /b HTTP/1.1\r\nHost: b\r\n\r\n").target(OK)
    made.client(b"GET /c HTTP/1.1\r\nHost: c\r\n\r\n")
    assert only(records).service == "api"
    every = talk(records, routes=routes)
    every.client(b"GET /c HTTP/1.1\r\nHost: c\r\n\r\n")
    assert [(record.service, record.status) for record in records] == [("api", 200), ("", 404)]


def test_without_an_inspector_nobody_is_told() -> None:
    made = Talk(Site("web", settings=ALL))
    made.client(GET % b"")
    assert made.gateway.exchange is not None and made.gateway.exchange.response.observer is None


def test_responses_of_the_edge_itself_are_kept_with_their_reasons(records: Records) -> None:
    talk(records).client(GET % b"").lost(503, "no provider", again=False)
    found = shown(records)
    assert (found["status"], found["error"], found["provider"]) == (503, "no provider", None)
    assert found["response"] is not None and "503" in (found["response"]["body"]["text"] or "")
    assert found["timing"]["target_s"] == 0.0


def test_a_client_that_left_and_a_truncated_response_show(records: Records) -> None:
    made = talk(records, HttpConfig(inspect=("*",), access_log=False))
    made.client(GET % b"")
    made.do(made.gateway.client_lost())
    cut = talk(records)
    cut.client(GET % b"").target(OK[:-1]).target_eof()
    left, truncated = (row(record, records.ids, 0.0) for record in records)
    assert (left["status"], left["error"]) == (None, "the client's connection ended before the response did")
    assert (truncated["status"], truncated["over"]) == (200, True)
    assert truncated["error"] == "the target's response is malformed: the body is truncated"


def test_of_an_upgrade_the_heads_are_kept(records: Records) -> None:
    made = talk(records)
    made.client(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
    made.target(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nframes")
    found = shown(records)
    assert (found["status"], found["over"], found["response_bytes"]) == (101, True, 0)
    assert found["not_replayable"] == "it asked for a change of protocols"


def test_interim_responses_do_not_count_and_head_has_no_body(records: Records) -> None:
    made = talk(records)
    made.client(b"HEAD / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n")
    made.target(b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" + OK[:-2])
    found = shown(records)
    assert (found["status"], found["over"], found["response_bytes"]) == (200, True, 0)
    assert "--head" in curl(found)
    assert b"Expect" not in request_bytes(only(records))


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("gzip", gzip.compress(b'{"a":"text"}', mtime=0)),
        ("deflate", zlib.compress(b'{"a":"text"}')),
        ("", b'{"a":"text"}'),
    ],
    ids=["gzip", "deflate", "none"],
)
def test_bodies_are_shown_decoded(records: Records, encoding: str, data: bytes) -> None:
    fields = [b"Content-Type: application/json", *([b"Content-Encoding: " + encoding.encode()] if encoding else [])]
    talk(records).client(GET % b"").target(body(data, *fields))
    response = shown(records)["response"]
    assert response is not None and response["body"]["text"] == '{"a":"text"}'
    assert response["body"]["bytes"] == len(data)


@pytest.mark.parametrize(
    ("data", "fields", "note"),
    [
        (b"\x89PNG\r\n\x1a\n\xff", (b"Content-Type: image/png",), "no text"),
        (b"a\0b", (), "no text"),
        (b"abc", (b"Content-Encoding: br",), "encoded: br, which is not decoded here"),
        (b"abc", (b"Content-Encoding: gzip",), "it is not what its Content-Encoding says, gzip"),
    ],
)
def test_what_cannot_be_read_is_not_shown(records: Records, data: bytes, fields: tuple[bytes, ...], note: str) -> None:
    talk(records).client(GET % b"").target(body(data, *fields))
    response = shown(records)["response"]
    assert response is not None
    assert (response["body"]["text"], response["body"]["note"]) == (None, note)


def test_a_bomb_is_decoded_as_far_as_bodies_are_kept(records: Records) -> None:
    bomb = gzip.compress(b"a" * (20 << 20))
    talk(records).client(GET % b"").target(body(bomb, b"Content-Encoding: gzip"))
    response = shown(records)["response"]
    assert response is not None and response["body"]["text"] == "a" * BODY_BYTES
    assert response["body"]["note"] == f"the first {BODY_BYTES} bytes"


def test_a_character_that_is_cut_does_not_hide_the_rest(records: Records) -> None:
    talk(records).client(GET % b"").target(body("ä".encode() * BODY_BYTES))
    assert (response := shown(records)["response"]) is not None
    assert response["body"]["text"] == "ä" * (BODY_BYTES // 2)
    talk(records).client(GET % b"").target(body(b"a" + "ä".encode() * BODY_BYTES))
    cut = detail(list(records)[1], records.ids, 0.0)["response"]
    assert cut is not None and cut["body"]["text"] == "a" + "ä" * (BODY_BYTES // 2 - 1)


SECRET = b"hidden-4711-hidden"


def test_nothing_shown_has_a_secret_but_a_replay_does(records: Records) -> None:
    made = talk(records)
    sent = b'{"user":"me","password":"%b"}' % SECRET
    made.client(
        b"POST /a?api_key=%b&page=2 HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %b\r\nCookie: id=%b\r\n"
        b"X-Api-Key: %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        % (SECRET, SECRET, SECRET, SECRET, len(sent))
        + sent
    )
    made.target(body(b"you are " + SECRET, b"Set-Cookie: id=%b; Path=/" % SECRET, b"Location: /b?token=" + SECRET))
    found = shown(records)
    everything = json.dumps([found, row(only(records), records.ids, 0.0), curl(found)])
    assert SECRET.decode() not in everything
    assert f"/a?api_key={MASK}&page=2" in everything
    assert request_bytes(only(records)).count(SECRET) == 5


def test_curl_sends_the_same_request(records: Records) -> None:
    made = talk(records, forwarding=Forwarding(proto=b"https"))
    made.client(b"PUT /a?b='c HTTP/1.1\r\nHost: a.example:8443\r\nX-It's: 1\r\nContent-Length: 5\r\n\r\nit's!").target(
        OK
    )
    assert curl(shown(records)) == (
        "curl --globoff --path-as-is 'https://a.example:8443/a?b='\"'\"'c' -X PUT -H 'X-It'\"'\"'s: 1' "
        "--data-raw 'it'\"'\"'s!'"
    )


def test_nothing_in_a_command_for_curl_controls_a_terminal_or_reads_a_file(records: Records) -> None:
    sent = b"@/etc/passwd\n\x1b]0;it's\x07\\ \xc2\x9b"
    made = talk(records)
    made.client(b"POST / HTTP/1.1\r\nHost: a\r\nX-Empty:\r\nContent-Length: %d\r\n\r\n" % len(sent) + sent).target(OK)
    command = curl(shown(records))
    assert command.isprintable()
    assert " --data-raw $'@/etc/passwd\\x0a\\x1b]0;it\\'s\\x07\\\\ \\xc2\\x9b'" in command
    assert " -H 'X-Empty;'" in command


def test_the_header_of_tokens_is_masked(records: Records, tmp_path: Path) -> None:
    value, table = draw("laptop", None, None)
    (tmp_path / "tokens").write_text(table)
    (tmp_path / "tokens").chmod(0o600)
    auth = Auth(tmp_path / "tokens", "X-Of-Ours", clock=Clock())
    talk(records, auth=auth).client(b"GET / HTTP/1.1\r\nHost: a\r\nX-Of-Ours: %b\r\n\r\n" % value.encode()).target(OK)
    talk(records, auth=auth).client(b"GET / HTTP/1.1\r\nHost: a\r\nX-Of-Ours: other-4711\r\n\r\n")
    allowed, denied = (detail(record, records.ids, 0.0) for record in records)
    assert (allowed["status"], allowed["token"], denied["status"]) == (200, "laptop", 401)
    for each in (allowed, denied):
        assert ("X-Of-Ours", MASK) in each["request"]["fields"]
        assert value not in json.dumps(each) and "other-4711" not in json.dumps(each)


def test_a_malformed_response_is_masked_where_it_is_quoted(records: Records) -> None:
    talk(records).client(GET % b"").target(b"HTTP/1.1 200 OK\r\nSet-Cookie: id=hidden-4711\r\nb@d header: 1\r\n\r\n")
    found = shown(records)
    assert found["status"] == 502 and "malformed" in str(found["error"])
    assert "hidden-4711" not in json.dumps(found)


def test_a_client_cannot_pretend_to_be_a_replay(records: Records) -> None:
    made = talk(records)
    made.client(b"GET / HTTP/1.1\r\nHost: a\r\nGoreprox-Replay: x-1\r\n\r\n").target(OK)
    assert only(records).replay_of == b""
    assert b"replay" not in made.seen.to_target[0].lower()
    marked = talk(records, forwarding=Forwarding(replay=b"abcdef-1"))
    marked.client(GET % b"").target(OK)
    assert list(records)[1].replay_of == b"abcdef-1"
    assert b"Goreprox-Replay: abcdef-1\r\n" in marked.seen.to_target[0]


def test_what_a_reload_no_longer_selects_is_forgotten(records: Records) -> None:
    before = Site("web", settings=ALL, inspector=records)
    Talk(before).client(GET % b"").target(OK)
    same = Site("web", settings=ALL, inspector=records)
    records.replace({before: same})
    assert only(records).origin.site is same
    records.replace({same: Site("web")})
    assert (len(records), records.held) == (0, 0)
