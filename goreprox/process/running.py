"""Runs a role to its end, or until other code takes over."""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import NoReturn

from loguru import logger

from goreprox import __version__
from goreprox.errors import StartError
from goreprox.process import handover
from goreprox.process.handover import Handover, Inherited
from goreprox.process.log import flush
from goreprox.protocol.errors import ExportError

Role = Callable[[Inherited | None], Coroutine[object, object, Handover | None]]
"""Goes on with what the code before has left, if there was any; returns what the next code needs, if there is to be
one. Raises GoreproxError if it cannot be run, ExportError if what it has inherited is not its state."""


def run(role: Role, inherited: Inherited | None, *, start_anew: Callable[[], NoReturn] = handover.start_anew) -> None:
    """Run a role; of a trial only print the version, for the code before.

    If the code that takes over cannot be started, the role goes on. If what it has inherited cannot be restored,
    `start_anew` is called.

    Raises:
        GoreproxError: it cannot be run.
    """
    following = _run(role, inherited, start_anew)
    while following is not None:
        flush()
        failed = handover.execute(following)
        logger.bind(event="upgrade_failed").error("{}", failed.problem)
        following = _run(role, failed, start_anew)


def _run(role: Role, inherited: Inherited | None, start_anew: Callable[[], NoReturn]) -> Handover | None:
    try:
        following = asyncio.run(role(inherited))
    except Exception as exc:
        if inherited is None or inherited.restored:
            raise
        if not inherited.trial:
            logger.bind(event="restore_failed").opt(exception=True).critical(
                "the state of the code before this one cannot be restored: starting anew, connections are reset"
            )
            flush()
            start_anew()
        raise StartError(str(exc)) if isinstance(exc, ExportError) else exc from None
    if inherited is not None and inherited.trial:
        sys.stdout.write(f"{__version__}\n")
    return following
