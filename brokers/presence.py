"""Who is up, for how long still, at which epoch. Sans-IO: `now` is an argument, seconds."""

from collections.abc import Hashable


class Presence:
    """Leases of peers. A peer's own loop renews them: libzmq's heartbeats go on when that loop hangs."""

    def __init__(self, lease_s: float) -> None:
        """Grant leases of `lease_s` seconds."""
        self._lease_s = lease_s
        self._heard: dict[Hashable, float] = {}
        self._looked_at: float | None = None
        self._epoch = 0

    def enter(self, key: Hashable, now: float) -> int:
        """Begin a new life of `key`; return its epoch, higher than all before."""
        self._epoch += 1
        self._heard[key] = now
        return self._epoch

    def renew(self, key: Hashable, now: float) -> None:
        """Note a sign of life of a peer that is up."""
        self._heard[key] = now

    def leave(self, key: Hashable) -> None:
        """Forget a peer."""
        self._heard.pop(key, None)

    def expired(self, now: float) -> list[Hashable]:
        """Return the peers that have been silent for longer than their lease.

        To be called several times a lease. If we were asleep for one, nobody could be heard: all leases begin anew.
        """
        if self._looked_at is not None and now - self._looked_at > self._lease_s:
            self._heard = dict.fromkeys(self._heard, now)
        self._looked_at = now
        return [key for key, heard in self._heard.items() if now - heard > self._lease_s]
