"""The option `--publish`: which names, for which services."""

import pytest

from goreprox.config.addresses import Address, Listener, Target
from goreprox.config.clients import ClientConfig
from goreprox.config.publish import Publish, PublishConfig
from goreprox.config.published import Ports
from goreprox.config.roles import EdgeConfig, ProviderConfig
from goreprox.errors import ConfigError
from tests.support.configs import configured


def names(*texts: str, services: tuple[str, ...] = ("default",)) -> dict[str, str]:
    config = PublishConfig(names=tuple(map(Publish.parse, texts)))
    return {name.text: service for name, service in config.by_name(services, "laptop").items()}


def test_names_are_for_the_service_that_is_meant() -> None:
    assert names("http://App.example.com.", "tcp://20003", "tcp://", services=("web",)) == {
        "http://app.example.com@laptop": "web",
        "tcp://20003@laptop": "web",
        "tcp://*/web@laptop": "web",
    }
    assert names("tls://a.example", "http://a.example", services=("web",)) == {
        "tls://a.example@laptop": "web",
        "http://a.example@laptop": "web",
    }
    assert names("ssh=tcp://", "http://*.example.com", services=("ssh", "default")) == {
        "tcp://*/ssh@laptop": "ssh",
        "http://*.example.com@laptop": "default",
    }


@pytest.mark.parametrize(
    "text",
    ["http://app.example.com", "web=http://*.example.com", "tls://a.b", "web=tls://*.b", "tcp://", "web=tcp://20003"],
)
def test_an_option_is_shown_as_it_is_written(text: str) -> None:
    assert Publish.parse(text).text == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("app.example.com", r"write \[SERVICE=\]http://HOST"),
        ("https://app.example.com", "https:// comes of an https:// port of the server"),
        ("udp://53", r"write \[SERVICE=\]http://HOST"),
        ("a b=http://app.example.com", r"write \[SERVICE=\]http://HOST"),
        ("http://*", "all hosts cannot be published"),
        ("http://app.example.com:80", "without a port"),
        ("tls://app.example.com:443", "without a port"),
        ("http://127.0.0.1", "only names can be published"),
        ("tcp://0", "expected 1 to 65535"),
        ("tcp://20000-20009", r"write \[SERVICE=\]http://HOST"),
        ("tcp://host:80", "write PORT"),
    ],
)
def test_a_malformed_name_is_refused_with_what_to_write(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Publish.parse(text)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (("tcp://",), "publish tcp://: for which service? Write web=tcp://"),
        (("db=tcp://",), "publish db=tcp://: that service is not offered; services are web, ssh"),
        (("web=tcp://20003", "ssh=tcp://20003"), "publish tcp://20003: given twice"),
        (("web=http://a.example.com", "web=http://A.example.com."), "publish http://a.example.com: given twice"),
        (tuple(f"web=tcp://{number}" for number in range(2000, 2065)), "publish: expected at most 64 of them, got 65"),
        ((f"web=http://{'a.' * 115}com",), "with the name laptop it has 247 characters, expected at most 240"),
    ],
)
def test_names_that_cannot_be_announced_are_refused(texts: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        names(*texts, services=("web", "ssh"))
    assert message in str(caught.value)


def test_the_names_of_a_provider_fit_into_the_peer_list() -> None:
    def provider(length: int) -> ProviderConfig:
        asked = tuple(Publish.parse(f"http://{number:02}{'a' * length}.example") for number in range(64))
        target = Target("default", Address("h", 1))
        return configured(ProviderConfig, targets=(target,), servers=(Address("h", 1),), name="laptop", names=asked)

    assert len(provider(21).published) == 64
    with pytest.raises(ConfigError, match="services: their names take"):
        provider(23)


def test_ranges_of_ports_are_limited() -> None:
    with pytest.raises(ConfigError, match="publish-ports: expected at most 256 of them, got 257"):
        ClientConfig(publish_ports=(Ports(2000, 2001),) * 257)


def test_a_target_without_a_name_that_is_published_is_announced_by_its_published_names_alone() -> None:
    def announced(target: str, *publish: str) -> list[str]:
        targets, servers = (Target.parse(target),), (Address("h", 1),)
        asked = tuple(map(Publish.parse, publish))
        return list(configured(ProviderConfig, targets=targets, servers=servers, name="n", names=asked).announced)

    assert announced("3000") == ["default"]
    assert announced("3000", "tcp://20003") == ["tcp://20003@n"]
    assert announced("web=3000", "tcp://20003") == ["web", "tcp://20003@n"]


def test_the_address_of_an_edge_is_one_that_others_can_use() -> None:
    with pytest.raises(ConfigError, match=r"address 0\.0\.0\.0:1: expected the host"):
        configured(EdgeConfig, brokers=(Address("h", 1),), addresses=(Address("0.0.0.0", 1),))


def test_an_http_port_that_is_for_no_service_serves_published_hosts() -> None:
    config = ClientConfig()
    for text, expected in (("http://80", True), ("https://443", True), ("http://80=web", False), ("80", False)):
        assert config.publishes(Listener.parse(text)) is expected
