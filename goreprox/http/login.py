"""Cookies of browsers whose users have logged in with a token: a name, an expiry and a signature. Sans-IO.

The key of a signature follows from the hash of the token. So all processes with the same file of tokens accept a
cookie, after an upgrade, too; nothing is stored; and a cookie ends with its token. For the same reason all who can read
the file could sign cookies: it must be secret.
"""

import base64
import hmac
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from goreprox.http.messages import Fields
from goreprox.http.tokens import Token, Tokens

LOGIN_S: Final = 12 * 3600
"""How long a cookie is valid. Its browser then sends the password once more, or asks for it."""
MOST: Final = 4
"""Cookies of our name that are looked at, 5 us each: a site may set one for all sites below it, which get it beside
their own."""
_PLAIN: Final = b"goreprox"
_SECURE: Final = b"__Host-goreprox"
"""The prefix makes browsers accept it by TLS alone, from the very host that it is sent to (RFC 6265bis, 4.1.3.2)."""
_NAMES: Final = (_PLAIN, _SECURE)
_COOKIE: Final = b"cookie"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a cookie is valid."""

    host: bytes
    """As requests name it: with a port, in any case."""
    service: str
    secure: bool
    """Whether the client uses TLS."""

    @property
    def _name(self) -> bytes:
        return _SECURE if self.secure else _PLAIN

    def cookie(self, token: Token, *, now: float) -> bytes:
        """Return the value of Set-Cookie for one who has a token, at most as long as that is valid."""
        age = int(min(LOGIN_S, token.expires - now))
        expires = b"%d" % (now + age)
        value = b"%b.%b.%b" % (token.name.encode(), expires, self._signature(token.digest, expires))
        attributes = b"; Path=/; Max-Age=%d; HttpOnly; SameSite=Lax" % age
        return b"%b=%b%b%b" % (self._name, value, attributes, b"; Secure" if self.secure else b"")

    def holder(self, fields: Fields, tokens: Tokens, *, now: float) -> Token | None:
        """Return the token of the first valid cookie in `fields`, whose names are in lower case."""
        cookies = (cookie for name, value in fields if name == _COOKIE for cookie in _cookies(value))
        ours = [value for name, value in cookies if name == self._name][:MOST]
        return next((token for value in ours if (token := self._holder(value, tokens, now=now)) is not None), None)

    def _holder(self, value: bytes, tokens: Tokens, *, now: float) -> Token | None:
        name, expires, signature = ([b"", b"", *value.rsplit(b".", 2)])[-3:]
        token = tokens.named(name.decode("latin-1"))
        expected = self._signature(b"" if token is None else token.digest, expires)
        if not hmac.compare_digest(expected, signature) or token is None:  # names take the same time, known or not
            return None
        return token if now < min(int(expires), token.expires) else None

    def _signature(self, digest: bytes, expires: bytes) -> bytes:
        """Sign a cookie of the token with this hash. No part has a NUL, so each has one place in what is signed."""
        host = self.host.rpartition(b":")[0] if not self.host.endswith(b"]") and b":" in self.host else self.host
        signed = b"\0".join((b"login", self._name, host.lower(), self.service.encode(), expires))
        return base64.urlsafe_b64encode(hmac.digest(digest, signed, "sha256")).rstrip(b"=")


def without_cookies(fields: Fields) -> Fields:
    """Return fields without our cookies, which are for nobody else."""
    if not any(name.lower() == _COOKIE and any(each in value for each in _NAMES) for name, value in fields):
        return fields
    return list(_without_cookies(fields))


def _without_cookies(fields: Fields) -> Iterator[tuple[bytes, bytes]]:
    for name, value in fields:
        if name.lower() != _COOKIE:
            yield name, value
        elif kept := b";".join(part for part in value.split(b";") if _name_of(part) not in _NAMES).strip(b" \t"):
            yield name, kept


def _cookies(value: bytes) -> Iterable[tuple[bytes, bytes]]:
    """Yield names and values of a Cookie field."""
    return ((_name_of(part), part.partition(b"=")[2].strip(b" \t")) for part in value.split(b";"))


def _name_of(part: bytes) -> bytes:
    return part.partition(b"=")[0].strip(b" \t")
