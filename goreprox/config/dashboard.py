"""What a dashboard is told to do."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from goreprox.config.addresses import Address
from goreprox.errors import ConfigError

DASHBOARD: Final = Address("127.0.0.1", 9886)


@dataclass(frozen=True, slots=True, kw_only=True)
class DashboardConfig:
    """A dashboard: where it responds, to whom, and whose processes it asks."""

    directory: Path
    """The runtime directory."""
    listen: Address = DASHBOARD
    token_file: Path | None = None
    """What has the token that clients must send; None: they need none."""
    of_role: bool = False
    """Whether a role has started it, with which it ends."""

    def __post_init__(self) -> None:
        check_exposed("listen", self.listen, "token-file", self.token_file)


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
