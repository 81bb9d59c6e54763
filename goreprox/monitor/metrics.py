"""The metrics of processes, made of their status documents, in the text formats of Prometheus.

Each metric is a row of `METRICS`, which docs/metrics.md explains. None has the address of a client.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Final, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from goreprox.status.document import BrokerStatus, Document, HttpStatus

PREFIX: Final = "goreprox_"
PROCESS: Final = ("role", "name", "slot")
"""Labels of every metric: the slot tells processes of one name, such as workers, from each other."""

Sample = tuple[tuple[str, ...], float]
"""The values of a metric's own labels, and the value."""


class Process(NamedTuple):
    """What is known of one."""

    role: str
    name: str
    slot: str
    document: Document | None
    """None: it has not responded."""
    ready: bool

    @classmethod
    def named(cls, who: str, document: Document | None, *, ready: bool) -> "Process":
        """Return the process that a reply calls `who`, like `server-tunnel.0`."""
        role, _, rest = who.partition("-")
        name, _, slot = rest.rpartition(".")
        return cls(role, name, slot, document, ready)

    @property
    def labels(self) -> tuple[str, ...]:
        """The values of `PROCESS`."""
        return self.role, self.name, self.slot


class Metric(NamedTuple):
    """A metric without its prefix, and where its samples are in a document."""

    name: str
    """A counter's without `_total`."""
    kind: type[CounterMetricFamily] | type[GaugeMetricFamily]
    help: str
    labels: tuple[str, ...]
    samples: Callable[[Document], Iterable[Sample]]


def _streams(field: str) -> Callable[[Document], Iterator[Sample]]:
    """Return a function that finds a number among the streams."""

    def samples(document: Document) -> Iterator[Sample]:
        if document["streams"] is not None and isinstance(value := document["streams"].get(field), int):
            yield (), value

    return samples


def _counter(field: str) -> Callable[[Document], Iterator[Sample]]:
    """Return a function that finds a counter, or several by one label."""

    def samples(document: Document) -> Iterator[Sample]:
        counters: object = document.get("counters")
        match counters.get(field) if isinstance(counters, dict) else None:
            case dict(several):
                yield from (((str(label),), value) for label, value in several.items())
            case int() | float() as value:
                yield (), value

    return samples


def _providers(document: Document) -> Iterator[Sample]:
    """Count the providers that accept streams for each service of an edge."""
    if document["role"] not in ("edge", "server"):
        return
    offered = Counter(service for peer in document["peers"] if peer["state"] == "up" for service in peer["services"])
    yield from (((service,), offered[service]) for service in document["services"])


def _peers(document: Document) -> Iterator[Sample]:
    states = Counter(peer["state"] for peer in document["peers"])
    if document["role"] != "broker":
        yield from (((state,), states[state]) for state in ("up", "draining", "down", "failed"))


def _paths(document: Document) -> Iterator[Sample]:
    for peer in document["peers"]:
        for path in peer["paths"]:
            yield (peer["name"], peer["incarnation"], path["label"]), path["in_use"]


def _round_trips(document: Document) -> Iterator[Sample]:
    for peer in document["peers"]:
        for path in peer["paths"]:
            if path["round_trip_s"] is not None:
                yield (peer["name"], peer["incarnation"], path["label"]), path["round_trip_s"]


def _links(document: Document) -> Iterator[Sample]:
    yield from (((link["label"],), link["state"] == "up") for link in document["links"])


def _broker(value: Callable[[BrokerStatus], float]) -> Callable[[Document], Iterator[Sample]]:
    """Return a function that computes a number of a broker."""

    def samples(document: Document) -> Iterator[Sample]:
        if document["broker"] is not None:
            yield (), value(document["broker"])

    return samples


def _broker_peers(document: Document) -> Iterator[Sample]:
    if document["broker"] is not None:
        roles = Counter(member["role"] for member in document["broker"]["members"])
        yield from (((role,), roles[role]) for role in ("edge", "provider"))


def _requests(document: Document) -> Iterator[Sample]:
    for service, by_status in _http(document)["requests"].items():
        yield from (((service, status), count) for status, count in by_status.items())


def _certificates(document: Document) -> Iterator[Sample]:
    yield from (((each["option"], each["file"]), each["expires_at"]) for each in document.get("certificates", ()))


def _http(document: Document) -> HttpStatus:
    return document.get("http") or {"requests": {}, "durations": {}, "bounds_s": []}


METRICS: Final = (
    Metric(
        "start_time_seconds",
        GaugeMetricFamily,
        "When the process started, since 1970.",
        (),
        lambda document: [((), datetime.fromisoformat(document["started_at"]).timestamp())],
    ),
    Metric(
        "draining",
        GaugeMetricFamily,
        "Whether it accepts no new streams.",
        (),
        lambda document: [((), document["draining"])],
    ),
    Metric("streams_open", GaugeMetricFamily, "Connections at this moment.", (), _streams("open")),
    Metric("streams_limit", GaugeMetricFamily, "Connections at a time, at most.", (), _streams("limit")),
    Metric("waiting_clients", GaugeMetricFamily, "Clients without a provider.", (), _streams("waiting_clients")),
    Metric("dialing", GaugeMetricFamily, "Connections whose target is being connected.", (), _streams("dialing")),
    Metric(
        "memory_pool_used_bytes",
        GaugeMetricFamily,
        "Memory of the shared pool that streams hold.",
        (),
        _streams("borrowed_bytes"),
    ),
    Metric("memory_pool_bytes", GaugeMetricFamily, "Size of the shared pool.", (), _streams("lendable_bytes")),
    Metric("streams", CounterMetricFamily, "Streams that have begun.", (), _counter("streams")),
    Metric(
        "stream_sent_bytes",
        CounterMetricFamily,
        "Payload read from sockets of this process, each byte once.",
        (),
        _counter("sent_bytes"),
    ),
    Metric(
        "stream_received_bytes",
        CounterMetricFamily,
        "Payload written to sockets of this process, each byte once.",
        (),
        _counter("received_bytes"),
    ),
    Metric("stream_ends", CounterMetricFamily, "Streams that have ended, by reason.", ("code",), _counter("ends")),
    Metric("outages", CounterMetricFamily, "Outages of sessions.", (), _counter("outages")),
    Metric("replayed_bytes", CounterMetricFamily, "Payload sent again after outages.", (), _counter("replayed_bytes")),
    Metric("resumes", CounterMetricFamily, "Outages that are over.", (), _counter("resumes")),
    Metric("resume_seconds", CounterMetricFamily, "How long these outages lasted in all.", (), _counter("resume_s")),
    Metric(
        "refused_clients",
        CounterMetricFamily,
        "Clients that were rejected, by cause.",
        ("cause",),
        _counter("refused_clients"),
    ),
    Metric(
        "dial_failures",
        CounterMetricFamily,
        "Streams whose target could not be reached, by service.",
        ("service",),
        _counter("dial_failures"),
    ),
    Metric(
        "http_requests",
        CounterMetricFamily,
        "HTTP requests, by service and status.",
        ("service", "status"),
        _requests,
    ),
    Metric(
        "service_providers",
        GaugeMetricFamily,
        "Providers that accept streams for a service of this edge.",
        ("service",),
        _providers,
    ),
    Metric("peers", GaugeMetricFamily, "Processes with which it has sessions, by state.", ("state",), _peers),
    Metric("link_up", GaugeMetricFamily, "Whether a link to a broker is up.", ("broker",), _links),
    Metric(
        "path_in_use",
        GaugeMetricFamily,
        "Paths to peers that are up: 1 if its session uses it, 0 if it stands by.",
        ("peer", "incarnation", "broker"),
        _paths,
    ),
    Metric(
        "path_round_trip_seconds",
        GaugeMetricFamily,
        "Round-trip time of a path that is used.",
        ("peer", "incarnation", "broker"),
        _round_trips,
    ),
    Metric(
        "broker_messages",
        CounterMetricFamily,
        "Messages that the broker has passed on.",
        (),
        _broker(lambda broker: broker["messages"]),
    ),
    Metric(
        "broker_dropped_messages",
        CounterMetricFamily,
        "Messages from or to a peer that was not connected.",
        (),
        _broker(lambda broker: broker["dropped_messages"]),
    ),
    Metric("broker_peers", GaugeMetricFamily, "Peers of the broker, by role.", ("peer_role",), _broker_peers),
    Metric(
        "broker_outbox_bytes",
        GaugeMetricFamily,
        "Bytes that wait in the broker for slow peers.",
        (),
        _broker(lambda broker: sum(member["outbox_bytes"] for member in broker["members"])),
    ),
    Metric(
        "certificate_expiry_timestamp_seconds",
        GaugeMetricFamily,
        "When a certificate for clients expires, since 1970.",
        ("option", "file"),
        _certificates,
    ),
)
INFO: Final = ("build", "Version of the code, and whether it is compiled.")
UP: Final = ("up", "Whether the process responds on its control socket.")
READY: Final = ("ready", "Whether clients, or streams, can be given to the process.")
DURATION: Final = (
    "http_request_duration_seconds",
    "From the request to its response being written, of requests that were given to a provider.",
    ("service",),
)


def families(processes: Sequence[Process]) -> Iterator[Family]:
    """Yield the metrics of all processes, each metric once (prometheus_client.registry.Collector)."""
    for name, text, value in ((*UP, lambda each: each.document is not None), (*READY, lambda each: each.ready)):
        gauge = GaugeMetricFamily(PREFIX + name, text, labels=PROCESS)
        for each in processes:
            gauge.add_metric(each.labels, value(each))
        yield gauge
    known = [(each, each.document) for each in processes if each.document is not None]
    name, text = INFO
    info = InfoMetricFamily(PREFIX + name, text, labels=PROCESS)
    for each, document in known:
        info.add_metric(each.labels, {"version": document["version"], "build": document.get("build", "")})
    yield info
    for metric in METRICS:
        family = metric.kind(PREFIX + metric.name, metric.help, labels=(*PROCESS, *metric.labels))
        for each, document in known:
            for values, number in metric.samples(document):
                family.add_metric((*each.labels, *values), number)
        yield family
    name, text, own = DURATION
    histogram = HistogramMetricFamily(PREFIX + name, text, labels=(*PROCESS, *own))
    for each, document in known:
        http = _http(document)
        bounds = [*map(str, http["bounds_s"]), "+Inf"]
        for service, duration in http["durations"].items():
            counts = itertools.accumulate(duration["counts"])
            histogram.add_metric((*each.labels, service), list(zip(bounds, counts, strict=True)), duration["sum_s"])
    yield histogram


class _Collected(Collector):
    """Metrics, as prometheus_client wants to be given them."""

    def __init__(self, processes: Sequence[Process]) -> None:
        self._processes = processes

    def collect(self) -> Iterator[Family]:
        return families(self._processes)


def written(processes: Sequence[Process], accept: str) -> tuple[str, str]:
    """Return the metrics as text, and its type: OpenMetrics, unless only Prometheus' older text is accepted."""
    is_plain = "text/plain" in accept and "openmetrics" not in accept
    encode, kind = choose_encoder("text/plain" if is_plain else "application/openmetrics-text; version=1.0.0")
    return encode(_Collected(processes)).decode(), kind
