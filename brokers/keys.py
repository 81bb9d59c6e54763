"""Keys of brokers and peers, and who decides about them.

Keys are Z85 texts of 40 bytes, as libzmq takes them (zmq_curve(7)).
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

import zmq
from zmq.utils import z85

from brokers.peers import Role

KEY_CHARS: Final = 40
"""32 bytes in Z85."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A public key and its secret, which no representation shows."""

    public: bytes
    secret: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> "KeyPair":
        """Generate a new pair at random."""
        return cls(*zmq.curve_keypair())

    @classmethod
    def from_secret(cls, secret: bytes) -> "KeyPair":
        """Return the pair with this secret.

        Raises:
            ValueError: it is not a secret key. The message does not quote it.
        """
        if not is_key(secret):
            raise ValueError("not a secret key")
        return cls(zmq.curve_public(secret), secret)


@dataclass(frozen=True, slots=True)
class Grant:
    """What a key is for: peers of one role and name, any number of them."""

    role: Role
    name: str


class Authority(Protocol):
    """Knows which keys are authorised at the moment. Called from the event loop; must neither block nor raise."""

    def grant(self, public_key: bytes) -> Grant | None:
        """Return what the key is for; None if it is unknown or revoked."""

    def objection(self, public_key: bytes, attributes: Mapping[str, object]) -> str | None:
        """Return why a peer with this key may not announce these attributes, or None if it may."""

    def certified(self, public_key: bytes, attributes: Mapping[str, object]) -> Mapping[str, object]:
        """Return what others are told: the attributes that a peer announces, with what its key says instead of it."""


@dataclass(frozen=True, slots=True)
class BrokerSecurity:
    """A broker's own keys, and who decides about those of peers."""

    keys: KeyPair
    authority: Authority


@dataclass(frozen=True, slots=True)
class LinkSecurity:
    """A link's own keys, and the broker's public keys: the present one and, for a rotation, the next ones."""

    keys: KeyPair
    brokers: tuple[bytes, ...]


def is_key(text: bytes) -> bool:
    """Whether this is a key in Z85."""
    try:
        return len(text) == KEY_CHARS and len(z85.decode(text)) == KEY_CHARS * 4 // 5
    except (KeyError, ValueError, struct.error):
        return False
