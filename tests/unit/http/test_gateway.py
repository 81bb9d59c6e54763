"""What an HTTP gateway makes of requests and responses."""

import ipaddress

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from goreprox.config.defaults import MAX_HEAD_BYTES
from goreprox.config.http import DEFAULT_LIMITS, HttpConfig, Limits
from goreprox.config.routes import Route, Routes
from goreprox.http.commands import (
    Connect,
    CountRequest,
    Discard,
    Finish,
    HalfClose,
    Release,
    ResetClient,
    SwitchProtocols,
)
from goreprox.http.exchange import Admitted, Site
from goreprox.http.forwarding import Forwarding
from goreprox.http.reader import AHEAD, CHUNKED_READ
from goreprox.http.requests import Rejected
from tests.support.gateway import AUTHORITY, CLIENT, OK, Talk, split

MAX_HEAD = DEFAULT_LIMITS.head_bytes
GET = b"GET /a?b HTTP/1.1\r\nHost: example.org\r\n\r\n"
POST = b"POST /a HTTP/1.1\r\nHost: example.org\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"POST /a HTTP/1.1\r\nHost: example.org\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5;x=y\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n"
)
UPGRADE = b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n"
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


def names(message: h11.Request | h11.Response) -> list[bytes]:
    return [name for name, _ in message.headers]


def first_request(talk: Talk, stream: int = -1) -> h11.Request:
    event = talk.requests(stream)[0]
    assert isinstance(event, h11.Request)
    return event


def body_of(events: list[h11.Event]) -> bytes:
    return b"".join(event.data for event in events if isinstance(event, h11.Data))


# -- keep-alive


def test_a_response_that_ends_with_the_connection_is_the_last() -> None:
    talk = Talk().client(POST + POST).target(b"HTTP/1.1 200 OK\r\n\r\n", b"hello").target_eof()
    assert [type(each) for each in talk.seen.others] == [Connect, Discard, Connect]
    talk.target(OK)
    assert talk.statuses == [200, 200]


def test_requests_reuse_one_stream() -> None:
    talk = Talk().client(GET).target(OK).client(POST).target(OK)
    assert talk.statuses == [200, 200]
    assert talk.seen.others == [Connect("web", fresh=False), Release()] * 2
    assert len(talk.seen.to_target) == 1
    assert body_of(talk.requests()) == b"hello"


def test_pipelined_requests_are_sent_one_by_one_and_responses_in_order() -> None:
    talk = Talk().client(GET + POST + GET)
    assert len(talk.requests()) == 2
    talk.target(OK)
    assert len(talk.requests()) == 5
    talk.target(OK, OK)
    assert talk.statuses == [200, 200, 200]
    assert talk.gateway.idle


def test_a_client_that_pipelines_too_much_is_not_read() -> None:
    talk = Talk().client(GET)
    assert talk.gateway.reading
    talk.client(GET * (AHEAD // len(GET) + 1))
    assert not talk.gateway.reading
    talk.target(*[OK] * (AHEAD // len(GET) + 2))
    assert talk.gateway.idle


def test_a_read_holds_few_bytes_of_later_requests() -> None:
    talk = Talk()
    assert talk.gateway.reader.wanted == MAX_HEAD
    talk.client(POST.replace(b"5", b"1000005", 1))
    assert talk.gateway.reader.wanted == 1_000_000 + AHEAD
    talk.client(bytes(1_000_000))
    assert talk.gateway.reader.wanted == MAX_HEAD
    talk.target(OK).client(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert talk.gateway.reader.wanted == CHUNKED_READ


def test_many_pipelined_rejected_requests_get_a_response_each() -> None:
    assert Talk(Site("web", routes=Routes([]))).client(500 * GET).statuses == 500 * [404]


@pytest.mark.parametrize("parts", [[b"%b\r\n"], [b"%b", b"\r\n"], [b"%b", GET], [b"%b" + GET]])
@pytest.mark.parametrize(
    "last", [POST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), b"GET / HTTP/1.0\r\n\r\n"]
)
def test_bytes_after_the_last_request_are_ignored(last: bytes, parts: list[bytes]) -> None:
    talk = Talk().client(parts[0].replace(b"%b", last), *parts[1:]).target(OK)
    assert talk.statuses == [200]
    assert talk.seen.others == [Connect("web", fresh=False), Release(), Finish()]


def test_a_half_closed_client_gets_its_responses() -> None:
    talk = Talk().client(GET + GET).client_eof()
    assert Finish() not in talk.seen.others
    talk.target(OK)
    assert Finish() not in talk.seen.others
    talk.target(OK)
    assert talk.statuses == [200, 200]
    assert talk.seen.others[-1] == Finish()


def test_a_half_close_is_passed_on_with_the_last_request() -> None:
    assert Talk().client(GET).client_eof().seen.others == [Connect("web", fresh=False), HalfClose()]
    assert Talk().client(POST).client_eof().seen.others == [Connect("web", fresh=False), HalfClose()]
    begun = Talk().client(GET).target(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n").client_eof()
    assert begun.seen.others == [Connect("web", fresh=False), HalfClose()]
    talk = Talk().client(GET + POST).client_eof()
    assert HalfClose() not in talk.seen.others
    talk.target(OK)
    assert talk.seen.others == [Connect("web", fresh=False), Release(), Connect("web", fresh=False), HalfClose()]
    talk = Talk().client(GET + POST + GET).client_eof().target(OK)
    assert HalfClose() not in talk.seen.others
    assert talk.target(OK).seen.others[-1] == HalfClose()


def test_a_half_closed_client_gets_502_or_504_without_a_response() -> None:
    talk = Talk().client(GET).client_eof().target_eof()
    assert talk.statuses == [502]  # and no other target is asked: this one may have given up since nobody awaits it
    assert talk.seen.others[-1] == Finish()
    talk = Talk().client(GET).client_eof()
    assert talk.gateway.half_closed
    talk.do(talk.gateway.timed_out())
    assert talk.statuses == [504]
    assert talk.seen.others[-2:] == [Discard(reset=True), Finish()]


def test_http_1_0_gets_no_chunks_and_the_connection_ends() -> None:
    talk = Talk().client(b"GET / HTTP/1.0\r\n\r\n")
    assert dict(first_request(talk).headers)[b"host"] == AUTHORITY.encode()
    talk.target(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-T: 1\r\n\r\n")
    assert talk.seen.to_client == b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nok"
    assert talk.seen.others[-1] == Finish()


def test_a_drained_client_gets_its_response_first() -> None:
    talk = Talk().client(GET)
    talk.do(talk.gateway.drain())
    assert Finish() not in talk.seen.others
    talk.target(OK)
    assert b"Connection: close" in talk.seen.to_client
    assert talk.seen.others[-1] == Finish()


def test_an_error_page_is_the_last_response_in_a_drain() -> None:
    talk = Talk().client(GET)
    talk.do(talk.gateway.drain())
    talk.lost(503, "no provider", again=False)
    assert talk.statuses == [503]
    assert b"Connection: close" in talk.seen.to_client
    assert talk.seen.others[-1] == Finish()


def test_an_idle_client_is_closed_at_once_in_a_drain() -> None:
    talk = Talk()
    talk.do(talk.gateway.drain())
    assert talk.seen.others == [Finish()]


# -- bodies


def test_a_chunked_body_is_passed_on_without_chunk_extensions() -> None:
    talk = Talk().client(CHUNKED)
    assert b"x=y" not in talk.seen.to_target[0]
    events = talk.requests()
    assert body_of(events) == b"hello"
    assert isinstance(events[-1], h11.EndOfMessage)
    assert list(events[-1].headers) == [(b"x-sum", b"1")]


def test_trailers_that_frame_or_authenticate_are_dropped() -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
    talk = Talk().client(head + b"Host: b\r\nAuthorization: x\r\nX-Sum: 1\r\n\r\n")
    end = talk.requests()[-1]
    assert isinstance(end, h11.EndOfMessage)
    assert list(end.headers) == [(b"x-sum", b"1")]


def test_a_response_is_passed_on_as_it_arrives() -> None:
    talk = Talk().client(GET).target(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
    assert talk.seen.to_client.endswith(b"\r\n\r\n")
    talk.target(b"data: 1\n\n")
    assert talk.seen.to_client.endswith(b"9\r\ndata: 1\n\n\r\n")
    talk.target_eof()
    assert talk.seen.to_client.endswith(b"0\r\n\r\n")
    assert talk.gateway.idle


@pytest.mark.parametrize(
    ("method", "head"),
    [
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n"),
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\nETag: x\r\n\r\n"),
    ],
)
def test_responses_without_a_body_end_with_their_header_section(method: bytes, head: bytes) -> None:
    talk = Talk().client(method + b" / HTTP/1.1\r\nHost: a\r\n\r\n").target(head)
    assert talk.seen.to_client == head
    assert talk.gateway.idle


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ],
)
def test_a_length_where_none_may_be_is_removed(head: bytes) -> None:
    assert b"Content-Length" not in Talk().client(GET).target(head).seen.to_client


def test_expect_is_removed_from_http_1_0() -> None:
    talk = Talk().client(b"PUT / HTTP/1.0\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nhi")
    assert names(first_request(talk)).count(b"expect") == 0


def test_100_continue_comes_from_the_target() -> None:
    talk = Talk().client(b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    assert b"Expect: 100-continue" in talk.seen.to_target[0]
    assert not talk.seen.to_client
    talk.target(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert talk.seen.to_client == b"HTTP/1.1 100 Continue\r\n\r\n"
    talk.client(b"hi").target(OK)
    assert talk.statuses == [200]
    assert talk.gateway.idle


def test_an_interim_response_has_no_content_length() -> None:
    talk = Talk().client(GET).target(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\nContent-Length: 5\r\n\r\n")
    assert b"Link: x" in talk.seen.to_client
    assert b"Content-Length" not in talk.seen.to_client


def test_a_response_before_the_end_of_the_request_is_the_last() -> None:
    talk = Talk().client(POST[:-1]).target(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
    assert talk.statuses == [413]
    assert b"Connection: close" in talk.seen.to_client
    assert talk.seen.others[-2:] == [Discard(reset=True), Finish()]


# -- hop by hop


def test_hop_by_hop_fields_are_removed() -> None:
    talk = Talk().client(
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nTE: trailers\r\n"
        b"Proxy-Connection: x\r\nUpgrade: h2c\r\nX-End: 2\r\n\r\n"
    )
    assert names(first_request(talk))[:2] == [b"host", b"x-end"]
    assert len(names(first_request(talk))) == 6  # what targets are told of the client
    talk.target(
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 1\r\nX-End: 2\r\n\r\n"
    )
    response = talk.responses()[0]
    assert isinstance(response, h11.Response)
    assert names(response) == [b"content-length", b"x-end", b"connection"]


# -- upgrade


def test_an_upgraded_connection_is_joined_with_its_stream() -> None:
    talk = Talk().client(UPGRADE).client(b"early").target(SWITCHING + b"hello")
    assert talk.seen.to_client == SWITCHING.replace(b"Upgrade\r\n", b"upgrade\r\n", 1) + b"hello"
    assert talk.seen.to_target[0].endswith(b"\r\n\r\nearly")
    assert b"Connection: upgrade\r\nUpgrade: websocket\r\n" in talk.seen.to_target[0]
    assert talk.seen.others[-1] == SwitchProtocols()
    assert talk.gateway.over


@pytest.mark.parametrize(
    ("wanted", "passed"),
    [
        (b"example/1, foo/2", b"example/1, foo/2"),
        (b"a,b/1\t,\tc", b"a, b/1, c"),
        (b"a\r\nUpgrade: b", b"a, b"),
        (b"websocket, h2c", None),
        (b"H2C,websocket", None),
        (b"websocket,\th2c-16", None),
        (b"websocket\r\nUpgrade: h2c", None),
        (b"TLS/1.0, HTTP/1.1", None),
        (b"websocket,", None),
        (b"web socket", None),
        (b"a/b/c", None),
    ],
)
def test_an_upgrade_is_passed_on_if_all_its_protocols_are_allowed(wanted: bytes, passed: bytes | None) -> None:
    request = first_request(Talk().client(UPGRADE.replace(b"websocket", wanted)))
    assert dict(request.headers).get(b"upgrade") == passed
    assert dict(request.headers).get(b"connection") == (None if passed is None else b"upgrade")


@pytest.mark.parametrize(
    "request_",
    [
        UPGRADE.replace(b"HTTP/1.1", b"HTTP/1.0"),
        UPGRADE.replace(b"Upgrade: websocket\r\n", b""),
        UPGRADE.replace(b"keep-alive, Upgrade", b"keep-alive"),
    ],
    ids=["HTTP/1.0", "no Upgrade", "no Connection"],
)
def test_an_upgrade_that_is_not_one_is_removed(request_: bytes) -> None:
    fields = names(first_request(Talk().client(request_)))
    assert b"upgrade" not in fields and b"connection" not in fields


def test_absolute_form_becomes_a_path_and_its_host() -> None:
    for target, path, host in (
        (b"http://Example.org/x?y=http://z/", b"/x?y=http://z/", b"Example.org"),
        (b"HTTP://a:443", b"/", b"a:443"),
        (b"http://a?b", b"/?b", b"a"),
        (b"http://[::1]:8080/", b"/", b"[::1]:8080"),
    ):
        for line in (b"GET %b HTTP/1.1\r\nHost: %b\r\n\r\n", b"GET %b HTTP/1.0\r\n%.0b\r\n"):
            request = first_request(Talk().client(line % (target, host)))
            assert (request.target, dict(request.headers)[b"host"]) == (path, host)
    request = first_request(Talk().client(b"OPTIONS http://a HTTP/1.1\r\nHost: a\r\n\r\n"))
    assert request.target == b"*"


@pytest.mark.parametrize("host", [b"b", b"a:81", b"", b"10.0.0.1", b"[::1]:80"])
def test_the_host_of_absolute_form_replaces_the_host_field(host: bytes) -> None:
    routes = Routes([Route("a", "right"), Route("*", "wrong")])
    site = Site("web", routes=routes, logs=True)
    talk = Talk(site).client(b"GET http://a:81/x HTTP/1.1\r\nHost: %b\r\nX-Forwarded-Host: c\r\n\r\n" % host).target(OK)
    assert talk.seen.others[0] == Connect("right", fresh=False)
    fields = [(name, value) for name, value in first_request(talk).headers if b"host" in name]
    assert fields == [(b"host", b"a:81"), (b"x-forwarded-host", b"a:81")]
    assert b'host="a:81"' in dict(first_request(talk).headers)[b"forwarded"]
    assert (talk.seen.logged[0].host, talk.seen.logged[0].path) == ("a:81", "/x")


@pytest.mark.parametrize("proto", [b"http", b"https"])
def test_absolute_form_for_another_scheme_is_421_except_from_a_trusted_proxy(proto: bytes) -> None:
    for trusted in (False, True):
        networks = (ipaddress.ip_network(CLIENT),) if trusted else ()
        for wanted in (b"http", b"https"):
            talk = Talk(Site("web", forwarding=Forwarding(networks, proto)))
            talk.client(b"GET %b://a/ HTTP/1.1\r\nHost: a\r\n\r\n" % wanted).target(OK)
            assert talk.statuses == [200 if trusted or wanted == proto else 421]


def test_a_declined_upgrade_is_an_ordinary_request() -> None:
    talk = Talk().client(UPGRADE).target(OK).client(GET).target(OK)
    assert talk.statuses == [200, 200]


def test_an_unrequested_switch_of_protocols_is_502() -> None:
    talk = Talk().client(GET).target(SWITCHING)
    assert talk.statuses == [502]


def test_a_switch_of_protocols_before_the_end_of_the_request_is_502() -> None:
    upgrade = UPGRADE.replace(b"GET", b"POST").replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\n")
    talk = Talk().client(upgrade + b"he").target(SWITCHING)
    assert talk.statuses == [502]
    assert talk.seen.others[-2:] == [Discard(reset=True), Finish()]
    assert Talk().client(upgrade + b"hello").target(SWITCHING).seen.others[-1] == SwitchProtocols()


# -- our own responses


def test_malformed_responses_are_502_and_the_connection_stays_open() -> None:
    for bad in (
        b"nonsense\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\n",
    ):
        talk = Talk().client(GET).target(bad)
        assert talk.statuses == [502]
        talk.client(GET).target(OK)
        assert talk.statuses == [502, 200]
        assert len(talk.seen.to_target) == 2


def test_a_truncated_response_is_never_completed() -> None:
    for head in (b"Content-Length: 10", b"Transfer-Encoding: chunked"):
        talk = (
            Talk().client(GET).target(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n").target(b"2\r\nok\r\n").target_eof()
        )
        assert talk.seen.others[-1] == ResetClient()
        assert not talk.seen.to_client.endswith(b"0\r\n\r\n")
    talk = Talk().client(GET).target(b"HTTP/1.1 200 OK\r\n\r\nsome").lost()
    assert talk.seen.others[-1] == ResetClient()


def test_a_safe_request_is_sent_once_more_when_its_provider_is_lost() -> None:
    talk = Talk().client(GET).lost()
    assert talk.seen.others == [Connect("web", fresh=False), Connect("web", fresh=True)]
    assert talk.seen.to_target[0] == talk.seen.to_target[1]
    talk.target(OK)
    assert talk.statuses == [200]
    talk.client(GET).lost().lost()
    assert talk.statuses == [200, 502]
    assert talk.gateway.idle


def test_no_other_request_is_sent_once_more() -> None:
    for request in (
        POST,
        POST[:-1],
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx",
        GET.replace(b"GET", b"PUT"),
    ):
        talk = Talk().client(request).lost()
        assert talk.statuses == [502]
        assert len(talk.seen.to_target) == 1
    talk = Talk().client(GET).target(b"HTTP/1.1 1").lost()
    assert talk.statuses == [502]
    talk = Talk().client(GET).lost(again=False)
    assert talk.statuses == [502]


@pytest.mark.parametrize("request_", [GET, POST, POST[:-2], CHUNKED, CHUNKED[:-9], CHUNKED[:-29]])
@pytest.mark.parametrize("how", ["closed", "reset"])
def test_a_request_that_never_reached_its_target_is_resent_once(request_: bytes, how: str) -> None:
    def ends(talk: Talk) -> Talk:
        return talk.target_eof(untouched=True) if how == "closed" else talk.lost(untouched=True)

    whole = request_ in (GET, POST, CHUNKED)
    rest = b"" if whole else (POST if request_ in POST else CHUNKED)[len(request_) :]
    talk = ends(Talk().client(GET).target(OK).client(request_))
    assert talk.seen.others[-2:] == [Discard(reset=True), Connect("web", fresh=True)]
    assert talk.seen.to_target[0].endswith(talk.seen.to_target[1])
    talk.client(*[rest] if rest else []).target(OK)
    assert talk.statuses == [200, 200]
    assert isinstance(talk.requests()[-1], h11.EndOfMessage)
    assert talk.client(GET).target(OK).statuses == [200] * 3
    talk = ends(ends(Talk().client(request_)))
    assert talk.statuses == [502]


def test_a_request_is_not_resent_after_a_response_began_or_the_client_left() -> None:
    assert Talk().client(POST).target(b"HTTP/1.1 1").target_eof(untouched=True).statuses == [502]
    assert Talk().client(POST).client_eof().target_eof(untouched=True).statuses == [502]
    assert Talk().client(POST).target_eof().statuses == [502]
    assert Talk().client(POST).target(b"HTTP/1.1 1").lost(untouched=True).statuses == [502]
    assert Talk().client(POST).client_eof().lost(untouched=True).statuses == [502]
    assert Talk().client(POST).lost().statuses == [502]


def test_the_first_failure_is_reported_when_no_second_provider_is_found() -> None:
    talk = Talk().client(GET).lost(504, "out of reach").lost(503, "none came", again=False)
    assert talk.statuses == [504]


def test_no_provider_is_503_with_retry_after() -> None:
    talk = Talk().client(GET).lost(503, "no provider", again=False)
    assert talk.statuses == [503]
    assert b"Retry-After: 5\r\n" in talk.seen.to_client
    assert talk.gateway.idle


@pytest.mark.parametrize(
    ("accept", "kind", "start"),
    [
        (b"*/*", b"text/plain", b"502 Bad Gateway: "),
        (b"application/json", b"application/json", b'{"status": 502, '),
        (b"text/html,application/xhtml+xml", b"text/html", b"<!doctype html>"),
        (b"application/json, text/html;q=0.5", b"application/json", b"{"),
    ],
)
def test_error_pages_have_the_type_that_the_client_accepts(accept: bytes, kind: bytes, start: bytes) -> None:
    talk = Talk().client(GET[:-2] + b"Accept: " + accept + b"\r\n\r\n").lost(502, "gone", again=False)
    head, body = talk.responses()[:2]
    assert isinstance(head, h11.Response)
    assert isinstance(body, h11.Data)
    assert dict(head.headers)[b"content-type"] == kind + b"; charset=utf-8"
    assert bytes(body.data).startswith(start)


def test_error_pages_for_head_have_no_body() -> None:
    talk = Talk().client(GET.replace(b"GET", b"HEAD")).lost(again=False)
    assert talk.seen.to_client.endswith(b"\r\n\r\n")
    assert talk.gateway.idle


def test_an_unsolicited_response_ends_its_stream() -> None:
    talk = Talk().client(GET).target(OK + b"HTTP/1.1 200 OK\r\n")
    assert talk.seen.others[-1] == Discard(reset=False)
    talk = Talk().client(GET).target(OK).target(OK)
    assert talk.seen.others[-1] == Discard(reset=False)
    assert talk.statuses == [200]
    talk.client(GET)
    assert len(talk.seen.to_target) == 2


def test_a_target_that_closes_between_requests_is_replaced() -> None:
    talk = Talk().client(GET).target(OK).target_eof().client(GET).target(OK)
    assert talk.statuses == [200, 200]
    assert len(talk.seen.to_target) == 2


# -- limits


def test_a_header_section_beyond_the_limit_is_431() -> None:
    start, end = b"GET / HTTP/1.1\r\nHost: a\r\nX-Long: ", b"\r\n\r\n"
    fits = start + b"x" * (MAX_HEAD - len(start + end)) + end
    assert len(Talk().client(fits).requests()) == 2
    talk = Talk().client(start + b"x" * (MAX_HEAD - len(start + end) + 1) + end)
    assert talk.statuses == [431]
    assert talk.seen.others == [Finish()]
    assert Talk().client(start.ljust(MAX_HEAD - 1, b"x")).statuses == []
    assert Talk().client(start.ljust(MAX_HEAD, b"x")).statuses == [431]


def test_header_lines_beyond_the_limit_are_431() -> None:
    lines = [b"X-%d: 1\r\n" % number for number in range(100)]
    assert len(Talk().client(b"GET / HTTP/1.1\r\nHost: a\r\n" + b"".join(lines[:99]) + b"\r\n").requests()) == 2
    talk = Talk().client(b"GET / HTTP/1.1\r\nHost: a\r\n" + b"".join(lines) + b"\r\n")
    assert talk.statuses == [431]


def test_the_limits_of_header_sections_are_configurable() -> None:
    site = Site("web", settings=HttpConfig(limits=Limits(MAX_HEAD_BYTES, 200)))
    lines = b"".join(b"X-%d: 1\r\n" % number for number in range(198))
    start = b"GET / HTTP/1.1\r\nHost: a\r\n" + lines + b"Cookie: "
    fits = start + b"x" * (MAX_HEAD_BYTES - len(start) - 4) + b"\r\n\r\n"
    assert Talk(site).gateway.reader.wanted == MAX_HEAD_BYTES
    for cut in (1, 16_384, len(fits) - 1):
        talk = Talk(site).client(fits[:cut], fits[cut:]).target(OK)
        assert talk.statuses == [200]
    assert Talk(site).client(fits.replace(b"Cookie: x", b"Cookie: xx")).statuses == [431]
    assert Talk(site).client(start + b"x\r\nX: 1\r\n\r\n").statuses == [431]


def test_a_slow_header_section_is_408_and_a_silent_client_is_closed() -> None:
    talk = Talk().client(GET[:-1])
    assert talk.gateway.reader.in_head
    talk.do(talk.gateway.timed_out())
    assert talk.statuses == [408]
    assert talk.seen.others == [Finish()]
    talk = Talk()
    talk.do(talk.gateway.timed_out())
    assert talk.seen.others == [Finish()]
    assert not talk.seen.to_client


def test_a_truncated_body_is_not_passed_on_as_whole() -> None:
    talk = Talk().client(POST[:-1]).client_eof()
    assert Discard(reset=True) in talk.seen.others
    assert talk.statuses == [400]


def test_a_truncated_pipelined_body_is_not_awaited() -> None:
    talk = Talk().client(GET + POST[:-1]).client_eof().target(OK)
    assert talk.statuses == [200, 400]
    assert talk.seen.others[-2:] == [Discard(reset=True), Finish()]


# -- however the bytes are split


SCRIPTS = [
    (GET + POST + CHUNKED, OK),
    (CHUNKED * 2, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-T: 1\r\n\r\n"),
    (GET * 3, b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n"),
    (UPGRADE + b"raw bytes", SWITCHING + b"and back"),
    (GET + b"GET / HTTP/1.1\nHost: a\n\n" + GET, OK),
    (GET + b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", OK),
    (CHUNKED + CHUNKED[:-2] + b"\n" + GET, OK),
    (b"GET /" + b"x" * (MAX_HEAD + 10), OK),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", OK),
]


@given(
    st.sampled_from(SCRIPTS), st.lists(st.integers(0, 40_000), max_size=12), st.lists(st.integers(0, 999), max_size=9)
)
def test_results_do_not_depend_on_how_bytes_are_split(
    script: tuple[bytes, bytes], cuts: list[int], more: list[int]
) -> None:
    def both(client: list[bytes], target: list[bytes]) -> tuple[object, ...]:
        talk = Talk()
        talk.client(*client)
        for _ in range(3):
            if len(talk.seen.to_target) and not talk.gateway.idle and not talk.gateway.over:
                talk.target(*target)
        heads = [event for event in talk.responses() if isinstance(event, h11.Response | h11.InformationalResponse)]
        ends = [each for each in talk.seen.others if not isinstance(each, Connect | Release)]
        sent = talk.seen.to_target
        if SwitchProtocols() not in ends:
            sent = [body_of(talk.requests(stream)) for stream in range(len(sent))]
        return [(head.status_code, bytes(head.reason)) for head in heads], sent, ends

    client, target = script
    assert both(split(client, cuts), split(target, more)) == both([client], [target])


# -- challenges of ACME


class Nobody:
    """Knows no token."""

    header = b"x-token"

    def admit(self, *_: object) -> Admitted:
        raise Rejected(401, "no token")


def test_challenges_are_answered_without_a_token_or_a_route() -> None:
    site = Site("web", Nobody(), routes=Routes([]), challenge={b"abc": b"abc.print"}.get)
    talk = Talk(site).client(b"GET /.well-known/acme-challenge/abc HTTP/1.1\r\nHost: a.test\r\n\r\n")
    assert talk.statuses == [200]
    assert talk.seen.to_client.endswith(b"\r\n\r\nabc.print")
    assert talk.seen.counted == [CountRequest("", 200)]
    talk.client(b"GET /.well-known/acme-challenge/abc HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n")
    assert talk.statuses == [200, 200]
    assert talk.seen.others == [Finish()]


@pytest.mark.parametrize(
    "first_line", [b"POST /.well-known/acme-challenge/abc", b"GET /.well-known/acme-challenge/xyz", b"GET /acme/abc"]
)
def test_what_is_no_challenge_of_ours_is_for_the_target(first_line: bytes) -> None:
    site = Site("web", challenge={b"abc": b"abc.print"}.get)
    talk = Talk(site).client(b"%b HTTP/1.1\r\nHost: a.test\r\n\r\n" % first_line)
    assert talk.seen.others == [Connect("web", fresh=False)]
