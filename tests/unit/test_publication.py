"""The published names of an edge: how long they are kept, how many, what is listened at, and what is said of them."""

import os
from collections.abc import Collection, Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokers import Buffer, PeerInfo, PeerName, Role
from goreprox.config.addresses import Address, Listener, Scheme
from goreprox.config.clients import ClientConfig
from goreprox.config.published import MAX_NAMES, Ports, PublishedName
from goreprox.protocol.budget import Budget
from goreprox.protocol.session import Session
from goreprox.roles import publication as module
from goreprox.roles.publication import Publication, claims_of
from goreprox.roles.publish_rules import Opening
from goreprox.roles.whereabouts import Whereabouts, opening_of
from goreprox.tunnel.peer import Peer
from tests.support.waiting import eventually

BUDGET = Budget(total_bytes=1 << 24, max_streams=64)
GRANTED = [b"key", [[20000, 20999]]]


class Way:
    """A carrier that carries nothing."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.name = PeerName(Role.EDGE, "edge", bytes(16))

    def send(self, peer_id: bytes, frames: Sequence[Buffer]) -> bool:
        return True

    def announce(self, attributes: Mapping[str, object]) -> None: ...

    def link_condition(self, peer_id: bytes) -> None:
        return None

    async def close(self, *, linger_s: float) -> None: ...


class Edge:
    """What publishes, and the ports at which it listens."""

    def __init__(self, *, grace_s: float = 30.0, trusted: bool = False, **opening: object) -> None:
        self.ports: set[int] = set()
        self.taken: dict[int, str] = {}
        self.publication = Publication(
            Opening(**({"web": True, "ports": (Ports(20000, 20999),)} | opening)),  # type: ignore[arg-type]
            trusted=trusted,
            grace_s=grace_s,
            listen=self._listen,
            at=lambda name, port: name.url if port is None else f"h:{port}",
        )

    def _listen(self, ports: Collection[int]) -> Mapping[int, str]:
        self.ports = set(ports) - self.taken.keys()
        return {port: self.taken[port] for port in ports if port in self.taken}


def provider(*names: str, owner: str = "laptop", granted: object = GRANTED) -> Peer:
    """Return a provider that can be reached."""
    session = Session(opener=True, version=1, budget=BUDGET, grace_s=1, wake=lambda: None, now=0.0)
    attributes: dict[str, object] = {"services": [f"{name}@{owner}" for name in names], "granted": granted}
    peer = Peer(PeerInfo(PeerName(Role.PROVIDER, owner, os.urandom(16)), 1, attributes), session)
    peer.epochs[Way("one")] = 1
    return peer


@pytest.mark.parametrize(
    "granted", [None, True, [], [b"key"], ["key", []], [b"k" * 41, []], [b"key", [[1, 2]] * 33], [b"key", 1]]
)
def test_without_a_certificate_of_its_broker_a_provider_publishes_nothing(granted: object) -> None:
    assert claims_of(provider("tcp://20003", granted=granted)) == ()


def test_what_is_malformed_is_ignored_and_the_rest_is_bounded() -> None:
    peer = provider("tcp://20003", "tcp://99999", "http://*", "tcp://20003")
    peer.info = PeerInfo(
        peer.info.name,
        1,
        {"services": [*peer.services, "tcp://20004@other", 7, b"x"], "granted": [b"key", [[5, 4], 1, [1, 2]]]},
    )
    (claim,) = claims_of(peer)
    assert (claim.name.text, claim.key, claim.ports) == ("tcp://20003@laptop", b"key", (Ports(1, 2),))
    many = provider(*(f"tcp://{number}" for number in range(20000, 20100)))
    assert len(claims_of(many)) == MAX_NAMES


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=50),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(st.fixed_dictionaries({"services": JUNK | st.lists(st.text(alphabet="tcphtp:/*.@laptop0123456789"))}), JUNK)
def test_whatever_a_provider_says_its_claims_are_well_formed(said: dict[str, object], granted: object) -> None:
    for certificate in (granted, [b"key", granted], GRANTED):
        peer = provider()
        peer.info = PeerInfo(peer.info.name, 1, {**said, "granted": certificate})
        for claim in claims_of(peer):
            assert claim.name.owner == "laptop" and PublishedName.parse(claim.name.text) == claim.name


async def test_a_name_is_kept_for_the_grace_and_dropped_at_once_if_its_key_is_revoked() -> None:
    edge, peer = Edge(grace_s=0.05), provider("tcp://20003")
    edge.publication.update(peer)
    await eventually(lambda: edge.ports == {20003})
    peer.epochs.clear()
    edge.publication.update(peer)
    await eventually(lambda: edge.publication._held[PublishedName("laptop", port=20003)].until)
    assert edge.ports == {20003}
    await eventually(lambda: not edge.ports)
    peer.epochs[Way("one")] = 2
    edge.publication.update(peer)
    await eventually(lambda: edge.ports == {20003})
    peer.gone = peer.revoked = True
    edge.publication.update(peer)
    await eventually(lambda: not edge.ports)
    assert not edge.publication.status and edge.publication.service_of_port(20003) is None


async def test_a_provider_that_asks_for_other_names_again_and_again_does_not_add_them_up() -> None:
    edge, peer = Edge(), provider()
    for first in range(20000, 20960, MAX_NAMES):
        services = [f"tcp://{port}@laptop" for port in range(first, first + MAX_NAMES)]
        peer.info = PeerInfo(peer.info.name, 1, {"services": services, "granted": GRANTED})
        edge.publication.update(peer)
        await eventually(lambda first=first: first in edge.ports)  # type: ignore[misc]
        assert len(edge.publication.status) == MAX_NAMES


async def test_a_port_that_is_taken_is_tried_again_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    edge = Edge()
    edge.taken[20003] = "in use"
    edge.publication.update(provider("tcp://20003"))
    await eventually(lambda: edge.publication.status == {"tcp://20003@laptop": {"at": [], "problem": "in use"}})
    edge.taken.clear()
    await eventually(lambda: edge.publication.status == {"tcp://20003@laptop": {"at": ["h:20003"], "problem": None}})


async def test_brokers_that_differ_in_what_a_key_may_publish_are_named(
    monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    monkeypatch.setattr(module, "DIFFER_S", 0.01)
    edge, peer = Edge(), provider("tcp://20003")
    peer.granted = {Way("one"): GRANTED, Way("two"): GRANTED}
    edge.publication.update(peer)
    assert edge.publication._comparing is None
    peer.granted[Way("three")] = [b"key", []]
    edge.publication.update(peer)
    await eventually(lambda: edge.publication._comparing is None)
    (warning,) = [text for text in warnings if "brokers differ" in text]
    assert "one, two, three" in warning


async def test_an_edge_says_that_it_serves_published_names_if_anything_is_open_for_them() -> None:
    assert Edge(web=False, ports=()).publication.attributes == {}
    assert Edge(web=False).publication.attributes == {"publishes": True}
    assert Edge(ports=(), trusted=True).publication.attributes == {"publishes": True, "granted": True}


@pytest.mark.parametrize(
    ("listeners", "expected"),
    [
        ({"http://80": 80}, "http://a.example"),
        ({"http://80": 80, "https://443": 443}, "https://a.example"),
        ({"https://8443": 8443, "http://80": 80}, "https://a.example:8443"),
        ({"http://0": 49152, "8080": 8080}, "http://a.example:49152"),
        ({"sni://443": 443, "http://80": 80}, "http://a.example"),
        ({"sni://443": 443}, "https://a.example"),
        ({"8080": 8080}, ""),
    ],
)
def test_where_a_host_is_found(listeners: dict[str, int], expected: str) -> None:
    found = [(Listener.parse(text), port) for text, port in listeners.items()]
    assert Whereabouts("tunnel.example", lambda: found).of(PublishedName("laptop", host="a.example"), None) == expected


@pytest.mark.parametrize(
    ("listeners", "expected"),
    [
        ({"https://443": 443, "sni://8443": 8443}, "tls://a.example:8443"),
        ({"sni://443": 443, "sni://8443": 8443}, "tls://a.example"),
        ({"https://443": 443, "tls://8443": 8443}, ""),
    ],
)
def test_where_a_host_is_found_whose_tls_is_passed_on(listeners: dict[str, int], expected: str) -> None:
    found = [(Listener.parse(text), port) for text, port in listeners.items()]
    name = PublishedName("laptop", host="a.example", tls=True)
    assert Whereabouts("tunnel.example", lambda: found).of(name, None) == expected


def test_where_a_port_is_found() -> None:
    of = Whereabouts("2001:db8::1", list).of
    assert of(PublishedName("laptop", port=20003), 20003) == "[2001:db8::1]:20003"


def test_what_an_edge_opens_follows_from_its_options() -> None:
    listeners = (Listener(Address(None, 80), "web", Scheme.HTTP), Listener(Address(None, 2222), "ssh"))
    opening = opening_of(ClientConfig(listeners=listeners, publish_ports=(Ports(20000, 20001),)), lambda _: True)
    assert (opening.web, opening.tls, opening.ports, opening.routes) == (False, False, (Ports(20000, 20001),), None)
    sni = opening_of(ClientConfig(listeners=(Listener(Address(None, 443), scheme=Scheme.SNI),)), lambda _: True)
    assert (sni.web, sni.tls, sni.terminates("a.example")) == (False, True, True)
    assert opening.listeners == (Address(None, 80), Address(None, 2222))
