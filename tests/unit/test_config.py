"""What a configuration accepts and how it refuses the rest."""

import contextlib
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goreprox.config.addresses import Address, Listener, Scheme, Target, UnixPath
from goreprox.config.clients import ClientConfig
from goreprox.config.defaults import MIB
from goreprox.config.names import check_name, default_name
from goreprox.config.process import ConnectionConfig
from goreprox.config.roles import BrokerConfig, EdgeConfig, ProviderConfig, ServerConfig
from goreprox.errors import ConfigError
from tests.support.configs import configured

TARGET = Target("default", Address("127.0.0.1", 3000))
SERVER = Address("192.0.2.1", 9887)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("8080", None, 8080),
        (":8080", None, 8080),
        ("host:8080", "host", 8080),
        ("a.example.org:1", "a.example.org", 1),
        ("127.0.0.1:0", "127.0.0.1", 0),
        ("[::1]:65535", "::1", 65535),
        ("[fe80::1%eth0]:80", "fe80::1%eth0", 80),
    ],
)
def test_an_address_has_four_forms(text: str, host: str | None, port: int) -> None:
    assert Address.parse(text) == Address(host, port)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "port is missing"),
        ("host", "port is missing"),
        ("[::1]", "port is missing"),
        ("host:", "not a port"),
        ("host:http", "not a port"),
        ("host:65536", "not a port"),
        ("65536", "not a port"),
        ("host:-1", "not a port"),
        ("host:\uff18\uff10", "not a port"),
        ("::1:8080", "needs brackets"),
        ("[::g]:80", "not an IPv6 address"),
        ("ho st:80", "neither a host name"),
        ("-host:80", "neither a host name"),
        (f"{'a' * 254}:80", "neither a host name"),
        ("http://host:80", "leave http:// out"),
        ("a\n://host:80", r"'a\\n://host' is neither a host name|an IPv6 address needs brackets"),
        ("8080:3000", "8080 is a number and no host"),
    ],
)
def test_an_invalid_address_is_rejected_with_the_cause(text: str, cause: str) -> None:
    with pytest.raises(ConfigError, match=cause):
        Address.parse(text)


def test_a_default_port_makes_the_port_optional() -> None:
    assert Address.parse("host", 9887) == Address("host", 9887)
    assert Address.parse("[::1]", 9887) == Address("::1", 9887)
    assert Address.parse("host:1", 9887) == Address("host", 1)


def test_a_nats_server_is_an_address_to_connect_to_alone() -> None:
    assert Address.parse_remote("nats://n1") == Address("n1", 4222, nats=True)
    assert Address.parse_remote("nats://[::1]:5") == Address("::1", 5, nats=True)
    assert str(Address.parse_remote("nats://n1:5")) == "nats://n1:5"
    assert Address.parse_remote("tls://n1", 1) == Address("n1", 1, tls=True) == Address.parse_link("tls://n1", 1)
    for text in ("tls://nats://n1", "nats://tls://n1"):
        with pytest.raises(ConfigError, match=r"leave .*:// out"):
            Address.parse_remote(text, 1)
    for parse in (Address.parse, Address.parse_link):
        with pytest.raises(ConfigError, match="leave nats:// out"):
            parse("nats://n1")


@given(
    st.one_of(st.none(), st.ip_addresses().map(str), st.from_regex(r"[a-z]([a-z0-9-]{0,20}[a-z])?", fullmatch=True)),
    st.integers(0, 65535),
)
def test_the_text_of_an_address_parses_to_the_same_address(host: str | None, port: int) -> None:
    assert Address.parse(str(Address(host, port))) == Address(host, port)


@given(st.text())
def test_any_text_is_an_address_or_a_config_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        Address.parse(text)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        (None, False),
        ("localhost", True),
        ("127.8.0.1", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("a.org", False),
    ],
)
def test_only_loopback_is_loopback(host: str | None, loopback: bool) -> None:
    assert Address(host, 1).is_loopback is loopback


def test_a_listener_and_a_target_may_name_a_service() -> None:
    assert Listener.parse("8080") == Listener(Address(None, 8080), "default")
    assert Listener.parse("[::1]:8080=web") == Listener(Address("::1", 8080), "web")
    assert Listener.parse("tcp://8080") == Listener.parse("8080")
    for scheme in Scheme:
        assert Listener.parse(f"{scheme.value}://:8080=web") == Listener(Address(None, 8080), "web", scheme)
    assert Target.parse("3000") == TARGET
    assert Target.parse("ssh=host:22") == Target("ssh", Address("host", 22))


@pytest.mark.parametrize("service", ["", "db="])
def test_a_target_may_be_a_unix_socket(service: str) -> None:
    target = Target.parse(f"{service}unix:/run/a=b/.s.PGSQL.5432")
    assert target == Target(service[:-1] or "default", UnixPath("/run/a=b/.s.PGSQL.5432"))
    assert target.text == f"{service}unix:/run/a=b/.s.PGSQL.5432" and Target.parse(target.text) == target


@pytest.mark.parametrize(
    "text", ["unix:", "unix:relative", "db=unix:", "unix:/a\0b", f"unix:/{'a' * 107}", "tls://unix:/a"]
)
def test_a_path_that_no_socket_has_is_rejected(text: str) -> None:
    with pytest.raises(ConfigError, match=r"address|target"):
        Target.parse(text)


def test_an_unknown_scheme_is_rejected_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'ftp' is not known; write one of tcp://, http://, tls://, https://"):
        Listener.parse("ftp://8080")


@pytest.mark.parametrize("text", ["8080=", "8080=a b", "8080=a=b"])
def test_a_listener_with_an_invalid_service_is_rejected(text: str) -> None:
    with pytest.raises(ConfigError, match="service"):
        Listener.parse(text)


@pytest.mark.parametrize("text", ["=3000", "0", "web=host:0"])
def test_a_target_needs_a_name_and_a_port(text: str) -> None:
    with pytest.raises(ConfigError):
        Target.parse(text)


@pytest.mark.parametrize("name", ["", "a" * 65, "a b", "a/b", "ä", "a\n"])
def test_an_invalid_name_is_rejected(name: str) -> None:
    with pytest.raises(ConfigError, match="expected 1 to 64 of"):
        check_name("name", name)


def test_the_default_name_is_valid() -> None:
    check_name("name", default_name())


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("grace_s", 0),
        ("grace_s", float("nan")),
        ("grace_s", 86_401),
        ("drain_s", -1),
        ("drain_s", float("inf")),
        ("link_timeout_s", 0.1),
        ("half_closed_timeout_s", 0),
        ("max_connections", 0),
        ("max_connections", 1_000_001),
        ("memory_bytes", 2 << 40),
        ("name", ""),
    ],
)
def test_a_value_out_of_range_is_rejected(option: str, value: float) -> None:
    arguments: dict[str, Any] = {option: value}
    with pytest.raises(ConfigError, match=f"^{option.removesuffix('_s').removesuffix('_bytes').replace('_', '-')} "):
        configured(ServerConfig, **arguments)


def test_memory_too_small_for_all_reservations_is_rejected_with_the_minimum() -> None:
    with pytest.raises(ConfigError, match="10,000 connections need at least 79 MiB"):
        ConnectionConfig(memory_bytes=78 * MIB)
    assert ConnectionConfig(memory_bytes=79 * MIB).memory_bytes // (4 * 10_000) >= 2048


def test_listening_twice_on_one_address_is_rejected() -> None:
    twice = (Listener.parse("8080=a"), Listener.parse("8080=b"))
    with pytest.raises(ConfigError, match="listen :8080 and listen :8080: one port for two"):
        ClientConfig(listeners=twice)
    with pytest.raises(ConfigError, match="listen :9887 and providers :9887: one port for two"):
        configured(ServerConfig, listeners=(Listener.parse("9887"),))
    with pytest.raises(ConfigError, match=r"listen :8080 and edges 127\.0\.0\.1:8080: one port for two"):
        ServerConfig(edges=Address("127.0.0.1", 8080))
    for kind in (ServerConfig, BrokerConfig):
        with pytest.raises(ConfigError, match="providers :9887 and health :9887: one port for two"):
            configured(kind, health=Address(None, 9887))
    with pytest.raises(ConfigError, match="listen :8080 and health :8080: one port for two"):
        configured(EdgeConfig, brokers=(SERVER,), health=Address(None, 8080))
    with pytest.raises(ConfigError, match="providers :1 and edges :1: one port for two"):
        configured(BrokerConfig, providers=Address(None, 1), edges=Address(None, 1))
    configured(ServerConfig, listeners=(Listener.parse("127.0.0.1:0"),) * 2, providers=Address("127.0.0.1", 0))


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        ({"targets": ()}, "target: expected 1 to 64"),
        ({"servers": ()}, "server: expected 1 to 64"),
        ({"targets": (TARGET, TARGET)}, "both are of the service default; give each its own name"),
        ({"servers": (SERVER, SERVER)}, "server 192.0.2.1:9887: given twice"),
        ({"servers": (Address(None, 9887),)}, "server :9887: expected a host and a port"),
        ({"timeout_s": 0}, "dial-timeout 0: expected"),
    ],
)
def test_a_provider_needs_targets_and_servers(arguments: dict[str, Any], cause: str) -> None:
    with pytest.raises(ConfigError, match=cause):
        configured(ProviderConfig, **{"targets": (TARGET,), "servers": (SERVER,)} | arguments)


def test_a_configuration_cannot_be_changed(tmp_path: Path) -> None:
    config = configured(ServerConfig, runtime_dir=tmp_path)
    with pytest.raises(FrozenInstanceError):
        config.connections.grace_s = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        ("8080", ":8080", True),
        ("8080", "0.0.0.0:8080", True),
        ("8080", "[::]:8080", True),
        ("8080", "127.0.0.1:8080", True),
        ("8080", "host:8080", True),
        ("0.0.0.0:8080", "127.0.0.1:8080", True),
        ("0.0.0.0:8080", "host:8080", True),
        ("[::]:8080", "[::1]:8080", True),
        ("127.0.0.1:8080", "127.0.0.1:8080", True),
        ("0.0.0.0:8080", "[::]:8080", False),
        ("0.0.0.0:8080", "[::1]:8080", False),
        ("127.0.0.1:8080", "127.0.0.2:8080", False),
        ("8080", "8081", False),
        ("0", "0", False),
    ],
)
def test_addresses_overlap_if_both_cannot_be_listened_on(one: str, other: str, overlap: bool) -> None:
    first, second = Address.parse(one), Address.parse(other)
    assert first.overlaps(second) is second.overlaps(first) is overlap


def test_one_service_may_be_listened_for_on_two_ports() -> None:
    listeners = (Listener.parse("1=web"), Listener.parse("2=web"), Listener.parse("3=ssh"))
    assert ClientConfig(listeners=listeners).services == ("web", "ssh")


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        ({"brokers": ()}, "broker: expected 1 to 64"),
        ({"brokers": (SERVER, SERVER)}, "broker 192.0.2.1:9887: given twice"),
        ({"brokers": (Address("h", 0),)}, "broker h:0: expected a host and a port"),
        ({"workers": 0}, "workers 0: expected 1 to 64"),
        ({"workers": 65}, "workers 65: expected 1 to 64"),
        ({"workers": 2, "listeners": (Listener.parse("0"),)}, "listen port 0: 2 workers share their ports"),
    ],
)
def test_an_edge_needs_brokers_and_workers_need_ports(arguments: dict[str, Any], cause: str) -> None:
    with pytest.raises(ConfigError, match=cause):
        configured(EdgeConfig, **{"brokers": (SERVER,)} | arguments)


@pytest.mark.parametrize("peers", [0, 65_537])
def test_a_broker_bounds_its_peers(peers: int) -> None:
    for config in (BrokerConfig, ServerConfig):
        with pytest.raises(ConfigError, match=r"max-peers .*: expected 1 to 8,192"):
            configured(config, max_peers=peers)


@pytest.mark.parametrize("weight", [0, 0.001, 1001, float("nan"), float("inf")])
def test_a_weight_out_of_range_is_rejected(weight: float) -> None:
    with pytest.raises(ConfigError, match=r"weight .*: expected 0.01 to 1,000"):
        ProviderConfig(targets=(TARGET,), servers=(SERVER,), weight=weight)


def test_names_of_services_too_long_for_the_peer_list_are_refused() -> None:
    targets = tuple(Target(f"{index:064}", TARGET.address) for index in range(47))
    with pytest.raises(ConfigError, match="services: their names take 3,102 bytes, expected at most 3,072"):
        ProviderConfig(targets=targets, servers=(SERVER,))
    assert len(ProviderConfig(targets=targets[1:], servers=(SERVER,)).services) == 46
