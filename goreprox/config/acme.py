"""Options of certificates by ACME (RFC 8555)."""

import re
from dataclasses import dataclass
from typing import Annotated, Final
from urllib.parse import urlsplit

from cyclopts import Parameter

from goreprox.config.checks import check_range
from goreprox.config.options import GROUP, KEYS, LIMITS, Count, File, one
from goreprox.errors import ConfigError

LETS_ENCRYPT: Final = "https://acme-v02.api.letsencrypt.org/directory"
DEFAULT_BUDGET: Final = 10
MAX_BUDGET: Final = 10_000
_EMAIL: Final = re.compile(r"[!-?A-~]{1,64}@[A-Za-z0-9.-]{1,253}")
_MAX_URL: Final = 1024


def _email(text: str) -> str:
    if not _EMAIL.fullmatch(text):
        raise ConfigError(f"acme {text[:80]!r}: expected an address of mail; without one write --acme-agree")
    return text


def _url(text: str) -> str:
    parts = urlsplit(text)
    if (
        parts.scheme != "https"
        or not parts.hostname
        or len(text) > _MAX_URL
        or not (text.isascii() and text.isprintable())
    ):
        raise ConfigError(f"acme-directory {text[:80]!r}: expected the URL of a directory, like {LETS_ENCRYPT}")
    return text


@GROUP
@dataclass(frozen=True, slots=True, kw_only=True)
class AcmeConfig:
    """Options of certificates that are asked for."""

    email: Annotated[str | None, one(_email, "EMAIL", show_default=False), Parameter(name="--acme", group=KEYS)] = None
    """Get certificates for the hosts of routes and published names by ACME, renew them, and accept the authority's
    terms; EMAIL is for the authority."""
    agree: Annotated[bool, Parameter(name="--acme-agree", group=KEYS, negative="")] = False
    """Do what --acme does, without an address of mail."""
    directory: Annotated[str, one(_url, "URL"), Parameter(name="--acme-directory", group=KEYS)] = LETS_ENCRYPT
    """Ask the authority with this ACME directory."""
    ca: Annotated[File, Parameter(name="--acme-ca", group=KEYS)] = None
    """Trust these CAs for the directory; PEM. [default: those of the system]"""
    budget: Annotated[Count, Parameter(name="--acme-budget", group=LIMITS)] = DEFAULT_BUDGET
    """Ask for new certificates for at most so many published names of a key in a week; 0: for none."""

    def __post_init__(self) -> None:
        check_range("acme-budget", self.budget, 0, MAX_BUDGET)
        if self.email is not None and self.agree:
            raise ConfigError("acme-agree: there is --acme with an address of mail, which says the same; leave one out")
        if not self.enabled:
            for option, given in (
                ("acme-directory", self.directory != LETS_ENCRYPT),
                ("acme-ca", self.ca is not None),
                ("acme-budget", self.budget != DEFAULT_BUDGET),
            ):
                if given:
                    raise ConfigError(f"{option}: no certificates are asked for; add --acme EMAIL, or --acme-agree")

    @property
    def enabled(self) -> bool:
        """Whether certificates are asked for."""
        return self.agree or self.email is not None
