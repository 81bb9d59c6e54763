"""Requests that two parsers could read differently: each is refused, or passed on in one reading only.

The classes are those of published work on request smuggling (RFC 9112, sections 5 to 7 and
11.2); the requests are ours.
"""

import h11
import pytest

from goreprox.config.routes import Routes
from goreprox.http.commands import Connect, Finish
from goreprox.http.exchange import Site
from tests.support.gateway import OK, Talk, cuts
from tests.support.malformed import BODIES, HEAD, NEXT, ONE_READING, REFUSED


@pytest.mark.parametrize("name", REFUSED)
def test_an_ambiguous_header_section_is_rejected_and_nothing_after_it_is_read(name: str) -> None:
    status, request = REFUSED[name]
    talk = Talk().client(request + NEXT)
    assert talk.statuses == [status]
    assert b"Connection: close" in talk.seen.to_client
    assert talk.seen.others == [Finish()]
    assert not talk.seen.to_target


@pytest.mark.parametrize("name", REFUSED)
def test_an_ambiguous_header_section_is_rejected_wherever_a_read_ends(name: str) -> None:
    status, request = REFUSED[name]
    for cut in cuts(request):
        talk = Talk().client(request[:cut], request[cut:] + NEXT)
        assert talk.statuses == [status], cut
        assert not talk.seen.to_target, cut


@pytest.mark.parametrize("name", BODIES)
def test_an_ambiguous_body_is_rejected_wherever_a_read_ends(name: str) -> None:
    head, body = HEAD + b"Transfer-Encoding: chunked\r\n\r\n", BODIES[name]
    for cut in cuts(body + NEXT):
        talk = Talk().client(head + (body + NEXT)[:cut], (body + NEXT)[cut:])
        assert talk.statuses == [400], cut
        assert b"/admin" not in talk.seen.to_target[0], cut


@pytest.mark.parametrize("name", BODIES)
def test_an_ambiguous_body_is_rejected_and_its_stream_reset(name: str) -> None:
    talk = Talk().client(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + BODIES[name] + NEXT)
    assert talk.statuses == [400]
    assert talk.seen.others[-1] == Finish()
    assert talk.seen.others.count(Connect("web", fresh=False)) == 1
    assert b"/admin" not in talk.seen.to_target[0]
    assert not isinstance(talk.requests()[-1], h11.EndOfMessage)


@pytest.mark.parametrize("name", BODIES)
def test_nothing_is_read_behind_an_ambiguous_body_that_is_skipped(name: str) -> None:
    skipping = Talk(Site("web", routes=Routes([])))
    skipping.client(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + BODIES[name] + NEXT)
    assert skipping.statuses == [404]
    assert skipping.seen.others == [Finish()]


@pytest.mark.parametrize("name", ONE_READING)
def test_accepted_requests_are_passed_on_unambiguously(name: str) -> None:
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
def test_accepted_requests_are_accepted_wherever_reads_end(name: str) -> None:
    request, body = ONE_READING[name]
    whole = request + NEXT
    for parts in (*([whole[:cut], whole[cut:]] for cut in cuts(whole)), [bytes([each]) for each in whole]):
        talk = Talk().client(*parts).target(OK, OK)
        assert talk.statuses == [200, 200], parts[0]
        assert b"".join(event.data for event in talk.requests() if isinstance(event, h11.Data)) == body, parts[0]
