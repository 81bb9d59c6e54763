"""Whose connection it is, by routing id and key."""

from collections.abc import Mapping

import pytest

from brokers import BadName, Grant, PeerName, Role
from brokers.envelope import MAX_ATTRIBUTES
from brokers.identities import KNOWN, Identities
from brokers.peers import NONCE_BYTES

WEB = PeerName(Role.PROVIDER, "web", bytes(16))
NONCE = bytes(NONCE_BYTES)
WEB_ID = WEB.routing_id(NONCE)


class Keys:
    """An authority that a test changes its mind for."""

    def __init__(self) -> None:
        self.grants = {b"web key": Grant(Role.PROVIDER, "web"), b"edge key": Grant(Role.EDGE, "web")}
        self.forbidden: set[str] = set()
        self.certificate = "web"

    def grant(self, public_key: bytes) -> Grant | None:
        return self.grants.get(public_key)

    def certified(self, public_key: bytes, attributes: Mapping[str, object]) -> Mapping[str, object]:
        assert public_key in self.grants
        return {**attributes, "granted": self.certificate}

    def objection(self, public_key: bytes, attributes: Mapping[str, object]) -> str | None:
        assert public_key in self.grants
        return "not that" if self.forbidden & attributes.keys() else None


def routing_id(number: int) -> bytes:
    return PeerName(Role.PROVIDER, "web", number.to_bytes(16)).routing_id(NONCE)


def test_without_an_authority_a_routing_id_is_believed() -> None:
    identities = Identities(None, is_up=lambda _: True)
    assert identities.identify(Role.PROVIDER, WEB_ID, "") == WEB
    assert identities.objection(WEB_ID, {"anything": 1}) is None
    assert list(identities.revoked(lambda _: {})) == []


def test_a_peer_is_rejected_at_the_port_for_the_other_role() -> None:
    with pytest.raises(BadName, match="provider web is on the port for edges"):
        Identities(None, is_up=lambda _: True).identify(Role.EDGE, WEB_ID, "")


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("unknown", "the key of provider web is not authorised"),
        ("edge key", "the key of edge web is not for provider web"),
    ],
)
def test_a_peer_is_rejected_with_a_key_that_is_not_its_own(key: str, reason: str) -> None:
    identities = Identities(Keys(), is_up=lambda _: True)
    with pytest.raises(BadName, match=reason):
        identities.identify(Role.PROVIDER, WEB_ID, key)
    assert not identities.known


def test_the_authority_decides_about_attributes_of_remote_peers_only() -> None:
    keys = Keys()
    identities = Identities(keys, is_up=lambda _: True)
    assert identities.identify(Role.PROVIDER, WEB_ID, "web key") == WEB
    keys.forbidden = {"services"}
    assert identities.objection(WEB_ID, {"services": []}) == "not that"
    assert identities.objection(WEB_ID, {}) is None
    assert identities.objection(object(), {"services": []}) is None


def test_what_a_key_adds_is_told_of_remote_peers_only() -> None:
    keys = Keys()
    identities = Identities(keys, is_up=lambda _: True)
    identities.identify(Role.PROVIDER, WEB_ID, "web key")
    assert identities.certified(WEB_ID, {"weight": 1, "granted": "all"}) == {"weight": 1, "granted": "web"}
    assert identities.certified(object(), {"granted": "all"}) == {"granted": "all"}
    assert Identities(None, is_up=lambda _: True).certified(WEB_ID, {"granted": "all"}) == {"granted": "all"}
    keys.certificate = "x" * MAX_ATTRIBUTES
    assert (
        identities.objection(WEB_ID, {}) == "its attributes, with those that its key adds, take more than 4,096 bytes"
    )


def test_peers_that_are_no_longer_allowed_are_reported_once() -> None:
    keys = Keys()
    identities = Identities(keys, is_up=lambda _: True)
    first, second, third = (routing_id(number) for number in range(3))
    for each in (first, second, third):
        identities.identify(Role.PROVIDER, each, "web key")
    announced: dict[bytes, Mapping[str, object]] = {first: {"services": []}, second: {}}
    assert list(identities.revoked(announced.get)) == []
    keys.forbidden = {"services"}
    assert list(identities.revoked(announced.get)) == [(first, "not that")]
    assert set(identities.known) == {second, third}
    keys.grants.clear()
    assert [key for key, _ in identities.revoked(announced.get)] == [second, third]
    assert list(identities.revoked(announced.get)) == [] and not identities.known


def test_routing_ids_of_peers_that_are_not_up_are_bounded() -> None:
    up = {routing_id(1)}
    identities = Identities(None, is_up=up.__contains__)
    for number in range(KNOWN):
        identities.identify(Role.PROVIDER, routing_id(number), "")
    assert len(identities.known) == KNOWN
    identities.identify(Role.PROVIDER, routing_id(KNOWN), "")
    assert set(identities.known) == up | {routing_id(KNOWN)}
