"""Which published names an edge serves: one rule, whatever the order in which providers come."""

import itertools
import random

import pytest

from goreprox.config.addresses import Address
from goreprox.config.published import MAX_EDGE_NAMES, Ports, PublishedName
from goreprox.config.routes import Route, Routes
from goreprox.roles.publish_rules import MAX_CANDIDATES, Claim, Opening, Settled, chosen_port, settle

ALL = (Ports(1024, 65535),)
WEB = Opening(web=True, ports=(Ports(20000, 20999),))
KEYS = {"low": b"1", "high": b"2"}


def claim(text: str, *ports: Ports) -> Claim:
    name = PublishedName.parse(text)
    return Claim(name, KEYS.get(name.owner, name.owner.encode()), ports or ALL)


def served(settled: Settled) -> set[str]:
    return {name.text for name in (*settled.hosts.values(), *settled.ports.values())}


def problems(settled: Settled) -> dict[str, str]:
    return {name.text: problem for name, problem in settled.problems.items()}


def test_names_that_nobody_else_has_are_served() -> None:
    texts = ["http://app.example.com@low", "http://*.example.com@low", "tcp://20003@low", "tcp://*/ssh@low"]
    settled = settle(map(claim, texts), WEB)
    assert served(settled) == set(texts) and not settled.problems
    assert settled.hosts["*.example.com"].text == "http://*.example.com@low"
    assert settled.ports[20003].text == "tcp://20003@low"


@pytest.mark.parametrize(
    ("texts", "winner", "reason"),
    [
        (
            ["http://app.example.com@high", "http://app.example.com@low"],
            "low",
            "low has it, whose public key is the lower",
        ),
        (["tcp://20003@high", "tcp://20003@low"], "low", "low has it, whose public key is the lower"),
        (["http://*.example.com@high", "http://*.example.com@low"], "low", "low has it, whose public key is the lower"),
    ],
)
def test_the_lower_public_key_has_a_name_and_the_other_one_is_told(texts: list[str], winner: str, reason: str) -> None:
    for order in itertools.permutations(texts):
        settled = settle(map(claim, order), WEB)
        assert served(settled) == {text for text in texts if text.endswith(f"@{winner}")}
        (problem,) = settled.problems.values()
        assert reason in problem


def test_without_keys_the_lower_name_has_it() -> None:
    claims = [claim(f"tcp://20003@{owner}")._replace(key=b"") for owner in ("b", "a")]
    settled = settle(claims, WEB)
    assert served(settled) == {"tcp://20003@a"}
    assert problems(settled) == {"tcp://20003@b": "port 20003: a has it, whose name is the lower one"}


def test_an_exact_host_comes_before_a_wildcard_of_a_lower_key_which_is_told() -> None:
    settled = settle(map(claim, ["http://*.example.com@low", "http://app.example.com@high"]), WEB)
    routes = Routes(Route(host, name.text) for host, name in settled.hosts.items())
    assert routes.find(b"app.example.com") == "http://app.example.com@high"
    assert routes.find(b"APP.example.com.:80") == "http://app.example.com@high"
    assert routes.find(b"b.example.com") == "http://*.example.com@low"
    assert problems(settled) == {"http://*.example.com@low": "high has app.example.com, which is more exact"}


def test_hosts_for_http_and_for_tls_are_apart_and_a_certificate_of_the_edge_wins() -> None:
    texts = [
        "http://app.example.com@low",
        "tls://app.example.com@high",
        "tls://*.example.com@low",
        "tls://own.test@low",
    ]
    opening = Opening(web=True, tls=True, terminates=lambda host: host == "own.test")
    settled = settle(map(claim, texts), opening)
    assert {name.text for name in settled.hosts.values()} == {texts[0]}
    assert {name.text for name in settled.tls_hosts.values()} == {texts[1], texts[2]}
    assert problems(settled) == {
        "tls://*.example.com@low": "high has app.example.com, which is more exact",
        "tls://own.test@low": "this edge has a certificate for it, and ends TLS itself",
    }
    taken = settle(map(claim, ["tls://app.example.com@high", "tls://app.example.com@low"]), opening)
    assert problems(taken) == {"tls://app.example.com@high": "low has it, whose public key is the lower one"}
    assert problems(settle(map(claim, texts[1:2]), WEB)) == {texts[1]: "this edge has no sni:// port"}


def test_a_port_that_was_asked_for_comes_before_one_that_was_chosen() -> None:
    opening = Opening(ports=(Ports(20003, 20003),))
    settled = settle(map(claim, ["tcp://*/ssh@low", "tcp://20003@high"]), opening)
    assert served(settled) == {"tcp://20003@high"}
    assert problems(settled) == {"tcp://*/ssh@low": "port 20003: high has it, which asked for this port"}
    settled = settle(map(claim, ["tcp://*/a@low", "tcp://*/b@low"]), opening)
    assert problems(settled) == {"tcp://*/b@low": "port 20003: tcp:// of the same key has it; ask for another one"}


def test_what_the_edge_itself_has_wins() -> None:
    routes = Routes([Route("app.example.com", "web"), Route("*.static.example.com", "web")])
    opening = Opening(routes, web=True, ports=WEB.ports, listeners=(Address("127.0.0.1", 20003),))
    texts = [
        "http://app.example.com@low",
        "http://*.a.static.example.com@low",
        "http://b.example.com@low",
        "tcp://20003@low",
    ]
    settled = settle(map(claim, texts), opening)
    assert served(settled) == {"http://b.example.com@low"}
    assert problems(settled) == {
        "http://app.example.com@low": "a --route of this edge has it",
        "http://*.a.static.example.com@low": "a --route of this edge has it",
        "tcp://20003@low": "this edge itself listens at port 20003",
    }


def test_only_what_is_open_for_publishing_and_granted_is_served() -> None:
    settled = settle(
        [
            claim("http://app.example.com@low"),
            claim("tcp://443@low", Ports(443, 443)),
            claim("tcp://20003@low", Ports(20000, 20002)),
            claim("tcp://*/ssh@low", Ports(443, 443)),
        ],
        Opening(ports=(Ports(20000, 20999), Ports(80, 443))[:1]),
    )
    assert problems(settled) == {
        "http://app.example.com@low": "this edge has no http:// or https:// port for published hosts",
        "tcp://443@low": "this edge does not open port 443; --publish-ports opens ports",
        "tcp://20003@low": "its key does not have port 20003",
        "tcp://*/ssh@low": "its key has no port that this edge opens; --publish-ports opens ports",
    }
    privileged = Opening(ports=(Ports(443, 443),))
    assert served(settle([claim("tcp://443@low", Ports(443, 443))], privileged)) == {"tcp://443@low"}
    assert not served(settle([claim("tcp://*/web@low", Ports(443, 443))], privileged)), "no such port is chosen"


def test_names_are_bounded_for_each_key_and_for_the_edge() -> None:
    names = [claim(f"http://a{number:03}.example.com@low") for number in range(70)]
    random.Random(1).shuffle(names)
    settled = settle(names, WEB)
    assert len(settled.hosts) == 64 and len(settled.problems) == 6
    assert max(settled.hosts) == "a063.example.com", "whatever the order"
    many = [claim(f"http://a{number}.example.com@k{number // 50:03}") for number in range(MAX_EDGE_NAMES + 1)]
    settled = settle(many, WEB)
    assert len(settled.hosts) == MAX_EDGE_NAMES
    assert list(settled.problems.values()) == ["this edge has 1,024 names already"]


def test_a_chosen_port_depends_on_key_and_service_alone_and_moves_only_if_it_must() -> None:
    opened = (Ports(20000, 20999),)
    ports = {(key, service): chosen_port(key, service, ALL, opened) for key in (b"a", b"b") for service in ("x", "y")}
    assert len(set(ports.values())) == 4
    for (key, service), port in ports.items():
        assert port is not None and chosen_port(key, service, ALL, (Ports(20000, 20499), Ports(20500, 20999))) == port
        rest = (Ports(20000, port - 1), Ports(port + 1, 20999))
        moved = chosen_port(key, service, ALL, rest)
        assert moved not in (None, port)
        assert chosen_port(key, service, (Ports(port, port + 1),), opened) == port, "one that has the greatest weight"
    assert chosen_port(b"a", "x", (Ports(30000, 30001),), opened) is None
    far = chosen_port(b"a", "x", ALL, ALL)
    assert far is not None and 1024 <= far < 1024 + MAX_CANDIDATES


def test_chosen_ports_are_spread_evenly() -> None:
    counts = [0] * 10
    for number in range(1000):
        port = chosen_port(b"key", f"service{number}", ALL, (Ports(20000, 20009),))
        assert port is not None
        counts[port - 20000] += 1
    assert 60 < min(counts) <= max(counts) < 140
