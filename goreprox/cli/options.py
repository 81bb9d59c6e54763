"""Groups of options for commands: those of every role, and where keys come from."""

from dataclasses import dataclass, field
from typing import Annotated

from cyclopts import Parameter

from goreprox.config.options import GROUP, KEYS, PROCESS, Directory, File
from goreprox.config.process import ProcessConfig


@GROUP
@dataclass(frozen=True, slots=True, kw_only=True)
class FileOptions:
    """Options of every command but keys and token."""

    config: Annotated[File, Parameter(group=PROCESS)] = None
    """Read options from this TOML file. [default: goreprox.toml in the current directory, if there is one]"""


@GROUP
@dataclass(frozen=True, slots=True, kw_only=True)
class StartOptions:
    """Options of every role."""

    process: ProcessConfig = field(default_factory=ProcessConfig)
    file: FileOptions = field(default_factory=FileOptions)


@GROUP
@dataclass(frozen=True, slots=True, kw_only=True)
class JoinOptions:
    """Options of roles that join a server or broker: edge and provider."""

    join: Annotated[str | None, Parameter(group=KEYS, metavar="STRING")] = None
    """Join with this string, which the server or `goreprox keys add` printed. Other users of this machine can see it in
    the list of processes: prefer --join-file."""
    join_file: Annotated[File, Parameter(group=KEYS)] = None
    """Read the join string from this file."""


StateDir = Annotated[
    Directory,
    Parameter(
        group=KEYS,
        help="Keep keys here. [default: STATE_DIRECTORY, else goreprox in XDG_STATE_HOME or ~/.local/state]",
    ),
]
