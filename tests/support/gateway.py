"""A gateway with a client and a target at its ends, all in memory: what each of them sees, however bytes are split."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field

import h11

from goreprox.http.commands import (
    Ask,
    Command,
    Commands,
    Connect,
    CountRequest,
    Discard,
    Finish,
    HalfClose,
    LogRequest,
    Release,
    ResetClient,
    SwitchProtocols,
    ToClient,
    ToProvider,
)
from goreprox.http.exchange import Site
from goreprox.http.forward_auth import Verdict
from goreprox.http.gateway import Gateway

AUTHORITY = "192.0.2.1:8080"
CLIENT = "192.0.2.9"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass
class Seen:
    """All that a gateway wanted, bytes that follow each other joined."""

    to_client: bytes = b""
    to_target: list[bytes] = field(default_factory=list)
    """One for each stream."""
    asked: list[bytes] = field(default_factory=list)
    """What guards were asked."""
    others: list[Command] = field(default_factory=list)
    """Everything but bytes and what is logged."""
    logged: list[LogRequest] = field(default_factory=list)
    counted: list[CountRequest] = field(default_factory=list)


class Talk:
    """A gateway, and what came of it so far."""

    def __init__(self, site: Site | None = None, *, certificate: bytes = b"") -> None:
        self.gateway = Gateway(site or Site("web"), client=CLIENT, authority=AUTHORITY, certificate=certificate)
        self.seen = Seen()
        self._connected = False
        self._begins = 0

    def client(self, *parts: bytes) -> "Talk":
        """Let the client say something, in reads of these parts."""
        for part in parts:
            self.do(self.gateway.receive(part))
        return self

    def judged(self, verdict: Verdict) -> "Talk":
        self.do(self.gateway.judged(verdict))
        return self

    def client_eof(self) -> "Talk":
        self.do(self.gateway.receive_eof())
        return self

    def target(self, *parts: bytes) -> "Talk":
        for part in parts:
            self.do(self.gateway.provider_data(part))
        return self

    def target_eof(self, *, untouched: bool = False) -> "Talk":
        self.do(self.gateway.provider_eof(unsent=self._request if untouched else None))
        return self

    def lost(self, status: int = 502, reason: str = "gone", *, again: bool = True, untouched: bool = False) -> "Talk":
        unsent = self._request if untouched else None
        self._connected = False
        self.do(self.gateway.provider_lost(status, reason, again=again, unsent=unsent))
        return self

    @property
    def _request(self) -> bytes:
        """What a target was sent of the present request."""
        return self.seen.to_target[-1][self._begins :] if self.seen.to_target else b""

    def do(self, commands: Commands) -> None:
        seen = self.seen
        for command in commands:
            match command:
                case ToClient(data):
                    seen.to_client += data
                case Ask(_, question):
                    seen.asked.append(question)
                case ToProvider(data):
                    assert self._connected
                    seen.to_target[-1] += data
                case Connect(_, fresh):
                    if fresh or not self._connected:
                        seen.to_target.append(b"")
                    self._connected = True
                    self._begins = len(seen.to_target[-1])
                    seen.others.append(command)
                case Discard():
                    self._connected = False
                    seen.others.append(command)
                case LogRequest():
                    seen.logged.append(command)
                case CountRequest():
                    seen.counted.append(command)
                case HalfClose() | Release() | Finish() | ResetClient() | SwitchProtocols():
                    seen.others.append(command)

    @property
    def statuses(self) -> list[int]:
        """Of all final responses that the client has the head of."""
        return [event.status_code for event in self.responses() if isinstance(event, h11.Response)]

    def responses(self, methods: Iterable[bytes] = ()) -> list[h11.Event]:
        """Read what the client got, by h11, as responses to requests of these methods (then: GET)."""
        return read_responses(self.seen.to_client, methods)

    def requests(self, stream: int = -1) -> list[h11.Event]:
        """Read what a target got over one stream, by h11; it responds to each at once."""
        reader = h11.Connection(h11.SERVER)
        reader.receive_data(self.seen.to_target[stream])
        events: list[h11.Event] = []
        while isinstance(event := reader.next_event(), h11.Event):
            events.append(event)
            if isinstance(event, h11.EndOfMessage):
                reader.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
                reader.send(h11.EndOfMessage())
                reader.start_next_cycle()
        return events


def read_responses(data: bytes, methods: Iterable[bytes] = ()) -> list[h11.Event]:
    """Read responses, by h11, to requests of these methods (then: GET)."""
    wanted = iter(methods)
    events: list[h11.Event] = []
    while data:
        reader = h11.Connection(h11.CLIENT)
        reader.send(h11.Request(method=next(wanted, b"GET"), target="/", headers=[("Host", "a"), ("Upgrade", "x")]))
        reader.send(h11.EndOfMessage())
        reader.receive_data(data)
        while isinstance(event := reader.next_event(), h11.Event):
            events.append(event)
            if isinstance(event, h11.EndOfMessage):
                break
        else:
            return events
        data = reader.trailing_data[0]
    return events


def split(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    """Cut `data` at these places."""
    places = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(places) if a < b]


def cuts(data: bytes, *, most: int = 200) -> list[int]:
    """Return all places at which `data` can be cut in two, of long data only those near its ends."""
    return [cut for cut in range(1, len(data)) if cut <= most // 2 or cut >= len(data) - most // 2]
