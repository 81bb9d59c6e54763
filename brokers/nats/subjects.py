"""The subjects on which peers speak at NATS. What a key may do there is which of them it may publish and subscribe to.

    goreprox.m.TO.FROM            a message of a session; TO and FROM are ROLE.NAME.CONNECTION each
    goreprox.hi.WHO.CLAIM         what its key allows a peer, in a token; nothing inside, for the subject says it all
    goreprox.hi.WHO.here          after its claims: it is there, with these attributes
    goreprox.hi.WHO.bye           it leaves
    goreprox.gone.FROM.TO         by the server alone: nobody has subscribed to what FROM has sent to TO
    goreprox.inbox.ROLE.NAME.…    by the server alone: what a peer has asked it
    goreprox.revoked.ROLE.NAME    by the holder of the keys: this key is no longer valid

WHO is ROLE.NAME.KEY.CONNECTION, where KEY is the public key in hexadecimal, or `-` without keys. So the server, which
does not add senders to messages, need only compare subjects for a peer to speak in no other name than its own.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple, Self

from brokers.errors import BadMessage, BadName
from brokers.peers import PeerName, Role

PREFIX: Final = "goreprox"
HERE: Final = "here"
BYE: Final = "bye"
NO_KEY: Final = "-"
USER_INFO: Final = "$SYS.REQ.USER.INFO"
"""Where a server tells a user what it may do."""
_ESCAPED: Final = str.maketrans(".*", "~+")
_PLAIN: Final = str.maketrans("~+", ".*")
_RESERVED: Final = frozenset("~+")
_TOKEN: Final = re.compile(r"[A-Za-z0-9_~+:/@-]{1,300}")
_KEY: Final = re.compile(r"[0-9a-f]{64}|-")
_CONNECTION: Final = re.compile(r"([0-9a-f]{32})-([0-9a-f]{1,16})")


def token(text: str) -> str:
    """Return a name, or what a key is for, as one token of a subject.

    Raises:
        BadName: it has characters of which no name of ours consists, or none, or too many.
    """
    found = text.translate(_ESCAPED)
    if not _TOKEN.fullmatch(found) or _RESERVED.intersection(text):
        raise BadName(f"{text[:80]!r} cannot be part of a subject")
    return found


def text_of(found: str) -> str:
    """Return what `token` was given."""
    return found.translate(_PLAIN)


@dataclass(frozen=True, slots=True)
class Station:
    """A connection of a peer to NATS. A later one of the same peer has a higher `number`."""

    name: PeerName
    key: str
    """A token: the public key in hexadecimal, or `NO_KEY`."""
    number: int

    @property
    def connection(self) -> str:
        """The token that tells it from other connections of this peer, and from its replicas."""
        return f"{self.name.incarnation.hex()}-{self.number:x}"

    @property
    def place(self) -> str:
        """TO or FROM."""
        return f"{_prefix(self.name.role, self.name.name)}.{self.connection}"

    @property
    def who(self) -> str:
        """WHO."""
        return f"{_prefix(self.name.role, self.name.name)}.{self.key}.{self.connection}"

    def hi(self, claim: str) -> str:
        """Return the subject of a sign of life."""
        return f"{PREFIX}.hi.{self.who}.{claim}"

    def message_to(self, place: str) -> str:
        """Return the subject of messages to the peer at a place."""
        return f"{PREFIX}.m.{place}.{self.place}"

    def gone(self, place: str) -> str:
        """Return the subject on which we hear that nobody is at that place."""
        return f"{PREFIX}.gone.{self.place}.{place}"

    @property
    def inbox(self) -> str:
        """What subjects begin with on which the server responds to us."""
        return f"{PREFIX}.inbox.{_prefix(self.name.role, self.name.name)}"

    @property
    def subscriptions(self) -> tuple[str, ...]:
        """What a peer listens to."""
        return (
            f"{PREFIX}.m.{self.place}.>",
            f"{PREFIX}.gone.{self.place}.>",
            f"{PREFIX}.hi.{_letter(self.name.role.other)}.>",
            f"{PREFIX}.revoked.*.*",
        )


@dataclass(frozen=True, slots=True)
class SignOfLife:
    """What the subject of one says."""

    station: Station
    claim: str

    @classmethod
    def parse(cls, subject: str) -> Self:
        """Read a subject.

        Raises:
            BadMessage: no peer of this version has such a subject.
        """
        match subject.split("."):
            case [_, "hi", role, name, key, connection, claim] if _KEY.fullmatch(key):
                numbers = _CONNECTION.fullmatch(connection)
                try:
                    if numbers is None:
                        raise BadName("no connection")
                    who = PeerName(Role(role.encode()), text_of(name), bytes.fromhex(numbers[1]))
                except (ValueError, BadName) as exc:
                    raise BadMessage(f"subject {subject[:80]!r}: {exc}") from exc
                return cls(Station(who, key, int(numbers[2], 16)), claim)
            case _:
                raise BadMessage(f"subject {subject[:80]!r}, expected one of a peer")


class Permissions(NamedTuple):
    """What a user of NATS may do."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


def permissions(role: Role, name: str, key: str, claims: Iterable[str]) -> Permissions:
    """Return what the peers with a key may do whose `claims` these are."""
    who, others = _prefix(role, name), _letter(role.other)
    said = (HERE, BYE, *claims)
    return Permissions(
        publish=(
            f"{PREFIX}.m.{others}.*.*.{who}.*",
            *(f"{PREFIX}.hi.{who}.{key}.*.{each}" for each in said),
            USER_INFO,
        ),
        subscribe=(
            f"{PREFIX}.m.{who}.>",
            f"{PREFIX}.gone.{who}.>",
            f"{PREFIX}.inbox.{who}.>",
            f"{PREFIX}.hi.{others}.>",
            f"{PREFIX}.revoked.*.*",
        ),
    )


def of_key_holder() -> Permissions:
    """Return what the holder of the keys may do: say that one is no longer valid."""
    return Permissions(publish=(f"{PREFIX}.revoked.*.*",), subscribe=(f"{PREFIX}.inbox.>",))


def revoked(role: Role, name: str) -> str:
    """Return the subject on which it is said that the key of a name is no longer valid."""
    return f"{PREFIX}.revoked.{_prefix(role, name)}"


def allowed_claims(station: Station, allowed: Iterable[str]) -> frozenset[str]:
    """Return the claims among the subjects that a server allows us to publish."""
    beginning = f"{PREFIX}.hi.{_prefix(station.name.role, station.name.name)}.{station.key}.*."
    found = (each.removeprefix(beginning) for each in allowed if each.startswith(beginning))
    return frozenset(each for each in found if _TOKEN.fullmatch(each)) - {HERE, BYE}


def _prefix(role: Role, name: str) -> str:
    return f"{_letter(role)}.{token(name)}"


def _letter(role: Role) -> str:
    return role.value.decode()
