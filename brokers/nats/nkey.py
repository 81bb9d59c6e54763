"""The key of a peer at NATS: the same as on links, so a join string is all that a peer needs there, too.

NATS knows users by Ed25519 keys (nkeys), CURVE has X25519 keys: two forms of one curve. A public key is converted by
one division (RFC 7748, 4.1); of the two Ed25519 keys that it may be, that with the sign 0 is taken. Signatures are
those of XEdDSA (https://signal.org/docs/specifications/xeddsa/), which the holder of an X25519 key can make, and any
Ed25519 implementation verifies.
"""

import base64
import hashlib
import secrets
from typing import Final

from zmq.utils import z85

from brokers.keys import KeyPair

_FIELD: Final = 2**255 - 19
_USER: Final = 20 << 3
"""The first byte of a user's public nkey, which makes `U` its first letter."""
_CRC_POLYNOMIAL: Final = 0x1021
"""Of CRC-16/XMODEM, which ends an nkey."""
_HASH_1: Final = (2**256 - 2).to_bytes(32, "little")
"""What begins the hash of the nonce, and no other one (XEdDSA, 2.5)."""


def public_nkey(public: bytes) -> str:
    """Return the public nkey of a user with this CURVE key (Z85)."""
    body = bytes([_USER]) + _edwards(z85.decode(public))
    return base64.b32encode(body + _crc16(body).to_bytes(2, "little")).rstrip(b"=").decode()


def sign(keys: KeyPair, message: bytes) -> bytes:
    """Return a signature that `public_nkey` of the same pair verifies: R and s, 32 bytes each (XEdDSA, 3)."""
    # PyNaCl comes with the extra `nats`, and only who connects there signs.
    from nacl.bindings import (  # noqa: PLC0415
        crypto_core_ed25519_scalar_add,
        crypto_core_ed25519_scalar_mul,
        crypto_core_ed25519_scalar_negate,
        crypto_core_ed25519_scalar_reduce,
        crypto_scalarmult_ed25519_base_noclamp,
    )

    clamped = bytearray(z85.decode(keys.secret))
    clamped[0] &= 248
    clamped[31] = clamped[31] & 127 | 64
    scalar = crypto_core_ed25519_scalar_reduce(bytes(clamped) + bytes(32))
    point = crypto_scalarmult_ed25519_base_noclamp(scalar)
    if point[31] & 128:
        scalar = crypto_core_ed25519_scalar_negate(scalar)
        point = point[:31] + bytes([point[31] & 127])
    random = secrets.token_bytes(64)
    nonce = crypto_core_ed25519_scalar_reduce(hashlib.sha512(_HASH_1 + scalar + message + random).digest())
    commitment = crypto_scalarmult_ed25519_base_noclamp(nonce)
    challenge = crypto_core_ed25519_scalar_reduce(hashlib.sha512(commitment + point + message).digest())
    return commitment + crypto_core_ed25519_scalar_add(nonce, crypto_core_ed25519_scalar_mul(challenge, scalar))


def _edwards(montgomery: bytes) -> bytes:
    """Return y = (u - 1) / (u + 1), the Ed25519 form of a public X25519 key, with the sign 0."""
    u = int.from_bytes(montgomery, "little") & (2**255 - 1)
    return ((u - 1) * pow(u + 1, _FIELD - 2, _FIELD) % _FIELD).to_bytes(32, "little")


def _crc16(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ _CRC_POLYNOMIAL if crc & 0x8000 else crc << 1) & 0xFFFF
    return crc
