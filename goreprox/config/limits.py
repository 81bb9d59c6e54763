"""Options that limit what clients of a service can take."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Self

from cyclopts import Parameter

from goreprox.config import units
from goreprox.config.checks import check_distinct, check_range
from goreprox.config.defaults import MAX_CONNECTIONS, MAX_RATE_MIB, MIB, MIN_RATE_MIB
from goreprox.config.names import NAME
from goreprox.config.options import GROUP, LIMITS, several
from goreprox.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ServiceLimit:
    """A limit of each service, or of one."""

    service: str | None
    """None: all services that have no limit of their own, each for itself."""
    value: float

    @classmethod
    def parse(cls, option: str, text: str) -> Self:
        """Read `[SERVICE=]VALUE`, of which `option` says what it is.

        Raises:
            ConfigError: the value is malformed.
        """
        service, separator, value = text.rpartition("=")
        if separator and not NAME.fullmatch(service):
            raise ConfigError(f"{option} {text!r}: {service!r} is not the name of a service; write [SERVICE=]VALUE")
        try:
            number = units.mebibytes(value) if option == "max-rate" else units.count(value)
        except ValueError as exc:
            raise ConfigError(f"{option} {text!r}: {exc}") from None
        return cls(service if separator else None, number)

    @property
    def text(self) -> str:
        """How it is written."""
        return f"{self.value:g}" if self.service is None else f"{self.service}={self.value:g}"


def _limits(option: str, metavar: str) -> Parameter:
    return several(functools.partial(ServiceLimit.parse, option), metavar)


@GROUP
@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceLimits:
    """Limits of each service, in each process."""

    rates: Annotated[
        tuple[ServiceLimit, ...],
        _limits("max-rate", "[SERVICE=]MIB"),
        Parameter(name="--max-rate", group=LIMITS),
    ] = ()
    """Limit the MiB per second of a service, in each direction, all its clients together. May be repeated. [default: no
    limit]"""
    connections: Annotated[
        tuple[ServiceLimit, ...],
        _limits("max-connections-per-service", "[SERVICE=]N"),
        Parameter(name="--max-connections-per-service", group=LIMITS),
    ] = ()
    """Limit connections to a service at a time; further ones wait. May be repeated. [default: no limit]"""

    def __post_init__(self) -> None:
        for limit in self.rates:
            check_range("max-rate", limit.value, MIN_RATE_MIB, MAX_RATE_MIB)
        for limit in self.connections:
            check_range("max-connections-per-service", limit.value, 1, MAX_CONNECTIONS)
        for option, limits in self._options:
            check_distinct(option, [limit.service or "for all services" for limit in limits])

    @property
    def _options(self) -> tuple[tuple[str, tuple[ServiceLimit, ...]], ...]:
        return ("max-rate", self.rates), ("max-connections-per-service", self.connections)

    def check_services(self, known: Sequence[str]) -> None:
        """Require that clients can ask for each service that is named.

        Raises:
            ConfigError: one cannot.
        """
        for option, limits in self._options:
            for limit in limits:
                if limit.service is not None and limit.service not in known:
                    raise ConfigError(
                        f"{option} {limit.text}: no client can ask for that service; services are {', '.join(known)}"
                    )

    def most_connections(self, service: str) -> int | None:
        """Return how many connections of a service there may be at a time; None: there is no limit."""
        most = _of(self.connections, service)
        return None if most is None else int(most)

    def bytes_per_s(self, service: str) -> float | None:
        """Return the rate of a service in each direction; None: there is no limit."""
        mebibytes = _of(self.rates, service)
        return None if mebibytes is None else mebibytes * MIB


def _of(limits: Sequence[ServiceLimit], service: str) -> float | None:
    if not limits:
        return None
    values = {limit.service: limit.value for limit in limits}
    return values.get(service, values.get(None))
