"""Leases and epochs of peers. Sans-IO: `now` is an argument, in seconds."""

from collections.abc import Hashable


class Presence:
    """Leases, renewed by the peers' event loops: heartbeats of libzmq would continue while a loop hangs."""

    def __init__(self, lease_s: float) -> None:
        """Grant leases of `lease_s` seconds."""
        self._lease_s = lease_s
        self._heard: dict[Hashable, float] = {}
        self._looked_at: float | None = None
        self._epoch = 0

    def enter(self, key: Hashable, now: float) -> int:
        """Begin a lease for `key`; return its epoch, higher than all before."""
        self._epoch += 1
        self._heard[key] = now
        return self._epoch

    def renew(self, key: Hashable, now: float) -> None:
        """Renew the lease of a peer that is up."""
        self._heard[key] = now

    def silent(self, since: float) -> list[Hashable]:
        """Return those that were not heard after `since`."""
        return [key for key, heard in self._heard.items() if heard <= since]

    def leave(self, key: Hashable) -> None:
        """End a lease, if there is one."""
        self._heard.pop(key, None)

    def expired(self, now: float) -> list[Hashable]:
        """Return the peers that have been silent for longer than their lease; call it several times a lease.

        After a pause longer than a lease, such as a suspend, no peer could be heard: all leases begin anew.
        """
        if self._looked_at is not None and now - self._looked_at > self._lease_s:
            self._heard = dict.fromkeys(self._heard, now)
        self._looked_at = now
        return [key for key, heard in self._heard.items() if now - heard > self._lease_s]
