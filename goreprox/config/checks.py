"""Checks that several groups of options share. Each raises `ConfigError`, which names the option."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence

from goreprox.config.addresses import Address
from goreprox.config.defaults import DAY_S, MAX_ENDPOINTS, MAX_SERVICES_BYTES
from goreprox.errors import ConfigError


def check_seconds(option: str, value: float, *, least: float) -> None:
    """Accept a time from `least` seconds to a day."""
    if not (math.isfinite(value) and least <= value <= DAY_S):
        raise ConfigError(f"{option} {value:g}: expected {least:g} to {DAY_S:g} seconds")


def check_count(option: str, count: int) -> None:
    """Accept as many values of a repeated option as one process may have."""
    if not 1 <= count <= MAX_ENDPOINTS:
        raise ConfigError(f"{option}: expected 1 to {MAX_ENDPOINTS} of them, got {count}")


def check_range(option: str, value: float, least: float, most: float) -> None:
    """Accept a number from `least` to `most`."""
    if not least <= value <= most:
        raise ConfigError(f"{option} {value:,}: expected {least:,g} to {most:,.0f}")


def check_distinct(option: str, names: Sequence[str]) -> None:
    """Accept names of which each is given once."""
    for name, times in Counter(names).items():
        if times > 1:
            raise ConfigError(f"{option} {name}: given twice; once is enough")


def check_ports(ports: Sequence[tuple[str, Address]]) -> None:
    """Accept addresses, each with its option, of which no two listen on the same port."""
    for (option, address), (other_option, other) in itertools.combinations(ports, 2):
        if address.overlaps(other):
            raise ConfigError(
                f"{option} {address} and {other_option} {other}: one port for two; choose another one for either"
            )


def services_bytes(names: Sequence[str]) -> int:
    """Return how much names take in what a peer tells of itself, with the head that CBOR puts before each."""
    return sum(len(name) + 2 for name in names)


def check_services(names: Sequence[str]) -> None:
    """Accept names of services that fit into what a peer may tell of itself."""
    size = services_bytes(names)
    if size > MAX_SERVICES_BYTES:
        raise ConfigError(
            f"services: their names take {size:,} bytes, expected at most {MAX_SERVICES_BYTES:,}; choose shorter ones"
        )
