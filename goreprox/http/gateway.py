"""One client connection as a machine: bytes in, bytes and commands out. No sockets, no loop, no clock.

    between requests --a head, checked--> exchange --both messages whole--> between requests
                     --refused, or the last one--> over

The client is read by a `Reader`, the target by `Replies` that last as long as their stream is reused. What goes out to
either side is written anew from what was parsed of the other (`messages`).
"""

from dataclasses import replace
from http import HTTPStatus
from typing import Final

import h11

from goreprox.http import own_responses, requests, writer
from goreprox.http.commands import (
    Abort,
    Commands,
    Connect,
    Discard,
    Finish,
    HalfClose,
    Release,
    Switch,
    ToClient,
    ToProvider,
)
from goreprox.http.exchange import Exchange, Site, answered
from goreprox.http.reader import Reader
from goreprox.http.replies import Replies
from goreprox.http.requests import Rejected
from goreprox.http.writer import ResponseWriter

_FAILURES: Final = {
    HTTPStatus.BAD_GATEWAY: "the server behind this one could not be reached, or gave no valid response",
    HTTPStatus.SERVICE_UNAVAILABLE: "the server behind this one is not available at the moment",
    HTTPStatus.GATEWAY_TIMEOUT: "the server behind this one gave no response in time",
}
"""What clients are told. Why it is so, with addresses and what targets have sent, is for the log alone."""


class Gateway:
    """The machine. Each input returns what is to be done, in order; once it is over it wants no more."""

    def __init__(self, site: Site, *, client: str, authority: str, certificate: bytes = b"") -> None:
        """Begin with nothing read. `client` is its address, `authority` where it came to, host and port.

        `certificate` is what targets are told of its certificate.
        """
        self._site = site
        self._address = client
        self._authority = authority.encode()
        self._scheme = None if site.forwarding.trusts(client) else site.forwarding.proto
        """That requests have to be for; None: any."""
        self._certificate = certificate
        self._commands: Commands = []
        self._reader = Reader(site.settings.limits)
        self._provider: Replies | None = None
        """What comes over the stream there is."""
        self._asked = ""
        """The service that it is for."""
        self._exchange: Exchange | None = None
        self._ended = False
        """The client will say no more."""
        self._follows = False
        """An exchange has ended, and what was read behind it may be the next request."""
        self._draining = False
        self.over = False

    # What the socket side asks.

    @property
    def idle(self) -> bool:
        """Whether the client has asked for nothing, not even begun to."""
        return self._reader.empty and not self.over

    @property
    def reading_head(self) -> bool:
        """Whether the client has begun a head and not ended it."""
        return self._reader.in_head and not self.over

    @property
    def half_closed(self) -> bool:
        """Whether the client has half-closed its connection, or left, while its request is being answered."""
        return self._ended and self._exchange is not None and not self.over

    @property
    def reading(self) -> bool:
        """Whether bytes of the client are wanted now."""
        return not self.over and not self._ended and not self._reader.full

    @property
    def wanted(self) -> int:
        """How many bytes of the client to read at once at most, whatever room there is for them."""
        return self._reader.wanted

    @property
    def in_body(self) -> bool:
        """Whether what comes next of the client is for the target."""
        return self._reader.in_body

    # What the client does.

    def receive(self, data: bytes) -> Commands:
        """Take bytes of the client."""
        if not self.over:
            self._reader.receive(data)
            if self._exchange is None:
                self._next_request()
            else:
                self._pump_request()
        return self._take()

    def receive_eof(self) -> Commands:
        """Take note that the client half-closed or left, which look the same; answers that are due still reach it.

        The target is told, since it may stop working on an answer that nobody awaits.
        """
        self._ended = True
        if self.over:
            pass
        elif self._exchange is None:
            self._finish()
        elif self._reader.in_body:
            self._pump_request()
        else:
            self._half_close()
        return self._take()

    def client_lost(self) -> Commands:
        """Take note that the client's connection is over, and can be told nothing more."""
        if not self.over and self._exchange is not None and self._site.logs:
            self._log(self._exchange, "the client's connection ended before the response did")
        self.over = True
        return self._take()

    def timed_out(self) -> Commands:
        """Give up on a head that does not end, a client without a request, or the answer to a half-closed client."""
        if self.reading_head:
            self._answer(Rejected(408, "the head of the request did not arrive in time"))
        elif self.half_closed:
            self._fail(504, "the target did not answer in time after the client had half-closed its connection")
        elif self.idle:
            self._finish()
        return self._take()

    def drain(self) -> Commands:
        """Answer what has been asked, and end."""
        self._draining = True
        if self.idle:
            self._finish()
        return self._take()

    # What the provider does.

    def provider_data(self, data: bytes) -> Commands:
        """Take bytes of the target."""
        if self.over:
            pass
        elif self._exchange is None:
            self._discard()  # nobody asked
        elif self._provider is not None:
            self._exchange.heard = True
            self._provider.receive(data)
            self._pump_answer()
        return self._take()

    def provider_eof(self, *, unsent: bytes | None = None) -> Commands:
        """Take note that the target ended its side: the end of some answers, too early for others.

        `unsent` is the present request as far as it has come, if no byte of it was written to the target.
        """
        exchange = self._exchange
        if self.over:
            pass
        elif exchange is not None and exchange.response.begun and self._provider is not None:
            self._provider.receive_eof()
            self._pump_answer()
        elif not self._resend(unsent):
            self._discard(reset=exchange is not None and self._reader.in_body)
            self._lost(502, "the target closed the connection before it answered", again=True)
        return self._take()

    def provider_lost(self, status: int, reason: str, *, again: bool, unsent: bytes | None = None) -> Commands:
        """The stream is over, or there never was one: `status` says why, and `again` whether another may do better.

        `unsent` is what it is for `provider_eof`.
        """
        if not self.over and not self._resend(unsent):
            self._provider = None
            self._lost(status, reason, again=again)
        return self._take()

    # From head to exchange.

    def _next_request(self) -> None:
        """Begin an exchange if a whole head is there."""
        request = None
        try:
            request = self._reader.head()
            if request is not None:
                request = requests.check(request, self._site.settings.limits, scheme=self._scheme)
        except Rejected as rejected:
            self._answer(rejected, request)
            return
        if request is not None:
            self._begin(request)
        elif self._ended:
            self._finish()

    def _begin(self, request: h11.Request) -> None:
        exchange = self._exchange = Exchange(request, self._site, self._address)
        try:
            exchange.admit(self._site, address=self._address, authority=self._authority, certificate=self._certificate)
        except Rejected as rejected:
            self._answer(rejected, last=False)
            return
        self._ask(exchange, exchange.head, fresh=False)
        self._pump_request()

    def _ask(self, exchange: Exchange, request: bytes, *, fresh: bool) -> Replies:
        """Say the request, its head at least, to a provider; return what its answer will be read by."""
        if exchange.service != self._asked:
            self._discard()
        self._asked = exchange.service
        self._commands.append(Connect(exchange.service, fresh))
        if fresh or self._provider is None:
            self._provider = Replies()
        self._provider.ask(exchange.stand_in)
        self._commands.append(ToProvider(request))
        return self._provider

    def _resend(self, request: bytes | None) -> bool:
        """Send a request once more of which nothing has reached its target; return whether it was.

        It was not if the target has got some of it (None), has been heard, or this was the second try, or if the client
        has stopped waiting.
        """
        exchange, before = self._exchange, self._provider
        if request is None or exchange is None or before is None:
            return False
        if exchange.failed is not None or exchange.heard or self._ended:
            return False
        exchange.failed = 502, "the target closed the connection before it answered"
        self._discard(reset=True)
        provider = self._ask(exchange, request, fresh=True)
        if not before.asking:
            provider.asked()
        return True

    # From client to provider.

    def _pump_request(self) -> None:
        """Pass on what has come of the body."""
        reader = self._reader
        try:
            body, end = reader.body()
        except Rejected as rejected:
            self._fail(rejected.status, rejected.text)
            return
        if self._provider is None:
            return
        if body:
            self._commands.append(ToProvider(writer.chunk(body) if reader.chunked else body))
        if end is not None:
            self._provider.asked()
            if reader.chunked:
                trailers = requests.trailers(end, dropped=self._site.drops)
                self._commands.append(ToProvider(writer.last_chunk(trailers)))
            if self._ended:
                self._half_close()
        elif self._ended and reader.in_body:
            self._fail(400, "the request ended before its body did")

    def _half_close(self) -> None:
        """Pass on the client's end of file, unless another request of it is still to follow over the stream."""
        if self._provider is not None and not self._reader.ahead:
            self._commands.append(HalfClose())

    # From provider to client.

    def _pump_answer(self) -> None:
        """Pass on what has come of the answer."""
        provider, exchange = self._provider, self._exchange
        assert provider is not None
        assert exchange is not None
        body: list[bytes] = []
        try:
            while True:
                event = provider.next_event()
                if isinstance(event, h11.Data):
                    body.append(event.data)
                    continue
                if body:
                    self._to_client(exchange.response.body(b"".join(body)))
                    body.clear()
                if isinstance(event, h11.InformationalResponse):
                    self._interim(event, exchange)
                elif isinstance(event, h11.Response):
                    self._begin_answer(event, exchange)
                elif isinstance(event, h11.EndOfMessage):
                    self._end_answer(event, exchange)
                    return
                else:
                    return
                if self.over:
                    return
        except h11.RemoteProtocolError as exc:
            if body:
                self._to_client(exchange.response.body(b"".join(body)))
            self._fail(502, f"the target's response is malformed: {exc}")

    def _interim(self, event: h11.InformationalResponse, exchange: Exchange) -> None:
        if event.status_code == HTTPStatus.SWITCHING_PROTOCOLS:
            self._switch(event, exchange)
        elif exchange.request.http_version == b"1.1":
            self._to_client(writer.interim_head(event, _without_length(requests.end_to_end(event))))

    def _begin_answer(self, event: h11.Response, exchange: Exchange) -> None:
        fields = requests.end_to_end(event)
        chunked = requests.value_of(event, b"transfer-encoding") is not None
        if chunked or event.status_code == HTTPStatus.NO_CONTENT:
            fields = _without_length(fields)
        last = self._draining or self._reader.in_body  # whoever answers early may not want the rest
        self._to_client(exchange.response.head(event.status_code, event.reason, fields, last=last))

    def _end_answer(self, event: h11.EndOfMessage, exchange: Exchange) -> None:
        self._to_client(exchange.response.end(requests.trailers(event)))
        self._log(exchange)
        self._end_exchange(exchange.response)

    def _switch(self, event: h11.InformationalResponse, exchange: Exchange) -> None:
        provider = self._provider
        assert provider is not None
        if self._reader.in_body:
            raise h11.RemoteProtocolError("it switches protocols in the midst of a request")
        fields = [*requests.end_to_end(event), (b"Connection", b"upgrade")]
        upgrade = requests.value_of(event, b"upgrade")
        if upgrade is not None:
            fields.append((b"Upgrade", upgrade))
        self._to_client(writer.interim_head(event, fields))
        exchange.response.status = event.status_code
        for early, command in ((provider.behind, ToClient), (self._reader.ahead, ToProvider)):
            if early:
                self._commands.append(command(early))
        self._log(exchange)
        self.over = True
        self._commands.append(Switch())

    def _to_client(self, data: bytes) -> None:
        if data:
            self._commands.append(ToClient(data))

    # Ends.

    def _end_exchange(self, answer: ResponseWriter) -> None:
        """The answer is whole: go on to the next request, if the client's message is whole, too."""
        provider = self._provider
        self._exchange = None
        if provider is not None and not provider.idle:
            if provider.reusable:
                provider.start_next()
                self._commands.append(Release())
            else:
                self._discard(reset=provider.asking)
        if answer.ends or self._draining or not self._reader.advance():
            self._finish()
        else:
            self._follows = self._reader.in_head or self._ended

    def _log(self, exchange: Exchange, error: str = "") -> None:
        if self._site.logs or error:
            self._commands.append(replace(exchange.answered(), error=error))

    def _lost(self, status: int, reason: str, *, again: bool) -> None:
        """Ask another provider, once, where that does no harm; else tell the client."""
        exchange = self._exchange
        if exchange is None:
            return
        if again and not self._ended and exchange.failed is None and not exchange.heard and exchange.repeatable:
            exchange.failed = status, reason
            self._ask(exchange, exchange.head, fresh=True).asked()
        else:
            if status == HTTPStatus.SERVICE_UNAVAILABLE and exchange.failed is not None:
                status, reason = exchange.failed
            self._fail(status, reason)

    def _fail(self, status: int, reason: str) -> None:
        """End the exchange without the target's answer, or without the rest of it."""
        exchange = self._exchange
        assert exchange is not None
        self._discard(reset=True)
        if exchange.response.begun:
            self._log(exchange, reason)
            self.over = True
            self._commands.append(Abort())
        elif (text := _FAILURES.get(HTTPStatus(status))) is not None:
            self._answer(Rejected(status, text, detail=reason), last=False)
        else:
            self._answer(Rejected(status, reason), last=False)

    def _answer(self, rejected: Rejected, request: h11.Request | None = None, *, last: bool = True) -> None:
        """Answer in the target's stead. Only after a sound request that is whole the connection goes on."""
        exchange = self._exchange
        if exchange is not None:
            request = exchange.request
        answer = ResponseWriter(request) if exchange is None else exchange.response
        last = last or self._draining or not self._reader.skip()
        accept = requests.value_of(request, b"accept") if request is not None else None
        request_id = self._site.draw_id() if rejected.detail else ""
        text = f"{rejected.text} (request {request_id})" if request_id else rejected.text
        fields, body = own_responses.body(rejected.status, text, accept or b"")
        reason = rejected.status.phrase.encode()
        self._to_client(answer.head(rejected.status, reason, fields + rejected.fields, last=last) + answer.body(body))
        if self._site.logs or request_id:
            entry = answered(request, answer, client=self._address) if exchange is None else exchange.answered()
            error = rejected.detail or rejected.text
            self._commands.append(replace(entry, error=error, request_id=request_id))
        self._end_exchange(answer)

    def _discard(self, *, reset: bool = False) -> None:
        if self._provider is not None:
            self._provider = None
            self._commands.append(Discard(reset))

    def _finish(self) -> None:
        self.over = True
        self._commands.append(Finish())

    def _take(self) -> Commands:
        while self._follows:  # not by recursion: a client may send hundreds that are refused at once
            self._follows = False
            self._next_request()
        commands, self._commands = self._commands, []
        return commands


def _without_length(fields: requests.Fields) -> requests.Fields:
    """Leave out what 1xx and 204 must not have (RFC 9110, 8.6), nor what is chunked (RFC 9112, 6.3)."""
    return [(name, value) for name, value in fields if name.lower() != b"content-length"]
