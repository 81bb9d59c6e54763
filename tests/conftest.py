"""Property tests draw the same examples each time; `make soak`, which looks for new ones, draws its own."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings
from loguru import logger

settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("fresh", max_examples=1000, print_blob=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    """What is logged as a warning or worse."""
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(message.record["message"]), level="WARNING")
    yield lines
    logger.remove(sink)
