"""An index of the services that providers offer, so that an update or a choice does not look at all providers."""

import itertools
import random
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final, NamedTuple

from goreprox.roles.balancer import Candidate
from goreprox.tunnel.attributes import targets_of, weight_of
from goreprox.tunnel.peer import Peer

MANY: Final = 16
"""Of more providers than this, a sample is compared, drawn by weight."""
SAMPLE: Final = 8
"""Its best is nearly the best of all."""
LARGE_SAMPLE: Final = 32
"""Drawn if none of `SAMPLE` is well."""


class _Service:
    """The providers of one service."""

    __slots__ = ("_peers", "_weights", "known", "peers")

    def __init__(self) -> None:
        self.peers: dict[bytes, Peer] = {}
        """Those that accept streams."""
        self.known: set[bytes] = set()
        """Those that offer it, reachable or not."""
        self._peers: list[Peer] = []
        self._weights: list[float] = []

    def changed(self) -> None:
        """Drop the prepared sample: providers or weights have changed."""
        self._peers = []

    @property
    def many(self) -> bool:
        """Whether a sample is compared in place of all."""
        return len(self.peers) > MANY

    def sample(self, rng: random.Random, count: int) -> Sequence[Peer]:
        """Return `count` drawn by weight, of which one may occur several times."""
        if not self._peers:
            self._peers = list(self.peers.values())
            self._weights = list(itertools.accumulate(weight_of(peer.info.attributes) for peer in self._peers))
        return rng.choices(self._peers, cum_weights=self._weights, k=count)


class Change(NamedTuple):
    """The services that an update concerns."""

    gained: frozenset[str]
    """The provider accepts streams for these: new ones, or all of them in a new epoch of its session."""
    lost: frozenset[str]
    """It no longer accepts streams for these."""
    gone: frozenset[str]
    """It no longer offers these."""


class Offers:
    """The index; `update` is called at each change of a provider."""

    def __init__(self, rng: random.Random) -> None:
        """Draw samples with `rng`."""
        self._rng = rng
        self._services: dict[str, _Service] = {}
        self._offered: dict[bytes, frozenset[str]] = {}
        """The services that each known provider offers."""
        self._available: dict[bytes, frozenset[str]] = {}
        """Of those that accept streams."""
        self._epochs: dict[bytes, int] = {}
        """Epochs of their sessions: no stream was served between two of them."""

    def update(self, peer: Peer) -> Change:
        """Take over the present state of a provider."""
        offered: frozenset[str] = frozenset() if peer.gone else frozenset(peer.services)
        available: frozenset[str] = offered if peer.available else frozenset()
        offered_before = self._swap(self._offered, peer.id, offered)
        available_before = self._swap(self._available, peer.id, available)
        for name in offered - offered_before:
            self._services.setdefault(name, _Service()).known.add(peer.id)
        for name in available | available_before:  # its weight may be another
            service = self._services[name]
            service.changed()
            if name in available:
                service.peers[peer.id] = peer
            else:
                service.peers.pop(peer.id, None)
        for name in offered_before - offered:
            service = self._services[name]
            service.known.discard(peer.id)
            if not service.known:
                del self._services[name]
        epoch = self._epochs.pop(peer.id, None)
        if available:
            self._epochs[peer.id] = peer.session.epochs.number
        if epoch != peer.session.epochs.number:
            return Change(available, available_before - available, offered_before - offered)
        return Change(available - available_before, available_before - available, offered_before - offered)

    @staticmethod
    def _swap(table: dict[bytes, frozenset[str]], key: bytes, value: frozenset[str]) -> frozenset[str]:
        before = table.pop(key, frozenset())
        if value:
            table[key] = value
        return before

    @property
    def known(self) -> Collection[str]:
        """The services that a provider offers, reachable or not."""
        return self._services.keys()

    def known_for(self, service: str) -> Collection[bytes]:
        """Return the ids of those that offer a service, reachable or not."""
        found = self._services.get(service)
        return found.known if found is not None else ()

    def available(self, service: str) -> Collection[Peer]:
        """Return the providers that accept streams for a service."""
        found = self._services.get(service)
        return found.peers.values() if found is not None else ()

    def candidates(
        self, service: str, *, without: Collection[bytes], well: Callable[[Candidate], bool]
    ) -> list[Candidate]:
        """Return the candidates for a stream of a service; of very many a sample, where possible with a `well` one."""
        found = self._services.get(service)
        if found is None:
            return []
        if not found.many:
            return _candidates(found.peers.values(), without, drawn=False)
        chosen = _candidates(found.sample(self._rng, SAMPLE), without, drawn=True)
        if not any(map(well, chosen)):
            chosen = _candidates(found.sample(self._rng, LARGE_SAMPLE), without, drawn=True)
        return chosen or _candidates(found.peers.values(), without, drawn=False)

    def differing(self, service: str) -> list[Peer]:
        """Return two providers of a service whose targets differ, or none; of very many only a sample is compared."""
        first: tuple[Peer, bytes] | None = None
        found = self._services.get(service)
        if found is None:
            return []
        for peer in found.sample(self._rng, LARGE_SAMPLE) if found.many else found.peers.values():
            target = targets_of(peer.info.attributes).get(service)
            if target is None:
                continue
            if first is None:
                first = peer, target
            elif first[1] != target:
                return [first[0], peer]
        return []


def _candidates(peers: Iterable[Peer], without: Collection[bytes], *, drawn: bool) -> list[Candidate]:
    return [_candidate(peer, drawn=drawn) for peer in peers if peer.available and peer.id not in without]


def _candidate(peer: Peer, *, drawn: bool) -> Candidate:
    session, weight = peer.session, weight_of(peer.info.attributes)
    return Candidate(peer.id, len(session.streams), weight, session.unanswered, stalled=session.stalled, drawn=drawn)
