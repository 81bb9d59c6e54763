"""The command `token`: which tokens HTTP requests may carry. It changes a file that servers reread."""

import datetime
import errno
import sys
import time
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Annotated, Final

import tomlkit
from cyclopts import App, Parameter

from goreprox.cli.columns import columns
from goreprox.cli.helptext import example
from goreprox.config import units
from goreprox.config.names import check_name, parse_services
from goreprox.config.options import KEYS
from goreprox.errors import ConfigError, StartError, advice
from goreprox.http import auth, tokens
from goreprox.http.tokens import Token, Tokens
from goreprox.process.files import locked, overwrite, write_secret

app: Final = App(
    name="token",
    help_epilogue=example(
        "goreprox token new alice --auth-tokens tokens.toml --expires 30d",
        "goreprox token list --auth-tokens tokens.toml",
    ),
    help_format="plaintext",
)
app.config = ()

_File = Annotated[
    Path,
    Parameter(
        group=KEYS,
        env_var="GOREPROX_AUTH_TOKENS",
        show_env_var=False,
        metavar="FILE",
        help="Use this file of tokens; `goreprox token new` creates it.",
    ),
]


@app.command(
    help_epilogue=example(
        "goreprox token new alice --auth-tokens tokens.toml",
        "goreprox token new ci --auth-tokens tokens.toml --services web --expires 30d",
    )
)
def new(
    name: str,
    /,
    *,
    auth_tokens: _File,
    services: Annotated[str | None, Parameter(group=KEYS, metavar="A,B")] = None,
    expires: Annotated[str | None, Parameter(group=KEYS, metavar="DATE")] = None,
) -> None:
    """Create a token and print it, once. The file keeps its hash; running servers reread it at once.

    Parameters
    ----------
    name
        Its name, which is logged with requests.
    services
        Allow these services only, separated by commas. [default: all]
    expires
        Let it expire at a date like 2030-01-01 or 2030-01-01T12:00+01:00, UTC unless a zone is given, or a time from
        now like 30d or 12h. [default: never]
    """
    check_name("token", name)
    wanted = None if services is None else parse_services(services)
    ends = None if expires is None else _end(expires)
    value, table = tokens.draw(name, wanted, ends)

    def added(text: str) -> str:
        if name in Tokens.parse(text).names:
            raise ConfigError(f"token {name}: there is one already; revoke it first")
        return f"{text}\n{table}" if text else table

    path = _change(auth_tokens, added)
    try:
        print(value, flush=True)
    except OSError:
        _change(auth_tokens, lambda text: _without(text, name))  # nobody will ever know it
        raise
    print(f"made the token {name}; {path} keeps its hash", file=sys.stderr)


@app.command(
    name="list",
    help_epilogue=example(
        "goreprox token list --auth-tokens tokens.toml", "goreprox token list --auth-tokens /etc/goreprox/tokens.toml"
    ),
)
def list_(*, auth_tokens: _File) -> None:
    """Show all tokens: their names, services and expiry."""
    rows = [("NAME", "SERVICES", "EXPIRES")]
    rows += [(token.name, _services(token), _expiry(token)) for token in auth.read(auth_tokens.expanduser())]
    print(columns(rows))


@app.command(
    help_epilogue=example(
        "goreprox token revoke alice --auth-tokens tokens.toml",
        "goreprox token revoke alice --auth-tokens /etc/goreprox/tokens.toml",
    )
)
def revoke(name: str, /, *, auth_tokens: _File) -> None:
    """Revoke a token; running servers reread the file at once.

    Parameters
    ----------
    name
        Whose token.
    """
    _change(auth_tokens, lambda text: _without(text, name))
    print(f"the token {name} is no longer valid")


def _end(text: str) -> datetime.datetime:
    """Return when a token expires, in UTC.

    Raises:
        ConfigError: it is neither a date nor a time from now, or is in the past.
    """
    now = datetime.datetime.now(datetime.UTC)
    try:
        if text[-1:] in tuple("smhd"):
            end = now + datetime.timedelta(seconds=units.seconds(text))
        else:
            date = datetime.datetime.fromisoformat(text)
            end = (date if date.tzinfo else date.replace(tzinfo=datetime.UTC)).astimezone(datetime.UTC)
    except ValueError:
        raise ConfigError(f"expires {text!r}: expected a date like 2030-01-01, or a time from now like 30d") from None
    except OverflowError:
        raise ConfigError(f"expires: {text} is beyond the years 1 to 9999 in UTC") from None
    if end <= now:
        raise ConfigError(f"expires {text}: it is in the past; the token would never be valid")
    return end


def _change(file: Path, change: Callable[[str], str]) -> Path:
    """Change the text of a file of tokens, which may not exist; return its path."""
    path = file.expanduser().resolve()  # a link stays one, and its file is what servers read
    try:
        with locked(path.parent):
            text, like = "", None
            if path.exists():
                text, like = auth.parsed(path)[1], path.stat()
            new = change(text)
            try:
                write_secret(path, new, replace=True, like=like)
            except OSError as exc:
                if exc.errno not in (errno.ENOSPC, errno.EDQUOT) or not overwrite(path, new):
                    raise
    except UnicodeError as exc:
        raise ConfigError(f"auth-tokens {path}: it has characters beyond ASCII; remove them first") from exc
    except OSError as exc:
        raise StartError(f"auth-tokens {path}: {exc.strerror}; {advice(exc, '--auth-tokens')}") from exc
    return path


def _without(text: str, name: str) -> str:
    """Return the text of a file without a token; all else, comments included, is kept.

    Raises:
        ConfigError: it is no file of tokens, or there is no such token.
    """
    if name not in Tokens.parse(text).names:
        raise ConfigError(f"token {name}: there is none; `goreprox token list` shows all")
    document = tomlkit.parse(text)
    table = document["tokens"]
    assert isinstance(table, MutableMapping)  # as `Tokens.parse` has found
    del table[name]
    return tomlkit.dumps(document)


def _services(token: Token) -> str:
    return "any" if token.services is None else ", ".join(sorted(token.services)) or "none"


def _expiry(token: Token) -> str:
    if token.expires == float("inf"):
        return "never"
    text = datetime.datetime.fromtimestamp(token.expires, datetime.UTC).isoformat(timespec="seconds")
    return text if time.time() < token.expires else f"{text} (expired)"
