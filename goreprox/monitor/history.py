"""The last hour of each process: its connections and its throughput, in bounded memory."""

from collections import deque
from typing import Final, NamedTuple

from goreprox.status.document import Document

EVERY_S: Final = 5.0
KEPT_S: Final = 3600.0
KEPT: Final = int(KEPT_S / EVERY_S)
"""Samples of a process: 720, of at most 200 bytes each."""
PROCESSES: Final = 64
"""With a history, so at most 64 x 720 x 200 bytes = 9 MiB; further processes have none."""


class Sample(NamedTuple):
    """A process at a moment."""

    at: float
    """Seconds since 1970."""
    open: int
    """Connections."""
    sent_bytes_per_s: int
    received_bytes_per_s: int


class _Series:
    def __init__(self) -> None:
        self.samples: deque[Sample] = deque(maxlen=KEPT)
        self.last: tuple[str, float, int, int] | None = None
        """The incarnation, when it was looked at by a clock that is never set, and its bytes sent and received."""

    def add(self, at: float, now: float, document: Document) -> None:
        streams = document["streams"]
        if streams is None:
            return
        sent, received = streams["sent_bytes"], streams["received_bytes"]
        rates = (0, 0)
        if self.last is not None and self.last[0] == document["incarnation"] and now > self.last[1]:
            _, before, *bytes_before = self.last
            sent_before, received_before = bytes_before
            rates = (_rate(sent - sent_before, now - before), _rate(received - received_before, now - before))
        self.last = document["incarnation"], now, sent, received
        self.samples.append(Sample(at, streams["open"], *rates))


def _rate(size: int, time_s: float) -> int:
    return max(round(size / time_s), 0)


class History:
    """The samples of all processes."""

    def __init__(self) -> None:
        self._series: dict[str, _Series] = {}
        self._due = 0.0

    def add(self, at: float, now: float, documents: dict[str, Document]) -> dict[str, Sample]:
        """Take samples of processes at the time `at`, if it is time by a clock that is never set; return them."""
        if now < self._due:
            return {}
        self._due = now + EVERY_S
        for who in [who for who, each in self._series.items() if _ended(each, now)]:
            del self._series[who]
        for who, document in documents.items():
            if who in self._series or len(self._series) < PROCESSES:
                self._series.setdefault(who, _Series()).add(at, now, document)
        found = {who: series.samples[-1] for who, series in self._series.items() if series.samples}
        return {who: sample for who, sample in found.items() if sample.at == at}

    def all(self) -> dict[str, list[Sample]]:
        """Return all samples by process, the oldest first."""
        return {who: list(series.samples) for who, series in self._series.items() if series.samples}


def _ended(series: _Series, now: float) -> bool:
    """Whether nothing was heard of a process for so long that it has no history."""
    return series.last is None or now - series.last[1] > KEPT_S
