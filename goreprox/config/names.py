"""Names of processes, services and keys: which are allowed, and that of this machine."""

import os
import re
from typing import Final

from goreprox.errors import ConfigError

NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")


def check_name(what: str, name: str) -> None:
    """Accept 1 to 64 of `A-Z a-z 0-9 . _ -`, neither `.` nor `-` first, since names become file names.

    Raises:
        ConfigError: it is anything else.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"{what} {name!r}: expected 1 to 64 of A-Z a-z 0-9 . _ -, and neither a dot nor a dash at the beginning"
        )


def parse_services(text: str) -> list[str]:
    """Return the names of services in a text, which are separated by commas.

    Raises:
        ConfigError: one is malformed, or there is none.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ConfigError("services: expected at least one name; leave the option out for all services")
    for name in names:
        check_name("service", name)
    return names


def default_name() -> str:
    """Return the host's name, with `-` in place of characters that names cannot have."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", os.uname().nodename).lstrip(".-")[:64] or "unnamed"
