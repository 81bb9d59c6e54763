"""The command `goreprox token`: who may send requests to an HTTP listener. It works on a file."""

import datetime
import sys
from pathlib import Path
from typing import Annotated, Final

from cyclopts import App, Group, Parameter

_KEYS: Final = Group("Keys", sort_key=2)

app: Final = App(
    name="token",
    help="Say who may send requests to HTTP listeners.",
    help_epilogue="Only --auth-tokens is also a variable (GOREPROX_AUTH_TOKENS). To revoke a token, remove its table.",
    help_format="plaintext",
)


@app.command
def new(
    name: str,
    /,
    *,
    auth_tokens: Annotated[Path, Parameter(group=_KEYS, env_var="GOREPROX_AUTH_TOKENS")],
    services: Annotated[str | None, Parameter(group=_KEYS)] = None,
    expires: Annotated[datetime.datetime | None, Parameter(group=_KEYS)] = None,
) -> None:
    """Make a token and print it, once. The file keeps its hash; running servers know it at once.

    Parameters
    ----------
    name
        Whose token: what logs say.
    auth_tokens
        The file of tokens; it is made if it is missing.
    services
        The services that it is for, separated by commas. [default: all]
    expires
        When it ends, like 2030-01-01; UTC, unless a zone is given. [default: never]
    """
    from goreprox.config import check_name
    from goreprox.errors import ConfigError, StartError
    from goreprox.http import auth, tokens
    from goreprox.keys.files import locked, write_secret

    check_name("token", name)
    wanted = None if services is None else [each.strip() for each in services.split(",") if each.strip()]
    for service in wanted or ():
        check_name("service", service)
    if expires is not None and expires.tzinfo is None:
        expires = expires.replace(tzinfo=datetime.UTC)
    path = auth_tokens.expanduser()
    value, table = tokens.draw(name, wanted, expires)
    try:
        with locked(path.parent):
            before = path.read_text(encoding="ascii") if path.exists() else ""
            if path.exists() and name in auth.read(path).names:
                raise ConfigError(f"token {name}: there is one already; remove it from {path} first")
            write_secret(path, f"{before}\n{table}" if before else table, replace=True)
    except UnicodeError as exc:
        raise ConfigError(f"auth-tokens {path}: it has characters beyond ASCII; remove them first") from exc
    except OSError as exc:
        raise StartError(f"auth-tokens {path}: {exc.strerror}; name a file in a directory that is there") from exc
    print(value)
    print(f"made the token {name}; {path} keeps its hash", file=sys.stderr)
