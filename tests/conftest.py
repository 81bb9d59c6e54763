"""Property tests draw the same examples each time; `make soak`, which looks for new ones, draws its own.

Neither is timed: a busy machine is not a bug.
"""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from loguru import logger

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("fixed", unhurried, derandomize=True)
settings.register_profile("fresh", unhurried, max_examples=1000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    """What is logged as a warning or worse."""
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(message.record["message"]), level="WARNING")
    yield lines
    logger.remove(sink)


@pytest.fixture
def events() -> Iterator[list[dict[str, object]]]:
    """The fields of what is logged, and the message among them."""
    entries: list[dict[str, object]] = []
    sink = logger.add(
        lambda message: entries.append({**message.record["extra"], "message": message.record["message"]}),
        level="DEBUG",
    )
    yield entries
    logger.remove(sink)
