"""Requests without TLS for hosts that have a certificate: which are led to https://, and where."""

import ipaddress

import pytest

from goreprox.config.routes import Route, Routes
from goreprox.http.exchange import Site
from goreprox.http.forwarding import Forwarding
from tests.support.gateway import CLIENT, OK, Talk


def secured(host: bytes) -> bytes | None:
    return b"a.test:8443" if host.startswith(b"a.test") else None


def site(proto: bytes = b"http", *, trusts: bool = False) -> Site:
    networks = (ipaddress.ip_network(CLIENT),) if trusts else ()
    routes = Routes([Route("a.test", "web"), Route("b.test", "web")])
    return Site("web", routes=routes, forwarding=Forwarding(networks, proto), secured=secured, logs=True)


def request(path: str, *fields: str, host: str = "a.test") -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", f"Host: {host}", *fields, "", ""]).encode()


@pytest.mark.parametrize("path", ["/", "/a/b?c=d%20e", "//elsewhere.example/", "/.well-known/acme-challenge"])
def test_a_request_is_led_to_https_with_its_path_and_query(path: str) -> None:
    talk = Talk(site()).client(request(path, host="a.test:80")).client(request("/", host="b.test")).target(OK)
    assert talk.statuses == [308, 200]
    assert b"\r\nLocation: https://a.test:8443%b\r\n" % path.encode() in talk.seen.to_client
    assert talk.seen.logged[0].status == 308
    assert len(talk.seen.to_target) == 1


def test_the_body_of_a_redirected_request_is_skipped() -> None:
    post = b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3\r\n\r\nabc"
    talk = Talk(site()).client(post).client(request("/", host="b.test")).target(OK)
    assert talk.statuses == [308, 200]


def test_a_request_for_no_path_is_led_to_the_host() -> None:
    talk = Talk(site()).client(b"OPTIONS * HTTP/1.1\r\nHost: a.test\r\n\r\n")
    assert b"\r\nLocation: https://a.test:8443\r\n" in talk.seen.to_client


@pytest.mark.parametrize(
    ("asked", "where"),
    [
        (request("/", host="b.test"), site()),
        (request("/.well-known/acme-challenge/token"), site()),
        (request("/", "X-Forwarded-Proto: https"), site(trusts=True)),
        (request("/"), site(b"https")),
        (request("/"), Site("web")),
    ],
)
def test_other_requests_are_passed_on(asked: bytes, where: Site) -> None:
    assert Talk(where).client(asked).target(OK).statuses == [200]


def test_only_trusted_proxies_are_believed_about_tls() -> None:
    assert Talk(site()).client(request("/", "X-Forwarded-Proto: https")).statuses == [308]
    assert Talk(site(trusts=True)).client(request("/", "X-Forwarded-Proto: http")).statuses == [308]
