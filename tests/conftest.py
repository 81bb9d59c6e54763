"""Property tests draw the same examples each time; `make soak`, which looks for new ones, draws its own.

Neither is timed: a busy machine is not a bug.
"""

import asyncio
import functools
import gc
import inspect
import os
from collections.abc import Awaitable, Callable, Iterator

import pytest
from hypothesis import HealthCheck, settings
from loguru import logger

from tests.support.events import Events

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("fixed", unhurried, derandomize=True)
settings.register_profile("fresh", unhurried, max_examples=1000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

SPARE_S = 10.0
"""What is left of a test's timeout once its coroutine is cancelled."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Cancel the coroutine of a test before its timeout, so that it closes what it has opened."""
    timeout_s = float(config.getoption("timeout") or config.getini("timeout"))
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            item.obj = _bounded(item.obj, timeout_s - SPARE_S)


def _bounded(test: Callable[..., Awaitable[None]], deadline_s: float) -> Callable[..., Awaitable[None]]:
    @functools.wraps(test)
    async def bounded(**fixtures: object) -> None:
        async with asyncio.timeout(deadline_s):
            await test(**fixtures)

    return bounded


def pytest_collection_finish() -> None:
    """Leave what lasts as long as the tests out of the collections between them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    """Have a socket that is left open fail the test that left it: first set up, this is torn down last."""
    yield
    gc.collect()


def _messages(level: str) -> Iterator[list[str]]:
    found: list[str] = []
    sink = logger.add(lambda message: found.append(message.record["message"]), level=level)
    yield found
    logger.remove(sink)


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What is logged, without details."""
    yield from _messages("INFO")


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    """What is logged as a warning or worse."""
    yield from _messages("WARNING")


@pytest.fixture
def events() -> Iterator[Events]:
    """The fields of what is logged, and the message among them."""
    entries: Events = []
    sink = logger.add(
        lambda message: entries.append({**message.record["extra"], "message": message.record["message"]}),
        level="DEBUG",
    )
    yield entries
    logger.remove(sink)
