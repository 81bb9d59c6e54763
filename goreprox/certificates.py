"""What TLS clients are shown and must have: certificates from files, read again whenever these have changed.

Knows files and what OpenSSL says of them; neither sockets nor connections.
"""

import hashlib
import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from loguru import logger

from goreprox.config import Scheme
from goreprox.errors import ConfigError, StartError
from goreprox.keys.files import signature

_HTTP_ALPN: Final = ("http/1.1",)
"""What is offered to HTTP clients that ask (RFC 7301); HTTP/2 is not."""


class Certificates:
    """Gives each handshake its context. Connections keep theirs when the files change."""

    def __init__(self, cert: Path, key: Path, client_ca: Path | None, *, alpn: Sequence[str] = ()) -> None:
        """Read the certificate and its chain, its private key, and those who sign clients' certificates, if any.

        `alpn` are the protocols of targets behind `tls://` ports.

        Raises:
            StartError: a file cannot be used; the message says which and why.
        """
        self._cert, self._key, self._client_ca = cert, key, client_ca
        self._alpn = {Scheme.HTTPS: _HTTP_ALPN, Scheme.TLS: tuple(alpn)}
        self._seen = self._signature()
        try:
            self._contexts = self._read()
        except ConfigError as exc:
            raise StartError(str(exc)) from exc

    def context(self, scheme: Scheme) -> ssl.SSLContext:
        """Return the context for a handshake: with what the files hold now, or held when they were last sound."""
        seen = self._signature()  # to look costs microseconds
        if seen != self._seen:
            self._seen = seen
            try:
                self._contexts = self._read()
            except ConfigError as exc:
                logger.warning("{}; the certificate that was read before stays in use", exc)
            else:
                logger.info("tls-cert {}: read again", self._cert)
        return self._contexts[scheme]

    def _signature(self) -> list[tuple[int, ...] | None]:
        return [signature(path) for path in (self._cert, self._key, self._client_ca) if path is not None]

    def _read(self) -> dict[Scheme, ssl.SSLContext]:
        return {scheme: self._make(scheme) for scheme in Scheme if scheme.is_tls}

    def _make(self, scheme: Scheme) -> ssl.SSLContext:
        """Make a context: TLS 1.2 and up, the ciphers of Python's defaults, neither renegotiation nor compression.

        Raises:
            ConfigError: a file cannot be used.
        """
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        if protocols := self._alpn[scheme]:
            context.set_alpn_protocols(protocols)
        try:
            context.load_cert_chain(self._cert, self._key, password=self._no_password)
        except OSError as exc:
            raise self._objection(exc) from exc
        if self._client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            try:
                context.load_verify_locations(self._client_ca)
            except OSError as exc:
                _check_pem("tls-client-ca", self._client_ca, "CERTIFICATE-----")
                raise ConfigError(f"tls-client-ca {self._client_ca}: {reason(exc)}") from exc
        return context

    def _no_password(self) -> str:
        raise ConfigError(f"tls-key {self._key}: it has a passphrase; write it without one, readable for you alone")

    def _objection(self, exc: OSError) -> ConfigError:
        """Say what is wrong with certificate and key."""
        try:
            _check_pem("tls-cert", self._cert, "CERTIFICATE-----")
            _check_pem("tls-key", self._key, "PRIVATE KEY-----")
            if b"BEGIN OPENSSH PRIVATE KEY" in self._key.read_bytes():
                raise ConfigError(
                    f"tls-key {self._key}: it is a key for ssh; name the PEM private key of the certificate"
                )
        except ConfigError as found:
            return found
        if isinstance(exc, ssl.SSLError) and exc.reason == "KEY_VALUES_MISMATCH":
            return ConfigError(f"tls-key {self._key}: it is not the key of the certificate in {self._cert}")
        if isinstance(exc, ssl.SSLError) and exc.reason in ("PEM_LIB", None):  # OpenSSL says no more
            return ConfigError(f"tls-cert {self._cert} and tls-key {self._key}: one of them is damaged or no PEM file")
        return ConfigError(f"tls-cert {self._cert} and tls-key {self._key}: {reason(exc)}")


def _check_pem(option: str, path: Path, label: str) -> None:
    """Look for an object of a kind in a file (RFC 7468).

    Raises:
        ConfigError: it cannot be read, or there is none.
    """
    try:
        content = path.read_bytes()
    except OSError as exc:
        raise ConfigError(f"{option} {path}: {exc.strerror}; name a PEM file that this user may read") from exc
    if label.encode() not in content:
        raise ConfigError(f"{option} {path}: there is no {label.strip('-').lower()} in PEM form in it")


def reason(exc: OSError) -> str:
    """Return in words what OpenSSL, or the system, objects to."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"its certificate does not count: {exc.verify_message}"
    if isinstance(exc, ssl.SSLError) and exc.reason:
        return exc.reason.lower().replace("_", " ")
    return exc.strerror or str(exc)


@dataclass(frozen=True, slots=True)
class Identity:
    """What a certificate says of who has it."""

    name: str | None
    """The first alternative name, else the common name (RFC 9525)."""
    forwarded: bytes
    """For X-Forwarded-Client-Cert, in the form that Envoy has made common."""

    @classmethod
    def of(cls, certificate: object, der: bytes) -> Self:
        """Read what `getpeercert` gives, and hash the certificate itself."""
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
    """Quote what is not plain; control characters, which no field may hold, become spaces."""
    value = re.sub(r"[\x00-\x1f\x7f]", " ", value)
    plain = re.fullmatch(r"[A-Za-z0-9._:/@*-]*", value)
    return value if plain else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
