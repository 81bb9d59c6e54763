"""Browsers that log in with a token: which cookies they get, which count, and that nobody else sees them."""

import base64
import hashlib
import time
from pathlib import Path

import pytest

from goreprox.config.networks import parse_network
from goreprox.config.routes import Route, Routes
from goreprox.errors import StartError
from goreprox.http.auth import Auth
from goreprox.http.exchange import Site
from goreprox.http.forwarding import Forwarding
from goreprox.http.login import LOGIN_S, MOST, Place, without_cookies
from goreprox.http.tokens import Token, Tokens
from tests.support.gateway import CLIENT, OK, Talk

GOOD, OTHER = b"the-good-token", b"the-other-token"
ROUTES = Routes([Route("a", "web"), Route("b", "web"), Route("c", "shop")])
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.toml"
    write(path, alice=GOOD)
    return path


def write(path: Path, more: str = "", **values: bytes) -> None:
    new = path.with_suffix(".new")
    tables = (f'[tokens.{name}]\nsha256 = "{hashlib.sha256(value).hexdigest()}"\n' for name, value in values.items())
    new.write_text("".join(table + more + "\n" for table in tables))
    new.chmod(0o600)
    new.rename(path)


def site(path: Path, proto: bytes = b"http", **options: object) -> Site:
    auth = Auth(path, "X-Goreprox-Auth", basic=True, clock=time.monotonic)
    return Site("web", auth, forwarding=Forwarding(proto=proto), **options)  # type: ignore[arg-type] # test


def get(*fields: bytes, host: bytes = b"a") -> bytes:
    return b"\r\n".join([b"GET / HTTP/1.1", b"Host: " + host, *fields, b"", b""])


def basic(token: bytes = GOOD) -> bytes:
    return b"Authorization: Basic " + base64.b64encode(b"alice:" + token)


def set_cookies(talk: Talk) -> list[bytes]:
    """Return the values of Set-Cookie in all that the client got."""
    return [line[12:] for line in talk.seen.to_client.split(b"\r\n") if line.startswith(b"Set-Cookie: ")]


def login(where: Site, host: bytes = b"a") -> bytes:
    """Log in; return the field that the browser sends from then on."""
    (cookie,) = set_cookies(Talk(where).client(get(basic(), host=host)).target(OK))
    return b"Cookie: " + cookie.partition(b";")[0]


def status(where: Site, *fields: bytes, host: bytes = b"a") -> int:
    return Talk(where).client(get(*fields, host=host)).target(OK).statuses[0]


@pytest.mark.parametrize(
    ("proto", "name", "secure"), [(b"http", b"goreprox", b""), (b"https", b"__Host-goreprox", b"; Secure")]
)
def test_a_login_by_basic_gives_a_cookie_that_scripts_and_other_sites_cannot_use(
    file: Path, proto: bytes, name: bytes, secure: bytes
) -> None:
    (cookie,) = set_cookies(Talk(site(file, proto)).client(get(basic())).target(OK))
    value, attributes = cookie.split(b"; ", 1)
    assert value.startswith(name + b"=alice.")
    assert attributes == b"Path=/; Max-Age=%d; HttpOnly; SameSite=Lax%b" % (LOGIN_S, secure)
    assert GOOD not in cookie


def test_a_cookie_is_enough_and_reaches_no_target_while_others_do(file: Path) -> None:
    where = site(file)
    cookie = login(where)
    talk = Talk(where).client(get(cookie)).target(OK).client(get(b"Cookie: x=1; %b;  y=2" % cookie[8:])).target(OK)
    assert talk.statuses == [200, 200]
    assert not set_cookies(talk)
    assert b"goreprox" not in talk.seen.to_target[0]
    assert talk.seen.to_target[0].count(b"Cookie") == 1
    assert b"\r\nCookie: x=1;  y=2\r\n" in talk.seen.to_target[0]


def test_a_browser_that_sends_both_is_let_in_by_either_and_gets_no_other_cookie(file: Path) -> None:
    where = site(file)
    talk = Talk(where).client(get(login(where), basic())).target(OK)
    assert talk.statuses == [200]
    assert not set_cookies(talk)
    assert b"Authorization" not in talk.seen.to_target[0]
    assert status(where, b"Cookie: goreprox=wrong", basic()) == 200


def test_authorization_that_is_no_token_is_for_the_target_of_one_who_has_logged_in(file: Path) -> None:
    where = site(file)
    cookie = login(where)
    for theirs in (b"Authorization: Bearer of-the-app", basic(b"of-the-app")):
        talk = Talk(where).client(get(cookie, theirs)).target(OK)
        assert talk.statuses == [200]
        assert b"\r\n" + theirs + b"\r\n" in talk.seen.to_target[0]
    assert status(where, cookie, b"X-Goreprox-Auth: wrong") == 401  # whoever sends it means it
    assert status(where, cookie, b"Authorization: Bearer a", b"Authorization: Bearer b") == 401


def test_other_ways_to_send_a_token_give_no_cookie(file: Path) -> None:
    for field in (b"X-Goreprox-Auth: ", b"X-Goreprox-Auth: Bearer ", b"Authorization: Bearer "):
        talk = Talk(site(file)).client(get(field + GOOD)).target(OK)
        assert (talk.statuses, set_cookies(talk)) == ([200], [])


def test_a_websocket_is_let_in_by_the_cookie_and_gets_one_with_a_password(file: Path) -> None:
    where = site(file)
    upgrade = (b"Connection: upgrade", b"Upgrade: websocket")
    for field, cookies in ((login(where), 0), (basic(), 1)):
        talk = Talk(where).client(get(field, *upgrade)).target(SWITCHED)
        assert talk.seen.to_client.startswith(b"HTTP/1.1 101 ")
        assert len(set_cookies(talk)) == cookies
        assert b"goreprox" not in talk.seen.to_target[0].partition(b"Forwarded")[0]
        assert b"Authorization" not in talk.seen.to_target[0]


def test_no_cache_keeps_a_response_with_a_cookie(file: Path) -> None:
    public = b"HTTP/1.1 200 OK\r\nCache-Control: public\r\nCDN-Cache-Control: public\r\nContent-Length: 0\r\n\r\n"
    talk = Talk(site(file)).client(get(basic())).target(public)
    assert b"public" not in talk.seen.to_client
    assert b"\r\nCache-Control: no-store\r\n" in talk.seen.to_client
    assert b"public" in Talk(site(file)).client(get(login(site(file)))).target(public).seen.to_client


def forged(value: bytes) -> list[bytes]:
    name, expires, signature = value.rsplit(b".", 2)
    changed = bytes([signature[0] ^ 1]) + signature[1:]
    return [
        b"",
        b"alice",
        b"..",
        name + b"." + expires + b".",
        b".".join((name, b"%d" % (int(expires) + 1), signature)),
        b".".join((name, expires, changed)),
        b".".join((name, expires, signature[:-1])),
        b".".join((name, expires, signature + b"=")),
        b".".join((b"bob", expires, signature)),
        b".".join((b"nobody", expires, signature)),
        b".".join((name, expires, signature, signature)),
        b".".join((name, b"x", signature)),
        b".".join((name, b"\xff" * 9, signature)),
        b'"%b"' % value,
    ]


def test_a_forged_cookie_does_not_count(file: Path) -> None:
    write(file, alice=GOOD, bob=OTHER)
    where = site(file)
    cookie = login(where)
    assert status(where, cookie) == 200
    for value in forged(cookie.partition(b"=")[2]):
        talk = Talk(site(file)).client(get(b"Cookie: goreprox=" + value))
        assert talk.statuses == [401], value
        assert not talk.seen.to_target


def test_a_cookie_counts_for_its_host_service_and_scheme_alone(file: Path) -> None:
    where = site(file, routes=ROUTES)
    cookie = login(where)
    assert status(where, cookie) == 200
    assert status(where, cookie, host=b"A:8080") == 200
    assert status(where, cookie, host=b"b") == 401
    assert status(where, cookie, host=b"c") == 401
    assert status(site(file, routes=Routes([Route("a", "shop")])), cookie) == 401
    assert status(site(file, b"https", routes=ROUTES), cookie) == 401
    assert status(site(file, b"https", routes=ROUTES), cookie.replace(b"goreprox", b"__Host-goreprox")) == 401
    assert status(where, b"Cookie: GOREPROX" + cookie[16:]) == 401


def test_a_cookie_ends_with_its_token(file: Path) -> None:
    write(file, alice=GOOD, bob=OTHER)
    where = site(file)
    cookie = login(where)
    assert status(where, cookie) == 200
    write(file, bob=OTHER)
    assert status(where, cookie) == 401
    write(file, bob=OTHER, alice=b"a new token of the same name")
    assert status(where, cookie) == 401
    write(file, 'services = ["shop"]', alice=GOOD)
    assert status(where, cookie) == 403
    write(file, "expires = 2020-01-01T00:00:00Z", alice=GOOD)
    assert status(where, cookie) == 401
    file.write_text("nonsense")
    assert status(where, cookie) == 401
    write(file, alice=GOOD)
    assert status(where, cookie) == 200  # the key follows from the file, as for every other process


def test_a_cookie_expires_by_itself_and_not_after_its_token() -> None:
    place = Place(b"a:8080", "web", secure=False)
    token = Token("alice", hashlib.sha256(GOOD).digest(), None, float("inf"))
    short = Token("bob", hashlib.sha256(OTHER).digest(), None, 1060.0)
    tokens = Tokens([token, short])
    for each, valid_s in (token, LOGIN_S), (short, 60):
        cookie = place.cookie(each, now=1000.0)
        assert b"; Max-Age=%d;" % valid_s in cookie
        fields = [(b"cookie", cookie.partition(b";")[0])]
        assert place.holder(fields, tokens, now=999.0 + valid_s) is each
        assert place.holder(fields, tokens, now=1000.0 + valid_s) is None


def test_of_several_cookies_the_valid_one_counts_but_only_so_many_are_looked_at(file: Path) -> None:
    where = site(file)
    ours, other = login(where)[8:], b"goreprox=x.1.y"
    assert status(where, b"Cookie: " + b"; ".join([other] * (MOST - 1) + [ours])) == 200
    assert status(where, b"Cookie: " + b"; ".join([other] * (MOST - 1)), b"Cookie: " + ours) == 200
    assert status(where, b"Cookie: " + b"; ".join([other] * MOST + [ours])) == 401


def test_behind_a_trusted_proxy_the_scheme_is_that_of_its_client(file: Path) -> None:
    auth = Auth(file, "X-Goreprox-Auth", basic=True, clock=time.monotonic)
    trusting = Site("web", auth, forwarding=Forwarding((parse_network("trusted-proxies", CLIENT),)))
    (cookie,) = set_cookies(Talk(trusting).client(get(basic(), b"X-Forwarded-Proto: https")).target(OK))
    assert cookie.startswith(b"__Host-goreprox=")
    assert cookie.endswith(b"; Secure")
    (cookie,) = set_cookies(Talk(site(file)).client(get(basic(), b"X-Forwarded-Proto: https")).target(OK))
    assert cookie.startswith(b"goreprox=")


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (b"goreprox=1", None),
        (b"__Host-goreprox=1; goreprox=2;goreprox", None),
        (b"a=1", b"a=1"),
        (b"a=1; goreprox=2", b"a=1"),
        (b"goreprox=2;b", b"b"),
        (b"\tgoreprox =2 ; b=3", b"b=3"),
        (b"goreproxy=1; a=goreprox=2; =goreprox", b"goreproxy=1; a=goreprox=2; =goreprox"),
    ],
)
def test_only_our_cookies_are_removed(value: bytes, kept: bytes | None) -> None:
    rest = [] if kept is None else [(b"COOKIE", kept)]
    assert without_cookies([(b"A", b"goreprox=1"), (b"COOKIE", value)]) == [(b"A", b"goreprox=1"), *rest]


def test_a_file_that_others_can_read_is_rejected_since_cookies_are_signed_by_it(file: Path) -> None:
    file.chmod(0o644)
    with pytest.raises(StartError, match="others may read it; chmod 600"):
        site(file)
    Auth(file, "X-Goreprox-Auth", clock=time.monotonic)
