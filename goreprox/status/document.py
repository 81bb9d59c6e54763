"""The form of the status document: what a process says about itself, as JSON."""

from typing import Final, NotRequired, TypedDict

FORMAT: Final = 1
"""Version of the document. Another number has other fields; those added since may be missing (`NotRequired`)."""


class PathStatus(TypedDict):
    """A path to a peer that is up."""

    label: str
    in_use: bool
    fabric_epoch: int
    round_trip_s: float | None


class PeerStatus(TypedDict):
    """A process at the other end of a session."""

    name: str
    role: str
    incarnation: str
    state: str
    down_s: float | None
    epoch: int
    services: list[str]
    paths: list[PathStatus]
    streams_open: int
    streams_total: int
    sent_bytes: int
    received_bytes: int
    scheduled_streams: int
    control_events: int
    outages: int
    replayed_bytes: int
    process: NotRequired[str | None]
    machine: NotRequired[str | None]
    up_s: NotRequired[float | None]


class LinkStatus(TypedDict):
    """A link to a broker."""

    label: str
    state: str
    since_s: NotRequired[float]
    problem: NotRequired[str | None]
    proxy: NotRequired[str | None]


class MemberStatus(TypedDict):
    """A peer of a broker."""

    name: str
    role: str
    incarnation: str
    fabric_epoch: int
    outbox_messages: int
    outbox_bytes: int


class BrokerStatus(TypedDict):
    """What a broker has passed on, and its peers."""

    messages: int
    dropped_messages: int
    members: list[MemberStatus]


class CheckStatus(TypedDict):
    """The health check of a service."""

    check: str
    condition: str
    since_s: float
    problem: str | None


class PublishedStatus(TypedDict):
    """A published name."""

    at: list[str]
    """Where clients find it."""
    problem: str | None


class StreamsStatus(TypedDict):
    """All streams of the process. Sent bytes were read from our own sockets, received ones written to them."""

    open: int
    limit: int
    total: int
    waiting_clients: int
    refused_clients: int
    dialing: int
    sent_bytes: int
    received_bytes: int
    borrowed_bytes: int
    lendable_bytes: int


class EndedStreamStatus(TypedDict):
    """A stream that has ended."""

    ended_at: str
    client: str
    service: str
    peer: str | None
    sent_bytes: int
    received_bytes: int
    reason: str
    code: NotRequired[str]


class ConnectionStatus(TypedDict):
    """A stream that is open."""

    client: str
    service: str
    peer: str | None
    state: str
    open_s: float | None
    sent_bytes: int
    received_bytes: int


class DurationsStatus(TypedDict):
    """A histogram: how many durations are in each bucket (without those before it), and their sum."""

    counts: list[int]
    sum_s: float


class HttpStatus(TypedDict):
    """HTTP requests so far, by service ("" where none was found)."""

    requests: dict[str, dict[str, int]]
    """By service and status."""
    durations: dict[str, DurationsStatus]
    bounds_s: list[float]
    """Upper bounds of the buckets; the last bucket has none."""


class CertificateStatus(TypedDict):
    """A certificate that clients are shown."""

    option: str
    file: str
    expires_at: float
    """In seconds since 1970."""


class AcmeStatus(TypedDict):
    """A host whose certificate is asked for by ACME."""

    expires_at: float | None
    """In seconds since 1970; None: there is no certificate."""
    next_at: float | None
    """When the next one is asked for; None: never."""
    problem: str | None


class CountersStatus(TypedDict):
    """What only grows, as long as the process runs, upgrades in place included (protocol.totals.Totals)."""

    streams: int
    sent_bytes: int
    received_bytes: int
    outages: int
    replayed_bytes: int
    resumes: int
    resume_s: float
    ends: dict[str, int]
    """By code; one without a stream is missing, as in the other two."""
    refused_clients: dict[str, int]
    """By cause."""
    dial_failures: dict[str, int]
    """By service."""


class Document(TypedDict):
    """The whole document; `docs/status.md` explains every field."""

    format: int
    version: str
    build: NotRequired[str]
    """Earlier versions do not tell."""
    role: str
    name: str
    incarnation: str
    pid: int
    started_at: str
    up_s: float
    draining: bool
    ports: dict[str, list[int]]
    services: dict[str, list[str]]
    checks: NotRequired[dict[str, CheckStatus]]
    published: NotRequired[dict[str, PublishedStatus]]
    streams: StreamsStatus | None
    peers: list[PeerStatus]
    links: list[LinkStatus]
    broker: BrokerStatus | None
    ends: list[EndedStreamStatus]
    connections: NotRequired[list[ConnectionStatus]]
    http: NotRequired[HttpStatus | None]
    certificates: NotRequired[list[CertificateStatus]]
    acme: NotRequired[dict[str, AcmeStatus]]
    """By host."""
    counters: NotRequired[CountersStatus | None]
