"""One client connection as a machine: bytes in, bytes and commands out. No sockets, no loop, no clock.

    between requests --a head, checked--> exchange --both messages whole--> between requests
                     --refused, or the last one--> over

Two h11 connections read, and only read. The one of the client is new for each request, so that the bytes of a head can
be looked at before h11 sees them; the one of the provider lasts as long as its stream is reused. What goes out to
either side is written anew from what was parsed of the other (`messages`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, Protocol

import h11

from goreprox.http import answers, messages, requests
from goreprox.http.forwarding import Forwarding, is_forwarding
from goreprox.http.messages import Answer
from goreprox.http.requests import Refused
from goreprox.http.routes import Routes

MAX_HEAD: Final = 16 * 1024
"""Bytes of a request's head. A client without a stream does not use its two floors, 13 KiB with default limits."""
MAX_ANSWER_HEAD: Final = 64 * 1024
AHEAD: Final = MAX_HEAD
"""Bytes of later requests that are read while one is being answered; also how the end of a client is noticed."""
_END_OF_HEAD: Final = b"\r\n\r\n"
"""Of a chunked body, too."""
_END: Final = h11.EndOfMessage()
_LAST: Final = (h11.SEND_BODY, h11.MUST_CLOSE, h11.ERROR)
"""The states of a client after which no other request can be read."""


def _stand_in(method: str, *more: tuple[str, str]) -> h11.Request:
    return h11.Request(method=method, target="/", headers=[("Host", "-"), *more])


_UPGRADE: Final = ("Upgrade", "-")
_STAND_INS: Final = {
    (head, upgrade): _stand_in("HEAD" if head else "GET", *[_UPGRADE] * upgrade)
    for head in (False, True)
    for upgrade in (False, True)
}
"""What h11 is told of a request, so that it can read the answer: whether it is HEAD, whether it may be switched."""


@dataclass(frozen=True, slots=True)
class Connect:
    """Have a stream to a provider of `service` for what follows: one that was released, unless it is to be `fresh`."""

    service: str
    fresh: bool


@dataclass(frozen=True, slots=True)
class ToClient:
    """Bytes for the client."""

    data: bytes


@dataclass(frozen=True, slots=True)
class ToProvider:
    """Bytes for the provider."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Release:
    """The exchange is over; the stream may carry another one."""


@dataclass(frozen=True, slots=True)
class Discard:
    """The stream is of no more use: end it well, or, if something on it is unfinished, with a reset."""

    reset: bool


@dataclass(frozen=True, slots=True)
class Finish:
    """End the client's connection once it has all that was written."""


@dataclass(frozen=True, slots=True)
class Abort:
    """Reset the client's connection now: what it got is not whole, and must not look so."""


@dataclass(frozen=True, slots=True)
class Switch:
    """Join client and stream byte by byte from here on: they have left HTTP. Follows what is still to be written."""


@dataclass(frozen=True, slots=True)
class Answered:
    """One request, for the access log; `status` is 0 if the client was reset before an answer began."""

    client: str
    """Its address, behind all trusted proxies."""
    token: str | None
    method: str
    host: str
    path: str
    """Without the query, which may hold secrets."""
    status: int
    body_bytes: int


Command = Answered | Connect | ToClient | ToProvider | Release | Discard | Finish | Abort | Switch
Commands = list[Command]


class Authenticator(Protocol):
    """Knows the tokens."""

    header: bytes
    """The field that brings one, in lower case."""

    def admit(self, values: Sequence[bytes], service: str, client: str) -> str:
        """Return the name of the token among `values`, of all its fields.

        Raises:
            Refused: there is none that is for `service`.
        """


@dataclass(frozen=True, slots=True)
class Site:
    """What is the same for all clients of a listener."""

    service: str
    auth: Authenticator | None = None
    """None: whoever comes may come in."""
    forwarding: Forwarding = field(default_factory=Forwarding)
    routes: Routes | None = None
    """None: every request is for `service`."""
    closed: Callable[[str, str], bool] | None = None
    """Whether an address is kept from a service; None: nobody is."""
    logs: bool = False
    """Whether the access log has its requests."""

    @property
    def secret(self) -> bytes | None:
        """The field that is not for targets."""
        return None if self.auth is None else self.auth.header

    def drops(self, name: bytes) -> bool:
        """Whether a field of a client is not for targets."""
        return name.lower() == self.secret or is_forwarding(name)


@dataclass(slots=True)
class _Exchange:
    """One request and its answer."""

    request: h11.Request
    """As the client sent it."""
    answer: Answer
    service: str
    client: str
    token: str | None = None
    head: bytes = b""
    """As the target gets it."""
    heard: bool = False
    """Whether the target has said anything."""
    failed: tuple[int, str] | None = None
    """How the first try ended, if this is the second."""

    @property
    def repeatable(self) -> bool:
        return self.request.method in requests.SAFE and not requests.has_body(self.request)


class Gateway:
    """The machine. Each input returns what is to be done, in order; once it is over it wants no more."""

    def __init__(self, site: Site, *, client: str, authority: str) -> None:
        """Begin with nothing read. `client` is its address, `authority` where it came to, host and port."""
        self._site = site
        self._address = client
        self._authority = authority.encode()
        self._commands: Commands = []
        self._head = bytearray()
        self._scanned = 0
        self._client: h11.Connection | None = None
        """Of the request that is being read or answered."""
        self._chunked = False
        """Whether its body is."""
        self._recent = b""
        """What was read last, and the three bytes before it: of a chunked body."""
        self._astray = False
        """Whether its end is in doubt, and so where the next one begins."""
        self._provider: h11.Connection | None = None
        """Of the stream there is."""
        self._asked = ""
        """The service that it is for."""
        self._exchange: _Exchange | None = None
        self._ended = False
        """The client will say no more."""
        self._draining = False
        self.over = False

    # What the socket side asks.

    @property
    def idle(self) -> bool:
        """Whether the client has asked for nothing, not even begun to."""
        return self._client is None and not self._head and not self.over

    @property
    def reading_head(self) -> bool:
        """Whether the client has begun a head and not ended it."""
        return self._client is None and bool(self._head) and not self.over

    @property
    def reading(self) -> bool:
        """Whether bytes of the client are wanted now."""
        if self.over or self._ended:
            return False
        client = self._client
        return client is None or client.their_state is h11.SEND_BODY or len(client.trailing_data[0]) < AHEAD

    # What the client does.

    def receive(self, data: bytes) -> Commands:
        """Take bytes of the client."""
        if not self.over:
            if self._client is None:
                self._head += data
                self._next_request()
            else:
                if self._chunked:
                    self._recent += data
                self._client.receive_data(data)
                self._pump_request()
        return self._take()

    def receive_eof(self) -> Commands:
        """Take note that the client half-closed; answers that are due still reach it."""
        self._ended = True
        if self.over:
            pass
        elif self._client is None:
            self._finish()
        elif self._client.their_state is h11.SEND_BODY:
            self._fail(400, "the request ended before its body did")
        return self._take()

    def timed_out(self) -> Commands:
        """The client took too long: for a head, which is answered, or between requests, which is not."""
        if self.reading_head:
            self._answer(Refused(408, "the head of the request did not arrive in time"))
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
            self._provider.receive_data(data)
            self._pump_answer()
        return self._take()

    def provider_eof(self) -> Commands:
        """Take note that the target ended its side: the end of some answers, too early for others."""
        exchange = self._exchange
        if self.over:
            pass
        elif exchange is not None and exchange.answer.begun and self._provider is not None:
            self._provider.receive_data(b"")
            self._pump_answer()
        else:
            self._discard()
            self._lost(502, "the target closed the connection before it answered", again=True)
        return self._take()

    def provider_lost(self, status: int, reason: str, *, again: bool) -> Commands:
        """The stream is over, or there never was one: `status` says why, and `again` whether another may do better."""
        self._provider = None
        if not self.over:
            self._lost(status, reason, again=again)
        return self._take()

    # From head to exchange.

    def _next_request(self) -> None:
        """Begin an exchange if a whole head is there."""
        head = self._head
        end = head.find(_END_OF_HEAD, max(0, self._scanned - len(_END_OF_HEAD)), MAX_HEAD)
        seen = MAX_HEAD if end < 0 else end + len(_END_OF_HEAD)
        if requests.BAD_IN_HEAD.search(head, max(0, self._scanned - 2), seen):
            self._answer(Refused(400, "the head of the request is malformed"))
        elif end >= 0:
            self._client = client = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
            self._recent = bytes(head)
            client.receive_data(self._recent)
            self._head = bytearray()
            self._scanned = 0
            self._begin(client)
        elif len(head) >= MAX_HEAD:
            self._answer(Refused(431, f"the head of the request has more than {MAX_HEAD} bytes"))
        elif self._ended:
            self._finish()
        else:
            self._scanned = len(head)

    def _begin(self, client: h11.Connection) -> None:
        try:
            request = client.next_event()
            assert isinstance(request, h11.Request)
            self._chunked = requests.value_of(request, b"transfer-encoding") is not None
        except h11.RemoteProtocolError as exc:
            self._answer(Refused(exc.error_status_hint, f"{exc}"))
            return
        try:
            requests.check(request)
        except Refused as refused:
            self._answer(refused, request)
            return
        site = self._site
        exchange = self._exchange = _Exchange(request, Answer(request), site.service, self._address)
        if site.forwarding.trusted:
            exchange.client = site.forwarding.client_of(request, self._address)
        host = requests.value_of(request, b"host") or self._authority
        try:
            exchange.service = self._route(host)
            exchange.token = self._authenticate(exchange)
        except Refused as refused:
            self._answer(refused, last=False)
            return
        added = site.forwarding.fields(request, self._address, host=host)
        fields = requests.passed_on(request, host=host, dropped=site.drops, added=added)
        exchange.head = messages.request_head(request, fields)
        self._ask(fresh=False)
        self._pump_request()

    def _route(self, host: bytes) -> str:
        site = self._site
        if site.routes is None:
            return site.service
        service = site.routes.find(host)
        if service is None:
            raise Refused(404, "this host is not known here")
        if site.closed is not None and site.closed(self._address, service):
            raise Refused(403, "this address may not come in here")
        return service

    def _authenticate(self, exchange: _Exchange) -> str | None:
        auth = self._site.auth
        if auth is None:
            return None
        values = [value for name, value in requests.fields_of(exchange.request) if name == auth.header]
        return auth.admit(values, exchange.service, exchange.client)

    def _ask(self, *, fresh: bool) -> h11.Connection:
        """Say the head of the request to a provider, and return what its answer will be read by."""
        exchange = self._exchange
        assert exchange is not None
        if exchange.service != self._asked:
            self._discard()
        self._asked = exchange.service
        self._commands.append(Connect(exchange.service, fresh))
        if fresh or self._provider is None:
            self._provider = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_ANSWER_HEAD)
        request = exchange.request
        self._provider.send(_STAND_INS[request.method == b"HEAD", requests.upgrade_of(request) is not None])
        self._commands.append(ToProvider(exchange.head))
        return self._provider

    # From client to provider.

    def _pump_request(self) -> None:
        """Pass on what has come of the body."""
        client, exchange = self._client, self._exchange
        if client is None or exchange is None:
            return
        body: list[bytes] = []
        end: h11.EndOfMessage | None = None
        try:
            while isinstance(event := self._read(client), h11.Data | h11.EndOfMessage):
                if isinstance(event, h11.EndOfMessage):
                    end = event
                    break
                body.append(event.data)
        except h11.RemoteProtocolError as exc:
            self._fail(400, f"the body is malformed: {exc}")
            return
        if self._provider is None:
            return
        if body:
            data = b"".join(body)
            self._commands.append(ToProvider(messages.chunk(data) if self._chunked else data))
        if end is not None:
            self._provider.send(_END)
            if self._chunked:
                trailers = requests.trailers(end, dropped=self._site.drops)
                self._commands.append(ToProvider(messages.last_chunk(trailers)))

    def _read(self, client: h11.Connection) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Return what comes next of the client's message.

        Raises:
            RemoteProtocolError: it is malformed, or h11 took a line feed alone for its end, where others read on.
        """
        event = client.next_event()
        if self._chunked and isinstance(event, h11.EndOfMessage):
            end = len(self._recent) - len(client.trailing_data[0])
            if self._recent[max(end - 4, 0) : end] != _END_OF_HEAD:
                self._astray = True
                raise h11.RemoteProtocolError("it does not end with CR LF")
        return event

    def _read_to_end(self, client: h11.Connection) -> bool:
        """Whether what is left of the request is here, and skipped; else it is not known where the next one begins."""
        try:
            while isinstance(self._read(client), h11.Data | h11.EndOfMessage):
                pass
        except h11.RemoteProtocolError:
            return False
        return client.their_state is not h11.SEND_BODY and not self._astray

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
                    self._to_client(exchange.answer.body(b"".join(body)))
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
                self._to_client(exchange.answer.body(b"".join(body)))
            self._discard()
            self._fail(502, f"the answer of the target is malformed: {exc}")

    def _interim(self, event: h11.InformationalResponse, exchange: _Exchange) -> None:
        if event.status_code == HTTPStatus.SWITCHING_PROTOCOLS:
            self._switch(event)
        elif exchange.request.http_version == b"1.1":
            self._to_client(messages.interim_head(event, requests.end_to_end(event)))

    def _begin_answer(self, event: h11.Response, exchange: _Exchange) -> None:
        names = {name for name, _ in requests.fields_of(event)}
        if b"transfer-encoding" in names and (b"content-length" in names or event.http_version != b"1.1"):
            raise h11.RemoteProtocolError("its length has two readings")
        client = self._client
        assert client is not None
        fields = requests.end_to_end(event)
        if event.status_code == HTTPStatus.NO_CONTENT:
            fields = [(name, value) for name, value in fields if name.lower() != b"content-length"]
        last = self._draining or client.their_state is h11.SEND_BODY  # whoever answers early may not want the rest
        self._to_client(exchange.answer.head(event.status_code, event.reason, fields, last=last))

    def _end_answer(self, event: h11.EndOfMessage, exchange: _Exchange) -> None:
        self._to_client(exchange.answer.end(requests.trailers(event)))
        self._end_exchange(exchange.answer)

    def _switch(self, event: h11.InformationalResponse) -> None:
        client, provider, exchange = self._client, self._provider, self._exchange
        assert client is not None
        assert provider is not None
        assert exchange is not None
        if client.their_state is h11.SEND_BODY:
            raise h11.RemoteProtocolError("it switches protocols in the midst of a request")
        fields = [*requests.end_to_end(event), (b"Connection", b"upgrade")]
        upgrade = requests.value_of(event, b"upgrade")
        if upgrade is not None:
            fields.append((b"Upgrade", upgrade))
        self._to_client(messages.interim_head(event, fields))
        exchange.answer.status = event.status_code
        for early, command in ((provider.trailing_data[0], ToClient), (client.trailing_data[0], ToProvider)):
            if early:
                self._commands.append(command(early))
        self._log()
        self.over = True
        self._commands.append(Switch())

    def _to_client(self, data: bytes) -> None:
        if data:
            self._commands.append(ToClient(data))

    # Ends.

    def _end_exchange(self, answer: Answer) -> None:
        """The answer is whole: go on to the next request, if the client's message is whole, too."""
        client, provider = self._client, self._provider
        self._log()
        self._exchange = None
        if provider is not None and provider.our_state is not h11.IDLE:
            done = provider.our_state is h11.DONE and provider.their_state is h11.DONE
            if done and not provider.trailing_data[0]:
                provider.start_next_cycle()
                self._commands.append(Release())
            else:
                self._discard(reset=provider.our_state is h11.SEND_BODY)
        if client is not None and client.their_state not in _LAST and not answer.ends and not self._draining:
            self._head += client.trailing_data[0]
            self._client = None
            if self._head or self._ended:
                self._next_request()
        else:
            self._finish()

    def _log(self) -> None:
        exchange = self._exchange
        if exchange is None or not self._site.logs:
            return
        request = exchange.request
        host = requests.value_of(request, b"host") or b""
        self._commands.append(
            Answered(
                exchange.client,
                exchange.token,
                request.method.decode(),
                host.decode(),
                request.target.partition(b"?")[0].decode(),
                exchange.answer.status,
                exchange.answer.body_bytes,
            )
        )

    def _lost(self, status: int, reason: str, *, again: bool) -> None:
        """Ask another provider, once, where that does no harm; else tell the client."""
        exchange = self._exchange
        if exchange is None:
            return
        if again and exchange.failed is None and not exchange.heard and exchange.repeatable:
            exchange.failed = status, reason
            self._ask(fresh=True).send(_END)
        else:
            if status == HTTPStatus.SERVICE_UNAVAILABLE and exchange.failed is not None:
                status, reason = exchange.failed
            self._fail(status, reason)

    def _fail(self, status: int, reason: str) -> None:
        """End the exchange without the target's answer, or without the rest of it."""
        exchange = self._exchange
        assert exchange is not None
        if exchange.answer.begun:
            self._log()
            self._discard(reset=True)
            self.over = True
            self._commands.append(Abort())
        else:
            self._discard(reset=True)
            self._answer(Refused(status, reason), last=False)

    def _answer(self, refused: Refused, request: h11.Request | None = None, *, last: bool = True) -> None:
        """Answer in the target's stead. Only after a sound request that is whole the connection goes on."""
        exchange, client = self._exchange, self._client
        if exchange is not None:
            request = exchange.request
        answer = Answer(request) if exchange is None else exchange.answer
        last = last or self._draining or client is None or not self._read_to_end(client)
        accept = requests.value_of(request, b"accept") if request is not None else None
        fields, body = answers.body(refused.status, refused.text, accept or b"")
        reason = refused.status.phrase.encode()
        self._to_client(answer.head(refused.status, reason, fields + refused.fields, last=last) + answer.body(body))
        self._end_exchange(answer)

    def _discard(self, *, reset: bool = False) -> None:
        if self._provider is not None:
            self._provider = None
            self._commands.append(Discard(reset))

    def _finish(self) -> None:
        self.over = True
        self._commands.append(Finish())

    def _take(self) -> Commands:
        commands, self._commands = self._commands, []
        self._recent = self._recent[-3:]
        return commands
