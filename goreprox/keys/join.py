"""Join strings: the addresses and keys of a server and the secret key of one peer, in one line to paste.

    goreprox://PAYLOAD@HOST:9887,[2001:db8::1]:9887

PAYLOAD is base64url (RFC 4648, section 5, without padding) of

    version (1 byte, 1), role (1 byte), secret key (32), number of server keys (1 byte), server keys (32 each),
    name (1 to 64 bytes), checksum (4 bytes)

The checksum (BLAKE2b) covers the rest of the payload and the text of the addresses, so that a line that was cut off is
told apart from one that is not authorised. It detects accidents, not attacks.
"""

import base64
import binascii
import hashlib
from dataclasses import dataclass, replace
from typing import Final, Self

from zmq.utils import z85

from brokers import KeyPair, LinkSecurity, Role
from goreprox.config.addresses import Address
from goreprox.config.defaults import MAX_ENDPOINTS, PROVIDER_PORT
from goreprox.config.names import check_name
from goreprox.errors import ConfigError
from goreprox.process.files import FileKind

SCHEME: Final = "goreprox://"
VERSION: Final = 1
MAX_CHARS: Final = 65_536
"""64 addresses of 260 characters, and a payload of less than 1,000; the rest is margin."""
FILE: Final = FileKind("the join string of a server", secret=True, sign=SCHEME, piped=True)
KEY_BYTES: Final = 32
CHECKSUM_BYTES: Final = 4
MAX_SERVER_KEYS: Final = 8
_HEAD_BYTES: Final = 3 + KEY_BYTES


@dataclass(frozen=True, slots=True)
class Join:
    """The content of a join string. Its `repr` shows no secret; its `text` is secret."""

    role: Role
    name: str
    keys: KeyPair
    server_keys: tuple[bytes, ...]
    """Public keys of the server in Z85: the present one, then the next."""
    addresses: tuple[Address, ...]

    @property
    def security(self) -> LinkSecurity:
        """The keys for links."""
        return LinkSecurity(self.keys, self.server_keys)

    def with_server_keys(self, keys: tuple[bytes, ...]) -> Self:
        """Return a copy with other server keys."""
        return replace(self, server_keys=keys)

    @property
    def text(self) -> str:
        """The join string."""
        addresses = ",".join(map(str, self.addresses))
        body = b"".join(
            (
                bytes([VERSION]),
                self.role.value,
                z85.decode(self.keys.secret),
                bytes([len(self.server_keys)]),
                *map(z85.decode, self.server_keys),
                self.name.encode(),
            )
        )
        payload = base64.urlsafe_b64encode(body + _checksum(body, addresses)).rstrip(b"=")
        return f"{SCHEME}{payload.decode()}@{addresses}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a join string, ignoring white space, which comes from lines that were wrapped when copied.

        Raises:
            ConfigError: it is malformed, truncated, or of another version. The message contains nothing of it.
        """
        text = "".join(text.split())
        if not text.startswith(SCHEME) or len(text) > MAX_CHARS:
            raise ConfigError(f"join string: expected {SCHEME}…@HOST:PORT; `goreprox keys add NAME` makes one")
        encoded, _, addresses = text.removeprefix(SCHEME).partition("@")
        try:
            payload = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise _damaged() from None
        if payload[:1] and payload[0] != VERSION:
            raise ConfigError(f"join string: it is of version {payload[0]}, expected {VERSION}; upgrade the older side")
        body, checksum = payload[:-CHECKSUM_BYTES], payload[-CHECKSUM_BYTES:]
        if len(body) <= _HEAD_BYTES or checksum != _checksum(body, addresses):
            raise _damaged()
        return cls._read(body, addresses)

    @classmethod
    def _read(cls, body: bytes, addresses: str) -> Self:
        """Read a payload whose checksum is right, though another program may have made it."""
        count = body[_HEAD_BYTES - 1]
        rest = body[_HEAD_BYTES:]
        if not 1 <= count <= MAX_SERVER_KEYS or len(rest) <= count * KEY_BYTES or addresses.count(",") >= MAX_ENDPOINTS:
            raise _damaged()
        server_keys = tuple(z85.encode(rest[i * KEY_BYTES : (i + 1) * KEY_BYTES]) for i in range(count))
        try:
            role = Role(body[1:2])
            name = rest[count * KEY_BYTES :].decode("ascii")
            keys = KeyPair.from_secret(z85.encode(body[2 : 2 + KEY_BYTES]))
        except ValueError:
            raise _damaged() from None
        check_name("name in the join string", name)
        return cls(
            role, name, keys, server_keys, tuple(Address.parse_remote(a, PROVIDER_PORT) for a in addresses.split(","))
        )


def _checksum(body: bytes, addresses: str) -> bytes:
    return hashlib.blake2b(body + b"@" + addresses.encode(), digest_size=CHECKSUM_BYTES).digest()


def _damaged() -> ConfigError:
    return ConfigError(
        "join string: it is not whole, or was changed; copy all of its one line (--server gives other addresses)"
    )
