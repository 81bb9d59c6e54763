"""The far side of a simulated connection: a client or a target that follows a program, and checks what arrives."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.sim.world import Violation, World

if TYPE_CHECKING:
    from tests.sim.tcp import SimSocket

KIB = 1024
PROMPT_S = 0.01
"""A far side that reads sooner drains the send queue by its reads, which saves an event for each write."""
_TEXT = random.Random(0).randbytes(1 << 20)
_TEXT = _TEXT + _TEXT


def text(seed: int, start: int, count: int) -> bytes:
    """Return bytes `start` to `start + count` (at most 1 MiB later) of the endless text of a seed."""
    offset = (seed * 104_729 + start) % (1 << 20)
    return _TEXT[offset : offset + count]


@dataclass(slots=True)
class Program:
    """What a far side does with its connection; times in seconds, sizes in bytes."""

    seed: int
    total: int = 0
    chunk: int = 16 * KIB
    pause: float = 0.0
    """Between two writes."""
    read_chunk: int = 1 << 30
    read_pause: float = 0.0
    stop_reading_at: int | None = None
    """After so many bytes, until the faults are over."""
    reset_at: float | None = None
    """After the connection was made."""
    eof: str = "written"
    """When to half-close: once the last byte is `written`, or the end of file of the other side is `read`."""
    lead: int = 0
    per_read: tuple[int, int] | None = None
    """In a dialogue (read, write): for each `read` bytes it may write `write` bytes, and `lead` before the first."""


class Far:
    """The far side of a connection: a client, or the server of a target."""

    def __init__(self, world: World, program: Program, who: str, buffer: int) -> None:
        self.world = world
        self.program = program
        self.who = who
        self.buffer = buffer
        self.sock: SimSocket | None = None
        self.other: Far | None = None
        """The far side at the other end of the tunnel."""
        self.written = 0
        self.read = 0
        self.fin_sent = self.fin_read = self.did_reset = self.was_reset = False
        self.reset_at = 0.0
        """When it did."""
        self.sped_up = False
        self.on_reset: Callable[[Far], None] = lambda _: None
        """Called when our side resets it."""
        self.on_over: Callable[[], None] = lambda: None
        """Called after both ends of file."""
        self._write_timer = self._read_timer = False

    @property
    def over(self) -> bool:
        return self.was_reset or self.did_reset or (self.fin_sent and self.fin_read)

    @property
    def stopped(self) -> bool:
        """Whether it reads nothing for now."""
        stop_at = self.program.stop_reading_at
        return stop_at is not None and self.read >= stop_at and not self.sped_up

    def connected(self, sock: "SimSocket") -> None:
        self.sock = sock
        sock.far = self
        self.world.after(self.program.pause, self._write)
        if self.program.reset_at is not None:
            self.world.after(self.program.reset_at, self.reset)

    def speed_up(self) -> None:
        """Write and read without pauses from now on, so that everything ends."""
        self.sped_up = True
        self.read_some()
        self._write()

    # Writing.

    def _write(self) -> None:
        self._write_timer = False
        sock = self.sock
        if sock is None or self.over or self.fin_sent:
            return
        program = self.program
        allowed = program.total
        if program.per_read is not None and not self.sped_up:
            read, write = program.per_read
            allowed = min(allowed, program.lead + self.read // read * write)
        count = min(program.chunk, allowed - self.written, sock.in_room)
        if count > 0:
            self.written += count
            sock.arrived(count)
        if self.written < program.total:
            if sock.in_room > 0 and self.written < allowed:
                self.write_later()
        elif program.eof == "written" or self.fin_read:
            self.fin_sent = True
            self.world.note(f"{self.who} FIN after {self.written}")
            sock.arrived(0)
            if self.over:
                self.on_over()

    def write_later(self) -> None:
        """Write after the pause: there is room, or a reason to half-close."""
        if not self._write_timer and not self.fin_sent:
            self._write_timer = True
            self.world.after(0.0005 if self.sped_up else self.program.pause, self._write)

    def reset(self) -> None:
        if self.sock is not None and not self.over:
            self.did_reset = True
            self.reset_at = self.world.now
            self.world.note(f"{self.who} RST after {self.written}")
            self.sock.arrived(0)

    # Reading.

    def read_later(self) -> None:
        """Read after the pause, at the earliest when something has arrived."""
        assert self.sock is not None
        pause_s, transit_s = 0.0002 if self.sped_up else self.program.read_pause, self.sock.transit_s
        if not self._read_timer:
            self._read_timer = True
            self.world.after(max(pause_s, transit_s), self.read_some)
        if pause_s > PROMPT_S and transit_s > 0:
            self.sock.drain_later()

    def read_some(self) -> None:
        self._read_timer = False
        sock = self.sock
        if sock is None or (self.over and not self.fin_sent):
            return
        sock.drain()
        stop_at = self.program.stop_reading_at
        count = min(sock.out_arrived - self.read, 1 << 30 if self.sped_up else self.program.read_chunk)
        if stop_at is not None and not self.sped_up:
            count = min(count, max(stop_at - self.read, 0))
        if count > 0:
            self.read += count
            if self.program.per_read is not None:
                self.write_later()
        if sock.transit_s > 0 or (self.read < sock.out_arrived and count > 0):
            self.read_later()
        elif self.read == sock.out_arrived:
            self._read_end(sock)

    def _read_end(self, sock: "SimSocket") -> None:
        if sock.our_rst:
            if not self.over:
                self.was_reset = True
                self.world.note(f"{self.who} was reset after {self.read}")
        elif sock.our_fin and not sock.queued and not self.fin_read:
            self._end_of_file()

    def _end_of_file(self) -> None:
        other = self.other
        if other is None or not other.fin_sent or self.read != other.written:
            raise Violation(f"{self.who} got FIN after {self.read} bytes, which {other and other.who} did not send")
        self.fin_read = True
        self.world.note(f"{self.who} got FIN after {self.read}")
        self.write_later()
        if self.over:
            self.on_over()
