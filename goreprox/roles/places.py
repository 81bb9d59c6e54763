"""Which streams of each service are at a provider, and how many there may be at a time."""

from collections.abc import Callable

from goreprox.protocol.stream import Stream


class Places:
    """A stream takes a place of its service when a provider is given it, and leaves it when it is over or refused."""

    def __init__(self, most: Callable[[str], int | None], *, waiting: Callable[[str], int]) -> None:
        """Allow `most(service)` streams at a time, any number if that is None; `waiting` returns how many wait."""
        self.most = most
        self._waiting = waiting
        self._taken: dict[str, set[Stream]] = {}

    def take(self, stream: Stream) -> None:
        """Take a place, whether there is one or not: an upgrade may have handed the stream over."""
        self._taken.setdefault(stream.service, set()).add(stream)

    def leave(self, stream: Stream) -> bool:
        """Leave the place, if the stream has one; return whether it may be for one that waits."""
        streams = self._taken.get(stream.service)
        if streams is None or stream not in streams:
            return False
        streams.remove(stream)
        if not streams:
            del self._taken[stream.service]
        return self.most(stream.service) is not None

    def full(self, service: str) -> bool:
        """Return whether there is no place for another stream."""
        most = self.most(service)
        return most is not None and len(self._taken.get(service, ())) >= most

    def has_room(self, service: str) -> bool:
        """Return whether another client would not have to wait for the end of others."""
        most = self.most(service)
        return most is None or len(self._taken.get(service, ())) + self._waiting(service) < most

    def queued(self, service: str) -> bool:
        """Return whether a new stream goes behind others that wait for a place."""
        return self.most(service) is not None and self._waiting(service) > 0

    def crowded(self, service: str) -> bool:
        """Return whether streams wait for the end of others."""
        return self.full(service) and self._waiting(service) > 0
