"""Ends of connections: what is written is read again, and what is none is not one."""

import pytest

from goreprox.endpoint import Endpoint, client_network, ip_of


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("192.0.2.1:0", Endpoint("192.0.2.1", 0)),
        ("192.0.2.1:65535", Endpoint("192.0.2.1", 65_535)),
        ("[2001:db8::1]:80", Endpoint("2001:db8::1", 80)),
        ("[fe80::1%eth0]:80", Endpoint("fe80::1%eth0", 80)),
        ("[::ffff:192.0.2.1]:80", Endpoint("::ffff:192.0.2.1", 80)),
    ],
)
def test_what_is_written_is_read_again(text: str, endpoint: Endpoint) -> None:
    assert str(endpoint) == text
    assert Endpoint.parse(text) == endpoint


@pytest.mark.parametrize(
    "text",
    ["", ":", "80", "192.0.2.1", "192.0.2.1:", "192.0.2.1:x", "192.0.2.1:65536", "192.0.2.1:-1", "a:80", "[a]:80"],
)
def test_what_is_no_endpoint_is_none(text: str) -> None:
    assert Endpoint.parse(text) is None


def test_an_address_has_no_zone_and_one_of_ipv4_stays_mapped() -> None:
    assert str(Endpoint("fe80::1%eth0", 1).address) == "fe80::1"
    assert Endpoint("::ffff:192.0.2.1", 1).address.version == 6


def test_a_host_of_ipv4_that_is_mapped_is_one_of_ipv4() -> None:
    assert ip_of("::ffff:192.0.2.1") == ip_of("192.0.2.1")
    assert ip_of("fe80::1%eth0") == ip_of("fe80::1")


def test_a_network_of_64_bits_is_one_client() -> None:
    assert client_network(ip_of("2001:db8::1")) == client_network(ip_of("2001:db8::ffff:1"))
    assert client_network(ip_of("2001:db8::1")) != client_network(ip_of("2001:db8:0:1::1"))
    assert client_network(ip_of("192.0.2.1")) != client_network(ip_of("192.0.2.2"))
