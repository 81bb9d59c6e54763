"""Which requests come in: tokens, their file, and what is logged."""

import base64
import datetime
import hashlib
from pathlib import Path

import h11
import pytest

from goreprox.config.routes import Route, Routes
from goreprox.errors import ConfigError, StartError
from goreprox.http import tokens
from goreprox.http.auth import Auth
from goreprox.http.commands import Finish
from goreprox.http.exchange import Site
from goreprox.http.tokens import FAILURES, MAX_ADDRESSES, Failures, Tokens
from tests.support.gateway import CLIENT, OK, Talk

GOOD, OTHER = b"the-good-token", b"the-other-token"
HEADER = "X-Goreprox-Auth"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.toml"
    write(path, alice=GOOD)
    return path


def table(name: str, value: bytes, more: str = "") -> str:
    return f'[tokens.{name}]\nsha256 = "{hashlib.sha256(value).hexdigest()}"\n{more}\n'


def write(path: Path, more: str = "", **values: bytes) -> None:
    """Put a file in the place of another one, as editors do."""
    new = path.with_suffix(".new")
    new.write_text("".join(table(name, value, more) for name, value in values.items()))
    new.chmod(0o600)
    new.rename(path)


def talk_with(path: Path, clock: Clock | None = None, *, basic: bool = False) -> Talk:
    return Talk(Site("web", Auth(path, HEADER, basic=basic, clock=clock or Clock())))


def get(*values: bytes, more: bytes = b"") -> bytes:
    fields = b"".join(b"x-goreprox-auth: " + value + b"\r\n" for value in values)
    return b"GET / HTTP/1.1\r\nHost: a\r\n" + fields + more + b"\r\n"


def test_the_token_is_removed_from_an_accepted_request(file: Path) -> None:
    talk = talk_with(file).client(get(GOOD)).target(OK)
    assert talk.statuses == [200]
    assert b"auth" not in talk.seen.to_target[0].lower()
    assert GOOD not in talk.seen.to_target[0]


@pytest.mark.parametrize(
    "request_",
    [
        get(),
        get(b""),
        get(b"wrong"),
        get(GOOD + b"x"),
        get(GOOD[:-1]),
        get(GOOD.upper()),
        get(GOOD + b", " + GOOD),
        get(GOOD, GOOD),
        get(GOOD, b"wrong"),
        get(b"wrong", GOOD),
        get(hashlib.sha256(GOOD).hexdigest().encode()),
        get(b"a" * 16_000),
        get(more=b"Authorization: " + GOOD + b"\r\n"),
    ],
    ids=lambda request: request[26:60].decode(),
)
def test_any_other_request_is_401_and_nothing_of_it_reaches_a_provider(file: Path, request_: bytes) -> None:
    talk = talk_with(file).client(request_)
    assert talk.statuses == [401]
    assert talk.seen.to_client.count(b"WWW-Authenticate: ") == 1
    assert b'WWW-Authenticate: Token header="X-Goreprox-Auth"\r\n' in talk.seen.to_client
    assert not talk.seen.others
    assert talk.gateway.idle


def basic(token: bytes, user: bytes = b"") -> bytes:
    return b"Basic " + base64.b64encode(user + b":" + token)


@pytest.mark.parametrize(
    "value",
    [
        b"Bearer " + GOOD,
        b"bearer  " + GOOD,
        basic(GOOD),
        basic(GOOD, b"alice"),
        basic(GOOD).replace(b"Basic", b"BASIC"),
    ],
)
@pytest.mark.parametrize("name", [b"X-Goreprox-Auth", b"Authorization"])
def test_a_bearer_or_basic_token_is_accepted_and_removed(file: Path, name: bytes, value: bytes) -> None:
    talk = talk_with(file, basic=True).client(get(more=name + b": " + value + b"\r\n")).target(OK)
    assert talk.statuses == [200]
    assert b"auth" not in talk.seen.to_target[0].lower()


@pytest.mark.parametrize("name", [b"X-Goreprox-Auth", b"Authorization"])
def test_a_basic_token_is_accepted_only_where_browsers_are_to_ask_for_it(file: Path, name: bytes) -> None:
    request = get(more=name + b": " + basic(GOOD) + b"\r\n")
    assert talk_with(file).client(request).statuses == [401]
    talk = talk_with(file, basic=True).client(get())
    assert talk.statuses == [401]
    assert b'WWW-Authenticate: Basic realm="goreprox", charset="UTF-8"\r\n' in talk.seen.to_client
    assert talk.client(request).target(OK).statuses == [401, 200]


@pytest.mark.parametrize("value", [GOOD, b"Digest " + GOOD, b"Basic " + GOOD, basic(b"", GOOD), b"Bearer", b"Basic !"])
def test_other_schemes_in_authorization_carry_no_token(file: Path, value: bytes) -> None:
    assert talk_with(file, basic=True).client(get(more=b"Authorization: " + value + b"\r\n")).statuses == [401]


def test_authorization_is_passed_on_when_another_field_carries_the_token(file: Path) -> None:
    talk = talk_with(file).client(get(GOOD, more=b"Authorization: Bearer other\r\n")).target(OK)
    assert talk.statuses == [200]
    assert b"\r\nAuthorization: Bearer other\r\n" in talk.seen.to_target[0]
    wrong = talk_with(file).client(get(b"wrong", more=b"Authorization: Bearer " + GOOD + b"\r\n"))
    assert wrong.statuses == [401]  # one place is looked at, not whichever fits


def test_unknown_hosts_are_401_without_a_token(file: Path) -> None:
    routes = Routes([Route("a", "web")])
    closed = Site("web", Auth(file, HEADER, clock=Clock()), routes=routes, closed=lambda _address, _service: True)
    for site in (Site("web", Auth(file, HEADER, clock=Clock()), routes=routes), closed):
        known, unknown = Talk(site).client(get()), Talk(site).client(get().replace(b"Host: a", b"Host: b"))
        assert known.seen.to_client == unknown.seen.to_client
        assert known.statuses == [401]
        assert Talk(site).client(get(GOOD).replace(b"Host: a", b"Host: b")).statuses == [404]
    assert Talk(closed).client(get(GOOD)).statuses == [403]


@pytest.mark.parametrize("name", [b"X_Goreprox_Auth", b"x-goreprox_auth"])
def test_a_field_that_reads_like_the_token_field_is_rejected(file: Path, name: bytes) -> None:
    for request in (get(more=name + b": " + GOOD + b"\r\n"), get(GOOD, more=name + b": x\r\n")):
        talk = talk_with(file).client(request)
        assert talk.statuses == [400]
        assert not talk.seen.to_target


def test_each_request_of_a_connection_needs_its_token(file: Path) -> None:
    talk = talk_with(file).client(get(GOOD)).target(OK).client(get()).client(get(GOOD)).target(OK)
    assert talk.statuses == [200, 401, 200]
    talk = talk_with(file).client(get(GOOD) + get() + get(GOOD)).target(OK, OK)
    assert talk.statuses == [200, 401, 200]
    assert len([event for event in talk.requests() if isinstance(event, h11.Request)]) == 2


def test_a_token_in_a_trailer_is_ignored_and_removed(file: Path) -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n"
    end = b"\r\n0\r\nX-Goreprox-Auth: " + GOOD + b"\r\nX_Goreprox_Auth: " + GOOD + b"\r\nX-Sum: 1\r\n\r\n"
    assert talk_with(file).client(head + end).statuses == [401]
    talk = talk_with(file).client(head + b"X-Goreprox-Auth: " + GOOD + b"\r\n" + end).target(OK)
    assert talk.statuses == [200]
    assert GOOD not in talk.seen.to_target[0]
    assert b"X-Sum: 1" in talk.seen.to_target[0]


def test_a_rejected_request_with_an_unread_body_ends_the_connection(file: Path) -> None:
    talk = talk_with(file).client(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe")
    assert talk.statuses == [401]
    assert talk.seen.others == [Finish()]


def test_a_token_is_valid_only_for_its_services(file: Path) -> None:
    write(file, 'services = ["ssh", "db"]', alice=GOOD)
    assert talk_with(file).client(get(GOOD)).statuses == [403]
    write(file, 'services = ["web"]', alice=GOOD)
    assert talk_with(file).client(get(GOOD)).target(OK).statuses == [200]


def test_a_token_expires(file: Path) -> None:
    write(file, "expires = 2020-01-01T00:00:00Z", alice=GOOD)
    assert talk_with(file).client(get(GOOD)).statuses == [401]
    write(file, "expires = 2120-01-01T00:00:00Z", alice=GOOD)
    assert talk_with(file).client(get(GOOD)).target(OK).statuses == [200]


def test_a_change_of_the_file_counts_from_the_next_request_on(file: Path, lines: list[str]) -> None:
    talk = talk_with(file).client(get(GOOD)).target(OK)
    write(file, bob=OTHER)
    talk.client(get(GOOD)).client(get(OTHER)).target(OK)
    assert talk.statuses == [200, 401, 200]
    file.write_text("nonsense")
    talk.client(get(OTHER))
    file.unlink()
    talk.client(get(OTHER))
    write(file, bob=OTHER)
    talk.client(get(OTHER)).target(OK)
    assert talk.statuses == [200, 401, 200, 401, 401, 200]
    assert sum("until it is repaired no token is valid" in line for line in lines) == 2


def test_failures_are_logged_without_the_value_and_limited_by_address(file: Path, lines: list[str]) -> None:
    clock = Clock()
    talk = talk_with(file, clock)
    for _ in range(FAILURES + 5):
        talk.client(get(b"a-wrong-value"))
    assert talk.statuses == [401] * FAILURES + [429] * 5
    assert lines
    assert all(CLIENT in line and "a-wrong-value" not in line for line in lines)
    assert talk.client(get(GOOD)).target(OK).statuses[-1] == 200  # a valid one never waits
    assert talk.client(get()).statuses[-1] == 429
    clock.now += 1
    assert talk.client(get()).statuses[-1] == 401


def test_the_memory_for_failures_is_bounded() -> None:
    failures = Failures()
    for _ in range(FAILURES):
        failures.note("2001:db8::1", now=0)
    assert failures.too_many("2001:db8::2", now=0)  # the same network of 64 bits
    assert not failures.too_many("2001:db8:0:1::1", now=0)
    for number in range(MAX_ADDRESSES):
        failures.note(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", now=1)
    assert len(failures._levels) == MAX_ADDRESSES
    assert not failures.too_many("2001:db8::2", now=0)


def test_all_hashes_are_compared_whichever_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(one)
        return one == other

    known = Tokens.parse(table("a", GOOD) + table("b", OTHER) + table("c", b"third"))
    monkeypatch.setattr("goreprox.http.tokens.hmac.compare_digest", compare)
    for value in (GOOD, b"third", b"none"):
        known.find(value, now=0)
    assert len(compared) == 9


def test_a_new_token_is_valid() -> None:
    value, text = tokens.draw("alice.b", ["web"], datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC))
    assert value not in text
    assert len(value) == 43
    found = Tokens.parse(text).find(value.encode(), now=0)
    assert found is not None
    assert (found.name, found.services, found.expires) == ("alice.b", {"web"}, 1893456000)
    assert Tokens.parse(text).find(value.encode(), now=1893456000) is None
    assert tokens.draw("a", None, None)[0] != tokens.draw("a", None, None)[0]


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("[", "see docs/http.md"),
        ("a = 1", "nothing but tables"),
        ("[tokens]\na = 1", "nothing but tables"),
        ("[tokens.a]", "token a: expected sha256"),
        ("[tokens.a]\nsha256 = 1", "token a: expected sha256"),
        ('[tokens.a]\nsha256 = "ab"', "token a: expected sha256"),
        (table("a", GOOD, "services = 1"), "token a: expected services"),
        (table("a", GOOD, 'services = ["a b"]'), "service 'a b'"),
        (table("a", GOOD, "expires = 2030-01-01"), "token a: expected expires"),
        (table("a", GOOD, "expires = 2030-01-01T00:00:00"), "token a: expected expires"),
        (table("a", GOOD, "service = 1"), "token a: service is not known"),
        (table('"a b"', GOOD), "token 'a b'"),
        ("".join(table(f"t{number}", b"x") for number in range(1001)), "at most 1000"),
    ],
)
def test_a_malformed_token_file_is_rejected_with_the_cause(tmp_path: Path, text: str, cause: str) -> None:
    with pytest.raises(ConfigError, match=cause):
        Tokens.parse(text)
    path = tmp_path / "tokens.toml"
    path.write_text(text)
    with pytest.raises(StartError, match=f"auth-tokens {path}: "):
        Auth(path, HEADER, clock=Clock())


def test_a_token_file_that_is_missing_or_writable_by_others_is_rejected(file: Path) -> None:
    file.chmod(0o620)
    with pytest.raises(StartError, match="chmod go-w"):
        Auth(file, HEADER, clock=Clock())
    file.unlink()
    with pytest.raises(StartError, match="goreprox token new"):
        Auth(file, HEADER, clock=Clock())
