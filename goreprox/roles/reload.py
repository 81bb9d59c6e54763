"""Replaces the configuration of a running role: read and checked whole, then applied without a pause, or not at all."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Generic, TypeVar

from loguru import logger

from goreprox.config.reloads import Configuration, Difference, applicable, difference
from goreprox.config.roles import BrokerConfig, EdgeConfig, ProviderConfig, ServerConfig
from goreprox.control.message import Request
from goreprox.control.socket import Commands
from goreprox.errors import GoreproxError
from goreprox.process.lifetime import Lifetime
from goreprox.process.log import configure, counted
from goreprox.roles.health import Health

C = TypeVar("C", bound=ServerConfig | EdgeConfig | BrokerConfig | ProviderConfig)
LISTED = 16
"""Changes in a log line; the reply to the command has all."""


class Reload(Generic[C]):
    """How to replace the configuration of a running role."""

    def __init__(
        self,
        configuration: Configuration[C],
        life: Lifetime,
        health: Health,
        *,
        apply: Callable[[C], Awaitable[None]],
    ) -> None:
        """Replace what is current in `configuration`. SIGHUP is for us, as long as `life` lasts.

        `apply` does all that may fail before it changes anything, and raises GoreproxError.
        """
        life.hung_up = self._hang_up
        self._configuration = configuration
        self._life = life
        self._health = health
        self._apply = apply
        self._lock = asyncio.Lock()
        self._hung_up: set[asyncio.Task[None]] = set()
        """Reloads that signals have asked for: the present one, and one for all signals since it began."""

    @property
    def commands(self) -> Commands:
        """What the control socket serves."""
        return {"reload": self._serve, "options": self._list}

    async def _serve(self, _: Request) -> dict[str, list[str]]:
        return (await self.run())._asdict()

    async def _list(self, _: Request) -> list[dict[str, object]]:
        return list(map(asdict, self._configuration.given))

    def _hang_up(self) -> None:
        """Reload on SIGHUP, once an earlier reload has ended; an error is in the log."""
        if len(self._hung_up) < 2:
            task = asyncio.get_running_loop().create_task(self._run_quietly(), name="reload")
            self._hung_up.add(task)
            task.add_done_callback(self._hung_up.discard)

    async def _run_quietly(self) -> None:
        with contextlib.suppress(GoreproxError):
            await self.run()

    async def run(self) -> Difference:
        """Read the configuration, and apply what has changed; return that.

        Raises:
            GoreproxError: something is wrong with it; nothing has changed.
        """
        async with self._lock:
            with self._life.reloading():
                found = await self._replace()
        _log(found)
        return found

    async def _replace(self) -> Difference:
        before = self._configuration.current
        try:
            new = self._configuration.read()
            found = difference(before, new)
            config = applicable(before, new)
            with self._health.moved_to(config.process.health):
                await self._apply(config)
        except GoreproxError as exc:
            logger.bind(event="reload_failed").error("{}; nothing has changed", exc)
            raise
        if config.process.log != before.process.log:
            configure(config.process.log.level, as_json=config.process.log.json)
        self._configuration.current = config
        return found


def _log(found: Difference) -> None:
    text = _listing(found.applied) or "no option that can be applied has changed"
    logger.bind(event="reloaded", applied=len(found.applied)).info("reloaded: {}", text)
    if found.kept:
        logger.bind(event="reload_kept", kept=len(found.kept)).warning("not applied: {}", _listing(found.kept))


def _listing(lines: list[str]) -> str:
    more = len(lines) - LISTED
    return "; ".join(lines[:LISTED]) + (f"; and {counted(more, 'other change')}" if more > 0 else "")
