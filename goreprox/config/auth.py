"""Options of authentication: who may send HTTP requests."""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Self

from cyclopts import Parameter

from goreprox.config import units
from goreprox.config.addresses import Address, Listener, Scheme
from goreprox.config.checks import check_distinct
from goreprox.config.defaults import DEFAULT_AUTH_HEADER
from goreprox.config.options import GROUP, KEYS, File, several
from goreprox.errors import ConfigError

_FIELD_NAME: Final = re.compile(r"[A-Za-z0-9-]{1,64}")
_NO_AUTH_HEADERS: Final = ("host", "connection", "content-length", "transfer-encoding", "te", "upgrade", "expect")
"""Fields that mean something to every recipient cannot carry a token, too."""
_NOT_COPIED: Final = (
    *(*_NO_AUTH_HEADERS, "keep-alive", "proxy-connection", "trailer", "http2-settings", "cookie", "set-cookie"),
    *("via", "forwarded", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-client-cert"),
    *("x-forwarded-port", "x-real-ip"),
)
"""Nor can an authentication service say these to a target: they are of the connection, or of the client."""
_URL: Final = re.compile(r"(https?)://([^/?#@\s]+)(/[!-\"$-~]*)?")


@dataclass(frozen=True, slots=True)
class AuthUrl:
    """An authentication service, and the requests that it is asked about."""

    service: str | None
    """Those for this service; None: for all that have none of their own."""
    url: str
    tls: bool
    address: Address
    path: str
    """With its query, if it has one."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `[SERVICE=]URL`.

        Raises:
            ConfigError: the URL is malformed.
        """
        service, separator, url = ("", "", text) if text.startswith(("http://", "https://")) else text.partition("=")
        found = _URL.fullmatch(url)
        if found is None:
            raise ConfigError(f"auth-url {text!r}: write [SERVICE=]http://HOST[:PORT]/PATH, or https://")
        tls = found[1] == "https"
        address = Address.parse(found[2], 443 if tls else 80)
        if address.host is None or not address.port:
            raise ConfigError(f"auth-url {text!r}: the host or the port is missing; write http://HOST:PORT/PATH")
        return cls(service if separator else None, url, tls, address, found[3] or "/")

    @property
    def text(self) -> str:
        """How it is written."""
        return self.url if self.service is None else f"{self.service}={self.url}"


@GROUP
@dataclass(frozen=True, slots=True, kw_only=True)
class AuthConfig:
    """Options of the tokens that HTTP requests must carry, and of services that are asked whether to let them in."""

    file: Annotated[File, Parameter(name="--auth-tokens", group=KEYS)] = None
    """Require a token from this file with each HTTP request; `goreprox token new` makes them."""
    header: Annotated[str, Parameter(name="--auth-header", group=KEYS, metavar="NAME")] = DEFAULT_AUTH_HEADER
    """Expect the token in this HTTP header."""
    basic: Annotated[bool, Parameter(name="--auth-basic", group=KEYS)] = False
    """Let browsers ask for the token: accept it as the password of HTTP Basic, and then in a cookie for 12 hours."""
    exempt_ports: Annotated[
        tuple[int, ...], several(units.count, "PORT"), Parameter(name="--without-tokens", group=KEYS)
    ] = ()
    """Let clients of this tcp://, tls:// or sni:// port connect without a token or a login. May be repeated."""
    urls: Annotated[
        tuple[AuthUrl, ...], several(AuthUrl.parse, "[SERVICE=]URL"), Parameter(name="--auth-url", group=KEYS)
    ] = ()
    """Ask this authentication service about each HTTP request, or each for SERVICE: only its 2xx lets one in. May be
    repeated."""
    copied: Annotated[tuple[str, ...], several(str, "NAME"), Parameter(name="--auth-response-header", group=KEYS)] = ()
    """Tell targets this header of its response, and never one that a client has sent. May be repeated."""
    auth_ca: Annotated[File, Parameter(name="--auth-ca", group=KEYS)] = None
    """Trust these CAs for https:// in --auth-url; PEM, reread when it changes. [default: those of the system]"""

    def __post_init__(self) -> None:
        if not _FIELD_NAME.fullmatch(self.header) or self.header.lower() in _NO_AUTH_HEADERS:
            raise ConfigError(
                f"auth-header {self.header!r}: expected the name of a header field, like {DEFAULT_AUTH_HEADER}"
            )
        if self.basic and self.file is None:
            raise ConfigError("auth-basic: there are no --auth-tokens; `goreprox token new` makes them")
        for port in self.exempt_ports:
            if self.file is None and not self.urls:
                raise ConfigError(f"without-tokens {port}: there are no --auth-tokens that a port could be without")
        self._check_urls()

    def _check_urls(self) -> None:
        check_distinct("auth-url", [each.service or "for all services" for each in self.urls])
        check_distinct("auth-response-header", [name.lower() for name in self.copied])
        for name in self.copied:
            if not self.urls:
                raise ConfigError(f"auth-response-header {name}: there is no --auth-url whose response could have it")
            if not _FIELD_NAME.fullmatch(name) or name.lower() in _NOT_COPIED:
                raise ConfigError(
                    f"auth-response-header {name!r}: expected the name of a header field that says who the user is, "
                    "like X-Auth-Request-User"
                )
        if self.auth_ca is not None and not any(each.tls for each in self.urls):
            raise ConfigError("auth-ca: no --auth-url begins with https://; leave --auth-ca out")

    def check_services(self, known: Sequence[str]) -> None:
        """Require that clients can ask for each service that is named.

        Raises:
            ConfigError: one cannot.
        """
        for each in self.urls:
            if each.service is not None and each.service not in known:
                raise ConfigError(
                    f"auth-url {each.text}: no client can ask for that service; services are {', '.join(known)}"
                )

    def check(self, listeners: Sequence[Listener], services_of: Callable[[Listener], Collection[str]]) -> None:
        """Require that each listener can check requests, or that its port is exempt.

        `services_of` returns the services that clients can ask for at one.

        Raises:
            ConfigError: one cannot, or an exempt port does not exist.
        """
        raw = {listener.address.port: listener for listener in listeners if not listener.scheme.is_http}
        for port in self.exempt_ports:
            if port not in raw:
                raise ConfigError(f"without-tokens {port}: no tcp://, tls:// or sni:// listener has this port")
        for port, listener in raw.items():
            asked = any(each.service is None or each.service in services_of(listener) for each in self.urls)
            if (self.file is not None or asked) and port not in self.exempt_ports:
                web = Scheme.HTTP if listener.scheme is Scheme.TCP else Scheme.HTTPS
                option = "auth-url" if self.file is None else "auth-tokens"
                raise ConfigError(
                    f"{option}: listen {listener.address} passes bytes on unread and cannot check them; write "
                    f"{web.value}://{listener.address}, or --without-tokens {port} if its clients need none"
                )
