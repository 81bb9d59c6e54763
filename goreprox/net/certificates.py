"""Certificates for TLS, from files that are read again whenever they change."""

import contextlib
import datetime
import functools
import hashlib
import math
import os
import re
import ssl
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from loguru import logger

from brokers import LimitedLog
from goreprox.config.addresses import Scheme
from goreprox.errors import ConfigError, StartError
from goreprox.net import x509
from goreprox.process.files import FileKind, opened
from goreprox.process.reloaded import Reloaded

LINK_ALPN: Final = "goreprox"
"""Of links: by it a port that they share with clients tells them apart."""
_HTTP_ALPN: Final = ("http/1.1", LINK_ALPN)
"""Offered to HTTP clients that ask (RFC 7301); HTTP/2 is not."""
DAY_S: Final = 86_400.0
WARN_S: Final = 14 * DAY_S
"""How long before its expiry a certificate is warned of; one that is renewed earlier never is."""
WARN_AGAIN_S: Final = DAY_S
_LARGE: Final = 4 << 20
"""Bytes of ten bundles with all public authorities."""
_CERT: Final = FileKind("a certificate in PEM form", sign="CERTIFICATE-----", encoding="latin-1", most_bytes=_LARGE)
_CLIENT_CA: Final = _CERT
_KEY: Final = FileKind("a private key in PEM form", secret=True, sign="PRIVATE KEY-----", encoding="latin-1")


class Certificates:
    """Has the context for each handshake: of the certificate for the name that the client asks for (RFC 6066, 3).

    A certificate with that name comes before one with a wildcard in place of its first label (RFC 9525, 6.3), and the
    first of all serves clients that ask for no name or for another one.
    """

    def __init__(self, pairs: Sequence[tuple[Path, Path]], client_ca: Path | None, *, alpn: Sequence[str] = ()) -> None:
        """Read each certificate with its chain and its private key, and those who sign clients' certificates, if any.

        `alpn` are the protocols of targets behind `tls://` ports.

        Raises:
            StartError: a file cannot be used; the message says which and why.
        """
        self.all = [Certificate(cert, key, client_ca, alpn=alpn) for cert, key in pairs]

    def context(self, scheme: Scheme) -> ssl.SSLContext:
        """Return the context for a handshake, which takes that of another certificate once it knows the name."""
        context = self.all[0].context(scheme)
        if len(self.all) > 1:
            context.sni_callback = functools.partial(self._asked, scheme)
        return context

    def _asked(self, scheme: Scheme, tls: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        if name is not None:
            tls.context = self.for_host(name).context(scheme)

    def for_host(self, host: str) -> "Certificate":
        """Return the certificate for a host name in ASCII form, or else the first."""
        return self.named(host) or self.all[0]

    def named(self, host: str) -> "Certificate | None":
        """Return the certificate that has a host name in ASCII form, if there is one."""
        host = host.lower()
        wildcard = f"*.{host.partition('.')[2]}"
        for each in self.all:
            each.refresh()
        found = (each for name in (host, wildcard) for each in self.all if name in each.names)
        return next(found, None)


class Certificate:
    """Has the contexts of a certificate. Connections keep theirs when the files change."""

    def __init__(self, cert: Path, key: Path, client_ca: Path | None, *, alpn: Sequence[str] = ()) -> None:
        """Read the files; parameters and errors are those of `Certificates`."""
        self._cert, self._key, self._client_ca = cert, key, client_ca
        self._alpn = {Scheme.HTTPS: _HTTP_ALPN, Scheme.TLS: tuple(alpn)}
        self._expires_at = self._warn_at = math.inf
        """When the certificate expires, and when to warn of that; seconds since 1970."""
        self.names: frozenset[str] = frozenset()
        """Host names that it is for, in lower case; `*.` begins one with a wildcard."""
        self._log = LimitedLog()
        files = [path for path in (cert, key, client_ca) if path is not None]
        self._contexts = Reloaded[dict[Scheme, ssl.SSLContext]](lambda: files, lambda _: self._read(), {})
        try:
            self._contexts.refresh()
        except ConfigError as exc:
            raise StartError(str(exc)) from exc
        self._look_at_expiry()

    def context(self, scheme: Scheme) -> ssl.SSLContext:
        """Return the context for a handshake, of the files as they are now or, if they cannot be used, were last."""
        self.refresh()
        return self._contexts.value[scheme]

    def refresh(self) -> None:
        """Read the files if they have changed, and warn of the expiry."""
        try:
            if self._contexts.refresh():
                logger.bind(event="certificate_read").info("tls-cert {}: read again", self._cert)
        except ConfigError as exc:
            self._log.say("certificate_kept", f"{exc}; the certificate that was read before stays in use")
        self._look_at_expiry()

    @property
    def file(self) -> Path:
        """The file of the certificate."""
        return self._cert

    def expires_at(self) -> float:
        """Return when the certificate expires that the next handshake uses, in seconds since 1970."""
        self.refresh()
        return self._expires_at

    def _look_at_expiry(self) -> None:
        if time.time() >= self._warn_at:
            self._warn()

    def _read(self) -> dict[Scheme, ssl.SSLContext]:
        """Make the contexts of the files as they are.

        Raises:
            ConfigError: a file cannot be used.
        """
        with contextlib.ExitStack() as files:
            cert, chain = files.enter_context(_opened("tls-cert", self._cert, _CERT))
            key, text = files.enter_context(_opened("tls-key", self._key, _KEY))
            if "BEGIN OPENSSH PRIVATE KEY" in text:
                raise ConfigError(
                    f"tls-key {self._key}: it is a key for ssh; name the PEM private key of the certificate"
                )
            client_ca = None
            if self._client_ca is not None:
                _, client_ca = files.enter_context(_opened("tls-client-ca", self._client_ca, _CLIENT_CA))
            contexts = {scheme: self._make(scheme, cert, key, client_ca) for scheme in Scheme if scheme.is_tls}
        self._expires_at = x509.expiry(chain)
        self.names = x509.host_names(chain)
        self._warn_at = self._expires_at - WARN_S
        return contexts

    def _make(self, scheme: Scheme, cert: int, key: int, client_ca: str | None) -> ssl.SSLContext:
        """Make a context: TLS 1.2 and up, the ciphers of Python's defaults, neither renegotiation nor compression.

        `cert` and `key` are descriptors, so that OpenSSL reads the files that were checked.

        Raises:
            ConfigError: a file cannot be used.
        """
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        if protocols := self._alpn[scheme]:
            context.set_alpn_protocols(protocols)
        for descriptor in (cert, key):
            os.lseek(descriptor, 0, os.SEEK_SET)  # on some systems opening it by its number shares the offset
        try:
            context.load_cert_chain(f"/dev/fd/{cert}", f"/dev/fd/{key}", password=self._no_password)
        except OSError as exc:
            if isinstance(exc, ssl.SSLError) and exc.reason == "KEY_VALUES_MISMATCH":
                raise ConfigError(f"tls-key {self._key}: it is not the key of the certificate in {self._cert}") from exc
            damaged = isinstance(exc, ssl.SSLError) and exc.reason in ("PEM_LIB", None)  # OpenSSL says no more
            why = "one of them is damaged" if damaged else reason(exc)
            raise ConfigError(f"tls-cert {self._cert} and tls-key {self._key}: {why}") from exc
        if client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            _trust(context, f"tls-client-ca {self._client_ca}", client_ca)
        return context

    def _no_password(self) -> str:
        raise ConfigError(f"tls-key {self._key}: it has a passphrase; write it without one, readable for you alone")

    def _warn(self) -> None:
        """Warn that the certificate has expired, or when it will."""
        self._warn_at = time.time() + WARN_AGAIN_S
        date = datetime.datetime.fromtimestamp(self._expires_at, datetime.UTC).isoformat(" ", "minutes")
        if self._expires_at <= time.time():
            text = f"tls-cert {self._cert}: it expired at {date}: clients refuse it; put a new one in its place"
        else:
            text = f"tls-cert {self._cert}: it expires at {date}; put a new one in its place before"
        logger.bind(event="certificate_expiry", expires=date).warning("{}", text)


def target_context(ca: Path | None, *, insecure: bool, option: str = "target-ca") -> ssl.SSLContext:
    """Make a context for targets that speak TLS, whose certificates are signed by those in `ca` (None: the system's).

    If `insecure`, any certificate does. `option` names the file.

    Raises:
        ConfigError: the file cannot be used.
    """
    context = _client_context(option, ca)
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def link_context(ca: Path | None) -> ssl.SSLContext:
    """Make a context for brokers, whose certificates are signed by those in `ca` (None: the system's).

    Raises:
        ConfigError: the file cannot be used.
    """
    context = _client_context("server-ca", ca)
    context.set_alpn_protocols([LINK_ALPN])
    return context


def _client_context(option: str, ca: Path | None) -> ssl.SSLContext:
    if ca is None:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
    else:
        with _opened(option, ca, _CLIENT_CA) as (_, text):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            _trust(context, f"{option} {ca}", text)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    return context


def _trust(context: ssl.SSLContext, what: str, pem: str) -> None:
    try:
        context.load_verify_locations(cadata="\n".join(x509.blocks(pem)))
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{what}: {reason(exc) if isinstance(exc, OSError) else exc}") from exc


@contextlib.contextmanager
def _opened(option: str, path: Path, kind: FileKind) -> Iterator[tuple[int, str]]:
    """Keep a file open; yield its descriptor and its text.

    Raises:
        ConfigError: it cannot be used.
    """
    with contextlib.ExitStack() as stack:
        try:
            found = stack.enter_context(opened(path, kind))
        except OSError as exc:
            raise ConfigError(f"{option} {path}: {exc.strerror}; name a PEM file that this user may read") from exc
        except StartError as exc:
            raise ConfigError(f"{option} {exc}") from exc
        yield found


def reason(exc: OSError) -> str:
    """Describe an error of OpenSSL or of the system."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"its certificate does not count: {exc.verify_message}"
    if isinstance(exc, ssl.SSLError) and exc.reason:
        return exc.reason.lower().replace("_", " ")
    return exc.strerror or str(exc)


@dataclass(frozen=True, slots=True)
class Identity:
    """What a certificate says about its owner."""

    name: str | None
    """The first alternative name, else the common name (RFC 9525)."""
    forwarded: bytes
    """For X-Forwarded-Client-Cert, in the form of Envoy."""

    @classmethod
    def of(cls, certificate: object, der: bytes) -> Self:
        """Read what `getpeercert` returns, and hash the certificate itself."""
        parts, name = [f"Hash={hashlib.sha256(der).hexdigest()}"], None
        match certificate:
            case {"subject": subject}:
                pairs = [pair for part in subject for pair in part]
                name = next((value for kind, value in pairs if kind == "commonName"), None)
                parts.append(
                    f"Subject={_quoted(','.join(f'{_SHORT.get(kind, kind)}={value}' for kind, value in pairs))}"
                )
        match certificate:
            case {"subjectAltName": ((_, str(name)), *_) as names}:
                parts += [f"{kind}={_quoted(value)}" for kind, value in names if kind in ("URI", "DNS")]
        return cls(name, ";".join(parts).encode("ascii", "backslashreplace"))


_SHORT: Final = {"commonName": "CN", "organizationName": "O", "organizationalUnitName": "OU", "countryName": "C"}
"""RFC 4514, 3."""


def _quoted(value: str) -> str:
    """Quote a value unless it is plain; control characters, which no field may hold, become spaces."""
    value = re.sub(r"[\x00-\x1f\x7f]", " ", value)
    plain = re.fullmatch(r"[A-Za-z0-9._:/@*-]*", value)
    return value if plain else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
