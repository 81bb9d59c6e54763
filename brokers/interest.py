"""For which services a peer wants to hear of others: a set of buckets, in which names of services fall by a hash.

Two peers that share a bucket are told of each other. Those that share no service may share a bucket, by chance, and
hear of each other needlessly. So it has a fixed size, and nothing has to be compared but bits.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Final

INTEREST: Final = "interest"
"""The attribute; it is for the broker alone. A peer without it wants to hear of all."""
INTEREST_BYTES: Final = 32
BUCKET_BYTES: Final = 2


def interest_in(names: Iterable[str]) -> int:
    """Return the buckets of these names."""
    buckets = 0
    for name in names:
        digest = hashlib.blake2b(name.encode(), digest_size=BUCKET_BYTES).digest()
        buckets |= 1 << int.from_bytes(digest) % (8 * INTEREST_BYTES)
    return buckets


def interest_attribute(buckets: int) -> dict[str, object]:
    """Return the attribute of a peer with this interest."""
    return {INTEREST: buckets.to_bytes(INTEREST_BYTES)}


def interest_of(attributes: Mapping[str, object]) -> int | None:
    """Return what a peer announces; None, for all, if it announces nothing that we understand."""
    announced = attributes.get(INTEREST)
    if isinstance(announced, bytes) and len(announced) == INTEREST_BYTES:
        return int.from_bytes(announced)
    return None


def shared(one: int | None, other: int | None) -> bool:
    """Return whether two peers are to hear of each other."""
    return one is None or other is None or one & other != 0


def united(one: int | None, other: int | None) -> int | None:
    """Return the interest of a peer that has announced both."""
    return None if one is None or other is None else one | other
