"""What a key allows, as claims of peers at NATS: each is a subject that the server lets only those publish who may.

The rules are those by which a broker decides about keys (`authority`). Here both ends apply them: a peer to what the
server lets it say, and others to what they have heard of it.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from zmq.utils import z85

from brokers import LinkSecurity, PeerName
from brokers.nats import NO_KEY, text_of, token
from goreprox.config.published import Grant
from goreprox.errors import ConfigError
from goreprox.keys.authority import certified, objection, published
from goreprox.keys.state import Authorized

ANY: Final = "any"
"""The claim of a key that allows all services."""
_SERVICE: Final = "service:"
_PUBLISH: Final = "publish:"


def claims_of(key: Authorized) -> list[str]:
    """Return all that a key allows."""
    services = [ANY] if key.services is None else [_SERVICE + token(each) for each in key.services]
    return services + [_PUBLISH + token(grant.text) for grant in key.publish]


def key_token(public: bytes) -> str:
    """Return a public key as it is in subjects."""
    return z85.decode(public).hex()


class KeyClaims:
    """Claims of peers that have keys (brokers.nats.Policy)."""

    def __init__(self, name: PeerName, security: LinkSecurity) -> None:
        """Claim what the key of `security`, which is that of `name`, is allowed."""
        self._name = name
        self._key = key_token(security.keys.public)

    def claims(self, attributes: Mapping[str, object], allowed: frozenset[str] | None) -> list[str] | str:
        """Return the claims that prove what we announce, or why we may not announce it."""
        key = _key(self._name, self._key, allowed or ())
        if (refusal := objection(key, attributes)) is not None:
            return refusal
        services = attributes.get("services")
        announced = services if isinstance(services, list) else []
        needed = {_SERVICE + token(each) for each in key.services or () if each in announced}
        if published(announced):
            needed |= {_PUBLISH + token(grant.text) for grant in key.publish}
        return sorted({ANY} | needed if key.services is None else needed)

    def certified(
        self, name: PeerName, key: str, attributes: Mapping[str, object], claims: frozenset[str]
    ) -> Mapping[str, object] | None:
        """Return a peer's attributes with what its key grants; None if it does not allow all of them."""
        found = _key(name, key, claims)
        return None if objection(found, attributes) is not None else certified(found, attributes)


class NoClaims:
    """Without keys, everybody may say everything (brokers.nats.Policy)."""

    def claims(self, attributes: Mapping[str, object], allowed: frozenset[str] | None) -> list[str] | str:
        """Return none."""
        return []

    def certified(
        self, name: PeerName, key: str, attributes: Mapping[str, object], claims: frozenset[str]
    ) -> Mapping[str, object] | None:
        """Return the attributes as they are."""
        return attributes


def _key(name: PeerName, key: str, claims: Iterable[str]) -> Authorized:
    """Return a key that allows no more than these claims."""
    services: list[str] = []
    grants: list[Grant] = []
    found = sorted(claims)
    for claim in found:
        text = text_of(claim)
        if claim.startswith(_SERVICE):
            services.append(text.removeprefix(_SERVICE))
        elif claim.startswith(_PUBLISH):
            try:
                grants.append(Grant.parse(text.removeprefix(_PUBLISH)))
            except ConfigError:
                continue  # of another version, so it allows nothing here
    public = b"" if key == NO_KEY else z85.encode(bytes.fromhex(key))
    allowed = None if ANY in found else tuple(services)
    return Authorized(public, name.role, name.name, allowed, "", tuple(grants))
