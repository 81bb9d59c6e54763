"""One client connection as a state machine: bytes in, bytes and commands out. No sockets, no loop, no clock.

    between requests --a header section, checked--> exchange --both messages whole--> between requests
                     --rejected, or the last one--> over
                     --a guard is asked--> waiting --its verdict--> exchange

The client is parsed by a `Reader`, each response of a target by a `Reply`. What goes out to either side is
written anew from what was parsed of the other (`writer`).
"""

from dataclasses import replace
from http import HTTPStatus
from typing import Final

from goreprox.http import own_responses, requests, writer
from goreprox.http.commands import Ask, Commands, CountRequest, Finish, ResetClient, SwitchProtocols, ToClient
from goreprox.http.exchange import Exchange, Site, log_request
from goreprox.http.forward_auth import Verdict
from goreprox.http.messages import EndOfMessage, Malformed, Request, Response
from goreprox.http.reader import Reader
from goreprox.http.reply import Reply
from goreprox.http.requests import Rejected
from goreprox.http.target_side import TargetSide
from goreprox.http.writer import ResponseWriter

_CLIENT_ENDED: Final = "the client's connection ended before the response did"


class Gateway:
    """The state machine. Each input returns what is to be done, in order; once it is `over` it ignores all input."""

    def __init__(self, site: Site, *, client: str, authority: str, certificate: bytes = b"") -> None:
        """Begin with nothing read.

        `client` is the client's address, `authority` host and port that it connected to, `certificate` what targets are
        told of its certificate.
        """
        self.site = site
        """Requests are for it from their first byte on; it may be replaced at any time."""
        self._address = client
        self._authority = authority.encode()
        self._certificate = certificate
        self._commands: Commands = []
        self._target = TargetSide(self._commands)
        self.reader = Reader(site.settings.limits)
        self._exchange: Exchange | None = None
        self._waiting: Exchange | None = None
        """An exchange that is to begin once its guard has let it; nothing is read meanwhile."""
        self._ended = False
        """Whether the client will send no more."""
        self._follows = False
        """Whether an exchange has ended, and what was read behind it may be the next request."""
        self._draining = False
        self.paused = False
        """Whether no further request is begun for now."""
        self.over = False

    # What the socket side asks.

    @property
    def exchange(self) -> Exchange | None:
        """The present request and its response."""
        return self._exchange or self._waiting

    @property
    def between_requests(self) -> bool:
        """Whether there is nothing but what has come of the next request (`reader.begun`)."""
        return self.exchange is None and not self.over and not self._ended

    @property
    def idle(self) -> bool:
        """Whether no byte of a request is here."""
        return self.reader.empty and not self.over

    @property
    def half_closed(self) -> bool:
        """Whether the client has half-closed its connection, or left, while a response to it is due."""
        return self._ended and self._exchange is not None and not self.over

    @property
    def reading(self) -> bool:
        """Whether bytes of the client are wanted now; how many at once at most, `reader.wanted` says."""
        waits = self._waiting is not None or (self.paused and self._exchange is None)
        return not self.over and not self._ended and not self.reader.full and not waits

    @property
    def facts(self) -> dict[str, str]:
        """What is known of the present request: its host and the name of its token."""
        if self.exchange is None:
            return {}
        asked = self.exchange.log()
        facts = {"host": asked.host, "token": asked.token}
        return {name: value for name, value in facts.items() if value}

    # What the client does.

    def receive(self, data: bytes) -> Commands:
        """Take bytes of the client."""
        if not self.over:
            self.reader.receive(data)
            if self._exchange is not None:
                self._pump_request(self._exchange)
            elif self._waiting is None:
                self._next_request()
        return self._take()

    def receive_eof(self) -> Commands:
        """Take note that the client half-closed or left, which look the same; responses that are due still reach it.

        The target is told, since it may stop working on a response that nobody awaits.
        """
        self._ended = True
        if self.over or self._waiting is not None:
            pass
        elif self._exchange is None:
            self._finish()
        elif self.reader.in_body:
            self._pump_request(self._exchange)
        elif not self.reader.ahead:  # else another request is still to follow over the stream
            self._target.half_close()
        return self._take()

    def client_lost(self) -> Commands:
        """Take note that the client's connection is over, and can be told nothing more."""
        if not self.over and self.exchange is not None:
            self.exchange.over(_CLIENT_ENDED)
            if self.site.logs:
                self._log(self.exchange, _CLIENT_ENDED)
        self.over = True
        return self._take()

    def timed_out(self) -> Commands:
        """Give up on a header section or a request that does not come, or on the response to a half-closed client."""
        if self.over:
            pass
        elif self.reader.in_head:
            self._respond(Rejected(408, "the header section did not arrive in time"))
        elif self._exchange is not None and self.half_closed:
            self._fail(
                self._exchange,
                504,
                "the target did not respond in time after the client had half-closed its connection",
            )
        elif self.idle:
            self._finish()
        return self._take()

    def judged(self, verdict: Verdict) -> Commands:
        """Take the verdict of a guard on the request that it was asked about."""
        exchange, self._waiting = self._waiting, None
        if not self.over and exchange is not None:
            self._exchange = exchange
            if isinstance(verdict, Rejected):
                self._respond(verdict, last=False)
            else:
                exchange.allow(verdict)
                self._begin(exchange)
        return self._take()

    def drain(self) -> Commands:
        """Respond to what has been asked, and end."""
        self._draining = True
        self.paused = False
        if self.idle:
            self._finish()
        return self._take()

    # What the target does.

    def provider_data(self, data: bytes) -> Commands:
        """Take bytes of the target."""
        if self.over:
            pass
        elif self._exchange is None:
            self._target.discard()  # nobody asked
        elif self._target.reply is not None:
            self._exchange.heard = True
            self._target.reply.receive(data)
            self._pump_response(self._exchange, self._target.reply)
        return self._take()

    def provider_eof(self, *, unsent: bytes | None = None) -> Commands:
        """Take note that the target ended its side: the end of some responses, too early for others.

        `unsent` is the present request as far as it has come, if no byte of it was written to the target.
        """
        exchange, reply = self._exchange, self._target.reply
        if self.over:
            pass
        elif exchange is not None and exchange.response.begun and reply is not None:
            reply.receive_eof()
            self._pump_response(exchange, reply)
        elif not self._resend(unsent):
            self._target.discard(reset=exchange is not None and self.reader.in_body)
            self._lost(502, "the target closed the connection before it responded", again=True)
        return self._take()

    def provider_lost(self, status: int, reason: str, *, again: bool, unsent: bytes | None = None) -> Commands:
        """Take note that the stream is over, or could not be opened.

        `status` and `reason` say why, and `again` whether another provider may do better. `unsent` is what it is for
        `provider_eof`.
        """
        if not self.over and not self._resend(unsent):
            self._target.lost()
            self._lost(status, reason, again=again)
        return self._take()

    # From the client to the target.

    def _next_request(self) -> None:
        """Begin an exchange if a whole header section is there."""
        request = None
        try:
            request = self.reader.head()
            if request is not None:
                forwarding = self.site.forwarding
                scheme = None if forwarding.trusts(self._address) else forwarding.proto  # None: any
                request = requests.check(request, self.site.settings.limits, scheme=scheme)
        except Rejected as rejected:
            self._respond(rejected, request)
            return
        if request is None:
            if self._ended:
                self._finish()
            return
        exchange = Exchange(request, self.site, self._address)
        try:
            exchange.admit(self.site, address=self._address, authority=self._authority, certificate=self._certificate)
        except Rejected as rejected:
            self._exchange = exchange
            self._respond(rejected, last=False)
            return
        if exchange.guard is None:
            self._begin(exchange)
        else:
            self._waiting = exchange
            self._commands.append(Ask(exchange.guard, exchange.question))

    def _begin(self, exchange: Exchange) -> None:
        """Send a request to its target."""
        self._exchange = exchange
        self._target.ask(exchange, exchange.head, fresh=False)
        self._pump_request(exchange)

    def _pump_request(self, exchange: Exchange) -> None:
        """Pass on what has come of the body."""
        reader, target = self.reader, self._target
        try:
            body, end = reader.body()
        except Rejected as rejected:
            self._fail(exchange, rejected.status, rejected.text)
            return
        observer = exchange.response.observer
        if observer is not None and (body or reader.chunked):
            observer.request_part(body, end)
        if target.reply is None:
            return
        if body:
            target.send(writer.chunk(body) if reader.chunked else body)
        if end is not None:
            if reader.chunked:
                target.send(writer.last_chunk(requests.trailers(end, dropped=self.site.drops)))
            if self._ended and not reader.ahead:
                target.half_close()
        elif self._ended:
            self._fail(exchange, 400, "the request ended before its body did")

    def _resend(self, request: bytes | None) -> bool:
        """Send a request once more of which nothing has reached its target; return whether it was.

        It was not if the target has got some of it (None), has been heard, or this was the second try, or if the client
        has stopped waiting.
        """
        exchange = self._exchange
        if request is None or exchange is None or self._target.reply is None:
            return False
        if exchange.failed is not None or exchange.heard or self._ended:
            return False
        exchange.failed = 502, "the target closed the connection before it responded"
        self._target.discard(reset=True)
        self._target.ask(exchange, request, fresh=True)
        return True

    # From the target to the client.

    def _pump_response(self, exchange: Exchange, reply: Reply) -> None:
        """Pass on what has come of the response."""
        try:
            while not self.over and (event := reply.next_event()) is not None:
                if isinstance(event, bytes):
                    self._send(exchange.response.body(event))
                elif isinstance(event, EndOfMessage):
                    self._send(exchange.response.end(requests.trailers(event)))
                    self._log(exchange)
                    self._end_exchange(exchange.response)
                    return
                elif event.switches:
                    self._switch(event, exchange, behind=reply.behind)
                elif event.interim:
                    self._send(exchange.interim(event))
                else:
                    last = self._draining or self.reader.in_body  # a target that responds early may not want the rest
                    self._send(exchange.begin_response(event, last=last))
        except Malformed as exc:
            self._fail(exchange, 502, f"the target's response is malformed: {exc}")

    def _switch(self, event: Response, exchange: Exchange, *, behind: bytes) -> None:
        """Leave HTTP; `behind` came behind the response."""
        if self.reader.in_body:
            raise Malformed("it switches protocols in the middle of a request")
        self._send(exchange.switch(event))
        self._send(behind)
        if ahead := self.reader.ahead:
            self._target.send(ahead)
        self._log(exchange)
        self.over = True
        self._commands.append(SwitchProtocols())

    def _send(self, data: bytes) -> None:
        if data:
            self._commands.append(ToClient(data))

    # Ends.

    def _end_exchange(self, response: ResponseWriter) -> None:
        """Continue with the next request after a whole response, if the client's message is whole, too."""
        self._exchange = None
        self._target.end_exchange(whole=not self.reader.in_body)
        if response.last or self._draining or not self.reader.advance():
            self._finish()
        else:
            self._follows = self.reader.in_head or self._ended

    def _lost(self, status: int, reason: str, *, again: bool) -> None:
        """Ask another provider, once, where that does no harm; else tell the client."""
        exchange = self._exchange
        if exchange is None:
            return
        if again and not self._ended and exchange.failed is None and not exchange.heard and exchange.repeatable:
            exchange.failed = status, reason
            self._target.ask(exchange, exchange.head, fresh=True)
        else:
            if status == HTTPStatus.SERVICE_UNAVAILABLE and exchange.failed is not None:
                status, reason = exchange.failed
            self._fail(exchange, status, reason)

    def _fail(self, exchange: Exchange, status: int, reason: str) -> None:
        """End the exchange without the target's response, or without the rest of it."""
        self._target.discard(reset=True)
        if exchange.response.begun:
            self._log(exchange, reason)
            self.over = True
            self._commands.append(ResetClient())
        else:
            self._respond(own_responses.failure(status, reason), last=False)

    def _respond(self, rejected: Rejected, request: Request | None = None, *, last: bool = True) -> None:
        """Respond in the target's stead. The connection stays open only after a sound request that is whole."""
        exchange = self._exchange
        if exchange is not None:
            request = exchange.request
        response = ResponseWriter(request) if exchange is None else exchange.response
        last = last or self._draining or not self.reader.skip()
        accept = request.first(b"accept") if request is not None else None
        request_id = self.site.draw_id() if rejected.detail else ""
        text = f"{rejected.text} (request {request_id})" if request_id else rejected.text
        fields, body = rejected.content or own_responses.body(rejected.status, text, accept or b"")
        reason = rejected.status.phrase.encode()
        self._send(response.head(rejected.status, reason, fields + rejected.fields, last=last) + response.body(body))
        error = rejected.detail or rejected.text
        if exchange is not None:
            exchange.over(error)
        if self.site.logs or request_id:
            entry = log_request(request, response, client=self._address) if exchange is None else exchange.log()
            self._commands.append(replace(entry, error=error, request_id=request_id))
        else:
            self._commands.append(CountRequest("", rejected.status) if exchange is None else exchange.count())
        self._end_exchange(response)

    def _log(self, exchange: Exchange, error: str = "") -> None:
        exchange.over(error)
        if self.site.logs or error:
            self._commands.append(replace(exchange.log(), error=error))
        else:
            self._commands.append(exchange.count())

    def _finish(self) -> None:
        self.over = True
        self._commands.append(Finish())

    def _take(self) -> Commands:
        # Not by recursion: a client may send hundreds of requests that are rejected at once.
        while self._follows and not (self.paused and self.between_requests):
            self._follows = False
            self._next_request()
        commands = self._commands.copy()
        self._commands.clear()
        return commands
