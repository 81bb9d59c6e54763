"""Join strings: all that a peer needs to know of its server, and its own secret, in one line to paste.

    goreprox://PAYLOAD@HOST:9887,[2001:db8::1]:9887

PAYLOAD is base64url (RFC 4648, section 5, without padding) of

    version (1 byte, 1), role (1 byte), secret key (32), number of server keys (1 byte), server keys (32 each),
    name (1 to 64 bytes), checksum (4 bytes)

The checksum (BLAKE2b) is over the version, the rest of the payload and the text of the addresses: so a line that was
cut off anywhere is told apart from one that is merely not authorised. It protects from accidents, not from people.
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
from goreprox.process.files import Kind

SCHEME: Final = "goreprox://"
VERSION: Final = 1
MAX_CHARS: Final = 65_536
"""64 addresses of 260 characters, and a payload far below 1,000, with room to spare."""
FILE: Final = Kind("the join string of a server", secret=True, sign=SCHEME, piped=True)
KEY_BYTES: Final = 32
CHECKSUM_BYTES: Final = 4
MAX_SERVER_KEYS: Final = 8
_HEAD_BYTES: Final = 3 + KEY_BYTES


@dataclass(frozen=True, slots=True)
class Join:
    """What a join string says. Its representation shows no secret; `text` is the secret."""

    role: Role
    name: str
    keys: KeyPair
    server_keys: tuple[bytes, ...]
    """Public keys that the server may have, in Z85: the present one, then the next."""
    addresses: tuple[Address, ...]

    @property
    def security(self) -> LinkSecurity:
        """What links need of it."""
        return LinkSecurity(self.keys, self.server_keys)

    def with_server_keys(self, keys: tuple[bytes, ...]) -> Self:
        """Return the same for a server with other keys."""
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
        """Read a join string. White space does not matter: it comes from lines that were wrapped as they were copied.

        Raises:
            ConfigError: it is none, is not whole, or is of another version. The message holds nothing of it.
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
        """Read what is whole, but may still have been made by somebody else than us."""
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
        return cls(role, name, keys, server_keys, tuple(Address.parse(a, PROVIDER_PORT) for a in addresses.split(",")))


def _checksum(body: bytes, addresses: str) -> bytes:
    return hashlib.blake2b(body + b"@" + addresses.encode(), digest_size=CHECKSUM_BYTES).digest()


def _damaged() -> ConfigError:
    return ConfigError(
        "join string: it is not whole, or was changed; copy all of its one line (--server gives other addresses)"
    )
