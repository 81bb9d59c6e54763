"""A message of several frames as one payload of NATS: how many, the length of each, and then their bytes."""

import itertools
import struct
from collections.abc import Sequence
from typing import Final

from brokers.carrier import Buffer
from brokers.envelope import MAX_FRAME, MAX_FRAMES
from brokers.errors import BadMessage

_COUNT: Final = struct.Struct("!H")
_LENGTH_BYTES: Final = 4
MAX_PAYLOAD: Final = 2 * MAX_FRAME
"""What a server has to take. A batch has at most 1 MiB of payload before its last stream's turn, which adds at most as
much, 256 KiB of CBOR, and 4 bytes a frame: less than 2.5 MiB. The rest is margin."""
SHARED: Final = 4
"""A frame of at least this part of its payload is used in place, a smaller one copied: a frame that is kept for long
keeps the whole payload."""


def pack(frames: Sequence[Buffer]) -> list[Buffer]:
    """Return the parts of the payload for these frames."""
    head = struct.pack(f"!H{len(frames)}I", len(frames), *map(len, frames))
    return [head, *frames]


def unpack(payload: bytes) -> list[Buffer]:
    """Return the frames in a payload.

    Raises:
        BadMessage: it is not what `pack` makes of 1 to `MAX_FRAMES` frames.
    """
    if len(payload) < _COUNT.size:
        raise BadMessage("an empty message")
    (count,) = _COUNT.unpack_from(payload)
    start = _COUNT.size + count * _LENGTH_BYTES
    if not 1 <= count <= MAX_FRAMES or len(payload) < start:
        raise BadMessage(f"a message of {count} frames and {len(payload)} bytes")
    lengths = struct.unpack_from(f"!{count}I", payload, _COUNT.size)
    if sum(lengths) != len(payload) - start:
        raise BadMessage(f"frames of {sum(lengths)} bytes in a message that has {len(payload) - start}")
    view = memoryview(payload)
    ends = itertools.accumulate(lengths, initial=start)
    return [
        view[first:last] if (last - first) * SHARED >= len(payload) else payload[first:last]
        for first, last in itertools.pairwise(ends)
    ]
