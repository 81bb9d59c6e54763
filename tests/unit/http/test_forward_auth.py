"""Requests that an authentication service decides on: what it is told, and what its verdict does."""

from collections.abc import Callable

import h11
import pytest

from goreprox.config.networks import parse_network
from goreprox.config.routes import Route, Routes
from goreprox.http.commands import Discard, Finish, HalfClose
from goreprox.http.exchange import Site
from goreprox.http.forward_auth import Allowed, Guard, Verdict, failure, question, verdict
from goreprox.http.forwarding import Forwarding
from goreprox.http.heads import parse_request, parse_response
from goreprox.http.requests import Rejected
from tests.support.gateway import CLIENT, OK, Talk

ALLOWED = Allowed([], [])
NAMED = Allowed([(b"X-User", b"alice"), (b"Authorization", b"Bearer theirs")], [b"session=2"])
DENIED = Rejected(401, "no", content=([(b"Content-Length", b"5")], b"login"))


class Known:
    """An authentication service that nobody asks."""

    host, path = b"auth:9091", b"/verify?rd=1"
    copied = frozenset((b"x-user", b"authorization"))

    def ask(self, question: bytes, then: Callable[[Verdict], None]) -> Callable[[], object]:
        raise AssertionError


GUARD = Known()
SITE = Site("web", guards={None: GUARD}, copied=GUARD.copied)


def get(*fields: bytes, method: bytes = b"GET", target: bytes = b"/a?b=c") -> bytes:
    return b"\r\n".join([method + b" " + target + b" HTTP/1.1", b"Host: site.example:8080", *fields, b"", b""])


def told(talk: Talk) -> dict[bytes, bytes]:
    """Return the fields of the question, read by h11, each of which is there once."""
    reader = h11.Connection(h11.SERVER)
    reader.receive_data(talk.seen.asked[-1])
    request = reader.next_event()
    assert isinstance(request, h11.Request)
    assert (request.method, request.target) == (b"GET", GUARD.path)
    assert isinstance(reader.next_event(), h11.EndOfMessage)
    assert len(dict(request.headers)) == len(list(request.headers))
    return dict(request.headers)


def test_the_service_is_told_the_request_and_who_asks() -> None:
    fields = (b"Cookie: a=1", b"Authorization: Basic x", b"Accept: text/html", b"Content-Length: 3")
    talk = Talk(SITE).client(get(*fields, method=b"POST"))
    found = told(talk)
    assert found == {
        b"host": b"auth:9091",
        b"cookie": b"a=1",
        b"authorization": b"Basic x",
        b"accept": b"text/html",
        b"x-forwarded-for": CLIENT.encode(),
        b"x-forwarded-proto": b"http",
        b"x-forwarded-host": b"site.example:8080",
        b"forwarded": found[b"forwarded"],
        b"x-forwarded-method": b"POST",
        b"x-forwarded-uri": b"/a?b=c",
        b"connection": b"close",
    }
    assert not talk.seen.to_target


@pytest.mark.parametrize(
    "field",
    [
        *(
            b"X-Forwarded-Uri: /open",
            b"X_Forwarded_Uri: /open",
            b"X-Forwarded-Method: PUT",
            b"x-forwarded-for: ::1",
        ),
        *(b"X-Forwarded-User: root", b"X-Original-URL: /open", b"X_Original_Uri: /open", b"X-Rewrite-Url: /open"),
        *(b"X-HTTP-Method-Override: GET", b"X-Auth-Request-Redirect: //evil", b"X-User: root", b"X_User: root"),
        *(b"If-None-Match: *", b"Range: bytes=0-0", b"Expect: 100-continue", b"Transfer-Encoding: chunked"),
        *(b"Upgrade: websocket\r\nConnection: upgrade", b"TE: trailers", b"A: b\r\nConnection: a, close"),
    ],
)
def test_what_would_mislead_the_service_is_not_told(field: bytes) -> None:
    plain, talk = Talk(SITE).client(get()), Talk(SITE).client(get(field))
    assert told(talk) == told(plain)


def test_a_trusted_proxy_is_believed() -> None:
    trusting = Forwarding((parse_network("trusted-proxies", CLIENT),))
    site = Site("web", guards=SITE.guards, forwarding=trusting)
    found = told(Talk(site).client(get(b"X-Forwarded-Proto: https", b"X-Forwarded-For: 192.0.2.77")))
    assert (found[b"x-forwarded-proto"], found[b"x-forwarded-for"]) == (b"https", b"192.0.2.77, " + CLIENT.encode())


def test_a_request_waits_for_the_verdict_with_its_body_and_whatever_follows() -> None:
    talk = Talk(SITE).client(get(b"Content-Length: 4", method=b"POST") + b"body" + get(target=b"/next"))
    assert not talk.seen.to_target
    assert not talk.gateway.reading
    assert not talk.gateway.between_requests
    assert talk.gateway.facts == {"host": "site.example:8080"}
    talk.judged(ALLOWED)
    assert len(talk.seen.asked) == 1
    (request, body, end) = talk.requests()
    assert isinstance(request, h11.Request)
    assert (request.method, request.target) == (b"POST", b"/a?b=c")
    assert isinstance(body, h11.Data)
    assert (bytes(body.data), type(end)) == (b"body", h11.EndOfMessage)
    talk.target(OK)
    assert len(talk.seen.asked) == 2
    talk.judged(ALLOWED).target(OK)
    assert talk.statuses == [200, 200]
    assert len(talk.requests()) == 5


def test_chosen_fields_of_the_verdict_reach_the_target_and_never_those_of_the_client() -> None:
    forged = (b"X-User: root", b"x_user: root", b"Authorization: Basic mine")
    talk = Talk(SITE).client(get(*forged)).judged(NAMED)
    assert talk.seen.to_target[0].count(b"alice") == 1
    assert b"Authorization: Bearer theirs" in talk.seen.to_target[0]
    assert b"root" not in talk.seen.to_target[0]
    assert b"mine" not in talk.seen.to_target[0]
    talk = Talk(SITE).client(get(*forged)).judged(ALLOWED)  # nor if the service says nothing
    assert b"root" not in talk.seen.to_target[0]
    assert b"Authorization" not in talk.seen.to_target[0]
    chunked = get(b"Transfer-Encoding: chunked", method=b"POST") + b"0\r\nX-User: root\r\nX_User: root\r\n\r\n"
    assert b"root" not in Talk(SITE).client(chunked).judged(ALLOWED).seen.to_target[0]
    open_site = Site("web", copied=GUARD.copied)  # nor where nobody is asked
    assert b"root" not in Talk(open_site).client(get(*forged)).seen.to_target[0]


def test_cookies_of_the_verdict_reach_the_client() -> None:
    talk = Talk(SITE).client(get()).judged(NAMED).target(OK)
    assert b"\r\nSet-Cookie: session=2\r\n" in talk.seen.to_client
    assert b"\r\nCache-Control: no-store\r\n" in talk.seen.to_client
    assert b"session=2" not in talk.seen.to_target[0]


def test_a_denied_request_never_reaches_a_target_and_the_next_one_is_asked_about_anew() -> None:
    talk = Talk(SITE).client(get()).judged(DENIED).client(get()).judged(ALLOWED).target(OK)
    assert talk.statuses == [401, 200]
    assert b"\r\n\r\nlogin" in talk.seen.to_client
    assert len(talk.requests()) == 2
    assert len(talk.seen.asked) == 2
    unread = Talk(SITE).client(get(b"Content-Length: 9", method=b"POST")).judged(DENIED)
    assert unread.seen.others == [Finish()]  # the body that is not here cannot be skipped
    head = Talk(SITE).client(get(method=b"HEAD")).judged(DENIED)
    assert head.seen.to_client.endswith(b"Content-Length: 5\r\n\r\n")


def test_a_websocket_is_asked_about_and_switches_only_with_a_verdict() -> None:
    upgrade = get(b"Connection: upgrade", b"Upgrade: websocket")
    talk = Talk(SITE).client(upgrade)
    assert b"pgrade" not in talk.seen.asked[0]
    switched = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    talk.judged(ALLOWED).target(switched)
    assert talk.seen.to_client.startswith(b"HTTP/1.1 101 ")
    assert Talk(SITE).client(upgrade).judged(DENIED).statuses == [401]


def test_each_service_has_its_own_and_others_the_one_for_all() -> None:
    other = Known()
    routes = Routes([Route("a", "web"), Route("b", "shop"), Route("c", "open")])
    cases: list[tuple[dict[str | None, Guard], list[Guard | None]]] = [
        ({"web": GUARD, None: other}, [GUARD, other, other]),
        ({"web": GUARD}, [GUARD, None, None]),
    ]
    for guards, asked in cases:
        for host, expected in zip((b"a", b"b", b"c"), asked, strict=True):
            talk = Talk(Site("default", routes=routes, guards=guards))
            talk.client(b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % host)
            exchange = talk.gateway.exchange
            assert exchange is not None
            assert exchange.guard is expected
            assert bool(talk.seen.asked) == (expected is not None)


def test_hosts_that_providers_publish_have_the_one_for_all() -> None:
    published = {b"a": "http://a"}.get
    talk = Talk(Site("default", routes=Routes([]), published=published, guards={"web": Known(), None: GUARD}))
    talk.client(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert talk.gateway.exchange is not None
    assert talk.gateway.exchange.guard is GUARD


def test_unknown_hosts_and_denied_addresses_are_not_asked_about() -> None:
    routes = Routes([Route("a", "web")])
    closed = Site("x", routes=routes, guards=SITE.guards, closed=lambda _address, _service: True)
    for host, status in (b"b", 404), (b"a", 403):
        talk = Talk(closed).client(b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % host)
        assert talk.statuses == [status]
        assert not talk.seen.asked


# -- meanwhile


def test_a_client_that_leaves_meanwhile_is_forgotten_and_a_late_verdict_does_nothing() -> None:
    talk = Talk(SITE).client(get())
    talk.do(talk.gateway.client_lost())
    talk.judged(ALLOWED)
    assert not talk.seen.to_target
    assert not talk.seen.to_client
    assert not talk.judged(ALLOWED).seen.to_target


def test_a_client_that_half_closes_meanwhile_still_gets_its_response() -> None:
    talk = Talk(SITE).client(get()).client_eof()
    assert not talk.gateway.over
    assert not talk.gateway.half_closed
    talk.judged(ALLOWED)
    assert HalfClose() in talk.seen.others
    assert talk.target(OK).statuses == [200]


def test_a_target_that_ends_an_idle_stream_meanwhile_fails_no_request() -> None:
    talk = Talk(SITE).client(get()).judged(ALLOWED).target(OK).client(get())
    talk.target_eof()
    assert Discard(reset=False) in talk.seen.others
    talk.judged(ALLOWED).target(OK)
    assert talk.statuses == [200, 200]
    talk.client(get()).target(b"HTTP/1.1 200 unasked\r\n\r\n")  # nobody asked for it yet
    talk.judged(ALLOWED).target(OK)
    assert talk.statuses == [200, 200, 200]
    assert b"unasked" not in talk.seen.to_client


def test_a_drain_meanwhile_ends_the_connection_after_the_response() -> None:
    talk = Talk(SITE).client(get())
    talk.do(talk.gateway.drain())
    assert not talk.gateway.over
    talk.judged(ALLOWED).target(OK)
    assert talk.statuses == [200]
    assert talk.seen.others[-1] == Finish()


def test_timeouts_of_clients_do_not_end_it() -> None:
    talk = Talk(SITE).client(get())
    talk.do(talk.gateway.timed_out())
    assert talk.judged(ALLOWED).target(OK).statuses == [200]


# -- verdicts


def judge(head: bytes, body: bytes = b"") -> Verdict:
    return verdict(GUARD, parse_response(head.replace(b"\n", b"\r\n") + b"\r\n"), body)


@pytest.mark.parametrize("status", [200, 202, 204, 299])
def test_2xx_lets_in_with_chosen_fields_alone(status: int) -> None:
    head = b"HTTP/1.1 %d OK\nX-User: a\nX-User: b\nX-Other: c\nSet-Cookie: d=1\nSet-Cookie: e=1\n" % status
    assert judge(head) == Allowed([(b"X-User", b"a"), (b"X-User", b"b")], [b"d=1", b"e=1"])
    assert judge(head + b"Connection: x-user\n") == Allowed([], [b"d=1", b"e=1"])  # hop by hop


@pytest.mark.parametrize("status", [301, 302, 307, 400, 401, 403, 404, 429])
def test_3xx_and_4xx_go_to_the_client_with_their_fields_and_body(status: int) -> None:
    head = b"HTTP/1.1 %d No\nLocation: /login\nSet-Cookie: a=1\nSet-Cookie: b=1\nContent-Length: 9\n" % status
    found = judge(head + b"WWW-Authenticate: Basic\nConnection: close\nTransfer-Encoding: chunked\n", b"login")
    assert isinstance(found, Rejected)
    assert found.content == (
        [
            *((b"Location", b"/login"), (b"Set-Cookie", b"a=1"), (b"Set-Cookie", b"b=1")),
            *((b"WWW-Authenticate", b"Basic"), (b"Cache-Control", b"no-store"), (b"Content-Length", b"5")),
        ],
        b"login",
    )
    assert Talk(SITE).client(get()).judged(found).statuses == [status]


@pytest.mark.parametrize("status", [304, 460, 500, 502, 503, 599, 600, 999])
def test_everything_else_is_a_failure(status: int) -> None:
    found = judge(b"HTTP/1.1 %d No\nX-User: a\n" % status)
    assert isinstance(found, Rejected)
    assert found.status == 502
    talk = Talk(SITE).client(get()).judged(found)
    assert talk.statuses == [502]
    assert talk.seen.logged[-1].error == f"the authentication service responded with {status}"


def test_a_failure_tells_clients_nothing_of_the_service() -> None:
    talk = Talk(SITE).client(get()).judged(failure(503, "http://10.0.0.7/ cannot be reached"))
    assert talk.statuses == [503]
    assert b"10.0.0.7" not in talk.seen.to_client
    assert b"Retry-After" in talk.seen.to_client


def test_a_question_is_one_request_whatever_the_client_sent() -> None:
    request = parse_request(get(b"A: b", target=b"/%0d%0aX:y?%00"))
    asked = question(GUARD, request, request.fields)
    assert asked.count(b"\r\n\r\n") == 1
    assert asked.endswith(b"\r\n\r\n")
