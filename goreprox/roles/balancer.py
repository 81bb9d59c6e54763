"""Which provider gets a stream: the one with the fewest streams for its weight. Sans-IO: `now` is an argument, seconds.

Some are taken only if there is nobody else: first those whose path is silent, for what they get waits; then those whose
target failed: 1 s, then twice as long after each failure that no accepted stream comes before; then those that owe more
answers than they have streams. One that has said that it is full gets a stream for each that ends, and in each second
twice as many as in the one before, until it says so again. It knows nothing of sessions; whether a provider is there
and takes streams, its user knows.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

BACKOFF_MIN_S = 1.0
BACKOFF_MAX_S = 30.0
FORGET_S = 30.0
"""A failure is forgotten when nothing came of it so long after its backoff. This also bounds what is remembered: the
failures of a minute, at most one a provider and service."""


UNANSWERED = 32
"""So many streams that it has not answered may a provider have, and as many again as it has accepted: one that never
answers holds no more clients than this, whatever its weight, as long as another answers."""
FULL_S = 1.0
"""One that was full is tried again after this."""
FULL_MOST = 1024
"""One that took so many within a second is not full any more."""


class Candidate(NamedTuple):
    """A provider that could take a stream."""

    id: bytes
    streams: int
    """Open at it now."""
    weight: float
    """Its share; more than 0."""
    unanswered: int = 0
    """Of its streams, those that it has neither accepted nor refused."""
    stalled: bool = False
    """Whether its path is silent."""
    drawn: bool = False
    """Whether it is here because it was drawn by weight, of very many: then its weight does not count among equals."""

    @property
    def owes(self) -> bool:
        """Whether it has more to answer than anybody who does would have."""
        return self.unanswered > UNANSWERED + self.streams - self.unanswered


@dataclass(slots=True)
class _Backoff:
    length_s: float
    until: float


@dataclass(slots=True)
class _Room:
    """What a provider that was full may get."""

    until: float
    """Then there is more."""
    streams: int = 0
    refill: int = 1


class Balancer:
    """Remembers failures, by provider and service: one target of a provider may fail while others are well."""

    def __init__(self, rng: random.Random) -> None:
        """Break ties with `rng`."""
        self._rng = rng
        self._backoffs: dict[tuple[bytes, str], _Backoff] = {}
        self._rooms: dict[bytes, _Room] = {}

    def choose(self, service: str, candidates: Sequence[Candidate], now: float) -> bytes | None:
        """Return the id of the best candidate, or None if there is none.

        Ties are broken at random, by weight: without a stream anywhere, all are equal in load but not in size.
        """
        if self._rooms:
            candidates = [each for each in candidates if self._has_room(each.id, now)]
        if len(candidates) > 1:
            candidates = _preferably(candidates, lambda each: not each.stalled)
            if self._backoffs:
                candidates = _preferably(candidates, lambda each: not self._avoided((each.id, service), now))
            candidates = _preferably(candidates, lambda each: not each.owes)
        if len(candidates) > 1:
            least = min(each.streams / each.weight for each in candidates)
            candidates = [each for each in candidates if each.streams / each.weight == least]
        if not candidates:
            return None
        best = (
            self._rng.choices(candidates, [1.0 if each.drawn else each.weight for each in candidates])[0]
            if candidates[1:]
            else candidates[0]
        )
        if (room := self._rooms.get(best.id)) is not None:
            room.streams -= 1
        return best.id

    @property
    def any_full(self) -> bool:
        """Whether a provider has said that it is full, and has not been tried successfully since."""
        return bool(self._rooms)

    def full(self, provider: bytes, now: float) -> None:
        """Note that a provider has all the streams that it may have."""
        self._rooms[provider] = _Room(now + FULL_S)

    def ended(self, provider: bytes) -> bool:
        """Note that a stream of a provider has ended; return whether it was full."""
        room = self._rooms.get(provider)
        if room is not None:
            room.streams += 1
        return room is not None

    def gone(self, provider: bytes) -> None:
        """Forget whether a provider was full."""
        self._rooms.pop(provider, None)

    def _has_room(self, provider: bytes, now: float) -> bool:
        room = self._rooms.get(provider)
        if room is None:
            return True
        if now >= room.until:
            room.streams = max(room.streams, room.refill)
            room.refill *= 2
            room.until = now + FULL_S
            if room.refill > FULL_MOST:
                del self._rooms[provider]
        return room.streams > 0

    def _avoided(self, key: tuple[bytes, str], now: float) -> bool:
        backoff = self._backoffs.get(key)
        return backoff is not None and now < backoff.until

    def failed(self, provider: bytes, service: str, now: float) -> None:
        """Note that a provider did not reach its target. Streams refused during a backoff do not prolong it."""
        self._backoffs = {key: each for key, each in self._backoffs.items() if now < each.until + FORGET_S}
        before = self._backoffs.get((provider, service))
        if before is None:
            self._backoffs[provider, service] = _Backoff(BACKOFF_MIN_S, now + BACKOFF_MIN_S)
        elif now >= before.until:
            before.length_s = min(2 * before.length_s, BACKOFF_MAX_S)
            before.until = now + before.length_s

    def accepted(self, provider: bytes, service: str) -> None:
        """Note that a provider reached its target."""
        if self._backoffs:
            self._backoffs.pop((provider, service), None)


def _preferably(candidates: Sequence[Candidate], wanted: Callable[[Candidate], bool]) -> Sequence[Candidate]:
    """Return those that are wanted, or all if none is."""
    return [each for each in candidates if wanted(each)] or candidates
