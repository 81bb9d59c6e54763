"""Names of processes, services and keys: which are allowed, and that of this machine."""

import os
import re
from typing import Final

from goreprox.errors import ConfigError

NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")


def check_name(what: str, name: str) -> None:
    """Accept 1 to 64 of `A-Z a-z 0-9 . _ -`, not beginning with a dot or a dash: it may become a file's name.

    Raises:
        ConfigError: it is anything else.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"{what} {name!r}: expected 1 to 64 of A-Z a-z 0-9 . _ -, and neither a dot nor a dash at the beginning"
        )


def parse_services(text: str) -> list[str]:
    """Return the names of services in a list with commas.

    Raises:
        ConfigError: one of them is none, or there is not one.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ConfigError("services: expected at least one name, or no such option for all services")
    for name in names:
        check_name("service", name)
    return names


def default_name() -> str:
    """Give the host's name, every character that a name may not hold replaced by `-`."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", os.uname().nodename).lstrip(".-")[:64] or "unnamed"
