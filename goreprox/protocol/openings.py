"""Streams that we have opened and the peer has neither accepted nor refused.

Whether the Open has left this process decides what may happen to a stream when its path is lost: if not, another
provider may carry it; if it has, the target may already have been dialled.
"""

from collections.abc import Container


class Openings:
    """Opens without a response, by stream id."""

    __slots__ = ("_sent", "_unsent")

    def __init__(self) -> None:
        self._sent: dict[int, float] = {}
        """When the latest Open of each was sent, in this epoch or an earlier one."""
        self._unsent: list[int] = []
        """Those whose Open goes out with the next flush."""

    def __len__(self) -> int:
        return len(self._sent) + len(self._unsent)

    def add(self, stream_id: int) -> None:
        """Add a stream whose Open is queued."""
        self._unsent.append(stream_id)

    def mark_sent(self, live: Container[int], now: float) -> None:
        """Note that all queued Opens are sent now; those of streams that are no longer `live` do not matter."""
        if self._unsent:
            self._sent |= dict.fromkeys(filter(live.__contains__, self._unsent), now)
            self._unsent.clear()

    def sent_at(self, stream_id: int) -> float | None:
        """Return when the stream's latest Open was sent, or None."""
        return self._sent.get(stream_id)

    def restore(self, stream_id: int, sent_at: float) -> None:
        """Add a stream whose Open was sent by the process that this one has replaced."""
        self._sent[stream_id] = sent_at

    def remove(self, stream_id: int) -> None:
        """Forget a stream: the peer has responded, or it has ended."""
        self._sent.pop(stream_id, None)

    def take_unsent(self) -> list[int]:
        """Remove and return the streams of which no Open was ever sent; no queued Open will be sent any more."""
        unsent = [stream_id for stream_id in self._unsent if stream_id not in self._sent]
        self._unsent.clear()
        return unsent
