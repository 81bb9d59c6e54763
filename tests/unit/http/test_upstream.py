"""A stream as HTTP uses it: what becomes of what was written when it is let go."""

import pytest

from goreprox.http.provider_stream import RESEND_BYTES, Upstream
from goreprox.protocol.budget import Budget
from goreprox.protocol.limits import MIB
from goreprox.protocol.state import State
from goreprox.protocol.stream import Stream


class User:
    """Wants nothing, and remembers how the stream was lost."""

    def __init__(self) -> None:
        self.losses: list[tuple[int, str, bool]] = []

    def readable(self) -> None: ...

    def writable(self) -> None: ...

    def lost(self, upstream: Upstream, status: int, reason: str, *, again: bool) -> None:
        self.losses.append((status, reason, again))


@pytest.fixture
def ended() -> list[Upstream]:
    return []


@pytest.fixture
def upstream(ended: list[Upstream]) -> Upstream:
    """Return a stream that no provider has taken yet."""
    stream = Stream(opener=True, service="web", client="192.0.2.9:1", budget=Budget(total_bytes=MIB, max_streams=4))
    return Upstream(stream, User(), clock=lambda: 0.0, on_end=ended.append)


async def test_finishing_a_stream_after_a_whole_request_sends_its_end(
    upstream: Upstream, ended: list[Upstream]
) -> None:
    upstream.write(bytes(upstream.room))
    upstream.finish()
    assert upstream.stream.send.eof
    assert not ended


async def test_finishing_a_stream_before_all_is_sent_resets_it(upstream: Upstream, ended: list[Upstream]) -> None:
    upstream.write(bytes(upstream.room + 1))
    upstream.finish()
    assert not upstream.stream.send.eof
    assert upstream.stream.state is State.CLOSED
    assert ended == [upstream]


async def test_an_end_of_file_waits_for_what_was_written_before_it(upstream: Upstream, ended: list[Upstream]) -> None:
    room = upstream.room
    upstream.write(bytes(room + 1))
    upstream.write_eof()
    assert not upstream.stream.send.eof


async def test_a_request_is_unsent_until_its_target_has_got_a_byte_of_it(upstream: Upstream) -> None:
    send = upstream.stream.send
    upstream.write(b"first")
    assert upstream.unsent_request == b"first"
    send.take(5)
    send.ack(5, send.limit)
    assert upstream.unsent_request is None
    upstream.begin()
    upstream.write(b"second")
    send.take(1)
    assert upstream.unsent_request == b"second"
    send.ack(6, send.limit)
    assert upstream.unsent_request is None


async def test_a_long_request_is_not_kept_for_sending_it_again(upstream: Upstream) -> None:
    request = bytes(range(256)) * (RESEND_BYTES // 256)
    upstream.write(request)
    assert upstream.room == 0, "some of it waits here"
    assert upstream.unsent_request == request
    upstream.write(b"x")
    assert upstream.unsent_request is None


async def test_a_request_behind_one_that_waits_is_unsent_without_it(upstream: Upstream) -> None:
    upstream.idle_since = 0.0
    upstream.write(bytes(upstream.room + 1))
    upstream.begin()
    upstream.write(b"second")
    assert upstream.idle_since is None
    assert upstream.unsent_request == b"second"


async def test_a_stream_that_the_edge_aborts_is_lost_for_good(ended: list[Upstream]) -> None:
    user = User()
    stream = Stream(opener=True, service="web", client="192.0.2.9:1", budget=Budget(total_bytes=MIB, max_streams=4))
    upstream = Upstream(stream, user, clock=lambda: 0.0, on_end=ended.append)
    upstream.abort("no provider came", status=503)
    upstream.abort("the edge is shutting down")
    assert user.losses == [(503, "no provider came", False)]
    assert ended == [upstream]
