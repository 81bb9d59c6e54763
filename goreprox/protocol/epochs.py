"""Which path a session uses, under which number, and when it tries again.

An epoch is one unbroken use of one path. Epochs count up; the opener begins even ones, the acceptor odd ones. So every
epoch has one initiator and one path, and of two begun at once the higher wins.

A session is in one `Phase`. It begins DOWN. On the first path an epoch begins and makes it RESUMING: both ends send the
pages of a resume. The peer's last page makes it ESTABLISHED, and streams flow. When the path goes, or another epoch is
to take over, the epoch ends; the session is DOWN until the next one begins, which is at once if a path is up. When
messages are lost on a path that stays up, the session is PAUSED for a moment first, so that a path that loses
everything is not flooded with resumes. FAILED is final: the peer broke the protocol, or we have a bug.

Using several paths at once was rejected: it needs reordering across them, and wins nothing where one path carries all
that Python can send.
"""

import enum

from goreprox.protocol.limits import ALLOWANCE_S, RESTART_MAX_S, RESTART_MIN_S
from goreprox.protocol.path import Path
from goreprox.protocol.paths import Paths


class Phase(enum.Enum):
    """How far a session is."""

    __hash__ = object.__hash__  # see `state.State`

    DOWN = "down"
    """No epoch is in progress: there is no path."""
    PAUSED = "paused"
    """No epoch is in progress: there is a path, on which the last one was lost."""
    RESUMING = "resuming"
    """An epoch has begun; the peer's last page has not arrived."""
    ESTABLISHED = "established"
    """Streams flow."""
    FAILED = "failed"


class Change(enum.Enum):
    """What can happen to a session."""

    __hash__ = object.__hash__

    BEGIN = "an epoch begins"
    ESTABLISH = "the peer's last page arrives"
    END = "the path goes, or another epoch takes over"
    LOSE = "messages are lost"
    FAIL = "the session fails"


ESTABLISHED, RESUMING = Phase.ESTABLISHED, Phase.RESUMING
"""See `state.OPEN`."""

TRANSITIONS: dict[Phase, dict[Change, Phase]] = {
    Phase.DOWN: {
        Change.BEGIN: Phase.RESUMING,
        Change.FAIL: Phase.FAILED,
    },
    Phase.PAUSED: {
        Change.BEGIN: Phase.RESUMING,
        Change.END: Phase.DOWN,  # the last path is gone
        Change.FAIL: Phase.FAILED,
    },
    Phase.RESUMING: {
        Change.ESTABLISH: Phase.ESTABLISHED,
        Change.END: Phase.DOWN,
        Change.LOSE: Phase.PAUSED,
        Change.FAIL: Phase.FAILED,
    },
    Phase.ESTABLISHED: {
        Change.END: Phase.DOWN,
        Change.LOSE: Phase.PAUSED,
        Change.FAIL: Phase.FAILED,
    },
    Phase.FAILED: {
        Change.END: Phase.FAILED,  # the path on which the peer was told
    },
}


class Epochs:
    """The paths of one session and its epochs, one at a time."""

    __slots__ = (
        "_opener",
        "_own_grace_s",
        "_paths",
        "_pause_s",
        "_resume_at",
        "_used_since",
        "grace_s",
        "lost_at",
        "moved",
        "number",
        "path",
        "phase",
    )

    def __init__(self, *, opener: bool, grace_s: float, now: float) -> None:
        """Start without a path; `grace_s` is ours."""
        self._opener = opener
        self.phase = Phase.DOWN
        self.path: Path | None = None
        """In use."""
        self.number = 0
        """Of the latest epoch, ours or the peer's; 0 before the first."""
        self.lost_at: float | None = now
        """Since when no stream has flowed; None while ESTABLISHED."""
        self._own_grace_s = grace_s
        self.grace_s = grace_s
        """The smaller of the two graces: how long streams are kept without a path, less `ALLOWANCE_S`."""
        self.moved = False
        """Whether the epoch in progress began while the one before it flowed, on a path that is still up."""
        self._paths = Paths()
        self._used_since = now
        """When the epoch in progress began."""
        self._resume_at = 0.0
        """When a pause ends."""
        self._pause_s = RESTART_MIN_S

    def _change(self, change: Change) -> None:
        self.phase = TRANSITIONS[self.phase][change]

    def __contains__(self, path_id: object) -> bool:
        """Whether a path is up."""
        return path_id in self._paths

    @property
    def round_trip_s(self) -> float:
        """Smoothed round-trip time of the path in use; 0.1 until one was measured."""
        return self.path.srtt if self.path is not None and self.path.srtt else 0.1

    def add_path(self, path_id: object, rank: int, now: float) -> bool:
        """Add a path; return whether an epoch is to begin on it: none is in use, or this one has come up anew."""
        self._paths.add(path_id, rank, now)
        return self.path is None or self.path.path_id == path_id

    def remove_path(self, path_id: object, now: float) -> bool:
        """Remove a path; return whether it was in use."""
        self._paths.remove(path_id)
        if self.phase is Phase.PAUSED and not self._paths:
            self._change(Change.END)
        if self.path is None or self.path.path_id != path_id:
            return False
        self._paths.lost(path_id, now, used_s=now - self._used_since, moved=self.moved)
        return True

    def __len__(self) -> int:
        """Return how many paths are up."""
        return len(self._paths)

    def begin(self, now: float, *, path_id: object | None = None, above: int = 0, moved: bool = False) -> None:
        """Begin an epoch of ours, numbered above all seen so far and `above`; on the next path unless one is named.

        If both ends begin one at once, the opener's has the higher number, since it is the opener that prefers a path.
        """
        number = max(self.number, above) + (2 if self._opener else 1)
        if number % 2 != (0 if self._opener else 1):
            number += 1
        self.adopt(number, self._paths.next(now) if path_id is None else path_id, now, moved=moved)

    def adopt(self, number: int, path_id: object, now: float, *, moved: bool) -> None:
        """Take part in epoch `number`, which the peer has begun."""
        self.number = number
        self.moved = moved
        self.path = Path(path_id, number, now=now)
        self._used_since = now
        self._change(Change.BEGIN)

    @property
    def better(self) -> tuple[object, float] | None:
        """The path that is preferred to the one in use while streams flow, and from when on it is to be used."""
        if self.phase is not ESTABLISHED:
            return None
        assert self.path is not None
        return self._paths.better(self.path.path_id)

    def is_moved_by(self, path_id: object) -> bool:
        """Whether a new epoch of the peer's on this path ends one of which nothing shows that it was lost."""
        path = self.path
        return self.phase is ESTABLISHED and path is not None and path.path_id != path_id and not path.probed

    def establish(self, now: float) -> float:
        """Note that the peer's last page has arrived; return for how many seconds no stream has flowed."""
        self._change(Change.ESTABLISH)
        down_s = 0.0 if self.lost_at is None else now - self.lost_at
        self.lost_at = None
        return down_s

    def set_grace(self, grace_s: float) -> None:
        """Have another grace of ours, from the next `take_grace` on: until then the peer knows the old one."""
        self._own_grace_s = grace_s

    def take_grace(self, grace_s: float) -> None:
        """Take the peer's grace into account."""
        self.grace_s = min(self._own_grace_s, grace_s)

    def end(self, now: float) -> None:
        """End the epoch in progress, if there is one."""
        if self.path is not None:
            self._change(Change.END)
            self._leave_path(now)

    def pause(self, now: float) -> None:
        """End the epoch in progress, whose messages were lost; the next one begins on another path if there is one.

        Pauses double until an epoch is established.
        """
        path = self.path
        assert path is not None
        self._pause_s = RESTART_MIN_S if self.phase is ESTABLISHED else min(2 * self._pause_s, RESTART_MAX_S)
        self._resume_at = now + self._pause_s
        self._change(Change.LOSE)
        self._leave_path(now)
        self._paths.lost(path.path_id, now, used_s=now - self._used_since, moved=self.moved)

    def _leave_path(self, now: float) -> None:
        self.path = None
        if self.lost_at is None:
            self.lost_at = now

    def fail(self, now: float) -> None:
        """End the session for good; the path stays for its last message."""
        self._change(Change.FAIL)
        self._paths.clear()
        self.lost_at = now

    def pause_over(self, now: float) -> bool:
        """Whether the next epoch is to begin after a pause."""
        return self.phase is Phase.PAUSED and now >= self._resume_at

    def grace_over(self, now: float) -> bool:
        """Whether streams have been kept for long enough without a path."""
        return self.lost_at is not None and now >= self.lost_at + self.grace_s + ALLOWANCE_S

    def deadlines(self, *, streams: bool) -> list[float]:
        """Return when something is due: of the path, of a pause, and of the grace if there are `streams`."""
        times = []
        if self.path is not None and (due := self.path.deadline) is not None:
            times.append(due)
        if self.phase is Phase.PAUSED:
            times.append(self._resume_at)
        if (better := self.better) is not None:
            times.append(better[1])
        if streams and self.lost_at is not None:
            times.append(self.lost_at + self.grace_s + ALLOWANCE_S)
        return times
