"""Default directories. Nothing is created."""

import os
import tempfile
from pathlib import Path

from goreprox.errors import ConfigError


def default_runtime_dir() -> Path:
    """Return the directory for files that do not outlive a reboot."""
    xdg = os.environ.get("XDG_RUNTIME_DIR", "")
    if Path(xdg).is_absolute():
        return Path(xdg) / "goreprox"
    if os.geteuid() == 0 and os.access("/run", os.W_OK):
        return Path("/run/goreprox")
    return Path(tempfile.gettempdir()) / f"goreprox-{os.geteuid()}"


def runtime_dirs(run: Path = Path("/run")) -> list[Path]:
    """Return the directories where processes of this machine may be: the default, and those that systemd creates."""
    return list(dict.fromkeys((default_runtime_dir(), *filter(Path.is_dir, sorted(run.glob("goreprox*"))))))


def default_state_dir() -> Path:
    """Return the state directory: the one that systemd has created, else the user's own.

    Raises:
        ConfigError: the user has no home directory.
    """
    given = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]  # several may be listed (systemd.exec(5))
    if Path(given).is_absolute():
        return Path(given)
    xdg = os.environ.get("XDG_STATE_HOME", "")
    if Path(xdg).is_absolute():
        return Path(xdg) / "goreprox"
    try:
        return Path.home() / ".local" / "state" / "goreprox"
    except RuntimeError as exc:
        raise ConfigError("state-dir: this user has no home directory; name one with --state-dir") from exc
