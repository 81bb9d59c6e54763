"""What unit tests share."""

import os
from pathlib import Path

import pytest

import goreprox.roles.broker
import goreprox.roles.edge
import goreprox.roles.provider
import goreprox.roles.server
import goreprox.roles.workers
from goreprox.cli import launch
from tests.support.commands import Started


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Started:
    """Start from a clean environment in an empty folder."""
    monkeypatch.chdir(tmp_path)
    for variable in os.environ:
        if variable.startswith("GOREPROX_"):
            monkeypatch.delenv(variable)
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    monkeypatch.setattr(launch, "raise_file_limit", lambda: None)
    started = Started()
    for module in (
        goreprox.roles.server,
        goreprox.roles.edge,
        goreprox.roles.broker,
        goreprox.roles.provider,
        goreprox.roles.workers,
    ):
        monkeypatch.setattr(module, "run", started)
    return started
