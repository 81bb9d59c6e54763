"""Options of the certificates that are shown to clients and to peers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from goreprox.config.addresses import Address
from goreprox.config.checks import check_distinct
from goreprox.config.defaults import MAX_CERTIFICATES
from goreprox.config.options import GROUP, KEYS, Files
from goreprox.errors import ConfigError


@GROUP
@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateConfig:
    """Certificates, each with its key."""

    certs: Annotated[Files, Parameter(name="--tls-cert", group=KEYS)] = ()
    """Use this certificate and its chain for tls:// and https://; PEM, reread when it changes. May be repeated: clients
    get the one for the name that they ask for, or else the first."""
    keys: Annotated[Files, Parameter(name="--tls-key", group=KEYS)] = ()
    """Use this private key of the certificate; PEM, reread when it changes. One for each --tls-cert, in their order."""

    def __post_init__(self) -> None:
        check_distinct("tls-cert", [str(path) for path in self.certs])
        if len(self.certs) > MAX_CERTIFICATES:
            raise ConfigError(f"tls-cert: expected at most {MAX_CERTIFICATES} of them, got {len(self.certs)}")
        if self.certs and self.keys and len(self.certs) != len(self.keys):
            raise ConfigError(
                f"tls-key: there are {len(self.certs)} --tls-cert and {len(self.keys)} --tls-key; "
                "give each certificate its private key, in the same order"
            )

    @property
    def pairs(self) -> list[tuple[Path, Path]]:
        """Each certificate with its key."""
        return list(zip(self.certs, self.keys, strict=True))

    @property
    def files(self) -> dict[str, Sequence[Path]]:
        """The files of each option."""
        return {"tls-cert": self.certs, "tls-key": self.keys}

    def check_links(self, ports: Sequence[tuple[str, Address]]) -> None:
        """Require that ports of links with TLS have the files that they need.

        Raises:
            ConfigError: a file is missing.
        """
        wanting = next(((option, each) for option, each in ports if each.tls), None)
        for option, paths in self.files.items():
            if wanting is not None and not paths:
                raise ConfigError(
                    f"{wanting[0]} {wanting[1]}: {option} is missing; give the certificate by "
                    "--tls-cert FILE and its private key by --tls-key FILE"
                )

    def check_used(self, used: bool) -> None:
        """Require that there are no files, unless some port has TLS.

        Raises:
            ConfigError: a file is for no port.
        """
        for option, paths in self.files.items():
            if paths and not used:
                raise ConfigError(
                    f"{option} {paths[0]}: no port speaks TLS; write https:// or tls:// in --listen, or tls:// in "
                    f"--providers, or leave --{option} out"
                )
