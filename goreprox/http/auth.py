"""Authentication of requests by tokens, whose file is read again whenever it changes; failures are logged."""

import base64
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from loguru import logger

from brokers import LimitedLog
from goreprox.errors import ConfigError, StartError
from goreprox.http.exchange import Admitted
from goreprox.http.login import Place
from goreprox.http.messages import Fields
from goreprox.http.requests import Rejected
from goreprox.http.tokens import Failures, Tokens
from goreprox.process.files import FileKind, read_file
from goreprox.process.reloaded import Reloaded

MAX_BYTES: Final = 1 << 20
"""1,000 tokens of 1 KiB each."""
_FILE: Final = FileKind("a file of tokens", encoding="utf-8", most_bytes=MAX_BYTES)
_SECRET_FILE: Final = replace(_FILE, secret=True)
_AUTHORIZATION: Final = b"authorization"
"""The field that may carry a token in place of ours, which programs and browsers support."""


class Auth:
    """Accepts requests with a valid token."""

    def __init__(self, path: Path, header: str, *, basic: bool = False, clock: Callable[[], float]) -> None:
        """Read the tokens of `path`, which requests carry in `header`.

        With `basic` browsers ask for them; then the file must be secret, since cookies are signed by what is in it.

        Raises:
            StartError: the file cannot be used; the message says why.
        """
        self.header = header.lower().encode()
        self._challenge = [(b"WWW-Authenticate", b'Token header="%b"' % header.encode())]
        if basic:
            self._challenge.append((b"WWW-Authenticate", b'Basic realm="goreprox", charset="UTF-8"'))
        self._basic = basic
        self._path = path
        self._tokens = Reloaded(lambda: [path], lambda _: read(path, secret=basic), Tokens())
        self._clock = clock
        self._failures = Failures()
        self._log = LimitedLog()
        try:
            self._tokens.refresh()
        except ConfigError as exc:
            raise StartError(str(exc)) from exc

    def admit(self, fields: Fields, place: Place, service: str | None, client: str) -> Admitted:
        """Return the name of the token of a request for `service`, and what of the request is only for us.

        `fields` have names in lower case, `client` is an address. Without a service any token does. One that is valid
        is never made to wait, however often others have failed at this address: nobody guesses 256 bits.

        Raises:
            Rejected: it has none, several, or one that is not known or not for this service.
        """
        self._refresh()
        now, tokens = time.time(), self._tokens.value
        brought_by = self.header
        values = [value for name, value in fields if name == self.header]
        secrets = [self._secret(value) or value for value in values]
        if not values:
            brought_by = _AUTHORIZATION
            values = [value for name, value in fields if name == brought_by]
            secrets = [secret for value in values if (secret := self._secret(value))]
        token = tokens.find(secrets[0], now=now) if len(secrets) == 1 else None
        new_cookie = token is not None and _is_basic(values[0])
        if self._basic and brought_by == _AUTHORIZATION and len(secrets) < 2:
            holder = place.holder(fields, tokens, now=now)
            if token is None and holder is not None:
                token, brought_by = holder, b""  # what Authorization has is the target's
            new_cookie = new_cookie and holder is not token
        if token is None:
            raise self._refusal(len(secrets), service, client)
        if service is not None and not token.valid_for(service):
            text = f"client {client} asked for {service} with the token {token.name}, which is not valid for it"
            self._log.say("token_refused", text, client=client, token=token.name)
            raise Rejected(403, "the token is not valid for this service")
        return Admitted(token.name, brought_by, place.cookie(token, now=now) if new_cookie else b"")

    def _refusal(self, secrets: int, service: str | None, client: str) -> Rejected:
        """Count and log that a request has no valid token, but this many in the place where one is expected."""
        now = self._clock()
        if self._failures.too_many(client, now=now):
            return Rejected(429, "too many requests without a valid token", [(b"Retry-After", b"20")])
        self._failures.note(client, now=now)
        what = ("no token", "an unknown or expired token", "several tokens")[min(secrets, 2)]
        asked = f"client {client} asked for {service or 'an unknown host'}"
        self._log.say("token_refused", f"{asked} with {what}", client=client)
        return Rejected(401, f"a valid token is required in {self.header.decode()}", self._challenge)

    def _secret(self, value: bytes) -> bytes | None:
        """Return the token of Bearer (RFC 6750) or Basic (RFC 7617: as the password), if it is either."""
        scheme, _, rest = value.partition(b" ")
        if scheme.lower() == b"bearer":
            return rest.strip()
        if self._basic and _is_basic(value):
            try:
                return base64.b64decode(rest.strip(), validate=True).partition(b":")[2]
            except ValueError:
                return None
        return None

    def _refresh(self) -> None:
        """Read the file again if it has changed, so that a revocation counts at once."""
        try:
            if self._tokens.refresh():
                text = "auth-tokens {}: read again, {} tokens"
                logger.bind(event="tokens_read").info(text, self._path, len(self._tokens.value))
        except ConfigError as exc:
            self._tokens.value = Tokens()  # fail closed: a revoked token must not come back
            self._log.say("tokens_unreadable", f"{exc}; until it is repaired no token is valid", "ERROR")


def _is_basic(value: bytes) -> bool:
    return value[:6].lower() == b"basic "


def read(path: Path, *, secret: bool = False) -> Tokens:
    """Read a file of tokens; with `secret`, one that others must not read.

    Raises:
        ConfigError: it cannot be read, others may change or read it, or it is malformed.
    """
    return parsed(path, secret=secret)[0]


def parsed(path: Path, *, secret: bool = False) -> tuple[Tokens, str]:
    """Read a file of tokens; return its text, too.

    Raises:
        ConfigError: it cannot be read, others may change or read it, or it is malformed.
    """
    try:
        text = read_file(path, _SECRET_FILE if secret else _FILE)
    except OSError as exc:
        advice = f"`goreprox token new NAME --auth-tokens {path}` makes it"
        raise ConfigError(f"auth-tokens {path}: {exc.strerror}; {advice}") from exc
    except StartError as exc:
        raise ConfigError(f"auth-tokens {exc}") from exc
    try:
        return Tokens.parse(text), text
    except ConfigError as exc:
        raise ConfigError(f"auth-tokens {path}: {exc}") from exc
