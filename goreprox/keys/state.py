"""The state directory of a server: its own keys, the authorised keys of peers, and their join strings.

    server.key              secret keys: the present one, and the next, which `rotate` puts in its place
    reach.toml              the addresses for join strings (goreprox.keys.reach)
    authorized/NAME.toml    one for each key: public key, role, name, services, published names
    join/NAME.join          its join string; may be removed once it has been handed over

Brokers that share peers have copies of this directory. Each change is atomic, and one at a time. Files are written
whole: all of them are ours, and too short to need an editor that keeps comments.
"""

import contextlib
import datetime
import json
import os
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import EllipsisType
from typing import Final, Self

from brokers import Grant, KeyPair, Role, is_key
from goreprox.config.addresses import Address
from goreprox.config.names import check_name
from goreprox.config.published import MAX_GRANTS, overlapping, parse_grants
from goreprox.config.published import Grant as PublishGrant
from goreprox.errors import ConfigError, StartError, advice
from goreprox.keys.join import FILE, Join
from goreprox.keys.reach import Reach
from goreprox.process.files import FileKind, locked, prepare_directory, read_file, sync_directory, write_secret

MAX_KEYS: Final = 10_000
"""Files in `authorized`, at most; all are looked at twice a second."""
MAX_SERVICES: Final = 256
SERVER_KEY: Final = FileKind("the secret keys of a server", secret=True)
AUTHORIZED: Final = FileKind("an authorised key")
REACH: Final = FileKind("the address of a server")
FIRST: Final = "default"
"""The name of the key that a server creates at its first start."""


@dataclass(frozen=True, slots=True)
class ServerKeys:
    """The keys of a server: the present pair, and the one that a rotation puts in its place."""

    present: KeyPair
    following: KeyPair

    @property
    def public(self) -> tuple[bytes, bytes]:
        """The public keys, for join strings."""
        return self.present.public, self.following.public

    @property
    def text(self) -> str:
        """The content of `server.key`."""
        return f'present = "{self.present.secret.decode()}"\nnext = "{self.following.secret.decode()}"\n'

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the content of `server.key`.

        Raises:
            ValueError: it is malformed; the message contains nothing of it.
        """
        try:
            document = tomllib.loads(text)
            present, following = document["present"], document["next"]
            return cls(KeyPair.from_secret(present.encode()), KeyPair.from_secret(following.encode()))
        except (ValueError, KeyError, AttributeError):
            raise ValueError("expected the secret keys `present` and `next`") from None


@dataclass(frozen=True, slots=True)
class Authorized:
    """An authorised key, and what it allows."""

    public: bytes
    role: Role
    name: str
    services: tuple[str, ...] | None
    """The services that a provider may offer, or an edge open; None: all."""
    created: str
    """The time in UTC (ISO 8601); informational."""
    publish: tuple[PublishGrant, ...] = ()
    """The names that a provider may publish."""

    @property
    def grant(self) -> Grant:
        """The part that the fabric checks."""
        return Grant(self.role, self.name)

    @property
    def text(self) -> str:
        """The content of its file."""
        lines = [f'key = "{self.public.decode()}"', f'role = "{self.role!s}"', f'name = "{self.name}"']
        if self.services is not None:
            lines.append(f"services = {json.dumps(self.services)}")  # names are plain, so JSON is TOML
        if self.publish:
            lines.append(f"publish = {json.dumps([grant.text for grant in self.publish])}")
        return "\n".join([*lines, f'created = "{self.created}"', ""])

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file.

        Raises:
            ValueError: it is malformed.
            ConfigError: a name in it is malformed.
            StartError: others could have written it.
            OSError: it cannot be read.
        """
        try:
            document = tomllib.loads(read_file(path, AUTHORIZED))
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        unknown = document.keys() - {"key", "role", "name", "services", "publish", "created"}
        if unknown:
            raise ValueError(f"{min(unknown)} is none of key, role, name, services, publish, created")
        key, role, name = (document.get(what) for what in ("key", "role", "name"))
        services, created, publish = document.get("services"), document.get("created", ""), document.get("publish", [])
        if not isinstance(key, str) or not key.isascii() or not is_key(key.encode()):
            raise ValueError("key is missing or not a public key")
        if not isinstance(role, str) or role not in {str(role) for role in Role}:
            raise ValueError("role is neither edge nor provider")
        if name != path.stem:
            raise ValueError(f"name is not {path.stem}, as the file's name says")
        check_name("name", path.stem)
        if services is not None:
            if not isinstance(services, list) or len(services) > MAX_SERVICES:
                raise ValueError(f"services is no list of at most {MAX_SERVICES} names")
            for service in services:
                check_name("service", str(service))
        if not isinstance(publish, list) or len(publish) > MAX_GRANTS or (publish and role != str(Role.PROVIDER)):
            raise ValueError(f"publish is no list of at most {MAX_GRANTS} names of a provider")
        return cls(
            key.encode(),
            Role[role.upper()],
            path.stem,
            None if services is None else tuple(services),
            str(created),
            parse_grants(map(str, publish)),
        )


class StateDir:
    """A state directory. All methods raise StartError where it cannot be used."""

    def __init__(self, directory: Path, *, shown: Path | None = None) -> None:
        """Use `directory`, created if it is missing. If `shown` is given, messages show that path instead.

        Raises:
            StartError: it cannot be created, or other users may write to it.
        """
        self.directory: Final = directory
        self.shown: Final = directory if shown is None else shown
        self.authorized: Final = directory / "authorized"
        self.join: Final = directory / "join"
        self.server_key: Final = directory / "server.key"
        self._reach: Final = directory / "reach.toml"
        with self._explained():
            for path in (directory, self.authorized, self.join):
                prepare_directory(path)

    def server_keys(self) -> ServerKeys:
        """Return the server's keys, created the first time."""
        with self._explained():
            with contextlib.suppress(FileExistsError):
                if not self.server_key.exists():
                    keys = ServerKeys(KeyPair.generate(), KeyPair.generate())
                    write_secret(self.server_key, keys.text)
            try:
                return ServerKeys.parse(read_file(self.server_key, SERVER_KEY))
            except ValueError as exc:
                raise StartError(
                    f"{self.server_key}: {exc}; restore it, or remove it with all keys and join strings"
                ) from exc

    def reach(self) -> Reach:
        """Return the addresses stored at the last start of the server; before the first one, the defaults.

        Raises:
            StartError: the file is malformed.
        """
        with self._explained():
            try:
                return Reach.parse(read_file(self._reach, REACH))
            except FileNotFoundError:
                return Reach()
            except ValueError as exc:
                raise StartError(f"{self._reach}: {exc}; remove it and restart the server") from exc

    def remember(self, reach: Reach) -> list[str]:
        """Store the addresses of the server; return the names whose join strings were renewed.

        Those are the ones that had the previous addresses. Copies handed out before have to be replaced.
        """
        with self._explained(), locked(self.directory):
            old = self.reach()
            if reach == old and self._reach.exists():
                return []
            write_secret(self._reach, reach.text, replace=True)
            renewed = []
            for path in sorted(self.join.glob("*.join")):
                join = _read_join(path)
                now = reach.addresses(join.role)
                if join.addresses == old.addresses(join.role) != now:
                    write_secret(path, replace(join, addresses=now).text + "\n", replace=True)
                    renewed.append(join.name)
            return renewed

    @property
    def is_read_only(self) -> bool:
        """Whether keys are managed elsewhere, as on a volume that several brokers share."""
        return not os.access(self.directory, os.W_OK)

    @property
    def was_started(self) -> bool:
        """Whether a server has used this directory."""
        return self._reach.exists()

    def all(self) -> list[Authorized]:
        """Return all authorised keys in the order of their names.

        Raises:
            StartError: a file is malformed.
        """
        with self._explained():
            return [self._read(path) for path in sorted(self.authorized.glob("*.toml"))]

    def key(self, name: str) -> Authorized:
        """Return the key of a name.

        Raises:
            ConfigError: there is none.
        """
        with self._explained():
            try:
                return self._read(self._authorized(name))
            except FileNotFoundError:
                raise ConfigError(f"key {name}: there is none in {self.authorized}; see `goreprox keys list`") from None

    def _read(self, path: Path) -> Authorized:
        try:
            return Authorized.read(path)
        except (ValueError, ConfigError) as exc:
            raise StartError(f"{path}: {exc}; repair or remove it") from exc

    def add(
        self,
        role: Role,
        name: str,
        services: Sequence[str] | None,
        addresses: Sequence[Address] | None = None,
        *,
        publish: tuple[PublishGrant, ...] = (),
        share: bool = False,
    ) -> Path:
        """Create and authorise a key of `name`; return the path of its join string.

        The join string contains `addresses`, by default those stored by the server. With `share` another key may have
        names that this one may `publish`, too.

        Raises:
            ConfigError: the name has a key, or is malformed; or a service is; or another key has a published name.
        """
        allowed = _checked(services)
        path, join = self._authorized(name), self.join_file(name)
        keys = KeyPair.generate()
        created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        with self._explained(), locked(self.directory):
            if path.exists():
                raise ConfigError(f"key {name}: it exists; revoke it first, or choose another name")
            if sum(1 for _ in self.authorized.glob("*.toml")) >= MAX_KEYS:
                raise ConfigError(f"key {name}: there are {MAX_KEYS} keys already; revoke one")
            self._check_publish(role, name, publish, share=share)
            # The join string first: interrupted in between, nothing is authorised.
            known = self.server_keys().public
            named = self.reach().addresses(role) if addresses is None else tuple(addresses)
            write_secret(join, Join(role, name, keys, known, named).text + "\n", replace=True)
            write_secret(path, Authorized(keys.public, role, name, allowed, created, publish).text)
        return join

    def allow(
        self,
        name: str,
        *,
        services: Sequence[str] | EllipsisType | None = ...,
        publish: tuple[PublishGrant, ...] | EllipsisType = ...,
        share: bool = False,
    ) -> Authorized:
        """Allow the key of `name` other services (None: all), or other published names, from now on; return it.

        What is not given (`...`) stays. With `share` another key may have the names, too.

        Raises:
            ConfigError: there is none, or a service is malformed, or another key has a published name.
        """
        allowed = services if isinstance(services, EllipsisType) else _checked(services)
        with self._explained(), locked(self.directory):
            key = self.key(name)
            if not isinstance(publish, EllipsisType):
                self._check_publish(key.role, name, publish, share=share)
                key = replace(key, publish=publish)
            if not isinstance(allowed, EllipsisType):
                key = replace(key, services=allowed)
            write_secret(self._authorized(name), key.text, replace=True)
        return key

    def _check_publish(self, role: Role, name: str, publish: tuple[PublishGrant, ...], *, share: bool) -> None:
        """Require names that a key of this role can have, and that no other key has unless they `share`.

        Raises:
            ConfigError: it cannot, or another one has.
        """
        if publish and role is not Role.PROVIDER:
            raise ConfigError(f"publish {publish[0].text}: only providers publish; {name} is an edge")
        for other in self.all() if publish and not share else ():
            if other.name != name and (found := overlapping(publish, other.publish)):
                mine, theirs = found
                raise ConfigError(
                    f"publish {mine.text}: the key {other.name} may publish {theirs.text}; take it away there "
                    f"(`goreprox keys set {other.name} --publish …`), or let both have it with --share: the lower "
                    "public key wins"
                )

    def revoke(self, name: str) -> None:
        """Remove the key of `name` and its join string.

        Raises:
            ConfigError: there is none.
        """
        with self._explained(), locked(self.directory):
            try:
                self._authorized(name).unlink()
            except FileNotFoundError:
                raise ConfigError(f"key {name}: there is none in {self.authorized}; see `goreprox keys list`") from None
            sync_directory(self.authorized)
            self.join_file(name).unlink(missing_ok=True)

    def rotate(self) -> list[Path]:
        """Replace the present server keys by the next ones; return the paths of the renewed join strings.

        Peers with join strings from before this rotation can still connect; those from before two rotations cannot.
        """
        with self._explained(), locked(self.directory):
            old = self.server_keys()
            new = ServerKeys(old.following, KeyPair.generate())
            joins = {path: _read_join(path) for path in sorted(self.join.glob("*.join"))}
            # The key first: interrupted after it, all join strings still contain the present key.
            write_secret(self.server_key, new.text, replace=True)
            for path, join in joins.items():
                write_secret(path, join.with_server_keys(new.public).text + "\n", replace=True)
        return list(joins)

    def join_file(self, name: str) -> Path:
        """Return the path of the join string of `name`, which may have been removed."""
        return self.join / f"{name}.join"

    def _authorized(self, name: str) -> Path:
        check_name("name", name)
        return self.authorized / f"{name}.toml"

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            where = self.shown if exc.filename is None else exc.filename
            raise StartError(
                f"state directory {self.shown}: {where}: {exc.strerror}; {advice(exc, '--state-dir')}"
            ) from exc


def _checked(services: Sequence[str] | None) -> tuple[str, ...] | None:
    """Check the names of services.

    Raises:
        ConfigError: there are more than MAX_SERVICES, or one is malformed.
    """
    if services is None:
        return None
    if len(services) > MAX_SERVICES:
        raise ConfigError(f"services: expected at most {MAX_SERVICES}, got {len(services)}")
    for service in services:
        check_name("service", service)
    return tuple(services)


def _read_join(path: Path) -> Join:
    try:
        return Join.parse(read_file(path, FILE))
    except ConfigError as exc:
        raise ConfigError(f"{path}: {exc}; or remove it") from exc
