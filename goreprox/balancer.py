"""Which provider gets a stream: the one with the fewest streams for its weight. Sans-IO: `now` is an argument, seconds.

A provider whose target failed is avoided for a while, as long as there is another: 1 s, then twice as long after
each failure that no accepted stream comes before. It knows nothing of sessions; whether a provider is there and
takes streams, its user knows.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

BACKOFF_MIN_S = 1.0
BACKOFF_MAX_S = 30.0
FORGET_S = 30.0
"""A failure is forgotten when nothing came of it so long after its backoff. This also bounds what is remembered: the
failures of a minute, at most one a provider and service."""


class Candidate(NamedTuple):
    """A provider that could take a stream."""

    id: bytes
    streams: int
    """Open at it now."""
    weight: float
    """Its share; more than 0."""


@dataclass(slots=True)
class _Backoff:
    length_s: float
    until: float


class Balancer:
    """Remembers failures, by provider and service: one target of a provider may fail while others are well."""

    def __init__(self, rng: random.Random) -> None:
        """Break ties with `rng`."""
        self._rng = rng
        self._backoffs: dict[tuple[bytes, str], _Backoff] = {}

    def choose(self, service: str, candidates: Sequence[Candidate], now: float) -> bytes | None:
        """Return the id of the best candidate, or None if there is none.

        Ties are broken at random, by weight: without a stream anywhere, all are equal in load but not in size.
        """
        if self._backoffs:
            candidates = [each for each in candidates if not self._avoided((each.id, service), now)] or candidates
        if len(candidates) < 2:
            return candidates[0].id if candidates else None
        least = min(each.streams / each.weight for each in candidates)
        best = [each for each in candidates if each.streams / each.weight == least]
        return self._rng.choices(best, [each.weight for each in best])[0].id

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
