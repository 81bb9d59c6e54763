"""Which services of a provider are offered: those without a check, and those whose target passes it."""

import asyncio
import enum
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass

from loguru import logger

from brokers import LimitedLog
from goreprox.config.addresses import Target
from goreprox.config.target_checks import Check, CheckConfig
from goreprox.process.clock import clock
from goreprox.roles.examination import UnwellError
from goreprox.status.document import CheckStatus

Examine = Callable[[Target, Check, float], Awaitable[object]]
"""Checks a target once, within so many seconds; raises UnwellError, or OSError if nothing could be found out."""


class Condition(enum.Enum):
    """What the checks of a service have shown."""

    UNKNOWN = "unknown"
    """No check has ended. The service is not offered."""
    WELL = "well"
    """The service is offered."""
    WITHDRAWN = "withdrawn"
    """The service is not offered."""


@dataclass(slots=True)
class Verdict:
    """What follows from the results of a service's checks, one after the other.

        UNKNOWN    --one success--> WELL, --one failure--> WITHDRAWN
        WELL       --`failures` in a row--> WITHDRAWN
        WITHDRAWN  --`successes` in a row--> WELL

    Nothing is known at the start, and of a service that is new in a reload.
    """

    condition: Condition
    since: float
    """When it became so, by the clock of the process."""
    against: int = 0
    """Results in a row that speak against it."""
    problem: str | None = None
    """Why the last check failed; None if it passed, or there was none."""

    @property
    def is_well(self) -> bool:
        """Whether the service is offered."""
        return self.condition is Condition.WELL

    def note(self, problem: str | None, *, failures: int, successes: int, now: float) -> bool:
        """Take a result: why the check failed, or None. Return whether `condition` has changed."""
        self.problem = problem
        shown, needed = (Condition.WELL, successes) if problem is None else (Condition.WITHDRAWN, failures)
        self.against = 0 if shown is self.condition else self.against + 1
        if not self.against or (self.against < needed and self.condition is not Condition.UNKNOWN):
            return False
        self.condition, self.since, self.against = shown, now, 0
        return True


@dataclass(slots=True)
class _Checked:
    """A service with a check."""

    target: Target
    check: Check
    config: CheckConfig
    verdict: Verdict
    task: asyncio.Task[None] | None = None
    """What checks it again and again, once that has begun."""


class TargetChecks:
    """Owns the checks of a provider, one task for each service that has one."""

    def __init__(self, targets: Sequence[Target], config: CheckConfig, *, examine: Examine) -> None:
        """Check what `config` says, from `start` on."""
        self.changed: Callable[[], None] = lambda: None
        """Called when other services are to be offered."""
        self._log = LimitedLog()
        self._services: list[str] = []
        self._checked: dict[str, _Checked] = {}
        self._begun = False
        self.reconfigure(targets, config, examine=examine)

    def reconfigure(self, targets: Sequence[Target], config: CheckConfig, *, examine: Examine) -> None:
        """Check other targets, or otherwise. A service that was offered stays so until its checks fail."""
        offered, before = self.offered, self._checked
        self._examine = examine
        self._services = [target.service for target in targets]
        self._checked = {}
        for target in targets:
            check = config.check_of(target.service)
            if check is not None:
                condition = Condition.WELL if target.service in offered else Condition.UNKNOWN
                checked = _Checked(target, check, config, Verdict(condition, clock()))
                self._checked[target.service] = _continued(before.pop(target.service, None), checked)
        for checked in before.values():
            _stop(checked)
        if self._begun:
            self.start()

    def start(self) -> None:
        """Check from now on, and announce what that brings about by `changed`."""
        self._begun = True
        for service, checked in self._checked.items():
            if checked.task is None:
                work = self._keep_checking(checked)
                checked.task = asyncio.get_running_loop().create_task(work, name=f"check {service}")

    def close(self) -> None:
        """Check no more."""
        for checked in self._checked.values():
            _stop(checked)

    def restore(self, offered: Collection[object] | None) -> None:
        """Go on where the code before this one has stopped, which has `offered` these (None: all, without checks).

        Others had failed, or not been checked yet: they are withdrawn until `successes` in a row.
        """
        for service, checked in self._checked.items():
            is_offered = offered is None or service in offered
            checked.verdict.condition = Condition.WELL if is_offered else Condition.WITHDRAWN

    @property
    def offered(self) -> list[str]:
        """The services that are offered, in the order of the targets."""
        return [name for name in self._services if name not in self._checked or self._checked[name].verdict.is_well]

    @property
    def status(self) -> dict[str, CheckStatus]:
        """What the status shows of each service that is checked."""
        return {
            service: {
                "check": checked.check.how,
                "condition": checked.verdict.condition.value,
                "since_s": round(clock() - checked.verdict.since, 3),
                "problem": checked.verdict.problem,
            }
            for service, checked in self._checked.items()
        }

    async def _keep_checking(self, checked: _Checked) -> None:
        """Begin a check in each interval, or, if one takes longer, at its end."""
        loop, interval_s = asyncio.get_running_loop(), checked.config.interval_s
        while True:
            due = loop.time() + interval_s
            await self._check(checked)
            await asyncio.sleep(max(due - loop.time(), 0.0))

    async def _check(self, checked: _Checked) -> None:
        target, config, verdict, problem = checked.target, checked.config, checked.verdict, None
        try:
            await self._examine(target, checked.check, config.timeout_s)
        except UnwellError as exc:
            problem = str(exc)
        except Exception as exc:  # noqa: BLE001 -- of this process, not of the target: the next check may find out
            text = f"cannot check the target {target} of the service {target.service}: {exc}; it stays as it is"
            self._log.say("check_failed", text, service=target.service)
            return
        if verdict.note(problem, failures=config.failures, successes=config.successes, now=clock()):
            _log_change(checked)
            self.changed()


def _log_change(checked: _Checked) -> None:
    """Log each change: there is at most one in an interval, and the reason has at most 0.4 KiB."""
    target, service, problem = checked.target, checked.target.service, checked.verdict.problem
    if problem is None:
        logger.bind(event="service_offered", service=service).info(
            "offering the service {}: its target {} passes the check {}", service, target, checked.check.how
        )
    else:
        logger.bind(event="service_withdrawn", service=service, problem=problem).warning(
            "not offering the service {}: its target {} fails the check {}: {}",
            *(service, target, checked.check.how, problem),
        )


def _continued(before: _Checked | None, after: _Checked) -> _Checked:
    """Return what goes on of the checks of a service after a reload: all, its verdict, or nothing."""
    if before is None:
        return after
    if (before.target, before.check.how) == (after.target, after.check.how):
        if before.config == after.config:
            return before
        after.verdict = before.verdict
    _stop(before)
    return after


def _stop(checked: _Checked) -> None:
    if checked.task is not None:
        checked.task.cancel()
