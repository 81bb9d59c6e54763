"""Which clients a listener admits."""

from ipaddress import ip_network

import pytest

from goreprox.config.clients import ClientConfig
from goreprox.config.networks import LOOPBACK, Rule
from goreprox.errors import ConfigError
from goreprox.net.access import Access, Cause


def access(allow: str = "", deny: str = "", limit: int | None = None) -> Access:
    return Access(
        [Rule.parse("allow", text) for text in allow.split()],
        [Rule.parse("deny", text) for text in deny.split()],
        limit,
    )


@pytest.mark.parametrize(
    ("allow", "deny", "address", "admitted"),
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
def test_clients_are_admitted_by_allow_and_deny(allow: str, deny: str, address: str, admitted: bool) -> None:
    it = access(allow, deny)
    assert it.admit(address, "8080", "web") is admitted
    assert it.refused == ({} if admitted else {"denied": 1})


def test_one_address_has_at_most_its_limit_of_connections_at_a_time() -> None:
    it = access(limit=2)
    assert [it.admit("192.0.2.1", "web"), it.admit("::ffff:192.0.2.1", "web"), it.admit("192.0.2.1", "web")] == [
        True,
        True,
        False,
    ]
    assert it.admit("192.0.2.2", "web")
    it.release("192.0.2.1")
    assert it.admit("192.0.2.1", "web")
    assert it.refused == {"address_limit": 1}


def test_all_addresses_of_an_ipv6_network_of_64_bits_are_one_client() -> None:
    it = access(limit=1)
    assert it.admit("2001:db8:0:1::1", "web")
    assert not it.admit("2001:db8:0:1:ffff::1", "web")
    assert it.admit("2001:db8:0:2::1", "web")


def test_networks_that_are_not_counted_have_no_limit_but_still_rules() -> None:
    it = Access(deny=[Rule.parse("deny", "127.0.0.2")], limit=1, uncounted=LOOPBACK)
    for address in ("127.0.0.1", "::1", "::ffff:127.0.0.1") * 3:
        assert it.admit(address, "web")
    assert not it.admit("127.0.0.2", "web")
    assert it.admit("192.0.2.1", "web")
    assert not it.admit("192.0.2.1", "web")
    for address in ("127.0.0.1", "::1", "::ffff:127.0.0.1") * 3:
        it.release(address)
    assert list(it._connections) == ["192.0.2.1"]


def test_the_reason_of_a_rejection_is_given() -> None:
    it = access(deny="192.0.2.1", limit=1)
    assert it.objection("192.0.2.1", "web") == (Cause.DENIED, "denied by --allow or --deny")
    assert it.objection("192.0.2.2", "web") is None
    assert it.admit("192.0.2.2", "web")
    objection = it.objection("192.0.2.2", "web")
    assert objection is not None and objection.cause is Cause.ADDRESS_LIMIT
    assert "it has 1 connections, as many as one address may" in objection.text


@pytest.mark.parametrize(
    ("given", "connections", "limit"),
    [(None, 10_000, 2500), (None, 40, 16), (None, 64, 16), (None, 68, 17), (None, 10, 10), (0, 100, None), (3, 100, 3)],
)
def test_one_address_may_have_a_quarter_of_all_connections_by_default(
    given: int | None, connections: int, limit: int | None
) -> None:
    proxy = ip_network("192.0.2.0/24")
    config = ClientConfig(max_connections_per_address=given, trusted_proxies=(proxy,))
    most, uncounted = config.address_limit(connections)
    assert most == limit
    assert (proxy in uncounted) is (limit is not None)
    assert (LOOPBACK[0] in uncounted) is (given is None)


def test_no_memory_is_kept_for_addresses_without_connections() -> None:
    it = access(limit=1)
    for index in range(1000):
        address = f"10.0.{index // 256}.{index % 256}"
        assert it.admit(address, "web")
        it.release(address)
    assert not it._connections


@pytest.mark.parametrize(
    "text", ["", "192.0.2.0/33", "192.0.2.1/24", "example.org", "192.0.2.0/24,10.0.0.0/8", "10.0.0.0\n/8"]
)
def test_a_malformed_network_is_rejected(text: str) -> None:
    with pytest.raises(ConfigError, match=r"allow .*: .*; write a network like 192\.0\.2\.0/24, or one address"):
        Rule.parse("allow", text)


def test_the_error_is_one_line() -> None:
    with pytest.raises(ConfigError) as caught:
        Rule.parse("allow", "10.0.0.0\n/8")
    assert "\n" not in str(caught.value)
