"""Options of every process, and of those that own connections."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, get_args

from cyclopts import Parameter

from goreprox.config.addresses import Address
from goreprox.config.checks import check_range, check_seconds
from goreprox.config.dashboard import check_exposed
from goreprox.config.defaults import (
    DEFAULT_DRAIN_S,
    DEFAULT_GRACE_S,
    DEFAULT_LINK_TIMEOUT_S,
    DEFAULT_MAX_CONNECTIONS,
    DEFAULT_MEMORY_MIB,
    MAX_CONNECTIONS,
    MAX_MEMORY_BYTES,
    MIB,
    MIN_RESERVED_BYTES,
)
from goreprox.config.names import check_name, default_name
from goreprox.config.options import (
    ADDRESSES,
    GROUP,
    KEYS,
    LIFETIMES,
    LIMITS,
    PROCESS,
    Count,
    Directory,
    File,
    Mebibytes,
    Port,
    Seconds,
    SecondsOrNever,
    one,
)
from goreprox.config.paths import default_runtime_dir
from goreprox.errors import ConfigError

Level = Literal["trace", "debug", "info", "warning", "error"]


def _level(text: str) -> str:
    level = {"warn": "warning"}.get(text.lower(), text.lower())
    if level not in get_args(Level):
        raise ValueError(f"expected one of {', '.join(get_args(Level))}")
    return level


@GROUP
@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """Options of the log."""

    level: Annotated[Level, one(_level, "LEVEL"), Parameter(name="--log-level", group=PROCESS, show_choices=False)] = (
        "info"
    )
    """Log this and above: trace, debug, info, warning or error."""
    json: Annotated[bool, Parameter(name="--log-json", group=PROCESS)] = False
    """Log one JSON object per line."""


@GROUP
@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessConfig:
    """Options of every role."""

    name: Annotated[str | None, Parameter(group=PROCESS, metavar="NAME")] = None
    """Set the name that the other side shows; processes with one name are replicas. [default: this host's name]"""
    runtime_dir: Annotated[Directory, Parameter(group=PROCESS)] = None
    """Keep lock files and the control socket in this directory. [default: goreprox in XDG_RUNTIME_DIR or /run, else in
    the temporary directory]"""
    insecure: Annotated[bool, Parameter(group=KEYS)] = False
    """Disable encryption and authentication of links; anyone who can reach the port can join."""
    link_timeout_s: Annotated[Seconds, Parameter(name="--link-timeout", group=LIFETIMES)] = DEFAULT_LINK_TIMEOUT_S
    """Take a link for broken after so long without a message."""
    health: Annotated[Port | None, Parameter(group=ADDRESSES, show_default=False)] = None
    """Respond here over HTTP: /live, and /ready. [default: nowhere]"""
    dashboard: Annotated[Port | None, Parameter(group=ADDRESSES, show_default=False)] = None
    """Start a dashboard here: /metrics of all processes of the runtime directory. [default: nowhere]"""
    dashboard_token_file: Annotated[File, Parameter(group=KEYS)] = None
    """Require the token in this file from those who ask the dashboard for metrics."""
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        check_name("name", self.own_name)
        if self.dashboard is not None:
            check_exposed("dashboard", self.dashboard, "dashboard-token-file", self.dashboard_token_file)
        check_seconds("link-timeout", self.link_timeout_s, least=0.3)

    @property
    def own_name(self) -> str:
        """The name of this process: the given one, else the host's."""
        return default_name() if self.name is None else self.name

    @property
    def ports(self) -> list[tuple[str, Address]]:
        """Where it listens, each with its option."""
        ports = (("health", self.health), ("dashboard", self.dashboard))
        return [(option, address) for option, address in ports if address is not None]

    @property
    def lock_dir(self) -> Path:
        """The directory for lock files: the given one, else the default."""
        return default_runtime_dir() if self.runtime_dir is None else self.runtime_dir


@GROUP
@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionConfig:
    """Options of roles that own connections of clients or to targets: server, edge and provider."""

    grace_s: Annotated[Seconds, Parameter(name="--grace", group=LIFETIMES)] = DEFAULT_GRACE_S
    """Keep connections for so long while the link is down. The smaller value of the two sides counts."""
    drain_s: Annotated[Seconds, Parameter(name="--drain", group=LIFETIMES)] = DEFAULT_DRAIN_S
    """Let connections end for so long after SIGTERM or Ctrl-C; a second signal resets them at once."""
    half_closed_timeout_s: Annotated[SecondsOrNever, Parameter(name="--half-closed-timeout", group=LIFETIMES)] = None
    """Reset half-closed connections after so long without traffic; 0: never."""
    max_connections: Annotated[Count, Parameter(group=LIMITS)] = DEFAULT_MAX_CONNECTIONS
    """Limit connections at a time; further ones wait."""
    memory_bytes: Annotated[Mebibytes, Parameter(name="--memory", group=LIMITS)] = DEFAULT_MEMORY_MIB * MIB
    """Limit the memory for data in transit, both directions together, without that of TLS."""

    def __post_init__(self) -> None:
        check_seconds("grace", self.grace_s, least=0.1)
        check_seconds("drain", self.drain_s, least=0)
        if self.half_closed_timeout_s is not None:
            check_seconds("half-closed-timeout", self.half_closed_timeout_s, least=0.1)
        check_range("max-connections", self.max_connections, 1, MAX_CONNECTIONS)
        least = 4 * self.max_connections * MIN_RESERVED_BYTES
        if self.memory_bytes < least:
            raise ConfigError(
                f"memory {self.memory_bytes / MIB:g} MiB: {self.max_connections:,} connections need at least "
                f"{math.ceil(least / MIB)} MiB; raise --memory or lower --max-connections"
            )
        if self.memory_bytes > MAX_MEMORY_BYTES:
            raise ConfigError(
                f"memory {self.memory_bytes / MIB:g} MiB: expected at most {MAX_MEMORY_BYTES // MIB:,} MiB"
            )
