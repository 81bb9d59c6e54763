"""Named tokens, of which only hashes are kept, and the rate limit for failures. Sans-IO; `now` is an argument.

A token is 32 random bytes, so that its SHA-256 alone tells nothing and needs neither salt nor many rounds.
"""

import datetime
import hashlib
import hmac
import json
import re
import secrets
import tomllib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from goreprox.config.names import check_name
from goreprox.endpoint import client_network, ip_of
from goreprox.errors import ConfigError

MAX_TOKENS: Final = 1000
"""All are compared with each request: 0.2 ms."""
FAILURES: Final = 20
"""How often a client address may fail at once; after that, once a second."""
MAX_ADDRESSES: Final = 10_000
"""Addresses whose failures are counted, 200 bytes each; the one that failed least recently is forgotten first."""
_HASH: Final = re.compile(r"[0-9a-f]{64}")
_KEYS: Final = {"sha256", "services", "expires"}


@dataclass(frozen=True, slots=True)
class Token:
    """What is known of a token."""

    name: str
    digest: bytes
    services: frozenset[str] | None
    """The services that it is valid for; None: all."""
    expires: float
    """Seconds since 1970, exclusive."""

    def valid_for(self, service: str) -> bool:
        """Whether it is valid for a service."""
        return self.services is None or service in self.services


class Tokens:
    """All tokens of a file."""

    def __init__(self, tokens: Sequence[Token] = ()) -> None:
        self._tokens = tuple(tokens)
        self._by_name = {token.name: token for token in tokens}

    def __len__(self) -> int:
        return len(self._tokens)

    def __iter__(self) -> Iterator[Token]:
        return iter(self._tokens)

    @property
    def names(self) -> set[str]:
        """The names of all tokens, expired ones, too."""
        return set(self._by_name)

    def named(self, name: str) -> Token | None:
        """Return the token of a name, expired or not."""
        return self._by_name.get(name)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a file of tables `[tokens.NAME]`.

        Raises:
            ConfigError: it is none; the message names the token.
        """
        try:
            document = tomllib.loads(text)
        except ValueError as exc:
            raise ConfigError(f"{exc}; see docs/http.md for its form") from exc
        tables = document.pop("tokens", {})
        if document or not isinstance(tables, dict) or not all(isinstance(each, dict) for each in tables.values()):
            raise ConfigError("expected nothing but tables [tokens.NAME]")
        if len(tables) > MAX_TOKENS:
            raise ConfigError(f"expected at most {MAX_TOKENS} tokens, got {len(tables)}")
        return cls([_token(name, table) for name, table in tables.items()])

    def find(self, value: bytes, *, now: float) -> Token | None:
        """Return the token with this value, unless it has expired.

        Takes the same time whatever `value` is: all hashes are compared, each in constant time.
        """
        digest = hashlib.sha256(value).digest()
        found = None
        for token in self._tokens:
            if hmac.compare_digest(token.digest, digest):
                found = token
        return found if found is not None and now < found.expires else None


def _token(name: str, table: Mapping[str, Any]) -> Token:
    check_name("token", name)
    if unknown := set(table) - _KEYS:
        raise ConfigError(f"token {name}: {min(unknown)} is not known; expected {', '.join(sorted(_KEYS))}")
    digest, services, expires = table.get("sha256"), table.get("services"), table.get("expires")
    if not isinstance(digest, str) or not _HASH.fullmatch(digest):
        raise ConfigError(f"token {name}: expected sha256 = 64 hexadecimal digits; `goreprox token new` makes them")
    if services is not None:
        if not isinstance(services, list) or not all(isinstance(each, str) for each in services):
            raise ConfigError(f'token {name}: expected services = ["NAME", …]')
        for service in services:
            check_name("service", service)
    if expires is not None and not (isinstance(expires, datetime.datetime) and expires.tzinfo is not None):
        raise ConfigError(f"token {name}: expected expires = a time with its zone, like 2030-01-01T00:00:00Z")
    until = float("inf") if expires is None else expires.timestamp()
    return Token(name, bytes.fromhex(digest), None if services is None else frozenset(services), until)


def draw(name: str, services: Sequence[str] | None, expires: datetime.datetime | None) -> tuple[str, str]:
    """Make a token; return its value, and its table for the file."""
    value = secrets.token_urlsafe(32)
    lines = [f'[tokens."{name}"]', f'sha256 = "{hashlib.sha256(value.encode()).hexdigest()}"']
    if services is not None:
        lines.append(f"services = {json.dumps(list(services))}")
    if expires is not None:
        lines.append(f"expires = {expires.isoformat(timespec='seconds')}")
    return value, "\n".join(lines) + "\n"


class Failures:
    """Counts failures of client addresses (IPv6: of each /64), in a leaky bucket each that loses one a second."""

    def __init__(self) -> None:
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def _level(self, key: str, now: float) -> float:
        level, at = self._levels.get(key, (0.0, now))
        return max(0.0, level - (now - at))

    def too_many(self, address: str, *, now: float) -> bool:
        """Whether an address is rate-limited."""
        return bool(self._levels) and self._level(client_network(ip_of(address)), now) > FAILURES - 1

    def note(self, address: str, *, now: float) -> None:
        """Count a failure."""
        key = client_network(ip_of(address))
        self._levels[key] = (self._level(key, now) + 1, now)
        self._levels.move_to_end(key)
        if len(self._levels) > MAX_ADDRESSES:
            self._levels.popitem(last=False)
