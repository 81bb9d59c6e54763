"""What queues of chunks hold in memory, against what their bytes count."""

import sys
import tracemalloc
from collections import deque
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goreprox.protocol.budget import Budget
from goreprox.protocol.chunks import KEPT, PACK_BYTES, PACK_EVERY, add, part
from goreprox.protocol.events import Buffer
from goreprox.protocol.limits import KIB, MIB
from goreprox.protocol.receiver import ReceiveHalf
from goreprox.protocol.sender import SendHalf


def held(chunks: deque[Buffer]) -> int:
    """Bytes of the chunks' objects, and of what these keep alive."""
    whole = {id(chunk): chunk if isinstance(chunk, bytes) else cast(bytes, chunk.obj) for chunk in chunks}
    return sum(map(sys.getsizeof, {id(one): one for one in whole.values()}.values())) + 8 * len(chunks)


@given(st.lists(st.binary(min_size=1, max_size=100), max_size=400), st.integers(1, PACK_BYTES + 10))
def test_joining_changes_no_byte_and_nothing_large(pieces: list[bytes], large: int) -> None:
    block = bytes(large)
    chunks: deque[Buffer] = deque()
    for piece in (*pieces, block, *pieces):
        add(chunks, piece)
    assert b"".join(chunks) == b"".join(pieces) + block + b"".join(pieces)
    assert large <= PACK_BYTES or any(chunk is block for chunk in chunks)


@pytest.mark.parametrize(
    ("sizes", "joined"),
    [
        ([KIB] * PACK_EVERY, [PACK_BYTES] * 16),
        ([KIB + 1] * PACK_EVERY, [3 * (KIB + 1)] * 21 + [KIB + 1]),
        ([1] * (PACK_EVERY - 2) + [PACK_BYTES + 1, 1], [PACK_EVERY - 2, PACK_BYTES + 1, 1]),
        ([PACK_BYTES] * 2 + [1] * (PACK_EVERY - 2), [PACK_BYTES] * 2 + [PACK_EVERY - 2]),
        ([1] * (PACK_EVERY - 1), [1] * (PACK_EVERY - 1)),
        ([1] * PACK_EVERY + [2] * (PACK_EVERY - 1), [PACK_EVERY + 2 * (PACK_EVERY - 1)]),
    ],
)
def test_neighbours_are_joined_as_far_as_they_fit_and_what_stays_alone_is_not_copied(
    sizes: list[int], joined: list[int]
) -> None:
    pieces = [memoryview(bytes([number]) * size) for number, size in enumerate(sizes)]
    chunks: deque[Buffer] = deque()
    for piece in pieces:
        add(chunks, piece)
    assert list(map(len, chunks)) == joined
    assert b"".join(chunks) == b"".join(pieces)
    ours = {id(piece) for piece in pieces}
    assert [id(chunk) in ours for chunk in chunks] == [size in sizes for size in joined]


def test_small_pieces_hold_little_more_than_they_count() -> None:
    chunks: deque[Buffer] = deque()
    for _ in range(64 * KIB):
        add(chunks, b"x")
        assert len(chunks) < PACK_EVERY
    assert held(chunks) < 1.1 * 64 * KIB


def test_a_small_slice_is_a_copy_and_a_large_one_is_not() -> None:
    block = bytes(1000)
    assert part(block, 1000 - 1000 // KEPT + 1) == bytes(1000 // KEPT - 1)
    assert isinstance(part(block, 1000 - 1000 // KEPT + 1), bytes)
    assert isinstance(part(memoryview(block)[500:], 400), bytes), "what counts is what the first slice keeps alive"
    view = part(block, 0, 1000 // KEPT)
    assert isinstance(view, memoryview) and view.obj is block


def test_a_small_rest_of_a_chunk_does_not_keep_the_chunk_alive() -> None:
    budget = Budget(total_bytes=64 * MIB, max_streams=1)
    send = SendHalf(budget, limit=16 * MIB)
    tracemalloc.start()
    send.write(bytes(MIB))
    while send.sendable:
        send.take(10_000)
    for delivered in (1, MIB // 2, MIB - 9_999, MIB - 1):
        send.ack(delivered, 16 * MIB)
        kept, _ = tracemalloc.get_traced_memory()
        assert kept <= KEPT * (MIB - delivered) + 64 * KIB
    tracemalloc.stop()
    receive = ReceiveHalf(budget)
    receive.receive(0, bytes(64 * KIB))
    receive.consume(64 * KIB - 1)
    assert held(receive.chunks) < 200
