"""Decoding CBOR (RFC 8949) from senders that may be hostile."""

import io
from typing import Final, NoReturn

import cbor2

from brokers.carrier import Buffer

MAX_QUOTED: Final = 256
"""Characters that an error quotes: cbor2's own may contain all of the input."""


def _reject_tag(_decoder: object, *_: object) -> NoReturn:
    raise ValueError("a tag, expected none")


_NO_TAGS: Final = dict.fromkeys(
    (0, 1, 2, 3, 4, 5, 25, 28, 29, 30, 35, 36, 37, 52, 54, 100, 256, 258, 260, 261, 1004, 43000, 55799), _reject_tag
)
"""cbor2 decodes these by itself (big numbers, regular expressions, shared values …) unless told otherwise."""


def decode_cbor(data: Buffer, *, max_bytes: int, max_depth: int, error: type[Exception]) -> object:
    """Decode exactly one item without tags, indefinite lengths or duplicate keys.

    Raises:
        error: it is longer than `max_bytes`, deeper than `max_depth`, malformed, or followed by more.
    """
    if len(data) > max_bytes:
        raise error(f"CBOR of {len(data)} bytes, expected at most {max_bytes}")
    try:
        stream = io.BytesIO(data)
        item: object = cbor2.load(
            stream,
            semantic_decoders=_NO_TAGS,
            tag_hook=_reject_tag,
            max_depth=max_depth,
            allow_indefinite=False,
            allow_duplicate_keys=False,
        )
    except Exception as exc:  # whatever the decoder raises is the sender's fault
        raise error(f"malformed CBOR: {str(exc)[:MAX_QUOTED]}") from exc
    if stream.read(1):
        raise error("bytes after the CBOR item")
    return item
