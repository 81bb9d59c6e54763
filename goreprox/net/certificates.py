"""Certificates for TLS, from files that are read again whenever they change."""

import contextlib
import datetime
import functools
import math
import os
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from loguru import logger

from brokers import LimitedLog
from goreprox.config.addresses import Scheme
from goreprox.errors import ConfigError, StartError
from goreprox.net import x509
from goreprox.net.client_hello import ClientHello
from goreprox.process.files import FileKind, opened
from goreprox.process.reloaded import Reloaded

LINK_ALPN: Final = "goreprox"
"""Of links: by it a port that they share with clients tells them apart."""
_HTTP_ALPN: Final = ("http/1.1", LINK_ALPN)
"""Offered to HTTP clients that ask (RFC 7301); HTTP/2 is not."""
ACME_TLS: Final = b"acme-tls/1"
"""The protocol of those who try an answer by TLS (RFC 8737, 3)."""
DAY_S: Final = 86_400.0
WARN_S: Final = 14 * DAY_S
"""How long before its expiry a certificate is warned of; one that is renewed earlier never is."""
WARN_AGAIN_S: Final = DAY_S
MAX_STORED: Final = 1024
"""Stored certificates that are kept in memory, those that were asked for last; each takes about 60 KiB."""
_LARGE: Final = 4 << 20
"""Bytes of ten bundles with all public authorities."""
_CERT: Final = FileKind("a certificate in PEM form", sign="CERTIFICATE-----", encoding="latin-1", most_bytes=_LARGE)
_CLIENT_CA: Final = _CERT
_KEY: Final = FileKind("a private key in PEM form", secret=True, sign="PRIVATE KEY-----", encoding="latin-1")


StoredFile = Callable[[str], Path | None]
"""Returns the file of a host that has, or may get, a certificate with its key there; None: no such host."""


class Certificates:
    """Has the context for each handshake: of the certificate for the name that the client asks for (RFC 6066, 3).

    A certificate with that name comes before one with a wildcard in place of its first label (RFC 9525, 6.3), and the
    first of all serves clients that ask for no name or for another one. Where there are none but stored ones, such
    clients are rejected.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[Path, Path]],
        client_ca: Path | None,
        *,
        alpn: Sequence[str] = (),
        stored: StoredFile | None = None,
    ) -> None:
        """Read each certificate with its chain and its private key, and those who sign clients' certificates, if any.

        `alpn` are the protocols of targets behind `tls://` ports. `stored` knows certificates besides.

        Raises:
            StartError: a file cannot be used; the message says which and why.
        """
        self.all = [Certificate(cert, key, client_ca, alpn=alpn) for cert, key in pairs]
        self._client_ca, self._alpn = client_ca, alpn
        self._default = self.all[0] if self.all else Certificate(None, None, client_ca, alpn=alpn)
        self._stored = stored
        self._read: OrderedDict[Path, Certificate] = OrderedDict()
        self._log = LimitedLog()

    def context(self, scheme: Scheme) -> ssl.SSLContext:
        """Return the context for a handshake, which takes that of another certificate once it knows the name."""
        context = self._default.context(scheme)
        if len(self.all) > 1 or self._stored is not None:
            context.sni_callback = functools.partial(self._asked, scheme)
        return context

    def _asked(self, scheme: Scheme, tls: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> int | None:
        """Choose the certificate; return the alert for a client for which there is none."""
        found = self._default if name is None else self.for_host(name)
        if found is self._default and not self.all:
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        tls.context = found.context(scheme)
        return None

    def for_host(self, host: str) -> "Certificate":
        """Return the certificate for a host name in ASCII form, or else the first."""
        return self.named(host) or self._default

    def named(self, host: str) -> "Certificate | None":
        """Return the certificate that has a host name in ASCII form, if there is one."""
        host = host.lower()
        for each in self.all:
            each.refresh()
        if (found := self._named(host)) is not None:
            return found
        if (stored := self._stored_for(host)) is not None:
            return stored
        return self._named(_wildcard(host))

    def covers(self, host: str) -> bool:
        """Return whether a certificate of an option is for a host or a pattern of hosts."""
        for each in self.all:
            each.refresh()
        return (self._named(host) or self._named(_wildcard(host))) is not None

    def _named(self, name: str) -> "Certificate | None":
        return next((each for each in self.all if name in each.names), None)

    def _stored_for(self, host: str) -> "Certificate | None":
        """Return the stored certificate of a host; one that cannot be read is none, until its file changes."""
        path = None if self._stored is None else self._stored(host)
        if path is None:
            return None
        found = self._read.pop(path, None)
        if found is None:
            if not path.exists():
                return None
            try:
                found = Certificate(path, path, self._client_ca, alpn=self._alpn, renews=True)
            except StartError as exc:
                self._log.say("certificate_unreadable", f"{exc}; remove it, and another one is asked for", host=host)
                return None
            if len(self._read) >= MAX_STORED:
                self._read.popitem(last=False)
        self._read[path] = found
        return found


class Proofs:
    """Has the contexts for clients that ask for the answer to a challenge of ACME (tls-alpn-01, RFC 8737)."""

    def __init__(self, file_of: Callable[[str], Path | None]) -> None:
        """Answer by the certificate in the file of a host, if it is there; it has its key with it."""
        self._file_of = file_of

    def context(self, hello: ClientHello) -> ssl.SSLContext | None:
        """Return the context for a client; None if it asks for something else, or there is no such challenge."""
        if hello.alpn != (ACME_TLS,) or hello.server_name is None:
            return None
        path = self._file_of(hello.server_name)
        if path is None:
            return None
        try:
            return Certificate(path, path, None, alpn=(ACME_TLS.decode(),), renews=True).context(Scheme.TLS)
        except StartError:
            return None


def _wildcard(host: str) -> str:
    return f"*.{host.partition('.')[2]}"


class Certificate:
    """Has the contexts of a certificate. Connections keep theirs when the files change."""

    def __init__(
        self,
        cert: Path | None,
        key: Path | None,
        client_ca: Path | None,
        *,
        alpn: Sequence[str] = (),
        renews: bool = False,
    ) -> None:
        """Read the files; parameters and errors are those of `Certificates`. None: there is no certificate.

        Of one that `renews` itself, only others say that it is about to expire.
        """
        self._cert, self._key, self._client_ca = cert, key, client_ca
        self._renews = renews
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
        """The file of the certificate, if there is one."""
        assert self._cert is not None
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
            client_ca = None
            if self._client_ca is not None:
                _, client_ca = files.enter_context(_opened("tls-client-ca", self._client_ca, _CLIENT_CA))
            contexts = {scheme: self._make(scheme, client_ca) for scheme in Scheme if scheme.is_tls}
            if self._cert is None or self._key is None:
                return contexts
            cert, chain = files.enter_context(_opened("tls-cert", self._cert, _CERT))
            key, text = files.enter_context(_opened("tls-key", self._key, _KEY))
            if "BEGIN OPENSSH PRIVATE KEY" in text:
                raise ConfigError(
                    f"tls-key {self._key}: it is a key for ssh; name the PEM private key of the certificate"
                )
            for context in contexts.values():
                self._load(context, cert, key)
        self._expires_at = x509.expiry(chain)
        self.names = x509.host_names(chain)
        self._warn_at = math.inf if self._renews else self._expires_at - WARN_S
        return contexts

    def _make(self, scheme: Scheme, client_ca: str | None) -> ssl.SSLContext:
        """Make a context without a certificate.

        TLS 1.2 and up, the ciphers of Python's defaults, neither renegotiation nor compression.

        Raises:
            ConfigError: a file cannot be used.
        """
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        if protocols := self._alpn[scheme]:
            context.set_alpn_protocols(protocols)
        if client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            _trust(context, f"tls-client-ca {self._client_ca}", client_ca)
        return context

    def _load(self, context: ssl.SSLContext, cert: int, key: int) -> None:
        """Give a context the certificate. By descriptors OpenSSL reads the files that were checked.

        Raises:
            ConfigError: a file cannot be used.
        """
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


def check_authorities(option: str, file: Path | None) -> None:
    """Require that a file has certificates of authorities, if one is given.

    Raises:
        StartError: it cannot be used.
    """
    if file is None:
        return
    try:
        with _opened(option, file, _CLIENT_CA) as (_, text):
            _trust(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), f"{option} {file}", text)
    except ConfigError as exc:
        raise StartError(str(exc)) from exc


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
    if isinstance(exc, ssl.SSLError) and exc.reason == "CALLBACK_FAILED":
        return "there is no certificate for the host that it asks for, or it asks for none"
    if isinstance(exc, ssl.SSLError) and exc.reason:
        return exc.reason.lower().replace("_", " ")
    return exc.strerror or str(exc)
