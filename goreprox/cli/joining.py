"""What `--join`, `--join-file` and `--state-dir` mean for a role: keys, a name, addresses."""

from pathlib import Path
from typing import Any

from goreprox.cli.options import RoleOptions
from goreprox.config.addresses import Address
from goreprox.config.paths import default_state_dir
from goreprox.errors import ConfigError
from goreprox.keys.join import FILE, Join
from goreprox.keys.reach import SAME_PORT
from goreprox.process.files import read_file


def keys_directory(options: RoleOptions, given: Path | None) -> Path | None:
    """Give the directory of the keys, or None where there are to be none."""
    if options.insecure:
        return None
    return default_state_dir() if given is None else given.expanduser()


def reached_at(given: list[str] | None) -> tuple[Address, ...]:
    """Give what join strings are to name: hosts, with a port where it is not the one that is listened on."""
    return tuple(Address.parse(text, SAME_PORT) for text in given or ())


def joined(role: str, options: RoleOptions, join: str | None, join_file: Path | None) -> Join | None:
    """Read the join string, or give None where there is to be none."""
    if join is not None and join_file is not None:
        raise ConfigError("join: there is a join-file, too; leave one of them out")
    if options.insecure:
        if join is not None or join_file is not None:
            raise ConfigError("insecure: there is a join string, too; leave one of them out")
        return None
    if join_file is not None:
        if str(join_file).startswith("goreprox:/"):
            raise ConfigError("join-file: this is a join string, not the name of a file; give it by --join")
        try:
            join = read_file(join_file.expanduser(), FILE)
        except OSError as exc:
            raise ConfigError(
                f"join-file {join_file}: {exc.strerror}; copy it from the server's join/NAME.join"
            ) from exc
    if join is None:
        more = " --role edge" if role == "edge" else ""
        raise ConfigError(
            f"join: none is given; `goreprox keys add NAME{more}` on the server makes one; give it by --join-file, "
            "or add --insecure for links in plaintext and without keys"
        )
    joined = Join.parse(join)
    if str(joined.role) != role:
        raise ConfigError(f"join string: it is for {joined.role} {joined.name}, not for the role {role}")
    if options.name not in (None, joined.name):
        raise ConfigError(f"name {options.name}: the join string is for {joined.name}; leave --name out")
    return joined


def addresses(given: list[str] | None, port: int, joined: Join | None) -> tuple[Address, ...]:
    """Give the addresses of servers: the given ones, else those of the join string."""
    if joined is not None and not given:
        return joined.addresses
    return tuple(Address.parse(text, port) for text in given or ())


def member(joined: Join | None) -> dict[str, Any]:
    """Give what a configuration takes from a join string, except addresses."""
    return {} if joined is None else {"name": joined.name, "security": joined.security}
