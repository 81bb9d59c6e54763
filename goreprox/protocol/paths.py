"""The paths of one session that are up: which is preferred, and when the session may return to it.

Each has a rank, and the highest is preferred. The end that ranks paths moves the session; to the other end all are
equal. So a path that is in use is left for a better one only by one of the ends, which cannot contradict itself.

A path counts once it has *settled*, which keeps a session from following one that comes and goes: whenever a path is
lost soon after a session has moved to it, paths have to be up for twice as long.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from goreprox.protocol.limits import SETTLE_MAX_S, SETTLE_MIN_S, STEADY_S

RANK_BYTES = 8
SPREAD = 1 << 16
"""The last digits of a rank, to this base, say how much longer than others a path takes to settle."""


def rank(opener: bytes, acceptor: bytes, broker: str) -> int:
    """Return the rank of the path over a broker between two peers: a hash, which spreads pairs evenly over brokers."""
    return int.from_bytes(hashlib.blake2b(opener + acceptor + broker.encode(), digest_size=RANK_BYTES).digest())


@dataclass(slots=True)
class _Up:
    rank: int
    settled_at: float


class Paths:
    """Paths by the ids that the driver has for them; of those with equal rank, the first goes first."""

    __slots__ = ("_settle_s", "_up")

    def __init__(self) -> None:
        self._up: dict[object, _Up] = {}
        self._settle_s = SETTLE_MIN_S

    def __contains__(self, path_id: object) -> bool:
        return path_id in self._up

    def __len__(self) -> int:
        return len(self._up)

    def __iter__(self) -> Iterator[object]:
        return iter(self._up)

    def add(self, path_id: object, rank: int, now: float) -> None:
        """Add a path, or note that it has come up anew."""
        self._up[path_id] = _Up(rank, self._settled_at(rank, now))

    def remove(self, path_id: object) -> None:
        """Remove a path, if it is up."""
        self._up.pop(path_id, None)

    def clear(self) -> None:
        """Remove all."""
        self._up.clear()

    def _settled_at(self, rank: int, now: float) -> float:
        """Return when a path has settled: sessions, whose ranks differ, do not all return at the same moment."""
        return now + self._settle_s * (1 + (rank % SPREAD) / SPREAD / 2)

    def lost(self, path_id: object, now: float, *, used_s: float, moved: bool) -> None:
        """Note that messages were lost on a path, or the path itself: it goes last.

        It was used for `used_s` after the session had `moved` to it, or had no other.
        """
        if used_s >= STEADY_S:
            self._settle_s = SETTLE_MIN_S
        elif moved:
            self._settle_s = min(2 * self._settle_s, SETTLE_MAX_S)
        if (path := self._up.pop(path_id, None)) is not None:
            self.add(path_id, path.rank, now)

    def next(self, now: float) -> object:
        """Return the path to use if none is in use: the best that has settled, else the first."""
        settled = [path_id for path_id, path in self._up.items() if path.settled_at <= now]
        return max(settled, key=lambda path_id: self._up[path_id].rank) if settled else next(iter(self._up))

    def better(self, path_id: object) -> tuple[object, float] | None:
        """Return the best path if `path_id` is not as good, and when it has settled."""
        if len(self._up) < 2:
            return None
        best = max(self._up, key=lambda each: self._up[each].rank)
        if self._up[best].rank <= self._up[path_id].rank:
            return None
        return best, self._up[best].settled_at
