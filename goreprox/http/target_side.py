"""What a gateway says to the targets of one client, and hears of them, over one stream after the other. Sans-IO."""

from goreprox.http.commands import Command, Connect, Discard, HalfClose, Release, ToProvider
from goreprox.http.exchange import Exchange
from goreprox.http.reply import Reply


class TargetSide:
    """At most one stream at a time, reused from request to request. Commands go to the list of the gateway."""

    __slots__ = ("_commands", "_connected", "_service", "reply")

    def __init__(self, commands: list[Command]) -> None:
        self._commands = commands
        self._service = ""
        self._connected = False
        """Whether there is a stream."""
        self.reply: Reply | None = None
        """Parses the response that is due over it; None without one."""

    def ask(self, exchange: Exchange, request: bytes, *, fresh: bool) -> None:
        """Send the header section of a request; over a new stream if the service changes or `fresh` is set."""
        if exchange.service != self._service:
            self.discard()
        self._service = exchange.service
        self._commands.append(Connect(exchange.service, fresh, exchange.response.observer))
        self._connected = True
        self.reply = exchange.expect_reply()
        self._commands.append(ToProvider(request))

    def send(self, data: bytes) -> None:
        """Send bytes, not empty, of a request's body."""
        self._commands.append(ToProvider(data))

    def half_close(self) -> None:
        """Pass on that the client says no more."""
        self._commands.append(HalfClose())

    def end_exchange(self, *, whole: bool) -> None:
        """Keep the stream for the next request if both messages are `whole`, and nothing else has come.

        `whole` is whether the request was sent to its end.
        """
        if self.reply is None:
            return
        if whole and self.reply.reusable:
            self.reply = None
            self._commands.append(Release())
        else:
            self.discard(reset=not whole)

    def discard(self, *, reset: bool = False) -> None:
        """Give the stream up: with its end or, if something on it is unfinished, with a reset."""
        if self._connected:
            self.lost()
            self._commands.append(Discard(reset))

    def lost(self) -> None:
        """Take note that the stream is over."""
        self._connected = False
        self.reply = None
