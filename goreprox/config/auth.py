"""Options of authentication: who may send HTTP requests."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final

from cyclopts import Parameter

from goreprox.config import units
from goreprox.config.addresses import Listener, Scheme
from goreprox.config.defaults import DEFAULT_AUTH_HEADER
from goreprox.config.options import GROUP, KEYS, File, several
from goreprox.errors import ConfigError

_FIELD_NAME: Final = re.compile(r"[A-Za-z0-9-]{1,64}")
_NO_AUTH_HEADERS: Final = ("host", "connection", "content-length", "transfer-encoding", "te", "upgrade", "expect")
"""Fields that mean something to every recipient cannot carry a token, too."""


@GROUP
@dataclass(frozen=True, slots=True, kw_only=True)
class AuthConfig:
    """Options of the tokens that HTTP requests must carry, and of the browsers of those who have one."""

    file: Annotated[File, Parameter(name="--auth-tokens", group=KEYS)] = None
    """Require a token from this file with each HTTP request; `goreprox token new` makes them."""
    header: Annotated[str, Parameter(name="--auth-header", group=KEYS, metavar="NAME")] = DEFAULT_AUTH_HEADER
    """Expect the token in this HTTP header."""
    basic: Annotated[bool, Parameter(name="--auth-basic", group=KEYS)] = False
    """Let browsers ask for the token: accept it as the password of HTTP Basic, and then in a cookie for 12 hours."""
    exempt_ports: Annotated[
        tuple[int, ...], several(units.count, "PORT"), Parameter(name="--without-tokens", group=KEYS)
    ] = ()
    """Let clients of this tcp://, tls:// or sni:// port connect without a token. May be repeated."""

    def __post_init__(self) -> None:
        if not _FIELD_NAME.fullmatch(self.header) or self.header.lower() in _NO_AUTH_HEADERS:
            raise ConfigError(
                f"auth-header {self.header!r}: expected the name of a header field, like {DEFAULT_AUTH_HEADER}"
            )
        if self.basic and self.file is None:
            raise ConfigError("auth-basic: there are no --auth-tokens; `goreprox token new` makes them")
        for port in self.exempt_ports:
            if self.file is None:
                raise ConfigError(f"without-tokens {port}: there are no --auth-tokens that a port could be without")

    def check(self, listeners: Sequence[Listener]) -> None:
        """Require that each listener can check tokens, or that its port is exempt.

        Raises:
            ConfigError: one cannot, or an exempt port does not exist.
        """
        raw = {listener.address.port: listener for listener in listeners if not listener.scheme.is_http}
        for port in self.exempt_ports:
            if port not in raw:
                raise ConfigError(f"without-tokens {port}: no tcp://, tls:// or sni:// listener has this port")
        for port, listener in raw.items():
            if self.file is not None and port not in self.exempt_ports:
                web = Scheme.HTTP if listener.scheme is Scheme.TCP else Scheme.HTTPS
                raise ConfigError(
                    f"auth-tokens: listen {listener.address} passes bytes on unread and cannot check them; write "
                    f"{web.value}://{listener.address}, or --without-tokens {port} if its clients need none"
                )
