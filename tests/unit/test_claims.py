"""What keys allow at NATS: the rules of brokers, applied to claims that were heard."""

from collections.abc import Mapping

import pytest

from brokers import KeyPair, LinkSecurity, PeerName, Role
from goreprox.config.published import GRANTED, PUBLISHES, parse_grants
from goreprox.keys.claims import KeyClaims, claims_of, key_token
from goreprox.keys.state import Authorized

KEYS = KeyPair.generate()
PUBLISHED = ["web", "http://a.example.org@pi", "tcp://20005@pi"]


def key(role: Role, services: tuple[str, ...] | None, *publish: str) -> Authorized:
    return Authorized(KEYS.public, role, "pi", services, "", parse_grants(publish))


def told(allowed: Authorized, attributes: Mapping[str, object]) -> Mapping[str, object] | None:
    """Return what others take from a peer that makes all claims of its key."""
    name = PeerName(allowed.role, "pi", bytes(16))
    policy = KeyClaims(name, LinkSecurity(KEYS, ()))
    return policy.certified(name, key_token(KEYS.public), attributes, frozenset(claims_of(allowed)))


def claimed(allowed: Authorized, attributes: Mapping[str, object]) -> list[str] | str:
    policy = KeyClaims(PeerName(allowed.role, "pi", bytes(16)), LinkSecurity(KEYS, ()))
    return policy.claims(attributes, frozenset(claims_of(allowed)))


@pytest.mark.parametrize("role", Role)
def test_a_key_for_all_services_claims_that_and_one_for_some_those_that_are_announced(role: Role) -> None:
    services = {"services": ["a.b", "web"]}
    assert claimed(key(role, None), services) == ["any"]
    assert claimed(key(role, ("a.b", "more", "web")), services) == ["service:a~b", "service:web"]


@pytest.mark.parametrize("role", Role)
def test_who_announces_more_than_its_key_allows_is_told_so_and_others_take_nothing_of_it(role: Role) -> None:
    services = {"services": ["web", "ssh"], "weight": 2}
    refusal = claimed(key(role, ("web",)), services)
    assert isinstance(refusal, str) and "does not allow the service ssh" in refusal
    assert told(key(role, ("web",)), services) is None
    assert told(key(role, ("web", "ssh")), services) == services


def test_an_edge_with_a_restricted_key_has_to_name_its_services() -> None:
    assert "names no services" in str(claimed(key(Role.EDGE, ("web",)), {}))
    assert told(key(Role.EDGE, ("web",)), {}) is None
    assert told(key(Role.EDGE, None), {}) == {}


def test_what_is_published_has_to_be_granted() -> None:
    grants = ("http://*.example.org", "tcp://20000-20009")
    made = claimed(key(Role.PROVIDER, None, *grants), {"services": PUBLISHED})
    assert made == ["any", "publish:http://+~example~org", "publish:tcp://20000-20009"]
    allowed = told(key(Role.PROVIDER, None, *grants), {"services": PUBLISHED})
    assert allowed == {"services": PUBLISHED, GRANTED: [KEYS.public, [[20000, 20009]]]}
    assert told(key(Role.PROVIDER, None, grants[0]), {"services": PUBLISHED}) is None
    assert "does not allow to publish" in str(claimed(key(Role.PROVIDER, None, grants[1]), {"services": PUBLISHED}))


def test_nobody_grants_itself_anything() -> None:
    pretended = {"services": [], PUBLISHES: True, GRANTED: True}
    assert told(key(Role.EDGE, ("web",)), pretended) == {"services": [], PUBLISHES: True}
    assert told(key(Role.EDGE, None), pretended) == pretended
    assert told(key(Role.PROVIDER, None), {"services": ["web"], GRANTED: [b"", [[1, 65535]]]}) == {"services": ["web"]}
