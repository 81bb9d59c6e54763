"""Small messages that are expensive to decode: each is accepted or rejected in bounded time and memory."""

import resource
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable

import cbor2
import pytest

from brokers import BadMessage
from brokers.envelope import CONTROL, MAX_CONTROL, parse_control
from goreprox.protocol import wire
from goreprox.protocol.budget import Budget
from goreprox.protocol.errors import RemoteProtocolError
from goreprox.protocol.limits import MAX_EVENTS, MAX_HEAD, MIB, VERSION
from goreprox.protocol.session import Session

CPU_S = 10.0
"""Under tracemalloc the worst takes a tenth of this; a bomb that works takes minutes, or all memory."""
AMPLIFICATION = 96
"""Decoding makes at most 64 bytes of one byte (empty lists); the events made of that need memory, too."""
MESSAGE_CHARS = 512
"""Errors are logged: they must not be as long as the message."""


def filled(size: int, unit: bytes, *, before: bytes = b"", after: bytes = b"") -> bytes:
    """Return `unit` as often as it fits into `size` bytes, with `before` and `after`."""
    return before + unit * ((size - len(before) - len(after)) // len(unit)) + after


def length(major: int, count: int, width: int = 4) -> bytes:
    """Write the head of an item with a length (RFC 8949, 3)."""
    return bytes([major << 5 | {4: 26, 8: 27}[width]]) + count.to_bytes(width, "big")


BATCH = bytes.fromhex("8501060000")
"""The head of the first message of epoch 6, version 1; its events follow."""
RESUME = bytes.fromhex("8608fb404e0000000000000101f580")


def opens(count: int) -> bytes:
    """Return a message that begins an epoch and opens so many streams."""
    events = [RESUME, *(b"\x86\x02\x19" + i.to_bytes(2, "big") + b"\x60\x60\x60\x00" for i in range(1, count + 1))]
    return BATCH + length(4, len(events)) + b"".join(events)


BOMBS: dict[str, Callable[[int], bytes]] = {
    "depth": lambda size: filled(size, b"\x81"),
    "depth of maps": lambda size: filled(size, b"\xa1\x00"),
    "depth of tags": lambda size: filled(size, b"\xc6"),
    "a list of 2**32": lambda _: length(4, 2**32 - 1),
    "a list of 2**64": lambda _: length(4, 2**64 - 1, 8),
    "a list of 2**24 that is not there": lambda size: filled(size, b"\x00", before=BATCH + length(4, 2**24)),
    "lists of 2**24 in lists": lambda _: length(4, 2**24) * 5,
    "a map of 2**32": lambda _: length(5, 2**32 - 1),
    "bytes of 2**63": lambda _: length(2, 2**63 - 1, 8),
    "bytes of 2**30": lambda size: filled(size, b"x", before=length(2, 2**30)),
    "text of 2**64": lambda _: length(3, 2**64 - 1, 8),
    "a big number": lambda size: filled(size, b"\xff", before=b"\xc2" + length(2, size - 6)),
    "a big fraction": lambda _: b"\xc4\x82\x1b" + b"\x7f" * 8 + b"\x01",
    "bytes without length": lambda size: filled(size, b"\x41x", before=b"\x5f", after=b"\xff"),
    "text without length": lambda size: filled(size, b"\x61x", before=b"\x7f", after=b"\xff"),
    "a list without length": lambda size: filled(size, b"\x80", before=b"\x9f", after=b"\xff"),
    "one key many times": lambda size: filled(size, b"\x00\x00", before=length(5, (size - 5) // 2)),
    "a long key twice": lambda size: b"\xa2" + 2 * (cbor2.dumps("k" * (size // 2 - 10)) + b"\x00"),
    "an unknown tag around a long text": lambda size: b"\xd9\xff\xff" + cbor2.dumps("x" * (size - 10)),
    "a long text": lambda size: cbor2.dumps("x" * (size - 10)),
    "text that is not UTF-8": lambda size: filled(size, b"\xc3", before=length(3, size - 5)),
    "empty lists": lambda size: filled(size, b"\x80", before=BATCH + length(4, size - 10)),
    "empty maps": lambda size: filled(size, b"\xa0", before=BATCH + length(4, size - 10)),
    "probes": lambda size: filled(size, b"\x81\x0b", before=BATCH + length(4, (size - 10) // 2)),
    "goodbyes": lambda size: filled(size, b"\x82\x0a\x60", before=BATCH + length(4, (size - 10) // 3)),
    "opens": lambda size: opens((size - 100) // 9),
    "as many opens as may be": lambda size: opens(min((size - 100) // 9, MAX_EVENTS - 1)),
    "controls with many attributes": lambda size: filled(size, b"\x61x\x00", before=b"\x82\x04\xb9\x10\x00"),
    "attributes of empty lists": lambda size: filled(size, b"\x80", before=b"\x82\x04\xa1\x61x" + length(4, size - 10)),
}


def decode(bomb: bytes) -> None:
    """Decode it as a session message."""
    reason = ""
    try:
        wire.decode([bomb])
    except RemoteProtocolError as exc:
        reason = str(exc)
    assert len(reason) <= MESSAGE_CHARS


def parse(bomb: bytes) -> None:
    """Parse it as a control message of the fabric."""
    reason = ""
    try:
        parse_control([CONTROL, bomb])
    except BadMessage as exc:
        reason = str(exc)
    assert len(reason) <= MESSAGE_CHARS


def received(message: bytes) -> Session:
    """Return a session whose first message this was."""
    session = Session(
        opener=False,
        version=VERSION,
        budget=Budget(total_bytes=MIB, max_streams=16),
        grace_s=60.0,
        wake=lambda: None,
        now=0.0,
    )
    session.path_up("a", 0.0)
    session.receive("a", [message], 0.0)
    return session


def receive(bomb: bytes) -> None:
    """Give it to a session as its first message."""
    session = received(bomb)
    assert len(session.notices) <= MAX_EVENTS + 1
    assert len(session.failed or "") <= MESSAGE_CHARS


TAKERS: list[tuple[Callable[[bytes], None], int]] = [(decode, MAX_HEAD), (receive, MAX_HEAD), (parse, MAX_CONTROL)]


@pytest.mark.parametrize(("taker", "size"), TAKERS, ids=["decode", "receive", "parse"])
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_costs_bounded_time_and_memory(name: str, taker: Callable[[bytes], None], size: int) -> None:
    bomb = BOMBS[name](size)
    assert len(bomb) <= size
    tracemalloc.start()
    try:
        began = time.process_time()
        taker(bomb)
        took_s = time.process_time() - began
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert took_s < CPU_S
    assert peak < AMPLIFICATION * size, f"{peak} bytes"


def test_no_bomb_costs_memory_outside_of_python() -> None:
    """The decoder is compiled, so its own allocations show only in the size of the process."""
    code = "from tests.fuzz.test_bombs import explode; print(explode())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < AMPLIFICATION * MAX_HEAD


def test_one_message_opens_no_more_streams_than_it_may_have_events() -> None:
    assert len(received(opens(MAX_EVENTS - 1)).streams) == MAX_EVENTS - 1


def explode() -> int:
    """Decode all bombs; return by how many bytes the process has grown."""
    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for bomb in BOMBS.values():
        for taker, size in TAKERS:
            taker(bomb(size))
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit
