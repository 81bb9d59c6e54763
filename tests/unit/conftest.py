"""What unit tests share."""

import os
from pathlib import Path

import pytest

import goreprox.broker
import goreprox.edge
import goreprox.provider
import goreprox.server
import goreprox.workers
from goreprox import launch
from tests.helpers import Started


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
    for module in (goreprox.server, goreprox.edge, goreprox.broker, goreprox.provider, goreprox.workers):
        monkeypatch.setattr(module, "run", started)
    return started
