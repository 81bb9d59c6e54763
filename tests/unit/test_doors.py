"""Which clients a listener lets in."""

from ipaddress import ip_network

import pytest

from goreprox.config.clients import ClientConfig
from goreprox.config.networks import LOOPBACK, Rule
from goreprox.errors import ConfigError
from goreprox.net.access import Doors


def doors(allow: str = "", deny: str = "", most: int | None = None) -> Doors:
    return Doors(
        [Rule.parse("allow", text) for text in allow.split()],
        [Rule.parse("deny", text) for text in deny.split()],
        most,
    )


@pytest.mark.parametrize(
    ("allow", "deny", "address", "let_in"),
    [
        ("", "", "192.0.2.1", True),
        ("192.0.2.0/24", "", "192.0.2.1", True),
        ("192.0.2.0/24", "", "198.51.100.1", False),
        ("192.0.2.0/24", "", "2001:db8::1", False),
        ("192.0.2.0/24", "", "::ffff:192.0.2.1", True),
        ("", "192.0.2.0/24", "::ffff:192.0.2.1", False),
        ("", "192.0.2.0/24", "198.51.100.1", True),
        ("192.0.2.0/24", "192.0.2.7", "192.0.2.7", False),
        ("192.0.2.0/24", "192.0.2.7", "192.0.2.8", True),
        ("192.0.2.0/24 2001:db8::/32", "", "2001:db8::1", True),
        ("fe80::/10", "", "fe80::1%eth0", True),
        ("ssh=192.0.2.0/24", "", "198.51.100.1", True),
        ("web=192.0.2.0/24", "", "198.51.100.1", False),
        ("8080=192.0.2.0/24", "", "198.51.100.1", False),
        ("8081=192.0.2.0/24", "8080=192.0.2.1", "192.0.2.2", True),
        ("", "8080=192.0.2.1", "192.0.2.1", False),
        ("web=192.0.2.0/24", "ssh=192.0.2.0/24", "192.0.2.1", True),
        ("web=192.0.2.0/24 198.51.100.0/24", "", "198.51.100.1", True),
    ],
)
def test_who_is_let_in(allow: str, deny: str, address: str, let_in: bool) -> None:
    it = doors(allow, deny)
    assert it.enter(address, "8080", "web") is let_in
    assert it.refused == (not let_in)


def test_one_address_has_so_many_connections_and_gets_back_what_it_leaves() -> None:
    it = doors(most=2)
    assert [it.enter("192.0.2.1", "web"), it.enter("::ffff:192.0.2.1", "web"), it.enter("192.0.2.1", "web")] == [
        True,
        True,
        False,
    ]
    assert it.enter("192.0.2.2", "web")
    it.leave("192.0.2.1")
    assert it.enter("192.0.2.1", "web")
    assert it.refused == 1


def test_all_addresses_of_an_ipv6_network_of_64_bits_are_one_client() -> None:
    it = doors(most=1)
    assert it.enter("2001:db8:0:1::1", "web")
    assert not it.enter("2001:db8:0:1:ffff::1", "web")
    assert it.enter("2001:db8:0:2::1", "web")


def test_what_is_not_counted_comes_in_any_number_of_times_but_by_the_rules() -> None:
    it = Doors(deny=[Rule.parse("deny", "127.0.0.2")], most=1, uncounted=LOOPBACK)
    for address in ("127.0.0.1", "::1", "::ffff:127.0.0.1") * 3:
        assert it.enter(address, "web")
    assert not it.enter("127.0.0.2", "web")
    assert it.enter("192.0.2.1", "web")
    assert not it.enter("192.0.2.1", "web")
    for address in ("127.0.0.1", "::1", "::ffff:127.0.0.1") * 3:
        it.leave(address)
    assert list(it._inside) == ["192.0.2.1"]


def test_the_reason_is_named() -> None:
    it = doors(deny="192.0.2.1", most=1)
    assert it.objection("192.0.2.1", "web") == "--allow and --deny keep it out"
    assert it.objection("192.0.2.2", "web") is None
    assert it.enter("192.0.2.2", "web")
    assert "it has 1 connections, as many as one address may" in str(it.objection("192.0.2.2", "web"))


@pytest.mark.parametrize(
    ("given", "connections", "limit"),
    [(None, 10_000, 2500), (None, 40, 16), (None, 64, 16), (None, 68, 17), (None, 10, 10), (0, 100, None), (3, 100, 3)],
)
def test_one_address_gets_a_share_by_default(given: int | None, connections: int, limit: int | None) -> None:
    proxy = ip_network("192.0.2.0/24")
    config = ClientConfig(max_connections_per_address=given, trusted_proxies=(proxy,))
    most, uncounted = config.address_limit(connections)
    assert most == limit
    assert (proxy in uncounted) is (limit is not None)
    assert (LOOPBACK[0] in uncounted) is (given is None)


def test_nothing_is_remembered_of_those_who_left() -> None:
    it = doors(most=1)
    for index in range(1000):
        address = f"10.0.{index // 256}.{index % 256}"
        assert it.enter(address, "web")
        it.leave(address)
    assert not it._inside


@pytest.mark.parametrize(
    "text", ["", "192.0.2.0/33", "192.0.2.1/24", "example.org", "192.0.2.0/24,10.0.0.0/8", "10.0.0.0\n/8"]
)
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"allow .*: .*; write a network like 192\.0\.2\.0/24, or one address"):
        Rule.parse("allow", text)


def test_what_is_wrong_is_one_line() -> None:
    with pytest.raises(ConfigError) as caught:
        Rule.parse("allow", "10.0.0.0\n/8")
    assert "\n" not in str(caught.value)
