"""Which service a request is for, by its Host."""

import pytest

from goreprox.config.networks import Rule
from goreprox.config.routes import Route, Routes
from goreprox.errors import ConfigError
from goreprox.http.commands import Connect
from goreprox.http.exchange import Site
from goreprox.net.access import Access
from tests.support.gateway import CLIENT, OK, Talk

ROUTES = Routes(map(Route.parse, ["example.org=exact", "*.example.org=below", "*.a.example.org=deeper", "[::1]=six"]))


def get(host: bytes) -> bytes:
    return b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n"


@pytest.mark.parametrize(
    ("host", "service"),
    [
        (b"example.org", "exact"),
        (b"EXAMPLE.org:8080", "exact"),
        (b"example.org.", "exact"),
        (b"b.example.org", "below"),
        (b"c.b.example.org", "below"),
        (b"c.a.example.org", "deeper"),
        (b"a.example.org", "below"),
        (b"[::1]:80", "six"),
        (b"xexample.org", None),
        (b"example.org.evil", None),
        (b"*.example.org", "below"),
        (b"org", None),
        (b"", None),
    ],
)
def test_an_exact_name_comes_before_the_nearest_pattern(host: bytes, service: str | None) -> None:
    assert ROUTES.find(host) == service
    assert Routes([Route("*", "rest")]).find(host) == "rest"


def test_of_two_routes_for_a_host_that_of_tls_wins_where_tls_is_passed_on() -> None:
    passed, *others = map(Route.parse, ["TLS://A.test=far", "a.test=here", "tls://*.test=rest", "b.test=here"])
    routes = Routes([passed, *others])
    assert (passed.text, passed.passes) == ("tls://a.test=far", True)
    assert [routes.find(host) for host in (b"a.test", b"b.test", b"c.test")] == ["far", "here", "rest"]
    assert routes.match(b"a.test") == passed


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "=a",
        "tls://=a",
        "http://a=b",
        "tls://tls://a=b",
        "a b=c",
        "a:80=c",
        "*a=c",
        "a.*=c",
        "**=c",
        "-a=c",
        "a/b=c",
        "a..b=c",
    ],
)
def test_a_malformed_route_is_rejected(text: str) -> None:
    with pytest.raises(ConfigError, match=r"write \[tls://\]HOST=SERVICE"):
        Route.parse(text)


def test_each_request_of_a_connection_is_routed_by_its_host() -> None:
    talk = Talk(Site("default", routes=ROUTES)).client(get(b"example.org")).target(OK)
    talk.client(get(b"a.example.org")).target(OK).client(get(b"a.example.org")).target(OK)
    asked = [each for each in talk.seen.others if isinstance(each, Connect)]
    assert [each.service for each in asked] == ["exact", "below", "below"]
    assert len(talk.seen.to_target) == 2


def test_an_unknown_host_is_404_and_the_connection_stays_open() -> None:
    talk = Talk(Site("default", routes=ROUTES)).client(get(b"other")).client(get(b"example.org")).target(OK)
    assert talk.statuses == [404, 200]


def test_an_address_denied_for_a_service_is_403() -> None:
    access = Access(deny=[Rule.parse("deny", f"below={CLIENT}")])
    talk = Talk(Site("default", routes=ROUTES, closed=access.denies))
    talk.client(get(b"a.example.org")).client(get(b"example.org")).target(OK)
    assert talk.statuses == [403, 200]
