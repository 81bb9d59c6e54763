"""Proxies through which an edge or a provider reaches its brokers."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Final, NamedTuple, Self
from urllib.parse import unquote

from cyclopts import Parameter

from goreprox.config.addresses import Address, check_dialable
from goreprox.config.checks import check_distinct
from goreprox.config.defaults import MAX_ENDPOINTS, SAME_PORT
from goreprox.config.options import ADDRESSES, GROUP, KEYS, File, several
from goreprox.errors import ConfigError

MAX_CREDENTIAL_BYTES: Final = 255
"""RFC 1929, 2: each has a length of one byte."""


class ProxyScheme(enum.Enum):
    """How a proxy is asked."""

    SOCKS5 = "socks5"
    """RFC 1928, with addresses that are resolved here."""
    SOCKS5H = "socks5h"
    """The same, with names that the proxy resolves."""
    HTTP = "http"
    """CONNECT (RFC 9110, 9.3.6), with names that the proxy resolves."""


class Credentials(NamedTuple):
    """Who we are to a proxy."""

    user: str
    password: str


@dataclass(frozen=True, slots=True)
class ProxyUrl:
    """A proxy, and for which broker it is; None: for all that have none of their own."""

    scheme: ProxyScheme
    address: Address
    credentials: Credentials | None = field(default=None, repr=False)
    broker: Address | None = None
    """With `SAME_PORT` where no port is given: whatever it is."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `[BROKER=]SCHEME://[USER:PASSWORD@]HOST:PORT`; `%XX` stands for a character of user or password.

        Raises:
            ConfigError: it is malformed. The message shows neither user nor password.
        """
        head, separator, rest = text.partition("://")
        broker, _, scheme = head.rpartition("=")
        userinfo, at, where = rest.rpartition("@")
        known = [each.value for each in ProxyScheme]
        if not separator or scheme.lower() not in known:
            forms = " or ".join(f"{each}://HOST:PORT" for each in known)
            raise ConfigError(f"proxy: expected {forms}, after BROKER= if it is for one broker alone")
        try:
            address = Address.parse(where.removesuffix("/"))
            check_dialable(f"{scheme}://", address)
            of = Address.parse(broker, default_port=SAME_PORT) if broker else None
        except ConfigError as exc:
            raise ConfigError(f"proxy: {exc}") from exc
        return cls(ProxyScheme(scheme.lower()), address, _credentials(userinfo) if at else None, of)

    def __post_init__(self) -> None:
        if self.credentials is None:
            return
        for what, value in self.credentials._asdict().items():
            if len(value.encode()) > MAX_CREDENTIAL_BYTES:
                raise ConfigError(f"proxy {self}: its {what} is longer than {MAX_CREDENTIAL_BYTES} bytes")
        if not self.credentials.user:
            raise ConfigError(f"proxy {self}: the user is missing; write USER:PASSWORD@HOST:PORT")
        if self.scheme is ProxyScheme.HTTP and ":" in self.credentials.user:
            raise ConfigError(f"proxy {self}: a user of HTTP has no colon (RFC 7617, 2)")

    def is_for(self, broker: Address) -> bool:
        """Return whether it is for this broker, and not for all."""
        return self.broker is not None and (
            self.broker.host == broker.host and self.broker.port in (SAME_PORT, broker.port)
        )

    def __str__(self) -> str:
        """Return the URL without user and password."""
        return f"{self.scheme.value}://{self.address}"

    @property
    def text(self) -> str:
        """How it is written, but for user and password."""
        broker = "" if self.broker is None else f"{str(self.broker).removesuffix(f':{SAME_PORT}')}="
        secret = "" if self.credentials is None else "…@"
        return f"{broker}{self.scheme.value}://{secret}{self.address}"


def _credentials(userinfo: str) -> Credentials:
    user, _, password = userinfo.partition(":")
    try:
        return Credentials(unquote(user, errors="strict"), unquote(password, errors="strict"))
    except UnicodeDecodeError:
        raise ConfigError("proxy: user and password are not UTF-8 where they have %XX") from None


@GROUP
@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyConfig:
    """Options of roles that connect to brokers."""

    urls: Annotated[
        tuple[ProxyUrl, ...],
        several(ProxyUrl.parse, "[BROKER=]URL"),
        Parameter(name="--proxy", group=ADDRESSES),
    ] = ()
    """Connect through this proxy: socks5://, socks5h:// or http://[USER:PASSWORD@]HOST:PORT; to all brokers or servers,
    or to BROKER, one of them. May be repeated."""

    ca: Annotated[File, Parameter(name="--server-ca", group=KEYS)] = None
    """Trust these CAs for servers and brokers at tls:// and nats:// addresses; PEM, reread when it changes. [default:
    those of the system]"""
    nats_creds: Annotated[File, Parameter(name="--nats-creds", group=KEYS)] = None
    """Log in at nats:// addresses by this credentials file of their operator, instead of the key in the join string."""

    def of(self, broker: Address) -> ProxyUrl | None:
        """Return the proxy for a broker: its own, else the one for all; None if there is none."""
        return next(
            (each for each in self.urls if each.is_for(broker)),
            next((each for each in self.urls if each.broker is None), None),
        )

    def check(self, option: str, brokers: Sequence[Address]) -> None:
        """Require that CAs and each proxy are for one or all of the `brokers`, which `option` names.

        No two proxies may be for the same.

        Raises:
            ConfigError: one is not, or two are.
        """
        if self.ca is not None and not any(broker.has_certificate for broker in brokers):
            raise ConfigError(
                f"server-ca {self.ca}: there is no TLS with any {option}; write tls:// before its address, or leave "
                "--server-ca out"
            )
        if self.nats_creds is not None and not any(broker.nats for broker in brokers):
            raise ConfigError(f"nats-creds {self.nats_creds}: no {option} is a NATS server; leave --nats-creds out")
        for broker in brokers:
            if broker.nats and (url := self.of(broker)) is not None:
                raise ConfigError(
                    f"proxy {url.text}: there is none for NATS servers, like {broker}; name the {option} that it is "
                    "for, as in BROKER=URL"
                )
        if len(self.urls) > MAX_ENDPOINTS:
            raise ConfigError(f"proxy: expected at most {MAX_ENDPOINTS}, got {len(self.urls)}")
        check_distinct("proxy", ["for all" if each.broker is None else f"for {each.broker}" for each in self.urls])
        for each in self.urls:
            if each.broker is not None and not any(map(each.is_for, brokers)):
                raise ConfigError(
                    f"proxy {each.text}: there is no such {option}; there are {', '.join(map(str, brokers))}"
                )
