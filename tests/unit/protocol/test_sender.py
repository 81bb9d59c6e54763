"""The sending half: writes, what is sent next, acknowledgements and rewinds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goreprox.protocol.budget import Budget
from goreprox.protocol.errors import LocalProtocolError, RemoteProtocolError
from goreprox.protocol.limits import MIB, RAW_PAYLOAD
from goreprox.protocol.sender import SendHalf

RESERVED = 16 * 1024


def half(limit: int = MIB) -> SendHalf:
    return SendHalf(Budget(total_bytes=4 * MIB, max_streams=64), limit=limit)


def sent(send: SendHalf) -> list[tuple[int, bytes]]:
    """Take everything that can be sent."""
    chunks = []
    while send.sendable:
        offset, payload = send.take(send.sendable)
        chunks.append((offset, bytes(payload)))
    return chunks


def test_room_is_what_the_peer_takes() -> None:
    send = half(limit=10)
    assert send.room == 10
    send.write(b"123456")
    assert send.room == 4


def test_room_is_bounded_by_the_budget() -> None:
    budget = Budget(total_bytes=4 * MIB, max_streams=64)
    assert SendHalf(budget, limit=16 * MIB).room == budget.allowance(0, moved=0)


def test_room_is_never_negative() -> None:
    send = half(limit=10)
    send.write(b"1234567890")
    send.limit = 5
    assert send.room == 0


def test_a_write_beyond_the_room_is_an_error() -> None:
    with pytest.raises(LocalProtocolError, match="write of 11 bytes, expected at most 10"):
        half(limit=10).write(b"12345678901")


def test_a_write_after_the_end_of_file_is_an_error() -> None:
    send = half()
    send.write_eof()
    assert send.room == 0
    with pytest.raises(LocalProtocolError):
        send.write(b"1")


def test_only_what_the_peer_takes_is_sendable() -> None:
    send = half(limit=6)
    send.write(b"123456")
    send.limit = 4
    assert send.take(send.sendable) == (0, b"1234")
    stuck = send.pending
    send.limit = 6
    assert (stuck, send.pending) == (False, True)
    assert send.take(MIB) == (4, b"56")


def test_an_end_of_file_waits_for_the_bytes_before_it() -> None:
    send = half(limit=4)
    send.write(b"1234")
    send.write_eof()
    send.limit = 2
    assert sent(send) == [(0, b"12")]
    pending = [send.pending]
    send.limit = 4
    assert sent(send) == [(2, b"34")]
    pending.append(send.pending)
    send.eof_sent = True
    pending.append(send.pending)
    assert pending == [False, True, False]


def test_a_long_chunk_is_split_without_a_copy() -> None:
    send = half()
    send.write(b"abcdef")
    offset, payload = send.take(4)
    assert (offset, payload) == (0, b"abcd")
    assert isinstance(payload, memoryview)
    assert send.take(4) == (4, b"ef")


def test_small_chunks_are_joined() -> None:
    send = half()
    for chunk in (b"ab", b"cd", b"ef"):
        send.write(chunk)
    assert send.take(MIB) == (0, b"abcdef")


def test_joined_chunks_respect_the_maximum() -> None:
    send = half()
    for chunk in (b"ab", b"cd", b"ef"):
        send.write(chunk)
    assert send.take(5) == (0, b"abcd")
    assert send.take(5) == (4, b"ef")


def test_a_chunk_is_sent_alone_if_the_next_does_not_fit() -> None:
    send = half()
    chunk = b"ab"
    send.write(chunk)
    send.write(b"cd")
    assert send.take(3)[1] is chunk


def test_a_raw_chunk_is_not_joined() -> None:
    send = half()
    chunk = bytes(RAW_PAYLOAD)
    send.write(chunk)
    send.write(b"ab")
    assert send.take(MIB)[1] is chunk


def test_an_ack_forgets_whole_chunks_and_parts() -> None:
    send = half()
    for chunk in (b"abc", b"def"):
        send.write(chunk)
        send.take(MIB)
    send.ack(4, MIB)
    assert send.acked == 4
    assert send.rewind(4, eof_received=False) == 2
    assert sent(send) == [(4, b"ef")]


def test_a_stale_ack_changes_nothing() -> None:
    send = half(limit=100)
    send.write(b"abcdef")
    send.take(MIB)
    send.ack(4, 200)
    send.ack(2, 150)
    assert (send.acked, send.limit) == (4, 200)


def test_an_ack_of_what_was_never_sent_is_rejected() -> None:
    send = half()
    send.write(b"abcdef")
    send.take(3)
    with pytest.raises(RemoteProtocolError, match="ack at offset 4, expected at most 3"):
        send.ack(4, MIB)


def test_an_end_of_file_counts_as_one_in_acks() -> None:
    send = half()
    send.write(b"ab")
    send.write_eof()
    send.take(MIB)
    with pytest.raises(RemoteProtocolError):
        send.ack(3, MIB)
    send.eof_sent = True
    finished = []
    for offset in (2, 3):
        send.ack(offset, MIB)
        finished.append(send.finished)
    assert finished == [False, True]
    assert send.acked == 2


def test_a_rewind_sends_again_from_the_middle_of_a_chunk() -> None:
    send = half()
    for chunk in (b"abc", b"def", b"ghi"):
        send.write(chunk)
        send.take(MIB)
    assert send.rewind(4, eof_received=False) == 5
    assert send.sent == 4
    assert b"".join(payload for _, payload in sent(send)) == b"efghi"
    send.ack(9, MIB)
    assert send.acked == 9


def test_a_rewind_to_what_was_sent_sends_nothing_again() -> None:
    send = half()
    send.write(b"abc")
    send.take(MIB)
    assert send.rewind(3, eof_received=False) == 0
    assert not send.pending


@pytest.mark.parametrize("received", [1, 5])
def test_a_rewind_outside_of_what_is_kept_is_rejected(received: int) -> None:
    send = half()
    send.write(b"abcdef")
    send.take(4)
    send.ack(2, MIB)
    with pytest.raises(RemoteProtocolError, match=f"resume at offset {received}, expected 2 to 4"):
        send.rewind(received, eof_received=False)


def test_a_lost_end_of_file_is_sent_again() -> None:
    send = half()
    send.write(b"ab")
    send.write_eof()
    send.take(MIB)
    send.eof_sent = True
    pending = []
    for eof_received in (True, False):
        send.rewind(2, eof_received=eof_received)
        pending.append(send.pending)
    assert pending == [False, True]


@pytest.mark.parametrize(("eof", "received"), [(False, 2), (True, 1)])
def test_a_resume_with_an_end_of_file_that_is_not_ours_is_rejected(eof: bool, received: int) -> None:
    send = half()
    send.write(b"ab")
    send.take(MIB)
    if eof:
        send.write_eof()
    with pytest.raises(RemoteProtocolError):
        send.rewind(received, eof_received=True)


def test_a_stopped_sender_sends_nothing_and_keeps_what_was_not_delivered() -> None:
    send = half()
    send.write(b"abc")
    send.take(3)
    send.write(b"def")
    send.ack(1, MIB)
    send.stop()
    assert (send.sendable, send.pending, send.since(1), send.since(4)) == (0, False, b"bcdef", b"ef")


def test_a_discard_gives_the_budget_back() -> None:
    budget = Budget(total_bytes=4 * MIB, max_streams=64)
    send = SendHalf(budget, limit=MIB)
    send.write(bytes(RESERVED + 1000))
    assert budget.pool_used_bytes == 1000
    send.take(1000)
    send.discard()
    assert budget.pool_used_bytes == 0
    assert not send.pending


@given(st.data())
def test_bytes_arrive_in_order_whatever_is_lost(data: st.DataObject) -> None:
    send = half()
    written = bytearray()
    received = bytearray()
    delivered = 0
    for _ in range(data.draw(st.integers(1, 20))):
        match data.draw(st.sampled_from(["write", "take", "lose", "ack", "rewind"])):
            case "write":
                chunk = bytes((len(written) + i) % 251 for i in range(data.draw(st.integers(1, 40))))
                send.write(chunk)
                written += chunk
            case "take" if send.sendable:
                offset, payload = send.take(data.draw(st.integers(1, 30)))
                assert offset == len(received)
                received += payload
            case "lose" if send.sendable:
                send.take(data.draw(st.integers(1, 30)))
                send.rewind(len(received), eof_received=False)
            case "ack":
                delivered = data.draw(st.integers(delivered, len(received)))
                send.ack(delivered, MIB)
            case "rewind":
                received = received[: data.draw(st.integers(delivered, len(received)))]
                send.rewind(len(received), eof_received=False)
    received += b"".join(payload for _, payload in sent(send))
    assert received == written


def test_a_chunk_that_fits_is_sent_as_it_is() -> None:
    send = half()
    first, second = b"a" * RAW_PAYLOAD, b"b" * RAW_PAYLOAD
    send.write(first)
    send.write(second)
    assert send.take(RAW_PAYLOAD)[1] is first
    assert send.take(RAW_PAYLOAD)[1] is second
    send.rewind(RAW_PAYLOAD, eof_received=False)
    assert send.take(RAW_PAYLOAD)[1] is second


def test_rewinds_one_after_another_send_the_same_bytes() -> None:
    send = half()
    for chunk in (b"abcd", b"efgh"):
        send.write(chunk)
        send.take(4)
    send.rewind(6, eof_received=False)
    assert send.take(2) == (6, b"gh")
    send.rewind(4, eof_received=False)
    assert bytes(send.take(4)[1]) == b"efgh"


def test_an_acknowledgement_gives_memory_back() -> None:
    budget = Budget(total_bytes=4 * MIB, max_streams=64)
    send = SendHalf(budget, limit=MIB)
    size = budget.reserved_bytes + 1000
    send.write(bytes(size))
    send.take(size)
    send.ack(size, MIB)
    assert budget.pool_used_bytes == 0


@pytest.mark.parametrize("count", [1, 2, 3])
def test_however_many_small_chunks_are_joined_none_is_lost(count: int) -> None:
    send = half()
    for _ in range(count):
        send.write(b"ab")
    assert send.take(100) == (0, b"ab" * count)
