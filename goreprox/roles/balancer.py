"""Which provider gets a stream: the one with the fewest streams for its weight. Sans-IO: `now` is an argument, seconds.

Three kinds of provider are avoided as long as there is another one:

- whose path is stalled, because a stream would wait there;
- whose target failed: for 1 s, and twice as long after each further failure without a success in between;
- that owes responses to more Opens than it has accepted streams.

A provider that has refused because it is full gets one stream for each that ends there, and twice as many each second,
until it refuses again.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

BACKOFF_MIN_S = 1.0
BACKOFF_MAX_S = 30.0
FORGET_S = 30.0
"""A failure is forgotten this long after its backoff. This also bounds memory: to the failures of a minute, at most one
a provider and service."""

UNANSWERED = 32
"""A provider may have this many unanswered Opens, and one more for each stream that it has accepted. So one that never
responds holds no more clients than this, whatever its weight, as long as another responds."""
FULL_S = 1.0
"""A full provider is tried again after this."""
FULL_MOST = 1024
"""A provider that may get this many streams in a second is no longer full."""


class Candidate(NamedTuple):
    """A provider that accepts streams."""

    id: bytes
    streams: int
    """The number of its streams."""
    weight: float
    """Its share of streams, more than 0."""
    unanswered: int = 0
    """The number of streams that it has neither accepted nor refused."""
    stalled: bool = False
    """Whether its path has not responded to a probe."""
    drawn: bool = False
    """Whether it was drawn by weight, of very many, so that its weight must not count again among equals."""

    @property
    def owes(self) -> bool:
        """Whether it has more unanswered streams than a provider that responds would have."""
        return self.unanswered > UNANSWERED + self.streams - self.unanswered


@dataclass(slots=True)
class _Backoff:
    length_s: float
    until: float


@dataclass(slots=True)
class _Room:
    """What a full provider may get."""

    until: float
    """When it may get more."""
    streams: int = 0
    refill: int = 1


class Balancer:
    """Chooses among candidates; remembers failures by provider and service, as each service has a target of its own."""

    def __init__(self, rng: random.Random) -> None:
        """Break ties with `rng`."""
        self._rng = rng
        self._backoffs: dict[tuple[bytes, str], _Backoff] = {}
        self._rooms: dict[bytes, _Room] = {}

    def choose(self, service: str, candidates: Sequence[Candidate], now: float) -> bytes | None:
        """Return the id of the best candidate, or None if there is none.

        Ties are broken at random, by weight: without any stream all have the same load, but not the same size.
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

    def well(self, service: str, candidate: Candidate, now: float) -> bool:
        """Return whether there is no reason to avoid a candidate."""
        return not (
            candidate.stalled
            or candidate.owes
            or (self._backoffs and self._avoided((candidate.id, service), now))
            or (self._rooms and not self._has_room(candidate.id, now))
        )

    @property
    def any_full(self) -> bool:
        """Whether a provider is full, as far as is known."""
        return bool(self._rooms)

    def full(self, provider: bytes, now: float) -> None:
        """Note that a provider has refused a stream because it is full."""
        self._rooms[provider] = _Room(now + FULL_S)

    def ended(self, provider: bytes) -> bool:
        """Note that a stream of a provider has ended; return whether the provider was full."""
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
        """Note that a provider did not reach its target. A failure during a backoff does not prolong it."""
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
    """Return the wanted candidates, or all if none is wanted."""
    return [each for each in candidates if wanted(each)] or candidates
