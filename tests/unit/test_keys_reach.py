"""Which addresses join strings contain."""

from pathlib import Path

import pytest

from brokers import Role
from goreprox.config.addresses import Address
from goreprox.errors import StartError
from goreprox.keys.join import Join
from goreprox.keys.reach import Reach, own_host
from goreprox.keys.state import StateDir


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path / "state")


def named(path: Path) -> str:
    return ",".join(map(str, Join.parse(path.read_text()).addresses))


@pytest.mark.parametrize(
    ("given", "listening", "providers", "edges"),
    [
        ((), ":9900", "OWN:9900", "OWN:9988"),
        ((), "0.0.0.0:9900", "OWN:9900", "OWN:9988"),
        ((), "[::]:9900", "OWN:9900", "OWN:9988"),
        ((), "127.0.0.1:9900", "127.0.0.1:9900", "OWN:9988"),
        (("tunnel.example.org:0",), ":9900", "tunnel.example.org:9900", "tunnel.example.org:9988"),
        (("tunnel.example.org:443",), ":9900", "tunnel.example.org:443", "tunnel.example.org:9988"),
        ((), "tls://127.0.0.1:443", "tls://127.0.0.1:443", "OWN:9988"),
        (("a:0",), "tls://:443", "tls://a:443", "a:9988"),
        (("tls://a:443",), ":9900", "tls://a:443", "a:9988"),  # by something else before the port
        (("a:0", "[::1]:1"), "127.0.0.1:9900", "a:9900,[::1]:1", "a:9988,[::1]:9988"),
    ],
)
def test_join_strings_contain_the_given_address_or_the_listening_one(
    state: StateDir, given: tuple[str, ...], listening: str, providers: str, edges: str
) -> None:
    state.remember(Reach(tuple(map(Address.parse_link, given)), Address.parse_link(listening), Address(None, 9988)))
    reach = StateDir(state.directory).reach()
    for role, expected in ((Role.PROVIDER, providers), (Role.EDGE, edges)):
        assert named(state.add(role, role.name, None)) == expected.replace("OWN", own_host())
        assert ",".join(map(str, reach.addresses(role))) == expected.replace("OWN", own_host())
    assert (reach.assumed_host is not None) == ("OWN" in providers)


def test_a_new_address_renews_only_join_strings_that_had_the_old_one(state: StateDir) -> None:
    before_first_start = state.add(Role.PROVIDER, "early", None)
    own = state.add(Role.PROVIDER, "own", None, [Address("other.example.org", 1)])
    edge = state.add(Role.EDGE, "edge", None)
    secret = Join.parse(before_first_start.read_text()).keys
    assert state.remember(Reach(providers=Address(None, 9900))) == ["early"]
    assert named(before_first_start) == f"{own_host()}:9900"
    reach = Reach((Address("tunnel.example.org", 0),), Address(None, 9900))
    assert state.remember(reach) == ["early", "edge"]
    assert named(before_first_start) == "tunnel.example.org:9900"
    assert named(edge) == "tunnel.example.org:9888"
    assert named(own) == "other.example.org:1"
    assert Join.parse(before_first_start.read_text()).keys == secret
    assert state.remember(reach) == []


@pytest.mark.parametrize("text", ["", "x", "address = 1", 'address = ["a"]\nproviders = "1"\nedges = "2"', "[[["])
def test_a_damaged_address_file_is_reported_with_the_remedy(state: StateDir, text: str) -> None:
    (state.directory / "reach.toml").write_text(text)
    with pytest.raises(StartError, match=r"reach\.toml: .*; remove it and restart the server"):
        state.reach()
