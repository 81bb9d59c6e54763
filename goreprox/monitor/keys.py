"""Which keys and tokens the processes accept: those of the files that their options name. No secret is told.

They are read here, as `goreprox keys list` and `goreprox token list` read them, so no process is asked for more.
"""

import asyncio
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from goreprox.errors import GoreproxError
from goreprox.http import auth
from goreprox.keys.state import StateDir
from goreprox.monitor.options import options_of


async def accepted_by(directories: Sequence[Path]) -> dict[str, object]:
    """Return the keys and tokens that the processes of these directories accept, and what cannot be read."""
    given = [(str(each["who"]), _values(each["options"])) for each in await options_of(directories)]
    return await asyncio.to_thread(_read, given)


def _values(options: object) -> Mapping[str, str]:
    """Return the first value of each option."""
    found: dict[str, str] = {}
    for each in options if isinstance(options, list) else ():
        match each:
            case {"option": str(option), "values": [str(value), *_]}:
                found[option] = value
    return found


def _read(given: Sequence[tuple[str, Mapping[str, str]]]) -> dict[str, object]:
    rows: list[Mapping[str, object]] = []
    problems: list[str] = []
    for who, options in given:
        for read in (_keys, _tokens):
            try:
                rows += [{"who": who, **row} for row in read(options)]
            except (GoreproxError, OSError) as exc:
                problems.append(f"{who}: {exc}")
    return {"accepted": rows, "problems": problems}


def _keys(options: Mapping[str, str]) -> Iterator[Mapping[str, object]]:
    """Yield the keys of peers, which are valid until they are revoked."""
    path = options.get("state-dir")
    if path is None or "providers" not in options or options.get("insecure") == "true":
        return
    for key in StateDir(Path(path)).all():
        services = None if key.services is None else list(key.services)
        yield {"kind": f"key of a {key.role}", "name": key.name, "services": services, "expires_at": None}


def _tokens(options: Mapping[str, str]) -> Iterator[Mapping[str, object]]:
    """Yield the tokens of HTTP requests."""
    path = options.get("auth-tokens")
    if path is None:
        return
    for token in auth.read(Path(path)):
        services = None if token.services is None else sorted(token.services)
        expires_at = None if math.isinf(token.expires) else token.expires
        yield {"kind": "token", "name": token.name, "services": services, "expires_at": expires_at}
