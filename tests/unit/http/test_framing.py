"""Where messages end: each of these in every split of its bytes, since parser and bodies see pieces of any size."""

from collections.abc import Iterator

import h11
import pytest

from goreprox.config.http import DEFAULT_LIMITS
from goreprox.http.bodies import MAX_LINE
from goreprox.http.commands import Connect, Discard, Finish, HalfClose, Release, ResetClient, SwitchProtocols
from goreprox.http.reply import MAX_HEAD
from tests.support.gateway import OK, Talk
from tests.support.responses import CHUNKED

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
HEAD = b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"


def pieces(data: bytes) -> Iterator[list[bytes]]:
    """All of it, cut in two everywhere, and byte by byte."""
    yield [data]
    yield from ([data[:cut], data[cut:]] for cut in range(1, len(data)))
    yield [data[at : at + 1] for at in range(len(data))]


def body_of(events: list[h11.Event]) -> bytes:
    return b"".join(event.data for event in events if isinstance(event, h11.Data))


def targets(talk: Talk) -> list[bytes]:
    return [event.target for event in talk.requests() if isinstance(event, h11.Request)]


# -- responses that have no body, whatever they say


@pytest.mark.parametrize(
    ("request_", "head"),
    [
        (HEAD, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
        (HEAD, CHUNKED),
        (HEAD, b"HTTP/1.1 200 OK\r\n\r\n"),
        (GET, b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n"),
        (GET, b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (GET, b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"),
        (GET, b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n"),
    ],
)
def test_a_response_without_a_body_does_not_swallow_the_next(request_: bytes, head: bytes) -> None:
    for parts in pieces(head):
        talk = Talk().client(request_ + GET).target(*parts, OK)
        assert talk.seen.others == [Connect("web", fresh=False), Release()] * 2
        assert talk.seen.to_client.endswith(b"\r\n\r\n" + OK)
        assert body_of(talk.responses([request_.split()[0]])) == b"ok"


# -- interim responses


def test_each_of_several_interim_responses_is_passed_on() -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    for parts in pieces(interim + OK):
        talk = Talk().client(GET).target(*parts)
        assert talk.seen.to_client == interim + OK
        assert talk.seen.others[-1] == Release()


@pytest.mark.parametrize("more", [b"", b"Upgrade: x\r\nConnection: upgrade\r\n", b"Content-Length: 5\r\n"])
def test_101_that_nobody_asked_for_is_502(more: bytes) -> None:
    for parts in pieces(b"HTTP/1.1 101 Switching Protocols\r\n" + more + b"\r\n"):
        talk = Talk().client(GET).target(*parts)
        assert talk.statuses == [502]
        assert talk.seen.others == [Connect("web", fresh=False), Discard(reset=True)]
        assert "which nobody asked for" in talk.seen.logged[0].error


@pytest.mark.parametrize("more", [b"", b"Upgrade: x\r\nConnection: upgrade\r\n", b"Content-Length: 5\r\n"])
def test_what_follows_101_that_was_asked_for_is_passed_on_as_it_is(more: bytes) -> None:
    upgrade = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"
    for parts in pieces(b"HTTP/1.1 101 Switching Protocols\r\n" + more + b"\r\n"):
        talk = Talk().client(upgrade).target(*parts[:-1], parts[-1] + b"0\r\n\r\nHTTP/1.1")
        assert talk.seen.others[-1] == SwitchProtocols()
        assert talk.seen.to_client.endswith(b"\r\n\r\n0\r\n\r\nHTTP/1.1")


# -- an upgrade with a body


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket"])
@pytest.mark.parametrize(
    "body", [b"Content-Length: 5\r\n\r\nhello", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"]
)
def test_a_request_with_an_upgrade_has_a_body_like_any_other(protocol: bytes, body: bytes) -> None:
    fields = b"Host: a\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: x\r\nUpgrade: " + protocol + b"\r\n"
    for parts in pieces(b"POST /a HTTP/1.1\r\n" + fields + body + GET):
        talk = Talk().client(*parts).target(OK, OK)
        assert talk.statuses == [200, 200]
        assert targets(talk) == [b"/a", b"/"]
        assert body_of(talk.requests()) == b"hello"


# -- ends of bodies


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\n"])
def test_a_body_that_ends_with_the_connection_is_whole_then(head: bytes) -> None:
    for parts in pieces(head + b"hello"):
        talk = Talk().client(GET).target(*parts)
        assert not isinstance(talk.responses()[-1], h11.EndOfMessage)
        talk.target_eof()
        assert body_of(talk.responses()) == b"hello"
        assert isinstance(talk.responses()[-1], h11.EndOfMessage)
        assert talk.seen.others == [Connect("web", fresh=False), Discard(reset=False)]


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        CHUNKED + b"5\r\nhello\r\n0\r\nX-A: 1\r\n\r\n",
    ],
)
@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_a_response_that_is_truncated_anywhere_is_a_reset(response: bytes, method: bytes) -> None:
    """Never a FIN, and no last chunk: it must not look whole."""
    begun = response.index(b"\r\n\r\n") + 4
    for cut in range(begun, len(response)):
        for lost in (Talk.target_eof, Talk.lost):
            talk = Talk().client(GET.replace(b"GET", method)).target(response[:cut])
            lost(talk)
            assert talk.seen.others[-1] == ResetClient(), cut
            assert Finish() not in talk.seen.others
            assert not talk.seen.to_client.endswith(b"0\r\n\r\n")
            assert not isinstance(talk.responses()[-1], h11.EndOfMessage)


@pytest.mark.parametrize(
    "request_",
    [
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-A: 1\r\n\r\n",
    ],
)
def test_a_request_that_is_truncated_anywhere_never_looks_whole_to_its_target(request_: bytes) -> None:
    begun = request_.index(b"\r\n\r\n") + 4
    for cut in range(begun, len(request_)):
        talk = Talk().client(request_[:cut]).client_eof()
        assert talk.statuses == [400]
        assert Discard(reset=True) in talk.seen.others
        assert HalfClose() not in talk.seen.others
        assert not isinstance(talk.requests()[-1], h11.EndOfMessage)


# -- chunked bodies


def test_trailers_are_passed_on_in_both_directions() -> None:
    chunks = b"5;x=y\r\nhello\r\n0\r\nX-Sum: 1 \r\nX-Empty:\r\n\r\n"
    trailers = [(b"x-sum", b"1"), (b"x-empty", b"")]
    for parts in pieces(b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks):
        end = Talk().client(*parts).requests()[-1]
        assert isinstance(end, h11.EndOfMessage)
        assert list(end.headers) == trailers
    for parts in pieces(CHUNKED + chunks):
        talk = Talk().client(GET).target(*parts)
        end = talk.responses()[-1]
        assert isinstance(end, h11.EndOfMessage)
        assert list(end.headers) == trailers
        assert talk.seen.others[-1] == Release()


def test_requests_behind_a_chunked_one_are_requests() -> None:
    chunked = b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    for parts in pieces(chunked + GET + chunked):
        talk = Talk().client(*parts).target(OK, OK, OK)
        assert talk.statuses == [200] * 3
        assert targets(talk) == [b"/a", b"/", b"/a"]
        assert body_of(talk.requests()) == b"hellohello"


def test_a_folded_line_of_a_target_is_502() -> None:
    for parts in pieces(b"HTTP/1.1 200 OK\r\nX-A: 1\r\n Content-Length: 5\r\nContent-Length: 2\r\n\r\nok"):
        talk = Talk().client(GET).target(*parts)
        assert talk.statuses == [502]
        assert "Content-Length: 5" in talk.seen.logged[0].error


# -- what does not end


@pytest.mark.parametrize("bad", [b"X: 1\rX", b"X: 1\n", b"X: 1\r\n ", b"X: 1\r\n\t", b"X: \0"])
def test_a_malformed_line_is_rejected_before_the_header_section_ends_wherever_reads_end(bad: bytes) -> None:
    for parts in pieces(b"GET / HTTP/1.1\r\nHost: a\r\n" + bad):
        assert Talk().client(*parts).statuses == [400]


@pytest.mark.parametrize("size", [1, 100, 4096])
@pytest.mark.parametrize(
    ("begun", "unit", "status"),
    [
        (b"", b"GET", 431),
        (b"GET /", b"a", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\n", b"X: 1\r\n", 431),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", b"0", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;", b"a", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ", b"a", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X: 1\r\n", 400),
    ],
)
def test_what_a_client_never_ends_is_rejected(begun: bytes, unit: bytes, status: int, size: int) -> None:
    talk = Talk().client(begun)
    read = 0
    while not talk.gateway.over:
        piece = unit * (size // len(unit) or 1)
        talk.client(piece)
        read += len(piece)
        assert read <= (MAX_LINE if b"5;" in begun else DEFAULT_LIMITS.head_bytes) + len(piece)
    assert talk.statuses == [status]
    assert talk.seen.others[-1] == Finish()


@pytest.mark.parametrize("size", [100, 4096])
@pytest.mark.parametrize(
    ("begun", "unit"),
    [
        (b"HTTP/1.1 200 ", b"a"),
        (b"HTTP/1.1 200 OK\r\n", b"X: 1\r\n"),
        (CHUNKED + b"5;", b"a"),
        (CHUNKED + b"0\r\nX: ", b"a"),
        (CHUNKED + b"0\r\n", b"X: 1\r\n"),
        (CHUNKED + b"0\n", b"X: 1\n"),
    ],
)
def test_what_a_target_never_ends_is_an_error(begun: bytes, unit: bytes, size: int) -> None:
    talk = Talk().client(GET).target(begun)
    read = 0
    while Discard(reset=True) not in talk.seen.others:
        piece = unit * (size // len(unit))
        talk.target(piece)
        read += len(piece)
        assert read <= MAX_HEAD + len(piece)
    assert talk.gateway.over == begun.startswith(CHUNKED)
    assert talk.seen.others[-1] == (ResetClient() if talk.gateway.over else Discard(reset=True))


def test_empty_lines_without_end_are_no_request() -> None:
    talk = Talk()
    for _ in range(100):
        talk.client(b"\r\n" * 1000)
        assert talk.gateway.idle
    assert talk.client(GET).target(OK).statuses == [200]
