"""Proxies as people write them, for which broker each is, and that no text shows who we are to one."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goreprox.config.addresses import Address, Target
from goreprox.config.listed import options_of
from goreprox.config.proxy import Credentials, ProxyConfig, ProxyScheme, ProxyUrl
from goreprox.config.roles import EdgeConfig, ProviderConfig
from goreprox.errors import ConfigError
from goreprox.process.log import redacted

ADDRESS = Address("10.0.0.1", 1080)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("socks5://10.0.0.1:1080", ProxyUrl(ProxyScheme.SOCKS5, ADDRESS)),
        ("SOCKS5H://10.0.0.1:1080/", ProxyUrl(ProxyScheme.SOCKS5H, ADDRESS)),
        ("http://[::1]:3128", ProxyUrl(ProxyScheme.HTTP, Address("::1", 3128))),
        ("http://u:p@10.0.0.1:1080", ProxyUrl(ProxyScheme.HTTP, ADDRESS, Credentials("u", "p"))),
        ("http://u@10.0.0.1:1080", ProxyUrl(ProxyScheme.HTTP, ADDRESS, Credentials("u", ""))),
        ("http://u:p:q=/@r@10.0.0.1:1080", ProxyUrl(ProxyScheme.HTTP, ADDRESS, Credentials("u", "p:q=/@r"))),
        ("socks5://a%3Ab:%40%25%C3%A4@10.0.0.1:1080", ProxyUrl(ProxyScheme.SOCKS5, ADDRESS, Credentials("a:b", "@%ä"))),
        ("b=socks5://10.0.0.1:1080", ProxyUrl(ProxyScheme.SOCKS5, ADDRESS, None, Address("b", 0))),
        ("b:9887=socks5://10.0.0.1:1080", ProxyUrl(ProxyScheme.SOCKS5, ADDRESS, None, Address("b", 9887))),
        (
            "[::1]:1=http://u:p@10.0.0.1:1080",
            ProxyUrl(ProxyScheme.HTTP, ADDRESS, Credentials("u", "p"), Address("::1", 1)),
        ),
    ],
)
def test_a_proxy_is_a_url(text: str, expected: ProxyUrl) -> None:
    assert ProxyUrl.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "10.0.0.1:1080",
            "https://h:1",
            "socks4://h:1",
            "socks5://",
            "socks5://h",
            "socks5://:1080",
            "socks5://h:0",
        ),
        *(
            "socks5://h:1/path",
            "http://:p@h:1",
            "http://a%3Ab:p@h:1",
            f"socks5://{'u' * 256}:p@h:1",
            "http://%ff:p@h:1",
        ),
        *("=", "x=y", "b:x=socks5://h:1", "socks5://u:p@:1"),
    ],
)
def test_what_is_none_is_rejected(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^proxy"):
        ProxyUrl.parse(text)


@given(
    st.sampled_from(["", "b:1="]),
    st.sampled_from(["socks5", "socks5h", "http", "https", ""]),
    st.sampled_from(["h:1080", "h", ":1080", "h:1080/x", "[::1:1"]),
)
def test_neither_a_proxy_nor_an_error_shows_user_or_password(broker: str, scheme: str, where: str) -> None:
    try:
        found = ProxyUrl.parse(f"{broker}{scheme}://somebody:Tr0ub4dor@{where}")
    except ConfigError as exc:
        shown = str(exc)
    else:
        shown = f"{found} {found!r} {found.text} {options_of(ProxyConfig(urls=(found,)))}"
        assert "…@" in found.text
    assert "somebody" not in shown and "Tr0ub4dor" not in shown


def test_a_url_in_another_place_is_redacted() -> None:
    assert redacted("no HTTP://u:p%40@h:1 and socks5h://x:y@z") == "no HTTP://…@h:1 and socks5h://…@z"
    assert redacted("http://127.0.0.1:80/a@b http://h/@u") == "http://127.0.0.1:80/a@b http://h/@u"


def proxied(*texts: str, **options: Any) -> ProxyConfig:
    return ProxyConfig(urls=tuple(map(ProxyUrl.parse, texts)), **options)


def test_a_broker_has_its_own_proxy_or_that_of_all() -> None:
    config = proxied("http://all:1", "a=http://first:1", "b:9=http://second:1")
    found = [str(config.of(Address(host, port))) for host, port in (("a", 1), ("a", 2), ("b", 9), ("b", 8), ("c", 1))]
    assert found == [f"http://{each}:1" for each in ("first", "first", "second", "all", "all")]
    assert proxied("a=http://first:1").of(Address("b", 1)) is None


@pytest.mark.parametrize(
    ("texts", "cause"),
    [
        (("http://a:1", "socks5://b:2"), "given twice"),
        (("s=http://a:1", "s=socks5://b:2"), "given twice"),
        (("other=http://u:p@a:1",), "there is no such server; there are s:9887"),
        (tuple(f"s:{port}=http://a:1" for port in range(1, 66)), "at most 64"),
    ],
)
def test_a_proxy_is_for_one_or_all_of_the_brokers(texts: tuple[str, ...], cause: str) -> None:
    with pytest.raises(ConfigError, match=cause):
        ProviderConfig(targets=(Target("web", Address("h", 1)),), servers=(Address("s", 9887),), proxy=proxied(*texts))


def test_an_edge_names_its_brokers() -> None:
    with pytest.raises(ConfigError, match="there is no such broker"):
        EdgeConfig(brokers=(Address("s", 9888),), proxy=proxied("s:1=http://a:1"))
