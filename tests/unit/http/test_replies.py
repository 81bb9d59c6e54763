"""What targets send that has one reading, and what has none: served, or an error at once, wherever reads end."""

import h11
import pytest

from goreprox.http.commands import Discard, Release, ResetClient
from tests.support.gateway import OK, Talk, cuts
from tests.support.responses import BEGUN, CHUNKED, NOT_BEGUN, SERVED

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


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
