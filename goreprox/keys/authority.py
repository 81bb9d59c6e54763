"""Who is authorised at this moment: the state directory, looked at once a second (brokers.Authority).

Fails shut: a file that is malformed or not for us to read authorises nobody. A directory that cannot be read right
now, for want of descriptors for instance, changes nothing: else a flood of connections could have everybody reset.
"""

import asyncio
import contextlib
import errno
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

from loguru import logger

from brokers import BindError, Grant, LimitedLog, Role
from goreprox.errors import GoreproxError, StartError
from goreprox.keys.state import MAX_KEYS, SERVER_KEY, Authorized, ServerKeys, StateDir
from goreprox.process.files import read_file

LOOK_S: Final = 0.5
"""Between two looks: what the directory says counts within a second."""
_PASSING: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO)
"""What says nothing of a file; anything else that is wrong with one is its own fault, and no other's."""

Signature = tuple[tuple[str, int, int, int], ...]
"""Names, inodes, times of change and sizes of the files."""


class Watcher:
    """Knows the keys in a state directory, and notices when they change."""

    def __init__(self, state: StateDir) -> None:
        """Read the directory; call `watch` to go on doing so.

        Raises:
            StartError: it cannot be used.
        """
        self._state = state
        self.server_keys: ServerKeys = state.server_keys()
        self._keys: dict[bytes, Authorized] = {}
        self._signature: Signature = ()
        self._log = LimitedLog()
        self.look()

    def grant(self, public_key: bytes) -> Grant | None:
        """Return what a key may be; None if it is unknown or revoked."""
        key = self._keys.get(public_key)
        return None if key is None else key.grant

    def objection(self, public_key: bytes, attributes: Mapping[str, object]) -> str | None:
        """Return why a peer with this key may not offer (a provider) or ask for (an edge) what it says; None if it may.

        Providers let an edge that names no services open any (`attributes.may_open`): with a restricted key it has to.
        """
        key = self._keys.get(public_key)
        if key is None:
            return "its key is not authorised"
        if key.services is None:
            return None
        if key.role is Role.EDGE and "services" not in attributes:
            return f"it names no services, and the key {key.name} does not allow all: upgrade the edge"
        services = attributes.get("services", [])
        if not isinstance(services, list):
            return "its services are malformed"
        more = sorted(str(service) for service in services if service not in key.services)
        if not more:
            return None
        where = f"authorized/{key.name}.toml on the server"
        return f"the key {key.name} does not allow the service {more[0][:64]}: see {where}"

    def forget(self) -> None:
        """Authorise nobody from now on."""
        self._keys = {}

    async def watch(self, changed: Callable[[], None], rekeyed: Callable[[ServerKeys], Awaitable[None]]) -> None:
        """Go on for ever; tell of keys that came, changed or went, and of new keys of the server."""
        while True:
            await asyncio.sleep(LOOK_S)
            if self.look():
                changed()
            keys = self._server_keys()
            if keys != self.server_keys:
                try:
                    await rekeyed(keys)
                except BindError as exc:  # somebody took the port while it was ours for a moment not
                    self._log.say("rekey_failed", f"cannot switch to the new server keys: {exc}; retrying")
                    continue
                self.server_keys = keys
                logger.bind(event="rekeyed").info("switched to the new server keys; peers are reconnecting")

    def _server_keys(self) -> ServerKeys:
        """Keep the keys we have where the file is gone or damaged: it is for the next start to complain."""
        try:
            return ServerKeys.parse(read_file(self._state.server_key, SERVER_KEY))
        except (OSError, ValueError, GoreproxError) as exc:
            self._log.say("server_key", f"cannot read the server keys: {exc}; keeping the ones in use")
            return self.server_keys

    def look(self) -> bool:
        """Read the directory if it has changed; return whether it has."""
        try:
            signature = self._sign()
            if signature == self._signature:
                return False
            self._keys = self._read(signature)
        except OSError as exc:
            self._log.say("authorized", f"{self._state.authorized}: {exc.strerror}; keeping the keys read before")
            return False
        self._signature = signature
        return True

    def _sign(self) -> Signature:
        try:
            paths = sorted(path for path in self._state.authorized.iterdir() if path.suffix == ".toml")
        except FileNotFoundError:
            self._log.say("authorized", f"{self._state.authorized}: directory not found; no key is authorised")
            return ()
        found: list[tuple[str, int, int, int]] = []
        for path in paths[:MAX_KEYS]:
            with contextlib.suppress(FileNotFoundError):  # removed since
                found.append((path.name, *_signature(path)))
        return tuple(found)

    def _read(self, signature: Signature) -> dict[bytes, Authorized]:
        keys: dict[bytes, Authorized] = {}
        for name, *_ in signature:
            path = self._state.authorized / name
            try:
                key = Authorized.read(path)
            except FileNotFoundError:
                continue
            except OSError as exc:
                if exc.errno in _PASSING:
                    raise
                self._log.say("key_file", f"{path}: {exc.strerror}; this key is not authorised")
                continue
            except StartError as exc:  # says which file
                self._log.say("key_file", f"{exc}; this key is not authorised")
                continue
            except (ValueError, GoreproxError) as exc:
                self._log.say("key_file", f"{path}: {exc}; this key is not authorised")
                continue
            keys[key.public] = key
        return keys


def _signature(path: Path) -> tuple[int, int, int]:
    """Return what differs once a file has changed, its mode included; zeros for one that will not be looked at."""
    try:
        status = path.stat()
    except OSError as exc:
        if isinstance(exc, FileNotFoundError) or exc.errno in _PASSING:
            raise
        return 0, 0, 0
    return status.st_ino, status.st_ctime_ns, status.st_size
