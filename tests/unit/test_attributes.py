"""Attributes in the peer list: written within their bounds, and read whatever a peer announces."""

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokers.envelope import MAX_ATTRIBUTES
from brokers.interest import interest_attribute
from goreprox.config.defaults import MAX_SERVICES_BYTES, MAX_WEIGHT, MIN_WEIGHT
from goreprox.protocol.limits import ACKS_BEFORE_EOF
from goreprox.tunnel.attributes import (
    HASH_BYTES,
    MAX_TARGETS,
    PORTS_BYTES,
    SHARED_BYTES,
    Attributes,
    Port,
    machine_of,
    may_open,
    ports,
    ports_of,
    process_of,
    services_of,
    shared,
    shared_of,
    targets,
    targets_of,
    weight_of,
    who,
)

PORTS = [Port("web", "http", "", 8080), Port("ssh", "tcp", "192.0.2.1", 2222), Port("db", "tls", "2001:db8::1", 5432)]


def test_attributes_are_read_as_they_were_written() -> None:
    services = {"services": ["web", "ssh"]}
    said = services | who("edge", "machine") | ports(PORTS) | shared(["web"]) | targets(["a:1", "b:2"])
    assert (process_of(said), machine_of(said), ports_of(said), shared_of(said)) == ("edge", "machine", PORTS, ["web"])
    assert targets_of(said).keys() == {"web", "ssh"} and len(set(targets_of(said).values())) == 2
    assert targets_of(said) == targets_of(services | targets(["a:1", "b:2"]))


def test_an_edge_may_open_the_services_that_it_names_or_all_if_it_names_none() -> None:
    assert may_open({}, "web") and may_open({"protocol": [1, 1]}, "secret")
    assert may_open({"services": ["ssh", "web"]}, "web")
    wrong: list[object] = [[], ["secret"], ["we"], "web", b"web", None, True, {"web": 1}, [["web"]], [b"web", None, 1]]
    assert not any(may_open({"services": services}, "web") for services in wrong)


def test_a_port_has_the_url_that_clients_use() -> None:
    urls = [port.url("example.org") for port in PORTS]
    assert urls == ["http://example.org:8080", "tcp://192.0.2.1:2222", "tls://[2001:db8::1]:5432"]


NAMES = [f"{number:x}" * 64 for number in range(16)]


@pytest.mark.parametrize(
    "own",
    [
        targets([f"{number}:1" for number in range(5000)]) | {"weight": 999.99},
        ports([Port(name[:64], "https", "h" * 253, 65535) for name in NAMES * 4])
        | shared([name[:64] for name in NAMES]),
        ports([Port("w", "tcp", "", 1)] * 5000) | shared(["w"] * 5000),
    ],
)
def test_attributes_fit_however_much_there_is_to_announce(own: Attributes) -> None:
    names = ["w"] * (MAX_SERVICES_BYTES // 3)
    rest = who("provider", "m" * 64) | {"protocol": [1, 1], "services": names, "predecessor": bytes(16)}
    rest |= {ACKS_BEFORE_EOF: True} | interest_attribute(1)
    assert len(cbor2.dumps(rest | dict(own))) <= MAX_ATTRIBUTES


def test_targets_are_announced_up_to_a_bound() -> None:
    names = [str(number) for number in range(1000)]
    assert len(targets_of({"services": names} | targets(names))) == MAX_TARGETS


def test_ports_and_shared_services_are_announced_up_to_a_bound() -> None:
    assert len(ports_of(ports([Port("four", "tcp", "host", 1)] * 1000))) == PORTS_BYTES // 24
    assert len(shared_of(shared(["ab"] * 1000))) == SHARED_BYTES // 4


def test_each_target_has_a_hash() -> None:
    hashes = targets_of({"services": ["web", "ssh", "db"]} | targets(["a:1", "b:2"]))
    assert {name: len(value) for name, value in hashes.items()} == {"web": HASH_BYTES, "ssh": HASH_BYTES}
    assert targets_of({"services": ["web"], "targets": ["a:1"]}) == {}


@pytest.mark.parametrize(
    ("said", "may"),
    [
        ({"publishes": True, "granted": True}, True),
        ({"publishes": True}, False),
        ({"granted": True}, False),
        ({"publishes": True, "granted": [b"key", []]}, False),
        ({"publishes": 1, "granted": 1}, False),
        ({"services": ["tcp://20003@laptop"]}, False),
        ({}, False),
    ],
)
def test_published_names_are_opened_by_edges_that_may_serve_them(said: dict[str, object], *, may: bool) -> None:
    assert may_open(said, "tcp://20003@laptop") is may


@pytest.mark.parametrize("weight", [MIN_WEIGHT, 7, MAX_WEIGHT])
def test_a_weight_is_read(weight: float) -> None:
    assert weight_of({"weight": weight}) == weight


@pytest.mark.parametrize("weight", [MIN_WEIGHT / 2, MAX_WEIGHT + 1, -1, float("nan"), "7", None, [7]])
def test_what_is_no_weight_counts_as_one(weight: object) -> None:
    assert weight_of({"weight": weight}) == 1.0


@pytest.mark.parametrize(
    ("word", "read"), [("w", "w"), ("w" * 64, "w" * 64), ("w" * 65, None), ("", None), (b"w", None), (7, None)]
)
def test_a_word_is_text_of_bounded_length(word: object, read: str | None) -> None:
    assert (process_of({"process": word}), machine_of({"machine": word})) == (read, read)


@pytest.mark.parametrize(("port", "valid"), [(0, False), (1, True), (65535, True), (65536, False), ("1", False)])
def test_a_port_outside_its_range_is_ignored(port: object, *, valid: bool) -> None:
    assert bool(ports_of({"ports": [["web", "tcp", "", port]]})) is valid


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)
KEYS = ("services", "shared", "weight", "process", "machine", "targets", "ports")


@given(st.dictionaries(st.sampled_from(KEYS), JUNK))
def test_malformed_attributes_are_ignored(said: dict[str, object]) -> None:
    assert all(isinstance(name, str) for name in services_of(said) + shared_of(said))
    assert weight_of(said) > 0
    assert process_of(said) is None or len(process_of(said) or "") <= 64
    assert machine_of(said) is None or len(machine_of(said) or "") <= 64
    assert set(targets_of(said)) <= set(services_of(said))
    for port in ports_of(said):
        assert port.url("host")
