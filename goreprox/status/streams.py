"""Lists the open streams of a process in pages, and ends those that are asked for.

A page, or so many ends, take a millisecond of the loop, which turns in between: however many streams there are,
nothing is delayed by more than that.
"""

import asyncio
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NotRequired, Protocol, Self, TypedDict

from loguru import logger

from goreprox.config.networks import Network, parse_network
from goreprox.control.message import Request
from goreprox.control.socket import Commands, Pages
from goreprox.endpoint import Endpoint, ip_of
from goreprox.errors import ConfigError, ControlError
from goreprox.process.clock import clock
from goreprox.process.instance import Instance
from goreprox.process.log import counted
from goreprox.protocol.state import State
from goreprox.protocol.totals import EndCode
from goreprox.status.ids import Ids
from goreprox.tunnel.connections import StreamOwner
from goreprox.tunnel.driver import Driver

PAGE: Final = 25
"""Streams in a page, of at most 2.5 KiB each."""
REST: Final = 2
"""After each page a listing rests for so many times as long as that took: it gets a third of the loop at most."""
REASON: Final = "ended by `goreprox end`"


class StreamStatus(TypedDict):
    """An open stream; docs/status.md explains every field."""

    id: str
    client: str
    service: str
    peer: str | None
    state: str
    open_s: float
    sent_bytes: int
    received_bytes: int
    outages: int
    target: NotRequired[str]
    host: NotRequired[str]
    token: NotRequired[str]
    certificate: NotRequired[str]


class StreamsPage(TypedDict):
    """Some streams, and when they were looked at, in seconds of a clock of the process."""

    at_s: float
    streams: list[StreamStatus]


class Owner(Protocol):
    """An edge or a provider."""

    driver: Driver

    def owners(self) -> list[StreamOwner]:
        """Return the owners of all open streams, the oldest first."""

    def facts(self, owner: StreamOwner) -> Mapping[str, str]:
        """Return what else is known of a stream: `target`, `host`, `token`, `certificate`."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which streams: those that fulfil all conditions that are not None."""

    numbers: frozenset[int] | None = None
    client: Network | None = None
    service: str | None = None
    provider: str | None = None

    @classmethod
    def parse(cls, options: Mapping[str, object], known: Ids) -> Self:
        """Read the options of a request; ids that are not `known` select nothing.

        Raises:
            ControlError: they are malformed.
        """
        numbers = client = None
        match options.get("ids"):
            case None:
                pass
            case [*ids]:
                found = map(known.number_of, ids)
                numbers = frozenset(number for number in found if number is not None)
            case _:
                raise ControlError("expected a list of ids")
        if (network := _text(options, "client")) is not None:
            try:
                client = parse_network("client", network)
            except ConfigError as exc:
                raise ControlError(str(exc)) from exc
        return cls(numbers, client, _text(options, "service"), _text(options, "provider"))

    @property
    def is_everything(self) -> bool:
        """Whether there is no condition."""
        return self == type(self)()

    def covers(self, owner: StreamOwner, provider: str | None) -> bool:
        """Return whether it has the stream of `owner`, which is at the provider of that name."""
        stream = owner.stream
        return (
            stream.state is not State.CLOSED
            and (self.numbers is None or stream.number in self.numbers)
            and self.service in (None, stream.service)
            and self.provider in (None, provider)
            and (self.client is None or _is_in(stream.client, self.client))
        )


def _text(options: Mapping[str, object], name: str) -> str | None:
    value = options.get(name)
    if value is not None and not isinstance(value, str):
        raise ControlError(f"expected a text for {name}")
    return value


def _is_in(client: str, network: Network) -> bool:
    endpoint = Endpoint.parse(client)
    return endpoint is not None and ip_of(endpoint.host) in network


class StreamList:
    """Serves `streams` and `end` on the control socket of a process."""

    def __init__(self, ids: Ids, instance: Instance, owner: Owner | None) -> None:
        """Serve the streams of `owner`; None: there are none in this process."""
        self._owner = owner
        self._ids = ids
        self._own_provider = instance.name if instance.role == "provider" else None

    @property
    def commands(self) -> Commands:
        """What the control socket serves."""
        return {"streams": self._list, "end": self._end}

    def _selected(self, selection: Selection) -> Iterator[list[tuple[StreamOwner, str | None]]]:
        """Yield pages of the streams that are open now, as far as they are selected and open then, and their peers."""
        for page in _paged(self._owner.owners() if self._owner is not None else []):
            told = [(owner, self._peer(owner)) for owner in page]
            yield [(owner, peer) for owner, peer in told if selection.covers(owner, self._own_provider or peer)]

    def _peer(self, owner: StreamOwner) -> str | None:
        peer = self._owner.driver.peer_of(owner.stream) if self._owner is not None else None
        return None if peer is None else peer.info.name.name

    async def _list(self, request: Request) -> Pages:
        began = clock()
        for page in self._selected(Selection.parse(request.options, self._ids)):
            told = StreamsPage(at_s=clock(), streams=[self._status(owner, peer) for owner, peer in page])
            took_s = clock() - began
            if page:
                yield told
            await asyncio.sleep(REST * took_s)
            began = clock()

    def _status(self, owner: StreamOwner, peer: str | None) -> StreamStatus:
        stream = owner.stream
        assert self._owner is not None
        return {
            "id": self._ids.id_of(stream.number),
            "client": stream.client,
            "service": stream.service,
            "peer": peer,
            "state": stream.state.value,
            "open_s": round(clock() - owner.began_at, 3),
            "sent_bytes": stream.sent_bytes,
            "received_bytes": stream.received_bytes,
            "outages": stream.outages,
            **self._owner.facts(owner),  # type: ignore[typeddict-item] # those that may be missing
        }

    async def _end(self, request: Request) -> dict[str, object]:
        selection = Selection.parse(request.options, self._ids)
        if selection.is_everything:
            raise ControlError("expected ids, a client, a service or a provider; to end all, stop the process")
        ended: list[str] = []
        count = 0
        for page in self._selected(selection):
            for owner, _ in page:
                owner.abort(REASON, EndCode.ON_REQUEST)
                count += 1
                if selection.numbers is not None:
                    ended.append(self._ids.id_of(owner.stream.number))
            await asyncio.sleep(0)
        if count:
            logger.bind(event="ended_on_request", streams=count).info("ended {} on request", counted(count, "stream"))
        return {"ended": count, "ids": ended}


def _paged(owners: list[StreamOwner]) -> Iterator[list[StreamOwner]]:
    rest = iter(owners)
    while page := list(itertools.islice(rest, PAGE)):
        yield page
