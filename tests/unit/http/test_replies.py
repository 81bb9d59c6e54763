"""What targets send that has one reading, and what has none: served, or an error at once, wherever reads end."""

import h11
import pytest

from goreprox.http.commands import Discard, Release, ResetClient
from tests.support.gateway import OK, Talk, cuts

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
SERVED = {
    "a length": OK,
    "an empty line first": b"\r\n" + OK,
    "empty lines that end with LF": b"\n\n" + OK,
    "an empty line before each head": b"\r\nHTTP/1.1 100 Continue\r\n\r\n\r\n" + OK,
    "a head that ends with LF": OK.replace(b"\r\n", b"\n"),
    "chunks": CHUNKED + b"1\r\no\r\n1;a=b\r\nk\r\n0\r\nX-Sum: 1\r\n\r\n",
    "chunks whose lines end with LF": CHUNKED + b"1\no\n1;a=b\nk\n0\nX-Sum: 1\n\n",
    "chunks some of whose lines end with LF": CHUNKED + b"1\no\r\n1\r\nk\n0\r\nX-Sum: 1\n\r\n",
    "a chunk of LF": CHUNKED.replace(b"OK", b"A") + b"2\nok\n0\n\n",
    "a length and chunks": CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Length: 9\r\n\r\n") + b"2\r\nok\r\n0\r\n\r\n",
    "chunks and a length": CHUNKED.replace(b"OK\r\n", b"OK\r\nContent-Length: 1\r\n") + b"2\r\nok\r\n0\r\n\r\n",
}
NOT_BEGUN = {
    "another protocol": b"SSH-2.0-x\r\n",
    "another protocol that waits for us": b"220 ",
    "a space first": b" " + OK,
    "empty lines and another protocol": b"\r\n\r\nsome",
    "a control character in the reason": b"HTTP/1.1 200 O\x07K\r\nContent-Length: 2\r\n\r\nok",
    "a delete in the reason": b"HTTP/1.1 200 O\x7fK\r\nContent-Length: 2\r\n\r\nok",
    "an escape in an interim reason": b"HTTP/1.1 103 \x1b[1m\r\n\r\n" + OK,
    "chunks in HTTP/1.0": CHUNKED.replace(b"1.1", b"1.0"),
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\n",
    "another coding": CHUNKED.replace(b"chunked", b"gzip"),
    "a head without end": b"HTTP/1.1 200 OK\r\nX: " + b"1" * 70_000,
}
BEGUN = {
    "a chunk size that is none": b"x\r\n",
    "a chunk size that is none, and LF": b"x\n",
    "a chunk size of 17 digits": b"0" * 16 + b"2\r\nok",
    "a chunk that is longer than its size": b"1\r\nok\r\n",
    "a trailer that is no field": b"0\r\nHTTP/1.1 200 OK\r\n\r\n",
    "a line without end": b"2;" + b"a" * 5000,
}


@pytest.mark.parametrize("name", SERVED)
def test_unambiguous_responses_are_served_wherever_reads_end(name: str) -> None:
    response = SERVED[name]
    for parts in (*([response[:cut], response[cut:]] for cut in cuts(response)), [bytes([each]) for each in response]):
        talk = Talk().client(GET).target(*parts)
        assert talk.statuses == [200], parts
        assert b"".join(event.data for event in talk.responses() if isinstance(event, h11.Data)) == b"ok"
        assert isinstance(talk.responses()[-1], h11.EndOfMessage)
        assert talk.gateway.idle
        assert talk.client(GET).target(OK).statuses == [200, 200]


@pytest.mark.parametrize("name", SERVED)
def test_a_response_with_a_doubtful_end_is_the_last_of_its_stream(name: str) -> None:
    doubtful = "length" in name and "chunks" in name
    talk = Talk().client(GET).target(SERVED[name])
    assert talk.seen.others[-1] == (Discard(reset=False) if doubtful else Release())
    assert talk.seen.to_client.lower().count(b"content-length") + talk.seen.to_client.count(b"chunked") == 1


@pytest.mark.parametrize("name", NOT_BEGUN)
def test_a_malformed_response_is_502_at_once_wherever_reads_end(name: str) -> None:
    response = NOT_BEGUN[name]
    for cut in cuts(response):
        talk = Talk().client(GET).target(response[:cut], response[cut:])
        assert talk.statuses == [502], cut
        assert Discard(reset=True) in talk.seen.others


@pytest.mark.parametrize("name", BEGUN)
def test_a_malformed_response_body_is_a_reset_at_once_wherever_reads_end(name: str) -> None:
    for cut in cuts(BEGUN[name]):
        talk = Talk().client(GET).target(CHUNKED, BEGUN[name][:cut], BEGUN[name][cut:])
        assert talk.seen.others[-2:] == [Discard(reset=True), ResetClient()], cut


def test_a_target_that_fails_during_a_request_is_reset() -> None:
    """A FIN would say that the request is whole."""
    begun = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n1"
    for talk in (
        Talk().client(begun).target(b"nonsense"),
        Talk().client(begun).target_eof(),
        Talk().client(begun).target(CHUNKED).target(b"x\r\n"),
        Talk().client(begun).target(CHUNKED).target_eof(),
        Talk().client(begun).target(OK),
        Talk().client(begun).target(OK + OK),
        Talk().client(begun).client_eof(),
        Talk().client(begun, b"1"),
    ):
        assert [each for each in talk.seen.others if isinstance(each, Discard)] == [Discard(reset=True)]
