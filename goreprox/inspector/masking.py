"""Masks secrets in what is shown of a request and its response: by their names, and their values elsewhere.

Better too much than too little: what cannot be read is not shown at all (`shown`). A secret with an innocent name, or
in a path, is not recognised.
"""

import base64
import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Final
from urllib.parse import unquote_plus

from goreprox.http.messages import Fields

MASK: Final = "***"
LEAST: Final = 8
"""Characters of a secret that is masked wherever it appears; shorter ones are words, too."""
MOST: Final = 100
"""Secrets of an exchange that are looked for elsewhere: each takes 20 us in 64 KiB."""
_DEPTH: Final = 2
"""How often a value is decoded that may be a URL or a form itself."""
_ANYWHERE: Final = (
    *("token", "secret", "passw", "passphrase", "pwd", "apikey", "credential", "authorization", "session", "cookie"),
    *("jwt", "bearer", "signature", "csrf", "xsrf", "sessid"),
)
_WHOLE: Final = frozenset(("auth", "code", "pass", "pin", "otp", "sid", "sig", "cvv", "cvc"))
_END: Final = "key"
_SHORT: Final = 64
"""Characters of names that are remembered."""
_CREDENTIALS: Final = (b"authorization", b"proxy-authorization")
_SCHEME: Final = re.compile(r"(?:Basic|Bearer|Digest|Negotiate|Token)[ \t]+", re.IGNORECASE)
_PARAMETER: Final = re.compile(r"""([?&;#]|^)([^=&;#?\s"'<>]{1,256})=([^&;#\s"'<>]*)""")
_USER: Final = re.compile(r"//[^/?#@\s]*@")
_NAME: Final = re.compile(r"""(?<![\w.-])([A-Za-z_][\w.-]{0,255})["'\]]?[ \t]{0,8}[:=][ \t]{0,8}""")
"""What begins `name: value`, `name=value` and `"name": "value"` in any text."""
_VALUE: Final = re.compile(
    r"""(?:(?:Basic|Bearer|Digest|Negotiate|Token)[ \t]+)?(?:"(?:[^"\\]|\\.)*"?|'[^']*'?|[^\s,;&}\])"'<>]*)""",
    re.DOTALL | re.IGNORECASE,
)
_PART_NAME: Final = re.compile(r"""\bname="?([^";\r\n]*)""", re.IGNORECASE)


def is_secret(name: str) -> bool:
    """Whether the name of a field, a parameter or a member is that of a secret."""
    return _is_secret(name) if len(name) <= _SHORT else _is_secret.__wrapped__(name)


@functools.lru_cache(maxsize=1024)
def _is_secret(name: str) -> bool:
    plain = "".join(filter(str.isalnum, name)).lower()
    return plain in _WHOLE or plain.endswith(_END) or any(word in plain for word in _ANYWHERE)


class Masker:
    """Masks an exchange: by names, and the secrets of its fields and of the request's target wherever they appear."""

    def __init__(self, target: bytes, fields: Iterable[tuple[bytes, bytes]], also: bytes | None) -> None:
        """Know the secrets of `fields`, of both messages; `also` is the name of another secret field, in lower case."""
        self._also = also
        found = {value for each in (_parameters(_text(target)), self._secrets(fields)) for value in each}
        self._secrets_found = sorted((each for each in found if len(each) >= LEAST), key=len, reverse=True)[:MOST]

    def fields(self, fields: Fields) -> list[tuple[str, str]]:
        """Mask fields, which keep their order."""
        return [(_text(name), self._field(name.lower(), _text(value))) for name, value in fields]

    def target(self, target: bytes) -> str:
        """Mask the target of a request."""
        return self.text(_text(target))

    def known(self, text: str) -> str:
        """Mask known secrets."""
        for secret in self._secrets_found:
            text = text.replace(secret, MASK)
        return text

    def json(self, text: str) -> str | None:
        """Mask JSON; None if it is none, or not whole."""
        try:
            document = json.loads(self.known(text))
        except (ValueError, RecursionError):
            return None
        root = [document]
        _mask_members(root, self.text)
        try:
            return json.dumps(root[0], ensure_ascii=False, separators=(",", ":"))
        except RecursionError:
            return None

    def form(self, text: str) -> str:
        """Mask what a browser's form has sent as parameters."""
        return _mask_parameters(self.known(text))

    def parts(self, text: str, boundary: str) -> str:
        """Mask the parts of a form (RFC 7578)."""
        return f"--{boundary}".join(map(_mask_part, self.known(text).split(f"--{boundary}")))

    def text(self, text: str) -> str:
        """Mask any text."""
        return _mask_text(self.known(text))

    def _field(self, name: bytes, value: str) -> str:
        if name in _CREDENTIALS or name == self._also:
            scheme = _SCHEME.match(value)
            return f"{scheme[0] if scheme else ''}{MASK}"
        if name == b"cookie":
            return "; ".join(f"{each.partition('=')[0].strip()}={MASK}" for each in value.split(";"))
        if name == b"set-cookie":
            cookie, semicolon, attributes = value.partition(";")
            return f"{cookie.partition('=')[0].strip()}={MASK}{semicolon}{self.known(attributes)}"
        return MASK if is_secret(_text(name)) else self.text(value)

    def _secrets(self, fields: Iterable[tuple[bytes, bytes]]) -> Iterator[str]:
        for name, value in fields:
            lowered, text = name.lower(), _text(value)
            if lowered in _CREDENTIALS or lowered == self._also:
                yield from _credentials(text)
            elif lowered == b"cookie":
                yield from (each.partition("=")[2].strip(' \t"') for each in text.split(";"))
            elif lowered == b"set-cookie":
                yield text.partition(";")[0].partition("=")[2].strip(' \t"')
            elif is_secret(_text(name)):
                yield text
            else:
                yield from _parameters(text)


def _text(data: bytes) -> str:
    """Return what is shown of a head: UTF-8, which many programs send, or bytes as characters."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _credentials(value: str) -> Iterator[str]:
    """Yield the secret of an Authorization field, of HTTP Basic the password, too."""
    scheme = _SCHEME.match(value)
    secret = value[scheme.end() :].strip() if scheme else value
    yield secret
    if scheme and scheme[0].strip().lower() == "basic":
        try:
            yield base64.b64decode(secret, validate=True).decode().partition(":")[2]
        except ValueError:  # nor UTF-8
            return


def _parameters(text: str) -> Iterator[str]:
    """Yield the secrets in the parameters of URLs, as they are written and decoded."""
    for _, name, value in _PARAMETER.findall(text) if "=" in text else ():
        if is_secret(unquote_plus(name)):
            yield from (value, unquote_plus(value))


def _mask_parameters(text: str, depth: int = _DEPTH) -> str:
    def masked(found: re.Match[str]) -> str:
        before, name, value = found.groups()
        decoded = unquote_plus(value)
        if is_secret(unquote_plus(name)) or (depth and decoded != _mask_text(decoded, depth - 1)):
            return f"{before}{name}={MASK}"
        return found[0]

    return _PARAMETER.sub(masked, text)


def _mask_text(text: str, depth: int = _DEPTH) -> str:
    text = _mask_parameters(_USER.sub(f"//{MASK}@", text), depth)
    parts, position = [], 0
    while (found := _NAME.search(text, position)) is not None:
        parts.append(text[position : found.end()])
        position = found.end()
        if is_secret(found[1]):
            parts.append(MASK)
            if text[position : position + 1] in ("[", "{"):  # all that follows may be part of it
                return "".join(parts)
            value = _VALUE.match(text, position)
            position = position if value is None else value.end()
    return "".join(parts) + text[position:]


def _mask_members(root: list[object], mask: Callable[[str], str]) -> None:
    """Mask members with such names, and all other texts by `mask`; not by recursion, since others choose the depth."""
    containers: list[dict[str, object] | list[object]] = [root]
    while containers:
        container = containers.pop()
        pairs: Iterable[tuple[str | int, object]] = enumerate(container)
        is_pair = False
        if isinstance(container, dict):
            pairs = list(container.items())
            is_pair = "value" in container and is_secret(str(container.get("name") or container.get("key") or ""))
        for place, value in pairs:
            named = place != "key" or "value" not in container
            if isinstance(place, str) and ((is_secret(place) and named) or (is_pair and place == "value")):
                _put(container, place, MASK)
            elif isinstance(value, dict | list):
                containers.append(value)
            elif isinstance(value, str):
                _put(container, place, mask(value))


def _put(container: dict[str, object] | list[object], place: str | int, value: object) -> None:
    if isinstance(container, dict):
        container[str(place)] = value
    else:
        assert isinstance(place, int)
        container[place] = value


def _mask_part(part: str) -> str:
    """Mask a part of a form, behind its boundary."""
    head, blank, content = part.partition("\r\n\r\n")
    if not blank:
        return part
    named = _PART_NAME.search(head)
    secret = named is not None and is_secret(named[1])
    return f"{head}{blank}{MASK}\r\n" if secret else f"{head}{blank}{_mask_text(content)}"
