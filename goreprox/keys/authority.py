"""Which keys are authorised: the state directory, read again within a second of a change (brokers.Authority).

Fails closed: a file that is malformed, or that others could have written, authorises nobody. A directory that cannot be
read at the moment, for want of descriptors for instance, changes nothing: else a flood of connections could disconnect
every peer.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from loguru import logger

from brokers import BindError, Grant, LimitedLog, Role
from goreprox.config.published import GRANTED, MAX_NAMES, PUBLISHES, PublishedName, is_published
from goreprox.errors import ConfigError, GoreproxError, StartError
from goreprox.keys.state import MAX_KEYS, SERVER_KEY, Authorized, ServerKeys, StateDir
from goreprox.process.files import read_file
from goreprox.process.reloaded import Reloaded, is_transient

LOOK_S: Final = 0.5
"""Interval of looking for changes, so that each counts within a second."""


class Watcher:
    """Knows the keys in a state directory, and notices when they change."""

    def __init__(self, state: StateDir) -> None:
        """Read the directory; `watch` keeps it current.

        Raises:
            StartError: it cannot be used.
        """
        self._state = state
        self.server_keys: ServerKeys = state.server_keys()
        """The keys in use."""
        self._server_keys = Reloaded(lambda: [state.server_key], _read_server_keys, self.server_keys)
        self._keys = Reloaded[dict[bytes, Authorized]](self._paths, self._read, {})
        self._log = LimitedLog()
        self.look()

    def grant(self, public_key: bytes) -> Grant | None:
        """Return the role and the name of a key; None if it is unknown or revoked."""
        key = self._keys.value.get(public_key)
        return None if key is None else key.grant

    def objection(self, public_key: bytes, attributes: Mapping[str, object]) -> str | None:
        """Return why a peer with this key may not announce these attributes; None if it may."""
        key = self._keys.value.get(public_key)
        return "its key is not authorised" if key is None else objection(key, attributes)

    def certified(self, public_key: bytes, attributes: Mapping[str, object]) -> Mapping[str, object]:
        """Return the attributes with what the key of a peer that publishes, or serves published names, allows it."""
        return certified(self._keys.value.get(public_key), attributes)

    def forget(self) -> None:
        """Authorise nobody from now on."""
        self._keys.value = {}

    async def watch(self, changed: Callable[[], None], rekeyed: Callable[[ServerKeys], Awaitable[None]]) -> None:
        """Look for changes until cancelled; call `changed` for those of peers' keys, `rekeyed` for new server keys."""
        while True:
            await asyncio.sleep(LOOK_S)
            if self.look():
                changed()
            self._look_at_server_keys()
            keys = self._server_keys.value
            if keys != self.server_keys:
                try:
                    await rekeyed(keys)
                except BindError as exc:  # the port was free for a moment, and another program took it
                    self._log.say("rekey_failed", f"cannot switch to the new server keys: {exc}; retrying")
                    continue
                self.server_keys = keys
                logger.bind(event="rekeyed").info("switched to the new server keys; peers are reconnecting")

    def _look_at_server_keys(self) -> None:
        """Keep the keys in use where the file is missing or damaged: the next start refuses it."""
        try:
            self._server_keys.refresh()
        except (OSError, ValueError, GoreproxError) as exc:
            self._log.say("server_key", f"cannot read the server keys: {exc}; keeping the ones in use")

    def look(self) -> bool:
        """Read the directory if it has changed; return whether it has."""
        try:
            return self._keys.refresh()
        except OSError as exc:
            self._log.say("authorized", f"{self._state.authorized}: {exc.strerror}; keeping the keys read before")
            return False

    def _paths(self) -> Sequence[Path]:
        try:
            paths = sorted(path for path in self._state.authorized.iterdir() if path.suffix == ".toml")
        except FileNotFoundError:
            self._log.say("authorized", f"{self._state.authorized}: directory not found; no key is authorised")
            return []
        return paths[:MAX_KEYS]

    def _read(self, paths: Sequence[Path]) -> dict[bytes, Authorized]:
        keys: dict[bytes, Authorized] = {}
        for path in paths:
            try:
                key = Authorized.read(path)
            except FileNotFoundError:  # removed since
                continue
            except OSError as exc:
                if is_transient(exc):  # any other error is the fault of this file alone
                    raise
                why = f"{path}: {exc.strerror}"
            except StartError as exc:  # names the file
                why = str(exc)
            except (ValueError, GoreproxError) as exc:
                why = f"{path}: {exc}"
            else:
                keys[key.public] = key
                continue
            self._log.say("key_file", f"{why}; this key is not authorised")
        return keys


def objection(key: Authorized, attributes: Mapping[str, object]) -> str | None:
    """Return why a peer with this key may not offer (provider) or open (edge) what it announces; None if it may.

    Published names are among the services, and are checked on their own. No edge announces them.
    Providers let an edge that announces no services open any (`attributes.may_open`), so with a restricted key it
    has to announce them.
    """
    services = attributes.get("services", [])
    names = published(services)
    if (refusal := _unpublishable(key, names)) is not None or key.services is None:
        return refusal
    if key.role is Role.EDGE and "services" not in attributes:
        return f"it names no services, and the key {key.name} does not allow all: upgrade the edge"
    if not isinstance(services, list):
        return "its services are malformed"
    more = sorted(str(service) for service in services if service not in (*key.services, *names))
    if not more:
        return None
    remedy = f"`goreprox keys set {key.name} --services …` on the server changes what it allows"
    return f"the key {key.name} does not allow the service {more[0][:64]}; {remedy}"


def certified(key: Authorized | None, attributes: Mapping[str, object]) -> Mapping[str, object]:
    """Return the attributes of a peer with what its key allows it, if it publishes or serves published names."""
    rest = {name: value for name, value in attributes.items() if name != GRANTED}
    if key is None:
        return rest
    if key.role is Role.EDGE:
        return rest | {GRANTED: True} if key.services is None and rest.get(PUBLISHES) is True else rest
    if not published(rest.get("services")):
        return rest
    ranges = [[grant.ports.first, grant.ports.last] for grant in key.publish if grant.ports is not None]
    return rest | {GRANTED: [key.public, ranges]}


def published(services: object) -> list[str]:
    """Return the published names among services."""
    found = services if isinstance(services, list) else []
    return [service for service in found if isinstance(service, str) and is_published(service)]


def _unpublishable(key: Authorized, names: Sequence[str]) -> str | None:
    """Return why a peer with this key may not publish these names, or None if it may."""
    if len(names) > MAX_NAMES:
        return f"it publishes {len(names)} names, expected at most {MAX_NAMES}"
    for text in names:
        try:
            name = PublishedName.parse(text)
        except ConfigError as exc:
            return str(exc)
        if name.owner != key.name or not any(grant.allows(name) for grant in key.publish):
            remedy = f"`goreprox keys set {key.name} --publish …` on the server changes what it allows"
            return f"the key {key.name} does not allow to publish {name.url[:80]}; {remedy}"
    return None


def _read_server_keys(paths: Sequence[Path]) -> ServerKeys:
    (path,) = paths
    return ServerKeys.parse(read_file(path, SERVER_KEY))
