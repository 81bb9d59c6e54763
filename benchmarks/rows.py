"""The figures: what each is, and the floor and the goal that it has to reach."""

from dataclasses import dataclass
from typing import Final, Literal

ROUND_TRIP_S: Final = 0.05
LONG_MBIT: Final = 400
CROWD_ROUND_TRIP_S: Final = 0.01
CROWD_MBIT: Final = 100

Level = Literal["floor", "goal"]
FLOOR: Final = "floor"
GOAL: Final = "goal"
TUNNELS: Final = "every tunnel"
PLAIN_TUNNELS: Final = "every plain tunnel"
ENCRYPTED_TUNNELS: Final = "every encrypted tunnel"


@dataclass(frozen=True)
class Bound:
    """One condition on a row of one of our sides.

    `relation` is how the figure compares: `times` the other side's (or other row's) in the same round, at most
    so far `above` it, or the `value` itself. A figure that is better when higher has to be at least that, else at most.
    """

    level: Level
    relation: Literal["times", "above", "value"]
    number: float
    against: str = ""
    """Key of a side, or one of the groups of tunnels above."""
    against_row: str = ""
    """Key of another row, of the same side."""
    side: str = "goreprox"


@dataclass(frozen=True)
class Row:
    """One figure."""

    key: str
    title: str
    unit: str
    digits: int
    higher_is_better: bool
    bounds: tuple[Bound, ...] = ()
    worst: bool = False
    """The figure is the worst of all rounds, not their median."""


def _times(level: Level, number: float, against: str, side: str = "goreprox") -> Bound:
    return Bound(level, "times", number, against=against, side=side)


def _at_most(level: Level, number: float, side: str = "goreprox") -> Bound:
    return Bound(level, "value", number, side=side)


# Edge, broker and provider as processes of their own, against server and provider.
_APART: Final = (
    _times(FLOOR, 0.5, "goreprox", "goreprox-edge"),
    _times(GOAL, 0.7, "goreprox", "goreprox-edge"),
)
# A NATS server in place of the broker: nats-py copies each byte more often than libzmq, and reads 32 KiB at a time.
_NATS: Final = (_times(FLOOR, 0.7, "goreprox-edge", "goreprox-nats"),)
_NATS_BULK: Final = (
    _times(FLOOR, 0.2, "goreprox-edge", "goreprox-nats"),
    _times(GOAL, 0.4, "goreprox-edge", "goreprox-nats"),
)
# A port that understands HTTP, against one that passes bytes on.
_HTTP: Final = (
    _times(FLOOR, 0.25, "goreprox", "goreprox-http"),
    _times(GOAL, 0.5, "goreprox", "goreprox-http"),
)
# Requests and responses that are kept.
_INSPECT: Final = (_times(FLOOR, 0.9, "goreprox-http", "goreprox-inspect"),)
# What promises may cost: a fifth of what Python and ZeroMQ carry without them, in the same run.
_BARE: Final = (_times(FLOOR, 0.8, "bare"),)
_REQUESTS: Final = (
    *_BARE,
    _times(FLOOR, 1.0, TUNNELS),
    _times(FLOOR, 0.75, "haproxy"),
    _times(GOAL, 1.0, "haproxy"),
    *_APART,
    *_HTTP,
    *_INSPECT,
    *_NATS,
)
_BULK: Final = (
    _times(FLOOR, 0.85, "haproxy"),
    _times(FLOOR, 1.8, "ssh"),
    _times(FLOOR, 1.2, "ssh", "goreprox-keys"),
    _times(GOAL, 1.0, "haproxy"),
    _times(GOAL, 1.0, PLAIN_TUNNELS),
    _times(GOAL, 1.0, ENCRYPTED_TUNNELS, "goreprox-keys"),
    *_NATS_BULK,
)
_CPU: Final = (
    _times(FLOOR, 1.3, PLAIN_TUNNELS),
    _times(FLOOR, 1.3, ENCRYPTED_TUNNELS, "goreprox-keys"),
    _times(GOAL, 1.0, PLAIN_TUNNELS),
    _times(GOAL, 1.0, ENCRYPTED_TUNNELS, "goreprox-keys"),
)


def _grown(row: str) -> tuple[Bound, ...]:
    return Bound(FLOOR, "times", 0.85, against_row=row), Bound(GOAL, "times", 0.95, against_row=row)


ROWS: Final = {
    row.key: row
    for row in (
        Row("requests_32", "requests/s, 32 keep-alive connections", "1/s", 0, True, _REQUESTS),
        Row("requests_256", "requests/s, 256 keep-alive connections", "1/s", 0, True, _REQUESTS),
        Row(
            "connections",
            "new connections/s",
            "1/s",
            0,
            True,
            (*_BARE, _times(FLOOR, 1.4, "ssh"), _times(GOAL, 1.0, TUNNELS), _times(GOAL, 2.0, "ssh"), *_APART),
        ),
        Row(
            "ping_p50",
            "one request at a time, p50",
            "ms",
            3,
            False,
            (_times(FLOOR, 1.25, "bare"), Bound(FLOOR, "above", 0.35, against="direct"), _times(GOAL, 1.0, TUNNELS)),
        ),
        Row("ping_p99", "one request at a time, p99", "ms", 3, False, (_times(GOAL, 1.0, TUNNELS),)),
        Row("down", "bulk, one stream down", "MB/s", 0, True, (*_BARE, *_BULK, *_APART)),
        Row("up", "bulk, one stream up", "MB/s", 0, True, _BULK),
        Row("down_8", "bulk, 8 streams down", "MB/s", 0, True, _BULK),
        Row(
            "first_byte",
            "first byte of a new connection at 50 ms",
            "round trips",
            2,
            False,
            (_at_most(FLOOR, 1.25), _at_most(GOAL, 1.1), _times(GOAL, 1.0, TUNNELS)),
        ),
        Row(
            "stream",
            f"one stream at 50 ms, path of {LONG_MBIT} Mbit/s",
            "MB/s",
            1,
            True,
            (_times(FLOOR, 0.8, "direct"), _times(GOAL, 0.95, "direct")),
        ),
        Row("quiet_p99", f"small requests alone, path of {CROWD_MBIT} Mbit/s, p99", "ms", 1, False),
        Row(
            "crowd_p99",
            "the same beside a bulk stream and a stopped reader, p99",
            "ms",
            1,
            False,
            (
                _at_most(FLOOR, 50),
                Bound(GOAL, "times", 3, against_row="quiet_p99"),
                _times(GOAL, 1.0, TUNNELS),
            ),
        ),
        Row(
            "stall",
            "longest stall after a cut with RST",
            "s",
            3,
            False,
            (_at_most(FLOOR, 0.5), _at_most(GOAL, 0.3)),
            worst=True,
        ),
        Row(
            "upgrade",
            "stall of a stream through an upgrade of its provider, p99",
            "s",
            3,
            False,
            (_at_most(FLOOR, 1.0), _at_most(GOAL, 0.4)),
            worst=True,
        ),
        Row(
            "upgrade_idle",
            "the same beside the idle streams, p99",
            "s",
            3,
            False,
            (_at_most(FLOOR, 3.0),),
            worst=True,
        ),
        Row(
            "upgrade_server",
            "stall of a stream through an upgrade of its server, p99",
            "s",
            3,
            False,
            (_at_most(FLOOR, 1.0), _at_most(GOAL, 0.4)),
            worst=True,
        ),
        Row(
            "upgrade_server_idle",
            "upgrade of its server beside the idle streams, p99",
            "s",
            3,
            False,
            (_at_most(FLOOR, 3.0),),
            worst=True,
        ),
        Row("cpu_gib", "CPU per GiB", "s", 2, False, _CPU),
        Row("cpu_requests", "CPU per 100,000 requests", "s", 2, False, _CPU),
        Row(
            "memory",
            "memory per idle stream, largest process",
            "KiB",
            2,
            False,
            (_at_most(FLOOR, 8), _at_most(GOAL, 4), _times(GOAL, 1.0, TUNNELS)),
        ),
        Row("alone", "requests/s, 32, before the idle streams", "1/s", 0, True),
        Row("beside", "requests/s, 32, beside the idle streams", "1/s", 0, True, _grown("alone")),
        Row("providers_1", "requests/s, 64, one provider", "1/s", 0, True),
        Row("providers_2", "requests/s, 64, 2 providers", "1/s", 0, True, _grown("providers_1")),
        Row("providers_4", "requests/s, 64, 4 providers", "1/s", 0, True, _grown("providers_1")),
        Row("providers_8", "requests/s, 64, 8 providers", "1/s", 0, True, _grown("providers_1")),
        Row("ready", "start-up to the first response", "s", 3, False, (_at_most(FLOOR, 0.6), _at_most(GOAL, 0.3))),
    )
}
TABLES: Final = {
    "Requests": ("requests_32", "requests_256", "connections", "ping_p50", "ping_p99", "cpu_requests"),
    "Bulk": ("down", "up", "down_8", "cpu_gib"),
    "Long, narrow and broken paths": ("first_byte", "stream", "quiet_p99", "crowd_p99", "stall"),
    "Idle streams and start-up": ("memory", "alone", "beside", "ready"),
    "Upgrades in place": ("upgrade", "upgrade_idle", "upgrade_server", "upgrade_server_idle"),
    "Several providers": ("providers_1", "providers_2", "providers_4", "providers_8"),
}
"""The report's tables, each with its columns."""
CHARTS: Final = {
    "requests": ("requests_32", "requests_256"),
    "connections": ("connections",),
    "latency": ("ping_p50", "ping_p99"),
    "bulk": ("down", "up", "down_8"),
    "cpu": ("cpu_gib", "cpu_requests"),
    "paths": ("stream",),
    "crowd": ("quiet_p99", "crowd_p99"),
    "memory": ("memory",),
}
"""The report's charts by file name, each with its rows."""
