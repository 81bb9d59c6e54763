"""Counts HTTP requests, for the status."""

from bisect import bisect_left
from http import HTTPStatus
from typing import Final

from goreprox.protocol.fields import Fields

BOUNDS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
"""Upper bounds of the histogram's buckets; one more has what takes longer than the grace."""
SERVICES: Final = 512
"""More than a configuration can have (3 KiB of names), and reloads may bring others; what is beyond counts as "".
With 62 statuses below 32,000 numbers, 3 MiB."""
_STATUSES: Final = {0: "none"} | {int(status): str(status.value) for status in HTTPStatus}
OTHER: Final = "other"


class Durations:
    """A histogram."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        """By bucket, each without those before it."""
        self.sum_s = 0.0


class RequestCounters:
    """Of all clients of a process, since it started. An upgrade in place keeps them."""

    def __init__(self) -> None:
        self.requests: dict[str, dict[int, int]] = {}
        """By service and status: 0 if the client was reset before a response began."""
        self.durations: dict[str, Durations] = {}
        """By service, of requests that were given to a provider."""

    def add(self, service: str, status: int, duration_s: float | None) -> None:
        """Count a request that is over; it has no duration if no provider was asked."""
        by_status = self.requests.get(service)
        if by_status is None:
            if len(self.requests) >= SERVICES:
                service = ""
            by_status = self.requests.setdefault(service, {})
        if status not in _STATUSES:
            status = -1
        by_status[status] = by_status.get(status, 0) + 1
        if duration_s is not None:
            durations = self.durations.get(service)
            if durations is None:
                durations = self.durations[service] = Durations()
            durations.counts[bisect_left(BOUNDS_S, duration_s)] += 1
            durations.sum_s += duration_s

    def export(self) -> dict[str, object]:
        """Return all of them, for the code that takes over."""
        return {
            "requests": {
                service: {str(status): count for status, count in by_status.items()}
                for service, by_status in self.requests.items()
            },
            "durations": {
                service: {"counts": list(each.counts), "sum_s": each.sum_s} for service, each in self.durations.items()
            },
        }

    def take_over(self, fields: Fields) -> None:
        """Go on from what the process that this one has replaced has counted; durations in other buckets begin anew.

        Raises:
            ExportError: it is not what `export` returns.
        """
        requests, durations = fields.fields("requests"), fields.fields("durations")
        for service in requests.by_text():
            statuses = requests.fields(service)
            self.requests[service] = {_status(text): statuses.count(text) for text in statuses.by_text()}
        for service in durations.by_text():
            each = durations.fields(service)
            counts = [count for count in each.items("counts") if isinstance(count, int)]
            if len(counts) == len(BOUNDS_S) + 1:
                found = self.durations[service] = Durations()
                found.counts, found.sum_s = counts, each.seconds("sum_s")

    def by_status(self, service: str) -> dict[str, int]:
        """Return how many requests of a service there were, by status: a number, "none" or "other"."""
        return {_STATUSES.get(status, OTHER): count for status, count in self.requests[service].items()}


def _status(text: str) -> int:
    status = int(text) if text.isascii() and text.lstrip("-").isdigit() else -1
    return status if status in _STATUSES else -1
