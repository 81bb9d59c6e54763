"""Which peer each connection belongs to, by its routing id and, where there are keys, by its key.

libzmq lets an authenticated peer choose any routing id, so the key behind it is checked here. Sans-IO.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Final

from brokers.envelope import MAX_ATTRIBUTES, fits
from brokers.errors import BadName
from brokers.keys import Authority
from brokers.peers import PeerName, Role

KNOWN: Final = 16_384
"""Routing ids kept; each is a few hundred bytes."""


class Identities:
    """Peers by routing id, as the authority allowed them when they were looked up."""

    def __init__(self, authority: Authority | None, *, is_up: Callable[[bytes], bool]) -> None:
        """Without an `authority` the routing id alone names a peer. Peers that are not `is_up` may be forgotten."""
        self._authority = authority
        self._is_up = is_up
        self.known: dict[bytes, tuple[PeerName, str]] = {}
        """The name for each routing id, and the user id (a public key) of the connections that may use it."""

    def identify(self, role: Role, routing_id: bytes, user_id: str) -> PeerName:
        """Return whose connection this is at the port for `role`.

        Raises:
            BadName: it is not what its routing id says, or may not be here.
        """
        name = PeerName.from_routing_id(routing_id)
        if name.role is not role:
            raise BadName(f"{name.role} {name.name} is on the port for {role}s")
        objection = self._objection_to_name(name, user_id)
        if objection is not None:
            raise BadName(objection)
        if len(self.known) >= KNOWN:
            for key in [key for key in self.known if not self._is_up(key)]:
                del self.known[key]
        self.known[routing_id] = name, user_id
        return name

    def objection(self, key: Hashable, attributes: Mapping[str, object]) -> str | None:
        """Return why a peer may not have these attributes, or None if it may, as any peer of this process."""
        if self._authority is None or not isinstance(key, bytes):
            return None
        objection = self._authority.objection(self.known[key][1].encode(), attributes)
        if objection is None and not fits(self.certified(key, attributes)):
            return f"its attributes, with those that its key adds, take more than {MAX_ATTRIBUTES:,} bytes"
        return objection

    def certified(self, key: Hashable, attributes: Mapping[str, object]) -> Mapping[str, object]:
        """Return the attributes of a peer as others are told; those of this process are its own."""
        if self._authority is None or not isinstance(key, bytes):
            return attributes
        return self._authority.certified(self.known[key][1].encode(), attributes)

    def revoked(self, attributes: Callable[[bytes], Mapping[str, object] | None]) -> Iterator[tuple[bytes, str]]:
        """Ask the authority again about each peer; forget and yield those that it no longer allows, with the reason.

        `attributes` returns what a peer announces of itself, None for one that is not up.
        """
        for routing_id, (name, user_id) in list(self.known.items()):
            objection = self._objection_to_name(name, user_id)
            announced = attributes(routing_id)
            if objection is None and announced is not None:
                objection = self.objection(routing_id, announced)
            if objection is not None:
                del self.known[routing_id]
                yield routing_id, objection

    def _objection_to_name(self, name: PeerName, user_id: str) -> str | None:
        if self._authority is None:
            return None
        grant = self._authority.grant(user_id.encode())
        if grant is None:
            return f"the key of {name.role} {name.name} is not authorised"
        if (grant.role, grant.name) != (name.role, name.name):
            return f"the key of {grant.role} {grant.name} is not for {name.role} {name.name}"
        return None
