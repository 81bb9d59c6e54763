"""Authentication of requests: the file of tokens, read again whenever it has changed; what is logged of failures."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from loguru import logger

from brokers import LimitedLog
from goreprox.errors import ConfigError, StartError
from goreprox.http.requests import Refused
from goreprox.http.tokens import Failures, Tokens
from goreprox.keys.files import Kind, read_file, signature

MAX_BYTES: Final = 1 << 20
"""1,000 tokens of 1 KiB each."""
_FILE: Final = Kind("a file of tokens", encoding="utf-8", most_bytes=MAX_BYTES)


class Auth:
    """Decides about requests by the header that names a token."""

    def __init__(self, path: Path, header: str, *, clock: Callable[[], float]) -> None:
        """Read the tokens of `path`, which requests bring in `header`.

        Raises:
            StartError: the file cannot be used; the message says why.
        """
        self.header = header.lower().encode()
        self._challenge = [(b"WWW-Authenticate", b'Token header="%b"' % header.encode())]
        self._path = path
        self._clock = clock
        self._failures = Failures()
        self._log = LimitedLog()
        self._seen: tuple[int, ...] | None = signature(path)
        try:
            self._tokens = read(path)
        except ConfigError as exc:
            raise StartError(str(exc)) from exc

    def admit(self, values: Sequence[bytes], service: str, client: str) -> str:
        """Return the name of the token that a request for `service` came with; `client` is an address.

        Raises:
            Refused: it has none, several, or one that is not known or not for this service.
        """
        now = self._clock()
        if self._failures.too_many(client, now=now):
            raise Refused(429, "too many requests without a valid token", [(b"Retry-After", b"20")])
        self._refresh()
        token = self._tokens.find(values[0], now=time.time()) if len(values) == 1 else None
        if token is None:
            self._failures.note(client, now=now)
            what = ("no token", "a token that is not known or has expired", "several tokens")[min(len(values), 2)]
            self._log.say("token_refused", f"client {client} asked for {service} with {what}", client=client)
            raise Refused(401, f"a valid token is required in {self.header.decode()}", self._challenge)
        if not token.valid_for(service):
            text = f"client {client} asked for {service} with the token {token.name}, which is not for it"
            self._log.say("token_refused", text, client=client, token=token.name)
            raise Refused(403, "the token is not for this service")
        return token.name

    def _refresh(self) -> None:
        """Read the file again if it has changed: to look costs a microsecond, so a revocation counts at once."""
        seen = signature(self._path)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._tokens = read(self._path)
        except ConfigError as exc:
            self._tokens = Tokens()  # rather nobody than somebody who was revoked
            logger.error("{}; until it is repaired no token is valid", exc)
        else:
            logger.info("auth-tokens {}: read again, {} tokens", self._path, len(self._tokens))


def read(path: Path) -> Tokens:
    """Read a file of tokens.

    Raises:
        ConfigError: it cannot be read, others may change it, or it is malformed.
    """
    return parsed(path)[0]


def parsed(path: Path) -> tuple[Tokens, str]:
    """Read a file of tokens; return its text, too.

    Raises:
        ConfigError: it cannot be read, others may change it, or it is malformed.
    """
    try:
        text = read_file(path, _FILE)
    except OSError as exc:
        advice = f"`goreprox token new NAME --auth-tokens {path}` makes it"
        raise ConfigError(f"auth-tokens {path}: {exc.strerror}; {advice}") from exc
    except StartError as exc:
        raise ConfigError(f"auth-tokens {exc}") from exc
    try:
        return Tokens.parse(text), text
    except ConfigError as exc:
        raise ConfigError(f"auth-tokens {path}: {exc}") from exc
