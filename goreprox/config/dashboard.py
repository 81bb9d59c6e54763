"""What a dashboard is told to do."""

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from goreprox.config.addresses import Address
from goreprox.errors import ConfigError

DASHBOARD: Final = Address("127.0.0.1", 9886)
PACKAGES: Final = ("aiohttp", "prometheus_client")
"""What a dashboard needs beside Goreprox."""
_URL: Final = re.compile(
    r"(?P<scheme>https?)://(?P<host>[A-Za-z0-9._-]{1,253}|\[[0-9a-fA-F:.]{2,45}\])(:[0-9]{1,5})?/?"
)


@dataclass(frozen=True, slots=True)
class PageUrl:
    """Where browsers find the page."""

    origin: str
    """Scheme, host and port."""
    host: str
    secure: bool

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `https://HOST[:PORT]`.

        Raises:
            ConfigError: it is something else.
        """
        found = _URL.fullmatch(text)
        if found is None:
            raise ConfigError(f"url {text!r}: expected where browsers find the page, like https://tunnel.example.org")
        return cls(text.rstrip("/"), found["host"].strip("[]"), found["scheme"] == "https")


@dataclass(frozen=True, slots=True, kw_only=True)
class DashboardConfig:
    """A dashboard: where it responds, to whom, and whose processes it asks."""

    directory: Path
    """The runtime directory."""
    listen: Address = DASHBOARD
    token_file: Path | None = None
    """What has the token that clients must send; None: they need none."""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    url: PageUrl | None = None
    """Where browsers find the page, if a proxy in front or another name leads to it."""
    allow_actions: bool = False
    """Whether the page may change something."""
    of_role: bool = False
    """Whether a role has started it, with which it ends."""

    def __post_init__(self) -> None:
        check_exposed("listen", self.listen, "token-file", self.token_file)
        if (self.tls_cert is None) != (self.tls_key is None):
            option = "tls-cert" if self.tls_cert is None else "tls-key"
            raise ConfigError(f"{option}: it is missing; give the certificate by --tls-cert and its key by --tls-key")


def check_exposed(option: str, address: Address, token_option: str, token_file: Path | None) -> None:
    """Require a token where others than this machine can connect.

    Raises:
        ConfigError: there is none.
    """
    if token_file is None and not address.is_loopback:
        raise ConfigError(
            f"{option} {address}: other machines can connect there; name a file with a token by --{token_option}, or "
            f"choose an address like 127.0.0.1:{address.port}"
        )


def missing_packages() -> str:
    """Return the packages that a dashboard needs and that are not installed."""
    return " and ".join(each for each in PACKAGES if importlib.util.find_spec(each) is None)
