"""Where the keys of a role come from: a state directory, or a join string, which has a name and addresses, too."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from goreprox.cli.options import JoinOptions
from goreprox.config.addresses import Address
from goreprox.config.paths import default_state_dir
from goreprox.config.process import ProcessConfig
from goreprox.errors import ConfigError
from goreprox.process.files import read_file

if TYPE_CHECKING:
    from brokers import LinkSecurity
    from goreprox.keys.join import Join


class Membership(NamedTuple):
    """What a member has of a join string, or of options where it has none."""

    process: ProcessConfig
    addresses: tuple[Address, ...]
    security: "LinkSecurity | None"


def state_directory(given: Path | None, *, needed: bool) -> Path | None:
    """Return the state directory, if one is `needed`: for keys, or for certificates."""
    if not needed:
        return None
    return default_state_dir() if given is None else given


def membership(role: str, process: ProcessConfig, given: tuple[Address, ...], options: JoinOptions) -> Membership:
    """Join as the join string says; addresses that are `given` win over those in it.

    Raises:
        ConfigError: there is no join string, or it is for another role or name.
    """
    join = _read(role, options, insecure=process.insecure)
    if join is None:
        return Membership(process, given, None)
    if str(join.role) != role:
        raise ConfigError(f"join string: it is for {join.role} {join.name}, not for the role {role}")
    if process.name not in (None, join.name):
        raise ConfigError(f"name {process.name}: the join string is for {join.name}; leave --name out")
    return Membership(dataclasses.replace(process, name=join.name), given or join.addresses, join.security)


def _read(role: str, options: JoinOptions, *, insecure: bool) -> "Join | None":
    """Read the join string, or return None where there is to be none."""
    from goreprox.keys.join import FILE, Join

    text, file = options.join, options.join_file
    if text is not None and file is not None:
        raise ConfigError("join: there is a join-file, too; leave one of them out")
    if insecure:
        if text is not None or file is not None:
            raise ConfigError("insecure: there is a join string, too; leave one of them out")
        return None
    if file is not None:
        if str(file).startswith("goreprox:/"):
            raise ConfigError("join-file: this is a join string, not the name of a file; give it by --join")
        try:
            text = read_file(file, FILE)
        except OSError as exc:
            raise ConfigError(f"join-file {file}: {exc.strerror}; copy it from the server's join/NAME.join") from exc
    if text is None:
        more = " --role edge" if role == "edge" else ""
        raise ConfigError(
            f"join: none is given; `goreprox keys add NAME{more}` on the server makes one; give it by --join-file, "
            "or add --insecure for links in plaintext and without keys"
        )
    return Join.parse(text)
