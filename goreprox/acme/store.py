"""Certificates by ACME in the state directory, which the processes of a machine share.

    acme/AUTHORITY/account.json         the account's secret key and its URL
                   ledger.json          what is known of each host (schedule.Ledger)
                   lock                 locked by the process that orders certificates, one at a time
                   hosts/HOST.pem       secret key, certificate and chain
                   http-01/TOKEN        the response to a challenge that is open
                   tls-alpn-01/HOST.pem secret key and certificate that answer one

All files are written whole, by who has the lock; anybody else reads what is there when it is asked for.
"""

import contextlib
import fcntl
import hashlib
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from goreprox.acme.schedule import Ledger
from goreprox.errors import StartError, advice
from goreprox.process.files import FileKind, prepare_directory, read_file, write_secret

MAX_PEM_BYTES: Final = 65_536
"""Of a key with its chain, whose certificates have 1 to 2 KiB each."""
_LEDGER: Final = FileKind("a ledger of certificates", secret=True, most_bytes=16 << 20)
"""10,000 routes with a problem of 1 KiB each fill 10 MiB."""
_SECRET: Final = FileKind("a secret of an account", secret=True)
_TOKEN: Final = re.compile(rb"[A-Za-z0-9_-]{1,128}")
_HOST: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)+")
_MAX_HOST: Final = 240
"""A file's name has 255 bytes at most."""


def objection(host: str) -> str | None:
    """Return why there can be no certificate for a host of a route or of a published name; None: there can."""
    if "*" in host:
        return (
            "an authority gives a certificate with a wildcard only for a record in the DNS (dns-01), which goreprox "
            "does not write; give one by --tls-cert, or name each host"
        )
    name = host.rpartition(".")[2]
    if name.isdigit() or host.startswith("["):
        return "it is an address, and authorities give certificates for names; give one by --tls-cert"
    if not _HOST.fullmatch(host) or len(host) > _MAX_HOST:
        return "no public authority knows such a name; give a certificate for it by --tls-cert"
    return None


class Store:
    """The part of a state directory for one authority. Nothing is created before `prepare`."""

    def __init__(self, state_dir: Path, url: str) -> None:
        """Keep what the authority with this directory gives."""
        digest = hashlib.sha256(url.encode()).hexdigest()[:8]
        self.directory: Final = state_dir / "acme" / f"{urlsplit(url).hostname}-{digest}"
        self.ledger_file: Final = self.directory / "ledger.json"
        self.account_file: Final = self.directory / "account.json"
        self._hosts: Final = self.directory / "hosts"
        self._tokens: Final = self.directory / "http-01"
        self._proofs: Final = self.directory / "tls-alpn-01"

    def prepare(self) -> None:
        """Create the directories that are missing.

        Raises:
            StartError: they cannot be created, or others may write to them.
        """
        state_dir = self.directory.parents[1]
        try:
            for path in (state_dir, self.directory.parent, self.directory, self._hosts, self._tokens, self._proofs):
                prepare_directory(path)
        except OSError as exc:
            why = f"{exc.strerror}; {advice(exc, '--state-dir')}"
            raise StartError(f"state-dir {state_dir}: certificates cannot be kept there: {why}") from exc

    def certificate(self, host: str) -> Path:
        """Return the file of a host's certificate, with its key, whether it exists or not."""
        return self._hosts / f"{host}.pem"

    def has(self, host: str) -> bool:
        """Return whether there is a certificate for a host."""
        return self.certificate(host).exists()

    def proof(self, host: str) -> Path:
        """Return the file of the certificate that answers a challenge by TLS, whether it exists or not."""
        return self._proofs / f"{host}.pem"

    def response(self, token: bytes) -> bytes | None:
        """Return the response to a challenge by HTTP; None if there is no such challenge."""
        if not _TOKEN.fullmatch(token):
            return None
        try:
            return read_file(self._tokens / token.decode(), _SECRET).encode()
        except (OSError, StartError):
            return None

    def respond(self, token: str, text: str) -> None:
        """Have a challenge by HTTP answered."""
        if not _TOKEN.fullmatch(token.encode()):
            raise ValueError("a challenge has a malformed token")
        write_secret(self._tokens / token, text, replace=True)

    def forget_challenges(self) -> None:
        """Answer no challenge any more: they are over, or of a process that has died."""
        for directory in (self._tokens, self._proofs):
            for path in directory.iterdir():
                path.unlink(missing_ok=True)

    def account(self) -> str | None:
        """Return the account, as it was kept; None if there is none yet."""
        try:
            return read_file(self.account_file, _SECRET)
        except FileNotFoundError:
            return None

    def ledger(self) -> Ledger:
        """Return the ledger; an empty one if there is none yet.

        Raises:
            StartError: it cannot be read.
        """
        try:
            return Ledger.parse(read_file(self.ledger_file, _LEDGER))
        except FileNotFoundError:
            return Ledger()
        except OSError as exc:
            raise StartError(f"{self.ledger_file}: {exc.strerror}") from exc
        except ValueError as exc:
            raise StartError(f"{self.ledger_file}: {exc}; remove it, and all certificates are asked for anew") from exc

    def forget_certificates(self, *, keep: Collection[str], before: float) -> None:
        """Remove the certificates of other hosts that were written before then: nobody has renewed them."""
        for path in self._hosts.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.stem not in keep and path.stat().st_mtime < before:
                    path.unlink()

    def lock(self) -> int | None:
        """Return the descriptor of the lock, which is held until all copies are closed; None: somebody has it.

        Raises:
            OSError: there is no lock.
        """
        descriptor = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor
