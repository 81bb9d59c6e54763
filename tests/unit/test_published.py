"""The grammar of published names: how hosts are compared, and what a grant covers."""

import pytest

from goreprox.config.published import Grant, PublishedName, overlapping, parse_grants, parse_host
from goreprox.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "host"),
    [
        ("app.example.com", "app.example.com"),
        ("App.EXAMPLE.com", "app.example.com"),
        ("app.example.com.", "app.example.com"),
        ("*.Example.com.", "*.example.com"),
        ("b\u00fccher.example", "xn--bcher-kva.example"),
        ("*.B\u00dcCHER.example", "*.xn--bcher-kva.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("localhost", "localhost"),
        ("my_app.example", "my_app.example"),
    ],
)
def test_a_host_is_compared_in_one_form(given: str, host: str) -> None:
    assert parse_host(given) == host
    assert parse_host(host) == host


@pytest.mark.parametrize(
    "given",
    [
        *("", ".", "*", "*.", "*.*", "*.*.example.com", "a*.example.com", "app.*.com", "**.example.com"),
        *("app..example.com", ".example.com", "app.example.com..", "-a.example", "a-.example", "a b.example"),
        *("app.example.com:80", "app.example.com/x", "user@app.example.com", "app\n.example.com", "app\x00.com"),
        *("127.0.0.1", "*.0.0.1", "[::1]", "::1", "1", f"{'a' * 64}.example", "\u2603" * 64, "a." * 127 + "com"),
    ],
)
def test_what_is_no_host_to_publish_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match=r"^host "):
        parse_host(given)


@pytest.mark.parametrize(
    ("grant", "allowed", "refused"),
    [
        ("http://app.example.com", ["http://app.example.com"], ["http://*.app.example.com", "http://example.com"]),
        (
            "http://*.example.com",
            ["http://a.example.com", "http://a.b.example.com", "http://*.example.com", "http://*.a.example.com"],
            ["http://example.com", "http://badexample.com", "http://*.com", "tcp://443"],
        ),
        ("tls://app.example.com", ["tls://app.example.com"], ["http://app.example.com", "tls://*.app.example.com"]),
        (
            "tls://*.example.com",
            ["tls://a.example.com", "tls://*.a.example.com"],
            ["http://a.example.com", "tcp://443"],
        ),
        ("http://app.example.com", ["http://app.example.com"], ["tls://app.example.com"]),
        ("tcp://443", ["tcp://443"], ["tcp://*/web", "tcp://442", "http://a.example.com"]),
        ("tcp://20000-20009", ["tcp://20000", "tcp://20009", "tcp://*/web"], ["tcp://19999", "tcp://20010"]),
    ],
)
def test_what_a_grant_allows(grant: str, allowed: list[str], refused: list[str]) -> None:
    granted = Grant.parse(grant)
    assert granted.text == grant
    assert [url for url in allowed if not granted.allows(PublishedName.parse(f"{url}@laptop"))] == []
    assert [url for url in refused if granted.allows(PublishedName.parse(f"{url}@laptop"))] == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("http://*", "all hosts cannot be published"),
        ("tls://*", "all hosts cannot be published"),
        ("tls://", "expected a name like app.example.com"),
        ("app.example.com", "write http://HOST"),
        ("https://app.example.com", "write http://HOST"),
        ("tcp://", "write PORT or PORT-PORT"),
        ("tcp://*", "write PORT or PORT-PORT"),
        ("tcp://0", "expected 1 to 65535"),
        ("tcp://65536", "expected 1 to 65535"),
        ("tcp://20009-20000", "expected 1 to 65535, the lower one first"),
        ("tcp://1-65535", "name them apart: 1-1023 and 1024-65535"),
    ],
)
def test_a_malformed_grant_is_refused_with_what_to_write(given: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Grant.parse(given)
    assert str(caught.value).startswith("publish ")


def test_which_grants_overlap() -> None:
    for one, other, expected in (
        ("http://a.example.com", "http://a.example.com", True),
        ("http://*.example.com", "http://a.example.com", True),
        ("http://*.example.com", "http://*.a.example.com", True),
        ("http://*.example.com", "http://example.com", False),
        ("http://a.example.com", "http://b.example.com", False),
        ("tls://*.example.com", "tls://a.example.com", True),
        ("tls://*.example.com", "http://a.example.com", True),  # one host, two servers: only if both are told to share
        ("tls://a.example.com", "http://b.example.com", False),
        ("tcp://1024-2000", "tcp://2000", True),
        ("tcp://1024-1999", "tcp://2000-3000", False),
        ("tcp://2000", "http://a.example.com", False),
    ):
        found = overlapping(parse_grants([one]), parse_grants([other]))
        assert (found is not None) == expected == (overlapping(parse_grants([other]), parse_grants([one])) is not None)


def test_a_key_has_a_limited_number_of_grants() -> None:
    assert len(parse_grants(f"tcp://{20000 + number}" for number in range(32))) == 32
    assert len(parse_grants(["tcp://443"] * 1000)) == 1
    with pytest.raises(ConfigError, match="publish: expected at most 32 of them, got 33"):
        parse_grants(f"tcp://{20000 + number}" for number in range(33))


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://app.example.com@laptop", "http://app.example.com"),
        ("http://*.example.com@laptop", "http://*.example.com"),
        ("tls://app.example.com@laptop", "tls://app.example.com"),
        ("tls://*.example.com@laptop", "tls://*.example.com"),
        ("tcp://20003@laptop", "tcp://20003"),
        ("tcp://*/ssh@laptop", "tcp://"),
    ],
)
def test_a_published_name_has_one_text(text: str, url: str) -> None:
    name = PublishedName.parse(text)
    assert (name.text, name.url, name.owner) == (text, url, "laptop")


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "web",
            "http://app.example.com",
            "http://app.example.com@",
            "@laptop",
            "http://@laptop",
            "http://*@laptop",
        ),
        *("http://APP.example.com@laptop", "http://app.example.com.@laptop", "http://b\u00fccher.example@laptop"),
        *("tls://APP.example.com@laptop", "tls://app.example.com:443@laptop", "tls://@laptop", "tls://*@laptop"),
        *("https://app.example.com@laptop", "tcp://@laptop", "tcp://0@laptop", "tcp://020003@laptop", "tcp://*@laptop"),
        *("tcp://65536@laptop", "tcp://*/@laptop", "tcp://*/a b@laptop", "tcp://20003@lap top", "tcp://-1@laptop"),
        f"http://{'a.' * 126}com@laptop",
    ],
)
def test_any_other_text_is_no_published_name(text: str) -> None:
    with pytest.raises(ConfigError):
        PublishedName.parse(text)
