"""The image has what the package needs."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAME = re.compile(r"^[A-Za-z0-9._-]+", re.MULTILINE)


def test_every_dependency_is_pinned_for_the_image() -> None:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    pinned = NAME.findall((ROOT / "docker/requirements.txt").read_text())
    assert {NAME.match(dependency)[0] for dependency in dependencies} <= set(pinned)  # type: ignore[index]
