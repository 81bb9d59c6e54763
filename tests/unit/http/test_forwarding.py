"""What targets, the access log and the rate limit are told of clients."""

import ipaddress
from collections.abc import Sequence

import h11
import pytest

from goreprox.config.http import HostHeader, HttpConfig
from goreprox.http.commands import LogRequest
from goreprox.http.exchange import Site
from goreprox.http.forwarding import Forwarding
from goreprox.http.messages import Request
from tests.support.gateway import CLIENT, OK, Talk

TRUSTING = Forwarding((ipaddress.ip_network("192.0.2.0/24"), ipaddress.ip_network("10.0.0.0/8")))
LIES = (
    b"X-Forwarded-For: 203.0.113.7, 10.1.1.1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: example.org\r\n"
    b"Forwarded: for=203.0.113.7\r\nVia: 1.1 proxy\r\nX-Forwarded-Port: 1\r\nX-Real-IP: 203.0.113.7\r\n"
    b"X_Forwarded_For: 203.0.113.7\r\nx_real-ip: 203.0.113.7\r\n"
)


def get(more: bytes = b"") -> bytes:
    return b"GET /a?secret HTTP/1.1\r\nHost: a:80\r\n" + more + b"\r\n"


def passed_on(forwarding: Forwarding, request: bytes) -> list[tuple[bytes, bytes]]:
    event = Talk(Site("web", forwarding=forwarding)).client(request).requests()[0]
    assert isinstance(event, h11.Request)
    return [field for field in event.headers if field[0] != b"host"]


def test_forwarding_fields_of_a_client_are_dropped() -> None:
    assert passed_on(Forwarding(), get(LIES)) == [
        (b"x-forwarded-for", CLIENT.encode()),
        (b"x-forwarded-proto", b"http"),
        (b"x-forwarded-host", b"a:80"),
        (b"forwarded", b'for=192.0.2.9;host="a:80";proto=http'),
    ]
    assert passed_on(Forwarding(), get(LIES)) == passed_on(Forwarding(), get())


def test_forwarding_fields_of_a_trusted_proxy_are_extended() -> None:
    assert passed_on(TRUSTING, get(LIES)) == [
        (b"x-forwarded-for", b"203.0.113.7, 10.1.1.1, 192.0.2.9"),
        (b"x-forwarded-proto", b"https"),
        (b"x-forwarded-host", b"example.org"),
        (b"forwarded", b'for=203.0.113.7, for=192.0.2.9;host="a:80";proto=http'),
        (b"via", b"1.1 proxy"),
    ]


@pytest.mark.parametrize(
    ("said", "forwarded"),
    [
        (b"X-Forwarded-Proto: https\r\n", b'for=unknown;host="a:80";proto=https, '),
        (
            b"X-Forwarded-For: 203.0.113.7:40000, 2001:db8::1, 10.1.1.1\r\nX-Forwarded-Proto: https\r\n"
            b"X-Forwarded-Host: example.org\r\n",
            b'for=203.0.113.7;host="example.org";proto=https, for="[2001:db8::1]", for=10.1.1.1, ',
        ),
        (b"X-Forwarded-For: _hidden, 203.0.113.7\r\n", b'for=203.0.113.7;host="a:80";proto=http, '),
        (b"X-Forwarded-For: nonsense\r\n", b'for=unknown;host="a:80";proto=http, '),
        (
            b'X-Forwarded-Host: a";for=6.6.6.6\\\r\nX-Forwarded-Proto: https, http\r\n',
            b'for=unknown;host="a\\";for=6.6.6.6\\\\";proto="https, http", ',
        ),
        (
            b"X-Forwarded-For: " + b"10.0.0.1, " * 1000 + b"\r\n",
            b'for=10.0.0.1;host="a:80";proto=http, ' + b"for=10.0.0.1, " * 31,
        ),
        (b"Forwarded: proto=http\r\nX-Forwarded-Proto: https\r\n", b"proto=http, "),
        (b"Via: 1.1 proxy\r\n", b""),
    ],
)
def test_forwarded_says_what_a_trusted_proxy_has_said_in_other_fields(said: bytes, forwarded: bytes) -> None:
    """A Forwarded of its own is believed as it is."""
    ours = b'for=192.0.2.9;host="a:80";proto=http'
    assert dict(passed_on(TRUSTING, get(said)))[b"forwarded"] == forwarded + ours
    assert dict(passed_on(Forwarding(), get(said)))[b"forwarded"] == ours


def test_via_is_added_only_when_enabled() -> None:
    """With any Via nginx does not compress, by default (gzip_proxied off)."""
    assert b"via" not in dict(passed_on(Forwarding(), get(LIES)))
    assert dict(passed_on(Forwarding(via=True), get(LIES)))[b"via"] == b"1.1 goreprox"
    assert dict(passed_on(Forwarding(TRUSTING.trusted, via=True), get(LIES)))[b"via"] == b"1.1 proxy, 1.1 goreprox"


@pytest.mark.parametrize("name", [b"X-Forwarded-Client-Cert", b"x_forwarded_client_cert"])
def test_the_certificate_field_of_a_client_is_replaced(name: bytes) -> None:
    forged = get(name + b": Hash=1\r\n")
    assert b"x-forwarded-client-cert" not in dict(passed_on(Forwarding(), forged))
    talk = Talk(Site("web"), certificate=b'Hash=2;Subject="CN=alice"').client(forged)
    assert talk.seen.to_target[0].lower().count(b"client") == 1
    assert b'X-Forwarded-Client-Cert: Hash=2;Subject="CN=alice"\r\n' in talk.seen.to_target[0]


def test_targets_get_the_configured_host_header() -> None:
    hosts = (HostHeader(None, "any.test"), HostHeader("web", "web.test:81"))
    for service, host in (("web", b"web.test:81"), ("other", b"any.test")):
        talk = Talk(Site(service, settings=HttpConfig(hosts=hosts))).client(get())
        assert talk.seen.to_target[0].count(b"\r\nHost: " + host + b"\r\n") == 1
        assert b"X-Forwarded-Host: a:80\r\n" in talk.seen.to_target[0]


def test_an_ipv6_client_is_written_as_in_rfc_7239() -> None:
    request = Request(b"GET", b"/", b"1.1", [(b"Host", b"a")])
    assert dict(Forwarding().fields(request, "2001:db8::1", host=b"a"))[b"Forwarded"] == (
        b'for="[2001:db8::1]";host="a";proto=http'
    )


@pytest.mark.parametrize(
    ("peer", "chain", "client"),
    [
        ("192.0.2.9", [], "192.0.2.9"),
        ("192.0.2.9", ["203.0.113.7"], "203.0.113.7"),
        ("192.0.2.9", ["198.51.100.1, 203.0.113.7, 10.1.1.1"], "203.0.113.7"),
        ("192.0.2.9", ["198.51.100.1", "[2001:db8::1]"], "2001:db8::1"),
        ("192.0.2.9", ["198.51.100.1:1, 203.0.113.7:40000, 10.1.1.1:80"], "203.0.113.7"),
        ("192.0.2.9", ["[2001:db8::5:80]:443"], "2001:db8::5:80"),
        ("192.0.2.9", ["2001:db8::5:80"], "2001:db8::5:80"),
        ("192.0.2.9", [":80"], "192.0.2.9"),
        ("192.0.2.9", ["10.0.0.1, 10.0.0.2"], "10.0.0.1"),
        ("192.0.2.9", ["203.0.113.7, nonsense, 10.0.0.2"], "10.0.0.2"),
        ("198.51.100.1", ["203.0.113.7"], "198.51.100.1"),
    ],
)
def test_the_client_is_the_last_address_that_is_no_trusted_proxy(peer: str, chain: Sequence[str], client: str) -> None:
    fields = [(b"Host", b"a"), *((b"X-Forwarded-For", each.encode()) for each in chain)]
    assert TRUSTING.client_of(Request(b"GET", b"/", b"1.1", fields), peer) == client


def test_every_readable_request_is_logged() -> None:
    talk = Talk(Site("web", forwarding=TRUSTING, logs=True)).client(get(LIES)).target(OK)
    talk.client(get().replace(b"GET", b"POST")).lost()
    talk.client(get()).target(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nsome").lost()
    failed, reset = talk.seen.logged[1:]
    assert talk.seen.logged[0] == LogRequest("203.0.113.7", "web", None, "GET", "a:80", "/a", 200, 2)
    assert (failed.client, failed.method, failed.status, failed.error) == (CLIENT, "POST", 502, "gone")
    assert failed.request_id.encode() in talk.seen.to_client
    assert reset == LogRequest(CLIENT, "web", None, "GET", "a:80", "/a", 200, 4, error="gone")


@pytest.mark.parametrize(
    ("request_", "status", "line"),
    [
        (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400, ("GET", "a b", "/")),
        (b"GET /x?secret HTTP/1.1\r\nHost: a\r\nExpect: x\r\n\r\n", 417, ("GET", "a", "/x")),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, ("", "", "")),
        (b"nonsense\n", 400, ("", "", "")),
        (b"G" * 20_000, 431, ("", "", "")),
    ],
)
def test_rejected_requests_are_logged_with_the_reason(request_: bytes, status: int, line: tuple[str, str, str]) -> None:
    (entry,) = Talk(Site("web", logs=True)).client(request_).seen.logged
    assert entry.status == status
    assert (entry.method, entry.host, entry.path) in (line, ("PRI", "", "*"))
    assert entry.error and not entry.request_id


def test_a_client_that_leaves_during_a_response_is_logged() -> None:
    for said, status in ((b"", 0), (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nsome", 200)):
        talk = Talk(Site("web", logs=True)).client(get()).target(*[said] if said else [])
        talk.do(talk.gateway.client_lost())
        assert talk.gateway.over
        assert [(entry.status, entry.body_bytes) for entry in talk.seen.logged] == [(status, len(said) and 4)]
        assert "ended before the response did" in talk.seen.logged[0].error
    truncated = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nsome"
    for talk in (
        Talk(Site("web", logs=True)),
        Talk(Site("web", logs=True)).client(get()).target(OK),
        Talk(Site("web", logs=True)).client(get()).target(truncated).target_eof(),
    ):
        logged = list(talk.seen.logged)
        talk.do(talk.gateway.client_lost())
        assert talk.seen.logged == logged


def test_an_unfinished_header_section_is_logged() -> None:
    talk = Talk(Site("web", logs=True)).client(b"GET")
    talk.do(talk.gateway.timed_out())
    assert [entry.status for entry in talk.seen.logged] == [408]


@pytest.mark.parametrize("status", [502, 503, 504])
def test_error_pages_hide_why_a_target_failed(status: int) -> None:
    secret = "target 10.1.2.3:80: Connection refused"
    talk = Talk().client(get()).lost(status, secret, again=False)
    assert talk.statuses == [status]
    assert b"10.1.2.3" not in talk.seen.to_client and b"refused" not in talk.seen.to_client
    (entry,) = talk.seen.logged  # even without an access log
    assert entry.error == secret
    assert f"(request {entry.request_id})".encode() in talk.seen.to_client


def test_error_pages_hide_what_a_target_sent() -> None:
    talk = Talk().client(get()).target(b"HTTP/1.1 200 OK\r\nsecret of 10.1.2.3\r\n\r\n")
    assert talk.statuses == [502]
    assert b"secret" not in talk.seen.to_client and b"10.1.2.3" not in talk.seen.to_client
    assert "secret of 10.1.2.3" in talk.seen.logged[0].error


def test_nothing_is_logged_without_an_access_log() -> None:
    talk = Talk().client(get()).target(OK)
    assert not talk.seen.logged
