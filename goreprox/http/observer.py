"""Who sees an exchange while it passes, and changes nothing of it. Sans-IO."""

from typing import TYPE_CHECKING, Protocol

from goreprox.http.messages import EndOfMessage, Fields

if TYPE_CHECKING:
    from goreprox.http.exchange import Exchange, Origin


class Observer(Protocol):
    """Sees one exchange. Bodies are without the framing of chunks, and passed on whatever it does with them."""

    def request_part(self, data: bytes, end: EndOfMessage | None) -> None:
        """Take note of a part of the request's body, which is empty only if chunks end, and of its end."""

    def response_head(self, status: int, head: bytes) -> None:
        """Take note of the head of the final response, or of that to an upgrade, as it goes to the client."""

    def response_part(self, data: bytes) -> None:
        """Take note of a part of the response's body."""

    def response_end(self, trailers: Fields) -> None:
        """Take note of the trailers of a response that has some."""

    def over(self, error: str) -> None:
        """Take note that nothing else follows; `error` says why the response is ours, or not whole."""

    def carried(self, provider: str | None, since: float) -> None:
        """Take note of the provider of a request that is over, which has had it `since` then, by the clock."""


class Inspector(Protocol):
    """Decides which exchanges are seen."""

    def observer(self, exchange: "Exchange", origin: "Origin") -> Observer | None:
        """Return who sees an exchange whose service is known, and whose response has not begun; None: nobody."""
