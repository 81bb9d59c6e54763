"""Metrics, read by Prometheus' own parsers."""

import subprocess
from collections.abc import Iterator
from typing import NamedTuple

from prometheus_client import parser as plain
from prometheus_client.openmetrics import parser as openmetrics

from tests.support.programs import program
from tests.support.waiting import DEADLINE_S
from tests.support.web import fetch

Labels = dict[str, str]
OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
"""What Prometheus accepts."""
OF_PROCESS = {"role", "name", "slot"}


class Sample(NamedTuple):
    """A sample, and the type of its metric."""

    name: str
    labels: Labels
    value: float
    kind: str


def read(text: str) -> list[Sample]:
    """Read OpenMetrics."""
    return list(_samples(openmetrics.text_string_to_metric_families(text)))  # type: ignore[no-untyped-call]


def read_plain(text: str) -> list[Sample]:
    """Read the older format."""
    return list(_samples(plain.text_string_to_metric_families(text)))


def _samples(families: object) -> Iterator[Sample]:
    for family in families:  # type: ignore[attr-defined] # theirs have no types
        for sample in family.samples:
            yield Sample(sample.name, dict(sample.labels), sample.value, family.type)


class Scrape:
    """What a dashboard said at one moment."""

    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples

    @classmethod
    async def of(cls, port: int, *fields: str) -> "Scrape":
        status, text = await fetch(port, "/metrics", "Host: localhost", f"Accept: {OPENMETRICS}", *fields)
        assert status == 200, text
        return cls(read(text))

    def value(self, name: str, /, **labels: str) -> float:
        """Return the sum of the samples that have these labels."""
        return sum(
            sample.value for sample in self.samples if sample.name == name and labels.items() <= sample.labels.items()
        )

    def labels(self, name: str, label: str) -> set[str]:
        """Return the values of a label."""
        return {sample.labels[label] for sample in self.samples if sample.name == name}


def promtool(*arguments: str, given: str = "") -> str:
    """Run promtool, which must find nothing wrong; return what it says."""
    done = subprocess.run(
        [program("promtool"), *arguments], input=given, capture_output=True, text=True, check=False, timeout=DEADLINE_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
