"""What NATS servers are told of the authorised keys: users, each with what it may publish and subscribe to.

The file is part of a server's configuration, which includes it in `authorization` or in an account. It has public keys
and names alone. What follows a user's line in a comment is for the next run: whose key it is.
"""

import json
import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from brokers import Role
from brokers.nats import Permissions, of_key_holder, permissions, public_nkey
from goreprox.keys.claims import claims_of, key_token
from goreprox.keys.state import Authorized

_HEAD: Final = "# Written by `goreprox keys nats-config`; it is written anew when keys change.\nusers: [\n"
_LINE: Final = re.compile(r'  \{ nkey: "(U[A-Z2-7]{55})", .*\} # (edge|provider) (\S+)')


class Listed(NamedTuple):
    """A key in such a file."""

    nkey: str
    role: Role
    name: str


def nats_config(keys: Iterable[Authorized], holder: bytes) -> str:
    """Return the text for these keys, and for the public key of who holds them, which may say that one is revoked."""
    lines = [
        f"{_user(key.public, permissions(key.role, key.name, key_token(key.public), claims_of(key)))} "
        f"# {key.role!s} {key.name}"
        for key in keys
    ]
    return "\n".join([_HEAD + _user(holder, of_key_holder()) + " # the holder of the keys", *lines, "]", ""])


def listed(text: str) -> set[Listed]:
    """Return the keys of edges and providers in such a text."""
    found = filter(None, map(_LINE.fullmatch, text.splitlines()))
    return {Listed(line[1], Role[line[2].upper()], line[3]) for line in found}


def _user(public: bytes, allowed: Permissions) -> str:
    """Return the line of a user; lists of JSON are those of the configuration of NATS."""
    publish, subscribe = (json.dumps(list(subjects)) for subjects in allowed)
    return f'  {{ nkey: "{public_nkey(public)}", permissions: {{ publish: {publish}, subscribe: {subscribe} }} }}'
