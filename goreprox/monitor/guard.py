"""Who gets data: programs with the token or, if there is none, those of this machine; browsers for our page only."""

import hmac
import ipaddress
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Final

from brokers import LimitedLog
from goreprox.config.dashboard import DashboardConfig
from goreprox.config.names import default_name
from goreprox.errors import GoreproxError, StartError
from goreprox.monitor.responder import Request, Response
from goreprox.process.files import FileKind, read_file
from goreprox.process.reloaded import Reloaded

TOKEN_CHARACTERS: Final = 16
"""At least; 64 bits, if they are hexadecimal and random."""
_TOKEN: Final = FileKind("a token", secret=True)
_OUR_FETCHES: Final = ("same-origin", "none")
"""Of Sec-Fetch-Site: requests of our own page, and of a user who has typed the address."""


class Hosts:
    """Knows which Host is ours, so that no name of another site leads a browser here (DNS rebinding)."""

    def __init__(self, config: DashboardConfig) -> None:
        self._names = {"localhost", default_name().lower(), (config.listen.host or "localhost").lower()}
        if config.url is not None:
            self._names.add(config.url.host.lower())

    def has(self, host: str) -> bool:
        """Return whether a browser sends this Host for no page of another site: those have names."""
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name.lower() in self._names
        return True


class Origins:
    """Tells requests of our own page from those that another site has a browser send."""

    def __init__(self, config: DashboardConfig) -> None:
        self._url = config.url

    def has(self, method: str, fields: Mapping[str, str], *, scheme: str) -> bool:
        """Return whether a request whose Host is ours is from our page; one that changes something has to show it."""
        if fields.get("Sec-Fetch-Site", "none") not in _OUR_FETCHES:
            return False
        origin = fields.get("Origin")
        if origin is None:
            return method in ("GET", "HEAD")
        ours = {f"{scheme}://{fields.get('Host', '')}".lower()}
        if self._url is not None:
            ours.add(self._url.origin.lower())
        return origin.lower() in ours


class Guard:
    """Decides which programs get data: those with the token or, where there is none, those of this machine."""

    def __init__(self, config: DashboardConfig) -> None:
        """Read the token, if there is one; it is read again when it has changed.

        Raises:
            StartError: its file cannot be used.
        """
        self._hosts = Hosts(config)
        self._log = LimitedLog()
        self._token: Reloaded[str | None] | None = None
        """Its value is None while the file is wrong: then no token is valid."""
        if (path := config.token_file) is not None:
            self._token = Reloaded(lambda: [path], lambda _: _read_token(path), _read_token(path))

    def refusal(self, request: Request) -> Response | None:
        """Return what is said to a client that is not to get data."""
        if self._token is None:
            if self._hosts.has(request.fields.get("host", "")):
                return None
            text = "ask for an address or for localhost: the Host is another one\n"
            return Response(HTTPStatus.MISDIRECTED_REQUEST, text)
        scheme, _, given = request.fields.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._is_token(self._token, given.strip()):
            return None
        return Response(
            HTTPStatus.UNAUTHORIZED, "a token is needed\n", field='WWW-Authenticate: Bearer realm="goreprox"'
        )

    def has_token(self, given: str) -> bool:
        """Return whether there is a token, and this is it."""
        return self._token is not None and self._is_token(self._token, given)

    def _is_token(self, token: Reloaded[str | None], given: str) -> bool:
        try:
            token.refresh()
        except (GoreproxError, OSError) as exc:
            token.value = None
            self._log.say("token_unreadable", f"{exc}; until it is repaired no token is valid", "ERROR")
        return token.value is not None and hmac.compare_digest(token.value.encode(), given.encode())


def _read_token(path: Path) -> str:
    """Return the token of a file.

    Raises:
        StartError: it has none, or cannot be used.
    """
    try:
        token = read_file(path, _TOKEN).strip()
    except OSError as exc:
        raise StartError(f"token-file {path}: {exc.strerror}; write a token of your own into it") from exc
    if len(token) < TOKEN_CHARACTERS or not token.isprintable() or " " in token:
        raise StartError(
            f"token-file {path}: expected one word of at least {TOKEN_CHARACTERS} characters; "
            f"(umask 077; openssl rand -hex 32 >{path})"
        )
    return token
