"""What a parent and its workers write to each other through pipes.

To a worker, on standard input, where a frame is a length in 4 bytes (big-endian) and so much data:

    frame of a pickle of a `Job`              first of all
    "s"                                       drain, and end
    "h"                                       end at once
    "c", frame of a pickle of an `EdgeConfig`     take over this configuration
    "u", frame of a pickle of a tuple         be replaced by the code that is started by its first item, a command
                                              line, with its second item, the pickle of a `Job`, as bytes

From a worker, on standard output, a JSON object a line:

    {"ready": null}                           it is of use; again after each upgrade
    {"error": "…"}                            it cannot start
    {"done": …} or {"refused": "…"}           the replies to "c" and "u", in their order

The parent is upgraded first, so its `Job` may be of another version than a worker, which leaves it to the code that
takes its place. To a worker that stays at another version it sends no configuration.
"""

import contextlib
import json
import os
from typing import Final, NamedTuple

from goreprox.config.roles import EdgeConfig

STDIN: Final = 0
STDOUT: Final = 1
SIZE_BYTES: Final = 4
READ_BYTES: Final = 1 << 16
STOP: Final = b"s"
FORCE: Final = b"h"
CONFIGURE: Final = b"c"
UPGRADE: Final = b"u"


class Job(NamedTuple):
    """What a worker is to do."""

    config: EdgeConfig
    number: int


def framed(data: bytes) -> bytes:
    """Return a frame."""
    return len(data).to_bytes(SIZE_BYTES, "big") + data


def frame_end(data: bytes | bytearray, begin: int) -> int | None:
    """Return where the frame ends that begins there; None if it is not whole."""
    size = data[begin : begin + SIZE_BYTES]
    end = begin + SIZE_BYTES + int.from_bytes(size, "big")
    return end if len(size) == SIZE_BYTES and end <= len(data) else None


def read_frame() -> bytes | None:
    """Read a frame from standard input, and no byte more; return its data, None if the parent has ended."""
    size = _read(SIZE_BYTES)
    return None if size is None else _read(int.from_bytes(size, "big"))


def _read(size: int) -> bytes | None:
    data = b""
    while len(data) < size:
        more = os.read(STDIN, size - len(data))
        if not more:
            return None
        data += more
    return data


def tell_parent(kind: str, value: object = None) -> None:
    """Write a line, unless the parent has ended."""
    with contextlib.suppress(BrokenPipeError):  # so has standard input, which ends this process
        os.write(STDOUT, json.dumps({kind: value}).encode() + b"\n")
