"""Groups of options for commands: those of every role, where keys come from, and which processes are asked."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Literal, get_args

from cyclopts import Parameter

from goreprox.config.options import GROUP, KEYS, PROCESS, Directory, File
from goreprox.config.paths import runtime_dirs
from goreprox.config.process import ProcessConfig

Role = Literal["server", "edge", "broker", "provider"]


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
    """Join with this string, which the server or `goreprox keys add` printed. Shells remember it: prefer
    --join-file."""
    join_file: Annotated[File, Parameter(group=KEYS)] = None
    """Read the join string from this file."""


@GROUP
@dataclass(frozen=True, slots=True, kw_only=True)
class AskOptions:
    """Which processes of this machine a command asks."""

    name: Annotated[str | None, Parameter(metavar="NAME")] = None
    """Ask only processes with this name."""
    role: Annotated[Role | None, Parameter(metavar="ROLE")] = None
    """Ask only processes of this role."""
    runtime_dir: Directory = None
    """Look for processes in this directory. [default: that of roles, and /run/goreprox*]"""

    @property
    def directories(self) -> Sequence[Path]:
        """Where to look."""
        return runtime_dirs() if self.runtime_dir is None else [self.runtime_dir]

    @property
    def roles(self) -> Sequence[str]:
        """Whom to ask."""
        return get_args(Role) if self.role is None else (self.role,)


ALL: Final = AskOptions()


STATE_DIR_DEFAULT: Final = "[default: STATE_DIRECTORY, else goreprox in XDG_STATE_HOME or ~/.local/state]"
StateDir = Annotated[Directory, Parameter(group=KEYS, help=f"Keep keys here. {STATE_DIR_DEFAULT}")]
