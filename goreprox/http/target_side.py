"""What a gateway says to the targets of one client, and hears of them, over one stream after the other. Sans-IO."""

from goreprox.http.commands import Command, Connect, Discard, HalfClose, Release, ToProvider
from goreprox.http.exchange import Exchange
from goreprox.http.replies import Replies


class TargetSide:
    """At most one stream at a time, reused from request to request. Commands go to the list of the gateway."""

    __slots__ = ("_commands", "_service", "replies")

    def __init__(self, commands: list[Command]) -> None:
        self._commands = commands
        self._service = ""
        self.replies: Replies | None = None
        """Parses what comes over the stream; None without one."""

    def ask(self, exchange: Exchange, request: bytes, *, fresh: bool) -> Replies:
        """Send the header section of a request; over a new stream if the service changes or `fresh` is set."""
        if exchange.service != self._service:
            self.discard()
        self._service = exchange.service
        self._commands.append(Connect(exchange.service, fresh))
        if self.replies is None:
            self.replies = Replies()
        self.replies.ask(exchange.stand_in)
        self._commands.append(ToProvider(request))
        return self.replies

    def send(self, data: bytes) -> None:
        """Send bytes, not empty, of a request's body."""
        self._commands.append(ToProvider(data))

    def half_close(self) -> None:
        """Pass on that the client says no more."""
        self._commands.append(HalfClose())

    def end_exchange(self) -> None:
        """Keep the stream for the next request, if both messages are whole and nothing else has come."""
        replies = self.replies
        if replies is None or replies.idle:
            return
        if replies.reusable:
            replies.start_next()
            self._commands.append(Release())
        else:
            self.discard(reset=replies.asking)

    def discard(self, *, reset: bool = False) -> None:
        """Give the stream up: with its end or, if something on it is unfinished, with a reset."""
        if self.replies is not None:
            self.replies = None
            self._commands.append(Discard(reset))

    def lost(self) -> None:
        """Take note that the stream is over."""
        self.replies = None
