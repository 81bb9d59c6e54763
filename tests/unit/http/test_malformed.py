"""Requests that two parsers could read differently: each is refused, or passed on in one reading only.

The classes are those of published work on request smuggling (RFC 9112, sections 5 to 7 and
11.2); the requests are ours.
"""

import h11
import pytest

from goreprox.config.routes import Routes
from goreprox.http.commands import Connect, Finish
from goreprox.http.exchange import Site
from tests.unit.http.harness import OK, Talk, cuts

HEAD = b"POST / HTTP/1.1\r\nHost: a\r\n"
NEXT = b"GET /admin HTTP/1.1\r\nHost: a\r\n\r\n"
REFUSED = {
    "both lengths": (400, HEAD + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "both lengths, the other order": (400, HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\n"),
    "two lengths": (400, HEAD + b"Content-Length: 6\r\nContent-Length: 5\r\n\r\n12345"),
    "a list of two lengths": (400, HEAD + b"Content-Length: 6, 5\r\n\r\n12345"),
    "a signed length": (400, HEAD + b"Content-Length: +5\r\n\r\n12345"),
    "a negative length": (400, HEAD + b"Content-Length: -5\r\n\r\n"),
    "a length in hexadecimal": (400, HEAD + b"Content-Length: 0x5\r\n\r\n12345"),
    "a length with a space in it": (400, HEAD + b"Content-Length: 1 0\r\n\r\n12345"),
    "a length beyond any": (400, HEAD + b"Content-Length: " + b"9" * 21 + b"\r\n\r\n"),
    "no length where its field is": (400, HEAD + b"Content-Length:\r\n\r\n"),
    "a length beyond 63 bits": (400, HEAD + b"Content-Length: 9223372036854775808\r\n\r\n"),
    "a length of 2 to the 64 and 5": (400, HEAD + b"Content-Length: 18446744073709551621\r\n\r\nhello"),
    "a length spelled with _": (400, HEAD + b"Content_Length: 5\r\n\r\n"),
    "a coding spelled with _": (400, HEAD + b"Transfer_Encoding: chunked\r\nContent-Length: 5\r\n\r\nhello"),
    "a field of the connection spelled with _": (400, HEAD + b"Proxy_Connection: b\r\n\r\n"),
    "a length in other digits": (400, HEAD + "Content-Length: \u0665\r\n\r\n".encode()),
    "a length with a fraction": (400, HEAD + b"Content-Length: 5.0\r\n\r\nhello"),
    "a length with an underscore": (400, HEAD + b"Content-Length: 1_0\r\n\r\nhellohello"),
    "a length with a parameter": (400, HEAD + b"Content-Length: 5;a\r\n\r\nhello"),
    "a list of a length and nothing": (400, HEAD + b"Content-Length: 5,\r\n\r\nhello"),
    "a length and a list of two": (400, HEAD + b"Content-Length: 5\r\nContent-Length: 5, 6\r\n\r\nhello"),
    "no coding where its field is": (501, HEAD + b"Transfer-Encoding:\r\nContent-Length: 5\r\n\r\nhello"),
    "the coding that is none": (501, HEAD + b"Transfer-Encoding: identity\r\nContent-Length: 5\r\n\r\nhello"),
    "a list of nothing and chunked": (501, HEAD + b"Transfer-Encoding: ,chunked\r\n\r\n0\r\n\r\n"),
    "chunked with a parameter": (501, HEAD + b"Transfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n"),
    "chunked and another field": (
        501,
        HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    ),
    "another coding": (501, HEAD + b"Transfer-Encoding: gzip\r\n\r\n"),
    "another coding before chunked": (501, HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    "chunked twice": (501, HEAD + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
    "chunked in two fields": (501, HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "almost chunked": (501, HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    "chunked in quotes": (501, HEAD + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n'),
    "chunked after a vertical tab": (400, HEAD + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n"),
    "chunked in HTTP/1.0": (400, b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "a space before the colon": (400, HEAD + b"Content-Length : 5\r\n\r\n12345"),
    "a tab before the colon": (400, HEAD + b"Transfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n"),
    "a folded line": (400, HEAD + b"X-A: 1\r\n Content-Length: 5\r\n\r\n"),
    "a folded line at the start": (400, b"GET / HTTP/1.1\r\n Host: a\r\n\r\n"),
    "a folded coding": (400, HEAD + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n"),
    "a bare CR in a value": (400, HEAD + b"X-A: 1\rContent-Length: 5\r\n\r\n"),
    "a bare CR in a name": (400, HEAD + b"X\r-A: 1\r\n\r\n"),
    "a CR before the end of a line": (400, b"GET / HTTP/1.1\r\r\nHost: a\r\n\r\n"),
    "a bare LF after a field": (400, HEAD + b"X-A: 1\nContent-Length: 5\r\n\r\n"),
    "bare LFs at the end of the head": (400, b"GET / HTTP/1.1\r\nHost: a\n\n"),
    "a LF CR": (400, b"GET / HTTP/1.1\n\rHost: a\r\n\r\n"),
    "a NUL in a value": (400, HEAD + b"X-A: 1\x002\r\n\r\n"),
    "a NUL in a name": (400, HEAD + b"X\x00-A: 1\r\n\r\n"),
    "a control character in a value": (400, HEAD + b"X-A: \x01\r\n\r\n"),
    "a DEL in a value": (400, HEAD + b"X-A: \x7f\r\n\r\n"),
    "a NUL in the version": (400, b"GET / HTTP/1.\x001\r\nHost: a\r\n\r\n"),
    "a method that does not end": (431, b"G" * 20_000),
    "a target that does not end": (431, b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n"),
    "a name that does not end": (431, HEAD + b"X" * 20_000 + b": 1\r\n\r\n"),
    "a value that does not end": (431, HEAD + b"X: " + b"1" * 20_000 + b"\r\n\r\n"),
    "too many lines": (431, HEAD + b"X: 1\r\n" * 100 + b"\r\n"),
    "no name": (400, HEAD + b": 1\r\n\r\n"),
    "no colon": (400, HEAD + b"X-A\r\n\r\n"),
    "a name in quotes": (400, HEAD + b'"Host": b\r\n\r\n'),
    "a name beyond ASCII": (400, HEAD + b"H\xf6st: b\r\n\r\n"),
    "two hosts": (400, b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
    "the same host twice": (400, b"GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n"),
    "a host and an empty one": (400, b"GET / HTTP/1.1\r\nHost: a\r\nHost:\r\n\r\n"),
    "no host": (400, b"GET / HTTP/1.1\r\n\r\n"),
    "an empty host": (400, b"GET / HTTP/1.1\r\nHost:\r\n\r\n"),
    "a list of hosts": (400, b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n"),
    "a host with a user": (400, b"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n"),
    "a host with a path": (400, b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"),
    "a host with a space": (400, b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n"),
    "a host that is encoded": (400, b"GET / HTTP/1.1\r\nHost: a%00b\r\n\r\n"),
    "a port beyond all": (400, b"GET / HTTP/1.1\r\nHost: example.org:99999\r\n\r\n"),
    "a port that is none": (400, b"GET / HTTP/1.1\r\nHost: a:x\r\n\r\n"),
    "absolute form of the scheme of other ports": (421, b"GET https://a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    "absolute form with a Host that is none": (400, b"GET http://a/ HTTP/1.1\r\nHost: a@b\r\n\r\n"),
    "absolute form with a list for a Host": (400, b"GET http://a/ HTTP/1.1\r\nHost: a, b\r\n\r\n"),
    "absolute form with a space behind Host": (400, b"GET http://a/ HTTP/1.1\r\nHost : b\r\nHost: a\r\n\r\n"),
    "absolute form with a list of hosts": (400, b"GET http://a,b/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    "absolute form with a port beyond all": (400, b"GET http://a:65536/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    "absolute form with a password": (400, b"GET http://a:1@b/ HTTP/1.1\r\nHost: b\r\n\r\n"),
    "absolute form with a user that is a host": (400, b"GET http://a:80@b/ HTTP/1.1\r\nHost: a:80\r\n\r\n"),
    "absolute form with an encoded host": (400, b"GET http://a%2eb/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    "absolute form with two hosts that differ": (400, b"GET http://a/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
    "absolute form with a user": (400, b"GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    "absolute form without a host": (400, b"GET http:/// HTTP/1.1\r\nHost: a\r\n\r\n"),
    "absolute form with a fragment": (400, b"GET http://a/#b HTTP/1.1\r\nHost: a\r\n\r\n"),
    "absolute form with two hosts": (400, b"GET http://a/ HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"),
    "absolute form without a Host": (400, b"GET http://a/ HTTP/1.1\r\n\r\n"),
    "absolute form with a backslash": (400, b"GET http://a\\b/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    "absolute form of another scheme": (400, b"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    "authority form": (400, b"GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n"),
    "an asterisk for anything but OPTIONS": (400, b"GET * HTTP/1.1\r\nHost: a\r\n\r\n"),
    "a relative target": (400, b"GET a HTTP/1.1\r\nHost: a\r\n\r\n"),
    "a backslash for a slash": (400, b"GET \\ HTTP/1.1\r\nHost: a\r\n\r\n"),
    "a fragment": (400, b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n"),
    "TRACE": (405, b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "CONNECT": (405, b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n"),
    "HTTP/0.9": (400, b"GET /\r\n\r\n"),
    "HTTP/2 prior knowledge": (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "HTTP/1.2": (505, b"GET / HTTP/1.2\r\nHost: a\r\n\r\n"),
    "http/1.1": (400, b"GET / http/1.1\r\nHost: a\r\n\r\n"),
    "a long version": (400, b"GET / HTTP/1.10\r\nHost: a\r\n\r\n"),
    "a space after the version": (400, b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n"),
    "two spaces": (400, b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "a tab for a space": (400, b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    "a space in the target": (400, b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n"),
    "a target beyond ASCII": (400, b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n"),
    "an empty line of LF first": (400, b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "an empty line and a space first": (400, b"\r\n GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "a CR first": (400, b"\rGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "a space before the method": (400, b" GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "a TLS client hello": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    "an expectation that nobody knows": (417, HEAD + b"Expect: 200-ok\r\nContent-Length: 0\r\n\r\n"),
    "Connection names the length": (400, HEAD + b"Connection: Content-Length\r\nContent-Length: 5\r\n\r\n12345"),
    "Connection names the host": (400, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: host\r\n\r\n"),
}
BODIES = {
    "a chunk size that is none": b"x\r\n",
    "a signed chunk size": b"+5\r\nhello\r\n0\r\n\r\n",
    "a negative chunk size": b"-1\r\n",
    "a chunk size with a prefix": b"0x5\r\nhello\r\n0\r\n\r\n",
    "a chunk size beyond any": b"f" * 21 + b"\r\n",
    "a chunk size of 17 digits": b"0" * 16 + b"5\r\nhello\r\n0\r\n\r\n",
    "a chunk size beyond 63 bits": b"8000000000000000\r\nhello",
    "a CR in an extension": b"5;a\rb\r\nhello\r\n0\r\n\r\n",
    "a control character in an extension": b"5;a\x00\r\nhello\r\n0\r\n\r\n",
    "an extension that is too long": b"5;" + b"a" * 4096 + b"\r\nhello\r\n0\r\n\r\n",
    "a trailer that is too long": b"0\r\n" + 5 * (b"X: " + b"1" * 4000 + b"\r\n") + b"\r\n",
    "a folded trailer": b"0\r\nX: 1\r\n 2\r\n\r\n",
    "a chunk size with an underscore": b"1_0\r\n" + b"h" * 16 + b"\r\n0\r\n\r\n",
    "a chunk size of zeros without end": b"0" * 21 + b"\r\n\r\n",
    "a chunk size that ends with CR": b"5\rhello\r\n0\r\n\r\n",
    "a chunk size that ends with LF": b"5\nhello\r\n0\r\n\r\n",
    "a space before the chunk size": b" 5\r\nhello\r\n0\r\n\r\n",
    "an empty chunk size": b"\r\nhello\r\n0\r\n\r\n",
    "a chunk that is longer than its size": b"4\r\nhello\r\n0\r\n\r\n",
    "a chunk that ends with LF": b"5\r\nhello\n0\r\n\r\n",
    "a chunk that ends with CR and more": b"5\r\nhello\rX0\r\n\r\n",
    "a LF in an extension": b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    "a space before an extension": b"5 ;a\r\nhello\r\n0\r\n\r\n",
    "a last chunk that is not the end": b"5\r\nhello\r\n0\r\n",
    "an end with LF": b"5\r\nhello\r\n0\r\n\n",
    "a trailer that ends with LF": b"5\r\nhello\r\n0\r\nX-A: 1\n\r\n",
    "a trailer that ends with two LF": b"5\r\nhello\r\n0\r\nX-A: 1\n\n",
    "a NUL in a trailer": b"0\r\nX-A: \x00\r\n\r\n",
    "a trailer that is no field": b"0\r\nGET /admin HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_head_with_two_readings_is_refused_and_nothing_after_it_is_read(name: str) -> None:
    status, request = REFUSED[name]
    talk = Talk().client(request + NEXT)
    assert talk.statuses == [status]
    assert b"Connection: close" in talk.seen.to_client
    assert talk.seen.others == [Finish()]
    assert not talk.seen.to_target


@pytest.mark.parametrize("name", REFUSED)
def test_a_head_is_refused_wherever_a_read_ends(name: str) -> None:
    status, request = REFUSED[name]
    for cut in cuts(request):
        talk = Talk().client(request[:cut], request[cut:] + NEXT)
        assert talk.statuses == [status], cut
        assert not talk.seen.to_target, cut


@pytest.mark.parametrize("name", BODIES)
def test_a_body_is_refused_wherever_a_read_ends(name: str) -> None:
    head, body = HEAD + b"Transfer-Encoding: chunked\r\n\r\n", BODIES[name]
    for cut in cuts(body + NEXT):
        talk = Talk().client(head + (body + NEXT)[:cut], (body + NEXT)[cut:])
        assert talk.statuses == [400], cut
        assert b"/admin" not in talk.seen.to_target[0], cut


@pytest.mark.parametrize("name", BODIES)
def test_a_body_with_two_readings_is_refused_and_its_stream_is_of_no_more_use(name: str) -> None:
    talk = Talk().client(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + BODIES[name] + NEXT)
    assert talk.statuses == [400]
    assert talk.seen.others[-1] == Finish()
    assert talk.seen.others.count(Connect("web", fresh=False)) == 1
    assert b"/admin" not in talk.seen.to_target[0]
    assert not isinstance(talk.requests()[-1], h11.EndOfMessage)


@pytest.mark.parametrize("name", BODIES)
def test_behind_a_body_with_two_readings_nothing_is_read_even_where_it_was_to_be_skipped(name: str) -> None:
    skipping = Talk(Site("web", routes=Routes([])))
    skipping.client(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + BODIES[name] + NEXT)
    assert skipping.statuses == [404]
    assert skipping.seen.others == [Finish()]


ONE_READING = {
    "a length given twice": (HEAD + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", b"hello"),
    "a length in a list of equals": (HEAD + b"Content-Length: 5, 5\r\n\r\nhello", b"hello"),
    "a length with zeros": (HEAD + b"Content-Length: 005\r\n\r\nhello", b"hello"),
    "CHUNKED": (HEAD + b"Transfer-Encoding: CHUNKED\r\n\r\n5\r\nhello\r\n0\r\n\r\n", b"hello"),
    "a chunk size with zeros": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0005\r\nhello\r\n000\r\n\r\n", b"hello"),
    "a long extension": (
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n5;" + b"a" * 4000 + b"\r\nhello\r\n0\r\n\r\n",
        b"hello",
    ),
    "a coding named by Connection": (
        HEAD + b"Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"hello",
    ),
    "absolute form": (HEAD.replace(b"POST /", b"POST http://A:80/") + b"Content-Length: 5\r\n\r\nhello", b"hello"),
    "absolute form for another host": (
        HEAD.replace(b"POST /", b"POST http://b/") + b"Content-Length: 5\r\n\r\nhello",
        b"hello",
    ),
    "absolute form for another port": (
        HEAD.replace(b"POST /", b"POST http://a:81/") + b"Content-Length: 5\r\n\r\nhello",
        b"hello",
    ),
    "absolute form without a path": (
        HEAD.replace(b"/ ", b"HTTP://a ", 1) + b"Content-Length: 5\r\n\r\nhello",
        b"hello",
    ),
    "empty lines first": (b"\r\n\r\n" + HEAD + b"Content-Length: 5\r\n\r\nhello", b"hello"),
    "an empty line behind": (HEAD + b"Content-Length: 5\r\n\r\nhello\r\n", b"hello"),
    "a length between tabs": (HEAD + b"Content-Length:\t5\t\r\n\r\nhello", b"hello"),
    "a chunked body of GET": (
        b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"hello",
    ),
    "a body of GET": (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", b"hello"),
    "a length of its own in the trailer": (
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nContent-Length: 3\r\n\r\n",
        b"hello",
    ),
}


@pytest.mark.parametrize("name", ONE_READING)
def test_what_is_accepted_is_passed_on_in_one_reading(name: str) -> None:
    request, body = ONE_READING[name]
    talk = Talk().client(request + NEXT).target(OK, OK)
    assert talk.statuses == [200, 200]
    first, *rest = talk.requests()
    assert isinstance(first, h11.Request)
    framing = [(key, value) for key, value in first.headers if key in (b"content-length", b"transfer-encoding")]
    assert len(framing) == 1
    assert b"".join(event.data for event in rest if isinstance(event, h11.Data)) == body
    targets = [event.target for event in talk.requests() if isinstance(event, h11.Request)]
    assert targets == [b"/", b"/admin"]
    assert b";a" not in talk.seen.to_target[0]


@pytest.mark.parametrize("name", ONE_READING)
def test_what_is_accepted_is_accepted_wherever_reads_end(name: str) -> None:
    request, body = ONE_READING[name]
    whole = request + NEXT
    for parts in (*([whole[:cut], whole[cut:]] for cut in cuts(whole)), [bytes([each]) for each in whole]):
        talk = Talk().client(*parts).target(OK, OK)
        assert talk.statuses == [200, 200], parts[0]
        assert b"".join(event.data for event in talk.requests() if isinstance(event, h11.Data)) == body, parts[0]
