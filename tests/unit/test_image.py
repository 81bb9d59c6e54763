"""The image has what the package needs."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAME = re.compile(r"^[A-Za-z0-9._-]+", re.MULTILINE)


def test_every_dependency_is_pinned_for_the_image() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    dependencies = project["dependencies"] + [
        each for extra in ("acme", "dashboard", "nats") for each in project["optional-dependencies"][extra]
    ]
    pinned = NAME.findall((ROOT / "docker/requirements.txt").read_text())
    needed = {NAME.match(dependency)[0].replace("_", "-") for dependency in dependencies}  # type: ignore[index]
    assert needed <= set(pinned)


def test_all_that_a_wheel_is_made_of_gets_into_the_image() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {*wheel["packages"], *wheel["shared-data"], project["project"]["readme"]}
    needed |= {"pyproject.toml", "hatch_build.py"}
    lines = [line.split() for line in (ROOT / "docker/Dockerfile").read_text().splitlines()]
    copied = {name for line in lines if line[:1] == ["COPY"] for name in line[1:-1]}
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert needed <= copied
    assert needed <= allowed
