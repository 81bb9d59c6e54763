"""A stream as HTTP uses it: what becomes of what was written when it is let go."""

from typing import Final

import pytest

from goreprox.http.provider_stream import RESEND_BYTES, ProviderStream
from goreprox.protocol.budget import Budget
from goreprox.protocol.limits import MIB
from goreprox.protocol.state import State
from goreprox.protocol.stream import Stream
from goreprox.protocol.totals import EndCode


class StreamUser:
    """Wants nothing, and remembers how the stream was lost."""

    facts: Final[dict[str, str]] = {}

    def __init__(self) -> None:
        self.losses: list[tuple[int, str, bool]] = []

    def readable(self) -> None: ...

    def writable(self) -> None: ...

    def lost(self, provider_stream: ProviderStream, status: int, reason: str, *, again: bool) -> None:
        self.losses.append((status, reason, again))


@pytest.fixture
def ended() -> list[ProviderStream]:
    return []


@pytest.fixture
def provider_stream(ended: list[ProviderStream]) -> ProviderStream:
    """Return a stream that no provider has taken yet."""
    stream = Stream(opener=True, service="web", client="192.0.2.9:1", budget=Budget(total_bytes=MIB, max_streams=4))
    return ProviderStream(stream, StreamUser(), clock=lambda: 0.0, on_end=ended.append)


async def test_finishing_a_stream_after_a_whole_request_sends_its_end(
    provider_stream: ProviderStream, ended: list[ProviderStream]
) -> None:
    provider_stream.write(bytes(provider_stream.room))
    provider_stream.finish()
    assert provider_stream.stream.send.eof
    assert not ended


async def test_finishing_a_stream_before_all_is_sent_resets_it(
    provider_stream: ProviderStream, ended: list[ProviderStream]
) -> None:
    provider_stream.write(bytes(provider_stream.room + 1))
    provider_stream.finish()
    assert not provider_stream.stream.send.eof
    assert provider_stream.stream.state is State.CLOSED
    assert provider_stream.settled, "what waited is not kept: the status keeps the last streams"
    assert ended == [provider_stream]


async def test_an_end_of_file_waits_for_what_was_written_before_it(
    provider_stream: ProviderStream, ended: list[ProviderStream]
) -> None:
    room = provider_stream.room
    provider_stream.write(bytes(room + 1))
    provider_stream.write_eof()
    assert not provider_stream.stream.send.eof


async def test_a_request_is_unsent_until_its_target_has_got_a_byte_of_it(provider_stream: ProviderStream) -> None:
    send = provider_stream.stream.send
    provider_stream.write(b"first")
    assert provider_stream.unsent_request == b"first"
    send.take(5)
    send.ack(5, send.limit)
    assert provider_stream.unsent_request is None
    provider_stream.begin()
    provider_stream.write(b"second")
    send.take(1)
    assert provider_stream.unsent_request == b"second"
    send.ack(6, send.limit)
    assert provider_stream.unsent_request is None


async def test_a_long_request_is_not_kept_for_sending_it_again(provider_stream: ProviderStream) -> None:
    request = bytes(range(256)) * (RESEND_BYTES // 256)
    provider_stream.write(request)
    assert provider_stream.room == 0, "some of it waits here"
    assert provider_stream.unsent_request == request
    provider_stream.write(b"x")
    assert provider_stream.unsent_request is None


async def test_a_request_behind_one_that_waits_is_unsent_without_it(provider_stream: ProviderStream) -> None:
    provider_stream.idle_since = 0.0
    provider_stream.write(bytes(provider_stream.room + 1))
    provider_stream.begin()
    provider_stream.write(b"second")
    assert provider_stream.idle_since is None
    assert provider_stream.unsent_request == b"second"


async def test_a_stream_that_the_edge_aborts_is_lost_for_good(ended: list[ProviderStream]) -> None:
    user = StreamUser()
    stream = Stream(opener=True, service="web", client="192.0.2.9:1", budget=Budget(total_bytes=MIB, max_streams=4))
    provider_stream = ProviderStream(stream, user, clock=lambda: 0.0, on_end=ended.append)
    provider_stream.abort("no provider came", EndCode.NO_PROVIDER, status=503)
    provider_stream.abort("the edge is shutting down", EndCode.SHUTDOWN)
    assert user.losses == [(503, "no provider came", False)]
    assert ended == [provider_stream]
