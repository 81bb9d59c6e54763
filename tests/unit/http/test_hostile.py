"""Whatever clients and targets say, in whatever order, a gateway raises nothing and keeps its promises."""

import contextlib

import h11
from hypothesis import example, given
from hypothesis import strategies as st

from goreprox.http.commands import Discard, Finish, ResetClient, SwitchProtocols
from tests.support.gateway import Talk

CLIENT = st.sampled_from(
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n",
        b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\nContent-Length: 5\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n",
        b"GET http://a/x HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\r\nGET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: a, b\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"hello",
        b"5\r\nhello\r\n",
        b"0\r\nX-A: 1\r\n\r\n",
        b"\r\n\r\n",
    ]
)
TARGET = st.sampled_from(
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 000 None\r\n\r\n",
        b"HTTP/1.1 999 All\r\n\r\n",
        b"HTTP/9.9 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200\r\nX: \x01\r\nContent-Length: 0\r\n\r\n",
        b"hello",
        b"5\r\nhello\r\n",
        b"5\nhello\n0\n\n",
        b"0\r\nX-A: 1\r\n\r\n",
        b"\r\n",
    ]
)
STEP = st.one_of(
    st.tuples(st.just("client"), CLIENT),
    st.tuples(st.just("target"), TARGET),
    st.tuples(
        st.sampled_from(["client eof", "target eof", "closed idle", "lost", "none", "timed out", "drain"]), st.just(b"")
    ),
)


@example(
    [
        ("client", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("target", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
        ("target eof", b""),
        ("target eof", b""),
    ]
)
@example(
    [
        ("client", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("client", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("target", b"HTTP/1.1 200 OK\r\n\r\n"),
        ("target eof", b""),
        ("target", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
    ]
)
@given(st.lists(STEP, max_size=14))
def test_nothing_is_raised_and_only_whole_responses_look_whole(steps: list[tuple[str, bytes]]) -> None:
    talk = Talk()
    for what, data in steps:
        match what:
            case "client":
                talk.client(data)
            case "target":
                talk.target(data)
            case "client eof":
                talk.client_eof()
            case "target eof":
                talk.target_eof()
            case "closed idle":
                talk.target_eof(untouched=True)
            case "lost":
                talk.lost()
            case "none":
                talk.lost(503, "none", again=False)
            case "timed out":
                talk.do(talk.gateway.timed_out())
            case "drain":
                talk.do(talk.gateway.drain())
    ends = [each for each in talk.seen.others if isinstance(each, Finish | ResetClient | SwitchProtocols)]
    assert len(ends) <= 1
    assert bool(ends) == talk.gateway.over
    after = talk.seen.others[talk.seen.others.index(ends[0]) + 1 :] if ends else []
    assert all(isinstance(each, Discard) for each in after)


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_noise_raises_nothing(client: bytes, target: bytes) -> None:
    Talk().client(client).client_eof()
    talk = Talk().client(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").target(target).target_eof()
    with contextlib.suppress(h11.RemoteProtocolError):
        assert all(200 <= status < 1000 for status in talk.statuses)
