"""Options of health checks: how a provider finds out whether its targets are well."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Self

from cyclopts import Parameter

from goreprox.config.checks import check_distinct, check_range, check_seconds
from goreprox.config.defaults import (
    DEFAULT_CHECK_FAILURES,
    DEFAULT_CHECK_INTERVAL_S,
    DEFAULT_CHECK_SUCCESSES,
    DEFAULT_CHECK_TIMEOUT_S,
    MAX_CHECK_RESULTS,
)
from goreprox.config.names import NAME
from goreprox.config.options import GROUP, LIFETIMES, LIMITS, Count, Seconds, several
from goreprox.errors import ConfigError

_HTTP: Final = "http:"
_PATH: Final = re.compile(r"/[!-~]{0,1023}")
"""What the first line of a request can carry."""


@dataclass(frozen=True, slots=True)
class Check:
    """What shows that a target is well: it accepts a connection, and responds to a request."""

    service: str | None = None
    """The service of the target; None: all services that have no check of their own."""
    path: str | None = None
    """What is requested by HTTP; None: a connection is enough."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `[SERVICE=]tcp` or `[SERVICE=]http:PATH`.

        Raises:
            ConfigError: it is neither.
        """
        name, separator, rest = text.partition("=")
        service, how = (name, rest) if separator and NAME.fullmatch(name) else (None, text)
        if how == "tcp":
            return cls(service)
        path = how.removeprefix(_HTTP)
        if path == how or not _PATH.fullmatch(path):
            raise ConfigError(f"check {text!r}: write [SERVICE=]tcp or [SERVICE=]http:PATH, like web=http:/healthz")
        return cls(service, path)

    @property
    def how(self) -> str:
        """How it is written, without the service."""
        return "tcp" if self.path is None else f"{_HTTP}{self.path}"

    @property
    def text(self) -> str:
        """How it is written."""
        return self.how if self.service is None else f"{self.service}={self.how}"


@GROUP
@dataclass(frozen=True, slots=True, kw_only=True)
class CheckConfig:
    """Options of health checks; without a check services are offered whatever their targets do."""

    checks: Annotated[
        tuple[Check, ...],
        several(Check.parse, "[SERVICE=]CHECK"),
        Parameter(name="--check", group=LIFETIMES),
    ] = ()
    """Offer a service only while its target is well: `tcp`, it accepts connections; `http:/healthz`, it responds to a
    request for that path with a status from 200 to 399. May be repeated. [default: no checks]"""
    interval_s: Annotated[Seconds, Parameter(name="--check-interval", group=LIFETIMES)] = DEFAULT_CHECK_INTERVAL_S
    """Begin a check so often."""
    timeout_s: Annotated[Seconds, Parameter(name="--check-timeout", group=LIFETIMES)] = DEFAULT_CHECK_TIMEOUT_S
    """Let a check fail after so long."""
    failures: Annotated[Count, Parameter(name="--check-failures", group=LIMITS)] = DEFAULT_CHECK_FAILURES
    """Withdraw a service after so many failures in a row."""
    successes: Annotated[Count, Parameter(name="--check-successes", group=LIMITS)] = DEFAULT_CHECK_SUCCESSES
    """Offer a withdrawn service again after so many successes in a row."""

    def __post_init__(self) -> None:
        check_seconds("check-interval", self.interval_s, least=0.1)
        check_seconds("check-timeout", self.timeout_s, least=0.1)
        check_range("check-failures", self.failures, 1, MAX_CHECK_RESULTS)
        check_range("check-successes", self.successes, 1, MAX_CHECK_RESULTS)
        check_distinct("check", [check.service or "for all services" for check in self.checks])

    def check_services(self, offered: Sequence[str]) -> None:
        """Require that each service that is named is offered.

        Raises:
            ConfigError: one is not.
        """
        for check in self.checks:
            if check.service is not None and check.service not in offered:
                raise ConfigError(f"check {check.text}: that service is not offered; services are {', '.join(offered)}")

    def check_of(self, service: str) -> Check | None:
        """Return the check of a service's target; None: it has none."""
        checks = {check.service: check for check in self.checks}
        return checks.get(service, checks.get(None))
