"""Keys of brokers and peers, and who decides about them.

Keys are Z85 texts of 40 bytes, as libzmq takes them (zmq_curve(7)).
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import zmq
from zmq.utils import z85

from brokers.peers import Role

KEY_CHARS = 40
"""32 bytes in Z85."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A public key and its secret, which no representation shows."""

    public: bytes
    secret: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> "KeyPair":
        """Draw a new pair."""
        return cls(*zmq.curve_keypair())

    @classmethod
    def from_secret(cls, secret: bytes) -> "KeyPair":
        """Derive the public key.

        Raises:
            ValueError: it is no secret key; the message does not say what it is instead.
        """
        if not is_key(secret):
            raise ValueError("not a secret key")
        return cls(zmq.curve_public(secret), secret)


@dataclass(frozen=True, slots=True)
class Grant:
    """What a key may be: one role and name, in as many processes as it likes."""

    role: Role
    name: str


class Authority(Protocol):
    """Knows which keys are authorised, at this very moment. Called from the loop; must neither block nor raise."""

    def grant(self, public_key: bytes) -> Grant | None:
        """Return what the key may be; None if it is unknown or revoked."""

    def objection(self, public_key: bytes, attributes: Mapping[str, object]) -> str | None:
        """Return why a peer with this key may not have these attributes, or None if it may."""


@dataclass(frozen=True, slots=True)
class BrokerSecurity:
    """A broker's own keys, and who decides about those of others."""

    keys: KeyPair
    authority: Authority


@dataclass(frozen=True, slots=True)
class LinkSecurity:
    """A link's own keys, and those of the broker: the present one and, for a rotation, the next ones."""

    keys: KeyPair
    brokers: tuple[bytes, ...]


def is_key(text: bytes) -> bool:
    """Whether this is a key in Z85."""
    try:
        return len(text) == KEY_CHARS and len(z85.decode(text)) == KEY_CHARS * 4 // 5
    except (KeyError, ValueError, struct.error):
        return False
