"""How an epoch begins: our pages, which list our streams to the peer, and what the peer's pages list.

All is done one page at a time: a page of ours is built when it is sent, and each flush responds to at most a page of
the streams that only the peer still has.
"""

from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Container, Iterable, Mapping

from goreprox.protocol.errors import RemoteProtocolError
from goreprox.protocol.events import Abort, Code, Live, Refuse, Resume
from goreprox.protocol.limits import RESUME_MAX, RESUME_PAGE
from goreprox.protocol.state import State
from goreprox.protocol.stream import Stream

GONE = "the peer no longer knows this stream"


class Resumption:
    """The resume of one epoch, at one end."""

    __slots__ = (
        "_asked",
        "_count",
        "_last",
        "_responded",
        "_untold",
        "late",
        "listed",
        "outage_s",
        "replayed_bytes",
        "told",
    )

    def __init__(self, ours: Iterable[int] | None = None) -> None:
        """List `ours`, in ascending order; None: there is no peer to list them to."""
        self.told = ours is None
        """Whether all our pages are built."""
        self._untold = deque(ours or ())
        self.listed: set[int] = set()
        """Streams that the peer has listed and that we had then."""
        self.late: list[Stream] = []
        """Accepted after their page was built."""
        self.outage_s: float | None = None
        """How long the outage lasted that the resume has ended; None if it has not, or there was none."""
        self.replayed_bytes = 0
        """Payload of ours that is sent again."""
        self._asked = array("Q")
        """Streams that the peer has listed and that had ended here, which need a response: 8 bytes each."""
        self._responded = 0
        self._count = self._last = 0

    # Our pages.

    def will_list(self, stream_id: int) -> bool:
        """Whether a page that is still to be built may list a stream."""
        return bool(self._untold) and self._untold[0] <= stream_id <= self._untold[-1]

    def page(self, ours: Mapping[int, Stream], *, grace_s: float, window: int, next_id: int) -> Resume:
        """Return the next page: each stream as it stands now, less those that have ended meanwhile."""
        lives: list[Live] = []
        while self._untold and len(lives) < RESUME_PAGE:
            stream = ours.get(self._untold.popleft())
            # For one in state RESET nothing more is to come, and the peer may have forgotten it.
            if stream is not None and stream.state is not State.RESET:
                receive = stream.receive
                lives.append(
                    Live(stream.id, stream.accepted, receive.received, receive.ack_offset, receive.limit, receive.eof)
                )
        self.told = not self._untold
        return Resume(grace_s, window, next_id, self.told, tuple(lives))

    # The peer's pages.

    def take(self, stream_id: int, *, next_id: int, ours: Container[int], ended_below: int, most_ended: int) -> None:
        """Note that the peer, which has seen ids below `next_id`, has listed a stream.

        One that is not `ours` has ended here and gets a response if its id is below `ended_below`; there can be
        `most_ended` of these.

        Raises:
            RemoteProtocolError: out of order, or more than there can be.
        """
        if stream_id <= self._last:
            raise RemoteProtocolError(f"stream {stream_id} listed after {self._last}")
        if stream_id >= next_id:
            raise RemoteProtocolError(f"stream {stream_id} listed by a peer that has seen none from {next_id} on")
        if self._count >= RESUME_MAX:
            raise RemoteProtocolError(f"more than {RESUME_MAX} streams listed")
        self._last = stream_id
        self._count += 1
        if stream_id in ours:
            self.listed.add(stream_id)
        elif stream_id < ended_below:
            if len(self._asked) >= most_ended:
                raise RemoteProtocolError(f"more than {most_ended} streams listed that have ended here")
            self._asked.append(stream_id)

    def lists(self, stream_id: int) -> bool:
        """Whether the peer has listed a stream, live here or ended."""
        index = bisect_left(self._asked, stream_id)
        return stream_id in self.listed or (index < len(self._asked) and self._asked[index] == stream_id)

    def end(self, ours: Container[int]) -> None:
        """Respond also to streams that have ended since they were listed: the peer has listed all."""
        self._asked.extend(stream_id for stream_id in sorted(self.listed) if stream_id not in ours)

    @property
    def over(self) -> bool:
        """Whether nothing is left to send."""
        return self.told and self.all_responded

    @property
    def all_responded(self) -> bool:
        """Whether every stream that needs a response has one."""
        return self._responded == len(self._asked)

    def endings(self, last_words: Mapping[int, Refuse | Abort]) -> list[Refuse | Abort]:
        """Return how streams ended that only the peer still has, at most a page of them."""
        asked = self._asked[self._responded : self._responded + RESUME_PAGE]
        self._responded += len(asked)
        return [last_words.get(stream_id) or Abort(stream_id, Code.GONE, GONE) for stream_id in asked]
