"""An operator of NATS whose users have tokens (JWT), as `nsc` makes them: https://docs.nats.io (JWT, nkeys)."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Final

from nacl.signing import SigningKey

from brokers.nats import Permissions
from brokers.nats.nkey import _crc16

_SEED: Final = 18 << 3
_OPERATOR, _ACCOUNT, _USER = 14 << 3, 0, 20 << 3
"""The first bytes of nkeys, which make O, A and U their first letters."""


class Identity:
    """Who signs tokens, or is named in one."""

    def __init__(self, prefix: int) -> None:
        self._prefix = prefix
        self._key = SigningKey.generate()

    @property
    def public(self) -> str:
        return _nkey(bytes([self._prefix]) + bytes(self._key.verify_key))

    @property
    def seed(self) -> str:
        return _nkey(bytes([_SEED | self._prefix >> 5, (self._prefix & 31) << 3]) + bytes(self._key))

    def token(self, subject: "Identity", kind: str, **claims: object) -> str:
        """Return a token about `subject`, signed by us."""
        content = {"sub": subject.public, "iss": self.public, "name": kind, "iat": 1_700_000_000}
        content |= {"nats": {"type": kind, "version": 2, **claims}}
        content["jti"] = base64.b32encode(hashlib.sha256(json.dumps(content).encode()).digest()).decode().rstrip("=")
        signed = ".".join(map(_part, ({"typ": "JWT", "alg": "ed25519-nkey"}, content)))
        return f"{signed}.{_base64(self._key.sign(signed.encode()).signature)}"


class Operator:
    """An operator with one account, beside that of the system, which answers what a user may."""

    def __init__(self) -> None:
        self._identity, self._account, self._system = Identity(_OPERATOR), Identity(_ACCOUNT), Identity(_ACCOUNT)

    @property
    def settings(self) -> str:
        """What a server is told."""
        unlimited = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), -1)
        accounts = {
            each.public: self._identity.token(each, "account", limits={**unlimited, "wildcards": True})
            for each in (self._account, self._system)
        }
        return (
            f'operator: "{self._identity.token(self._identity, "operator", system_account=self._system.public)}"\n'
            f"resolver: MEMORY\nresolver_preload: {json.dumps(accounts)}\nsystem_account: {self._system.public}\n"
        )

    def credentials(self, path: Path, allowed: Permissions) -> Path:
        """Write the file of a user that may publish and subscribe to so much; return its path."""
        user = Identity(_USER)
        limits = dict.fromkeys(("subs", "data", "payload"), -1)
        may = {"pub": {"allow": list(allowed.publish)}, "sub": {"allow": list(allowed.subscribe)}}
        token = self._account.token(user, "user", **limits, **may)
        path.write_text(
            f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{user.seed}\n------END USER NKEY SEED------\n"
        )
        path.chmod(0o600)
        return path


def _nkey(body: bytes) -> str:
    return base64.b32encode(body + _crc16(body).to_bytes(2, "little")).rstrip(b"=").decode()


def _part(content: object) -> str:
    return _base64(json.dumps(content).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
