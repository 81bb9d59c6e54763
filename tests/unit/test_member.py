"""Which peers a process asks brokers to tell it of: those for all services that it has announced so far, or serves."""

from pathlib import Path

from brokers import Carrier, PeerInfo, PeerName, Role
from brokers.interest import interest_in, interest_of
from goreprox.config.addresses import Address, Target
from goreprox.config.process import ProcessConfig
from goreprox.config.proxy import ProxyConfig
from goreprox.config.roles import ProviderConfig
from goreprox.net.link_tls import Trust
from goreprox.roles.member import Member
from goreprox.roles.provider import Provider
from goreprox.tunnel.attributes import PUBLISHED, Attributes
from goreprox.tunnel.peer import Peer
from tests.support.configs import configured
from tests.support.peer import accepted


class Told:
    """A carrier that keeps what is announced."""

    label = "told"

    def __init__(self) -> None:
        self.attributes: Attributes = {}

    def announce(self, attributes: Attributes) -> None:
        self.attributes = attributes


def provider() -> Provider:
    targets, servers = (Target("default", Address("127.0.0.1", 1)),), (Address("127.0.0.1", 1),)
    return Provider(configured(ProviderConfig, targets=targets, servers=servers))


def member(tmp_path: Path, *services: str, joins: Provider) -> Member:
    config = configured(ProcessConfig, name="one", runtime_dir=tmp_path / "run")
    made = Member(config, "provider", Role.PROVIDER, services=services)
    made.link((), ProxyConfig(), Trust(None, ()), joins.driver, None)
    return made


async def test_a_peer_hears_of_those_for_its_services_also_the_former_ones(tmp_path: Path) -> None:
    one, told = member(tmp_path, "web", joins=provider()), Told()
    assert interest_of(one.attributes) == interest_in(["web"])
    carrier: Carrier = told  # type: ignore[assignment] # has the one method that is called
    one.carriers = [carrier]
    one.announce({"services": ["http://host@one"]})
    assert told.attributes["services"] == ["http://host@one"]
    assert interest_of(told.attributes) == interest_in(["web", PUBLISHED])


async def test_after_an_upgrade_a_peer_hears_of_those_with_whom_it_has_streams(tmp_path: Path) -> None:
    joins = provider()
    far, stream = accepted()
    info = PeerInfo(PeerName(Role.EDGE, "edge", bytes(16)), 1, {})
    joins.driver.peers[info.name.id] = Peer(info, far.session)
    one = member(tmp_path, "db", joins=joins)
    assert stream.service == "web" and interest_of(one.attributes) == interest_in(["db", "web"])


async def test_an_edge_that_serves_published_names_hears_of_all_that_have_any(tmp_path: Path) -> None:
    one = member(tmp_path, "web", joins=provider())
    one.announce({"publishes": True})
    assert interest_of(one.attributes) == interest_in(["web", PUBLISHED])


async def test_a_server_hears_of_all_as_its_broker_is_its_own(tmp_path: Path) -> None:
    one = Member(
        configured(ProcessConfig, name="one", runtime_dir=tmp_path / "run"), "server", Role.EDGE, services=["web"]
    )
    one.announce({"services": ["db"]})
    assert interest_of(one.attributes) is None
