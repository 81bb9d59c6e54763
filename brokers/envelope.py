"""The frames of fabric messages (docs/protocol.md).

To a broker: `[id of the destination, *body]`; from it: `[id of the source, *body]`. After an empty first frame the
second is a control message in CBOR: `[kind, field, ...]`. All input may be hostile.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Final

import cbor2

from brokers.carrier import Buffer
from brokers.cbor import decode_cbor
from brokers.errors import BadMessage

FABRIC_VERSION: Final = 1
FABRIC_VERSION_LEAST: Final = 1
CONTROL: Final = b""
"""The first frame of a control message."""
MAX_CONTROL: Final = 16 * 1024
MAX_ATTRIBUTES: Final = 4 * 1024
MAX_DEPTH: Final = 6
MAX_FRAME: Final = 2 * 1024 * 1024
MAX_FRAMES: Final = 130
MAX_TEXT: Final = 256
REVOKED: Final = "revoked"
"""A reason of a Down that programs compare: the peer's key was revoked, so what it had is not kept for it."""
CLOSING: Final = "closing"
"""Another such reason, in a Down of the receiving peer itself: its broker is being shut down."""


@dataclass(frozen=True, slots=True)
class Hello:
    """A peer joins; its name is in its routing id."""

    version: int
    least: int
    attempt: int
    attributes: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Welcome:
    """The broker's response to a Hello; an Up for each peer of the other role follows."""

    version: int
    attempt: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Up:
    """A peer of the other role is up."""

    role: bytes
    name: str
    incarnation: bytes
    epoch: int
    attributes: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Down:
    """A peer of the other role is gone."""

    peer_id: bytes
    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class Announce:
    """A peer's new attributes."""

    attributes: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Renew:
    """A peer's keep-alive."""


@dataclass(frozen=True, slots=True)
class Renewed:
    """The broker's keep-alive."""


@dataclass(frozen=True, slots=True)
class Leave:
    """A peer leaves on purpose."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The broker does not accept this peer, and why."""

    reason: str


Control = Hello | Welcome | Up | Down | Announce | Renew | Renewed | Leave | Refused
_KINDS: Final[tuple[type[Control], ...]] = (Hello, Welcome, Up, Down, Announce, Renew, Renewed, Leave, Refused)
_CHECKS: Final[dict[str, Callable[[object], bool]]] = {
    **dict.fromkeys(("version", "least", "attempt", "epoch"), lambda v: type(v) is int and 0 <= v < 2**63),
    **dict.fromkeys(("name", "reason"), lambda v: type(v) is str and len(v) <= MAX_TEXT),
    **dict.fromkeys(("role", "incarnation", "peer_id"), lambda v: type(v) is bytes and len(v) <= 32),
    "attributes": lambda v: type(v) is dict and all(type(k) is str for k in v) and fits(v),
}


def fits(attributes: Mapping[str, object]) -> bool:
    """Return whether attributes are short enough to be told."""
    return len(cbor2.dumps(attributes)) <= MAX_ATTRIBUTES


def control(message: Control) -> list[Buffer]:
    """Return the frames of a control message."""
    values = [getattr(message, field.name) for field in fields(message)]
    return [CONTROL, cbor2.dumps([_KINDS.index(type(message)), *values])]


def parse_control(frames: Sequence[Buffer]) -> Control:
    """Return the control message in `frames`.

    Raises:
        BadMessage: anything but exactly what `control` makes.
    """
    if len(frames) != 2:
        raise BadMessage(f"control message of {len(frames)} frames, expected 2")
    item = decode_cbor(frames[1], max_bytes=MAX_CONTROL, max_depth=MAX_DEPTH, error=BadMessage)
    if type(item) is not list or not item or type(item[0]) is not int or not 0 <= item[0] < len(_KINDS):
        raise BadMessage("not a control message")
    kind = _KINDS[item[0]]
    names = [field.name for field in fields(kind)]
    if kind is Hello:
        item = item[: 1 + len(names)]  # one of a later version may have more fields: it is refused with a reason
    if len(item) != 1 + len(names) or not all(_CHECKS[n](v) for n, v in zip(names, item[1:], strict=True)):
        raise BadMessage(f"malformed {kind.__name__}")
    message: Control = kind(*item[1:])
    return message
