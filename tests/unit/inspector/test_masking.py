"""Secrets never show, whatever they are in; what is none does."""

import base64
import json
import string
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goreprox.http.messages import Fields
from goreprox.inspector.masking import MASK, Masker, is_secret

SECRET = "s3cr3t-of-4711-Xyz"
plain = Masker(b"/", [], None)
secrets = st.text(string.ascii_letters + string.digits + "-._~+/", min_size=8, max_size=40).map(
    lambda text: text + "Q7"
)
names = st.sampled_from(
    ["token", "access_token", "X-Api-Key", "password", "Passwd", "client_secret", "sessionid", "refreshToken", "code"]
)


@pytest.mark.parametrize(
    "name", ["token", "idToken", "api_key", "API-KEY", "user[password]", "_csrf", "PHPSESSID", "sig", "X-Amz-Signature"]
)
def test_names_of_secrets_are_recognised(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize("name", ["author", "page", "user", "Content-Type", "Accept", "encode", "passenger", "assign"])
def test_other_names_are_not(name: str) -> None:
    assert not is_secret(name)


def masked(*fields: tuple[bytes, bytes], also: bytes | None = None) -> list[tuple[str, str]]:
    return Masker(b"/", fields, also).fields(list(fields))


def test_credentials_keep_their_scheme_and_cookies_their_names() -> None:
    assert masked(
        (b"Authorization", b"Bearer abcdefgh12"),
        (b"proxy-authorization", b"abcdefgh12"),
        (b"Cookie", b"a=1; goreprox=laptop.17.sig; b"),
        (b"Set-Cookie", b"id=4711; Path=/; HttpOnly"),
        (b"Goreprox-Token", b"abc"),
        (b"X-Tok", b"abc"),
        (b"Accept", b"*/*"),
        also=b"x-tok",
    ) == [
        ("Authorization", f"Bearer {MASK}"),
        ("proxy-authorization", MASK),
        ("Cookie", f"a={MASK}; goreprox={MASK}; b={MASK}"),
        ("Set-Cookie", f"id={MASK}; Path=/; HttpOnly"),
        ("Goreprox-Token", MASK),
        ("X-Tok", MASK),
        ("Accept", "*/*"),
    ]


def test_parameters_of_urls_are_masked_in_targets_and_in_fields() -> None:
    masker = Masker(b"/a?token=abc&page=2&x=1#access_token=def", [], None)
    assert masker.target(b"/a?token=abc&page=2") == f"/a?token={MASK}&page=2"
    assert masker.fields([(b"Location", b"https://me:pw@h/cb?code=77&state=a#access_token=def")]) == [
        ("Location", f"https://{MASK}@h/cb?code={MASK}&state=a#access_token={MASK}")
    ]
    assert masker.target(b"/go?next=%2Fcb%3Ftoken%3Dabc&n=1") == f"/go?next={MASK}&n=1"


def test_json_keeps_its_form() -> None:
    text = json.dumps({"a": [1, {"password": {"x": "hidden"}, "b": None}], "url": "/x?key=hid", "n": "text"})
    assert json.loads(plain.json(text) or "") == {
        "a": [1, {"password": MASK, "b": None}],
        "url": f"/x?key={MASK}",
        "n": "text",
    }
    assert plain.json('[{"name":"password","value":"hidden"},{"name":"n","value":"v"}]') == (
        f'[{{"name":"password","value":"{MASK}"}},{{"name":"n","value":"v"}}]'
    )
    assert plain.json("{") is None
    assert plain.json("[" * 60_000) is None


def test_text_with_an_object_under_a_secret_name_ends_there() -> None:
    assert plain.text('{"credentials": {"a": "hidden", "b": ["hidden"') == f'{{"credentials": {MASK}'
    assert plain.text('{"data": {"password": "hid den", "page": 2') == f'{{"data": {{"password": {MASK}, "page": 2'
    assert plain.text("Authorization: Basic aGlkZGVu\nHost: a") == f"Authorization: {MASK}\nHost: a"
    assert plain.text("_token=hidden&page=2") == f"_token={MASK}&page=2"


def test_parts_of_forms_are_masked() -> None:
    body = '--b\r\nContent-Disposition: form-data; name="{}"\r\n\r\n{}\r\n--b--\r\n'
    assert "hidden" not in plain.parts(body.format("password", "hidden"), "b")
    assert plain.parts(body.format("page", "2"), "b") == body.format("page", "2")


@given(secrets, names)
def test_no_way_to_write_a_secret_shows_it(secret: str, name: str) -> None:
    encoded = quote(secret, safe="")
    shown = [
        plain.target(f"/a?b=1&{name}={encoded}".encode()),
        plain.form(f"{name}={encoded}&b=1"),
        plain.json(json.dumps({"b": [{name: secret}]})) or "",
        plain.json(json.dumps({"b": json.dumps({name: secret})})) or "",
        plain.text(json.dumps({"b": [{name: secret}, 1]})[:-3]),
        plain.text(f"{name}: {secret}\n"),
        plain.parts(f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{secret}\r\n--x--', "x"),
        *dict(plain.fields([(name.encode(), secret.encode())] if name != "code" else [])).values(),
    ]
    assert not [each for each in shown if secret in each or encoded in each]


@given(secrets)
def test_a_secret_of_a_field_shows_nowhere_else(secret: str) -> None:
    basic = base64.b64encode(f"me:{secret}".encode())
    for field in (
        (b"Authorization", b"Bearer " + secret.encode()),
        (b"Authorization", b"Basic " + basic),
        (b"Cookie", b"a=1; id=" + secret.encode()),
        (b"Set-Cookie", b"id=" + secret.encode() + b"; Path=/"),
        (b"Tok", secret.encode()),
    ):
        fields: Fields = [field, (b"X-Echo", b"you are " + secret.encode())]
        masker = Masker(b"/", fields, b"tok")
        shown = [
            masker.text(f"hello {secret}"),
            masker.json(json.dumps({"innocent": f"hello {secret}"})) or "",
            masker.json(json.dumps({"innocent": f"hello {secret}"}).replace("/", "\\/")) or "",
            masker.form(f"innocent={secret}"),
            masker.target(b"/" + secret.encode()),
            *dict(masker.fields(fields)).values(),
        ]
        assert not [each for each in shown if secret in each]


@given(st.text())
def test_text_without_names_stays(text: str) -> None:
    text = text.replace("=", "").replace(":", "").replace("@", "")
    assert plain.text(text) == text


HOSTILE = [
    *("a" * 65536, "a=" * 32768, "token:" * 10922, '"' * 65536, "a.-_" * 16384, "?&" * 32768, "//" * 32768),
    *("%25" * 21845, f"?a={'%25' * 20000}", "\\" * 65536, 'token:"' + "\\" * 65529, "[" * 65536, "a " * 32768),
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_comes_to_an_end_and_does_not_grow(text: str) -> None:
    """A pattern that goes back would take hours for one of these."""
    for shown in (plain.text(text), plain.form(text), plain.json(text)):
        assert shown is None or len(shown) <= 2 * len(text)
