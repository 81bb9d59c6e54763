"""What a reload applies, and how it says what has changed."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from goreprox.cli.app import sources
from goreprox.config.addresses import Address, Listener, Scheme, Target
from goreprox.config.listed import leaves
from goreprox.config.networks import Rule
from goreprox.config.reloads import APPLIED, IDENTITY, KEPT, applicable, difference
from goreprox.config.roles import BrokerConfig, EdgeConfig, ProviderConfig, ServerConfig
from goreprox.config.routes import Route
from goreprox.errors import ConfigError
from tests.support.configs import configured

ROLES = ("server", "edge", "broker", "provider")
DOCUMENT = Path(__file__).parents[2] / "docs/configuration.md"
PORT = Listener(Address(None, 8080))
WEB = Listener(Address(None, 8081), "web", Scheme.HTTP)
TARGET = Target("web", Address("127.0.0.1", 3000))


def lines(before: object, after: object) -> tuple[list[str], list[str]]:
    return difference(before, after)


def server(**options: Any) -> ServerConfig:
    return configured(ServerConfig, **options)


def provider(*targets: Target, **options: Any) -> ProviderConfig:
    return configured(ProviderConfig, targets=targets, servers=(Address("h", 1),), **options)


def test_every_option_is_applied_or_kept_and_none_is_both() -> None:
    assert {key for role in ROLES for key in sources.keys(role)} | {"config"} == APPLIED | KEPT
    assert not APPLIED & KEPT


def test_the_document_says_of_every_option_whether_a_reload_applies_it() -> None:
    table = DOCUMENT.read_text(encoding="utf-8").partition("## Reload\n")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| (applied|kept) \| (.*) \|", table, re.MULTILINE))
    assert set(re.findall(r"`([a-z-]+)`", rows["applied"])) == APPLIED
    assert set(re.findall(r"`([a-z-]+)`", rows["kept"])) == KEPT


@pytest.mark.parametrize(
    "config",
    [
        server(edges=Address(None, 1)),
        configured(BrokerConfig),
        configured(EdgeConfig, brokers=(Address("h", 1),)),
        provider(TARGET),
    ],
)
def test_a_configuration_has_no_option_that_is_unknown(config: object) -> None:
    assert {leaf.name for leaf in leaves(config)} <= APPLIED | KEPT
    assert lines(config, config) == ([], [])


@pytest.mark.parametrize(
    ("before", "after", "applied"),
    [
        ({"grace_s": 60.0}, {}, []),
        ({}, {"grace_s": 90.0}, ["~ grace: 60 -> 90"]),
        ({"drain_s": 30.0}, {"drain_s": 0.5}, ["~ drain: 30 -> 0.5"]),
        ({"memory_bytes": 256 << 20}, {"memory_bytes": 384 << 20}, ["~ memory: 256 -> 384"]),
        ({}, {"half_closed_timeout_s": 5.0}, ["~ half-closed-timeout: 0 -> 5"]),
        ({}, {"max_connections_per_address": 5}, ["~ max-connections-per-address: none -> 5"]),
        ({}, {"listeners": (PORT, WEB)}, ["+ listen http://8081=web"]),
        ({"listeners": (PORT, WEB)}, {}, ["- listen http://8081=web"]),
        ({}, {"listeners": (Listener(Address(None, 8080), "web"),)}, ["~ listen 8080: default -> web"]),
        (
            {"listeners": (dataclasses.replace(WEB, service="default"),), "routes": (Route("a.example", "web"),)},
            {
                "listeners": (dataclasses.replace(WEB, service="default"),),
                "routes": (Route("b.example", "web"), Route("a.example", "site")),
            },
            ["+ route b.example=web", "~ route a.example: web -> site"],
        ),
        (
            {"allow": (Rule.parse("allow", "default=10.0.0.0/8"), Rule.parse("allow", "default=10.0.0.1/32"))},
            {"allow": (Rule.parse("allow", "default=10.0.0.2/32"),)},
            [
                "+ allow default=10.0.0.2/32",
                "- allow default=10.0.0.0/8",
                "- allow default=10.0.0.1/32",
            ],
        ),
    ],
)
def test_a_change_is_a_line(before: dict[str, Any], after: dict[str, Any], applied: list[str]) -> None:
    assert lines(server(**before), server(**after)) == (applied, [])


def test_an_order_that_matters_is_a_change() -> None:
    tls = {"listeners": (Listener(Address(None, 1), scheme=Scheme.TLS),), "certs": (Path("c"),), "keys": (Path("k"),)}
    before, after = server(**tls, alpn=("a", "b")), server(**tls, alpn=("b", "a"))
    assert lines(before, after) == (["~ tls-alpn: a, b -> b, a"], [])


def test_a_target_that_moves_is_one_line() -> None:
    moved = dataclasses.replace(TARGET, address=Address("h", 2))
    assert lines(provider(TARGET), provider(moved, weight=2.0)) == (
        ["~ target web: 127.0.0.1:3000 -> h:2", "~ weight: 1 -> 2"],
        [],
    )


def test_what_is_kept_is_named_and_stays_while_the_rest_is_applied() -> None:
    before = server()
    after = server(drain_s=5.0, link_timeout_s=5.0, providers=Address(None, 1), edges=Address(None, 2), insecure=True)
    assert difference(before, after).kept == [
        "~ insecure: false -> true (needs an upgrade)",
        "~ link-timeout: 6 -> 5 (needs an upgrade)",
        "~ providers: 9887 -> 1 (needs an upgrade)",
        "~ edges: none -> 2 (needs an upgrade)",
    ]
    assert applicable(before, after) == server(drain_s=5.0)
    assert applicable(after, before).connections == before.connections
    assert applicable(after, before).process == after.process


def test_secrets_are_not_shown() -> None:
    before = provider(TARGET)
    after = dataclasses.replace(before, security=object())  # type: ignore[arg-type]
    assert difference(before, after).kept == ["~ join: none -> (secret) (needs an upgrade)"]


def test_a_provider_says_what_an_upgrade_applies_and_what_not_even_that() -> None:
    assert IDENTITY < KEPT
    changed = provider(TARGET, name="a", runtime_dir=Path("/r"), insecure=True, link_timeout_s=5.0)
    assert difference(provider(TARGET), changed).kept == [
        "~ name: none -> a (needs a restart)",
        "~ runtime-dir: none -> /r (needs a restart)",
        "~ insecure: false -> true (needs an upgrade)",
        "~ link-timeout: 6 -> 5 (needs an upgrade)",
    ]


def test_what_is_applied_has_to_fit_what_is_kept() -> None:
    before = server()
    after = server(listeners=(Listener(Address(None, 9887)),), providers=Address(None, 1))
    with pytest.raises(ConfigError, match="listen :9887 and providers :9887: one port for two"):
        applicable(before, after)


def test_a_thousand_routes_are_compared_by_their_hosts() -> None:
    web = (Listener(Address(None, 80), scheme=Scheme.HTTP),)
    before = server(listeners=web, routes=tuple(Route(f"h{number}", "web") for number in range(1000)))
    after = server(listeners=web, routes=tuple(Route(f"h{number}", "site") for number in range(500, 1500)))
    applied, _ = difference(before, after)
    assert len(applied) == 1500
    assert applied[0] == "+ route h1000=site"
    assert applied[500] == "- route h0=web"
    assert applied[1000] == "~ route h500: web -> site"
