"""Documents name files, folders and layers that there are."""

import re
import tomllib
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
ARCHITECTURE: Final = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
DOCUMENTS: Final = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("deploy/*.md")]
PATH: Final = re.compile(r"`((?:goreprox|brokers|tests|docs|deploy|docker|benchmarks)/[\w./-]+)`")


def test_every_folder_has_a_row() -> None:
    rows = re.findall(r"^\| `([\w/]+)/` \|", ARCHITECTURE, re.MULTILINE)
    packages = {str(path.parent.relative_to(ROOT)) for path in (ROOT / "goreprox").glob("*/__init__.py")}
    assert sorted(rows) == sorted(packages | {"brokers"})


def test_layers_are_those_of_the_contract() -> None:
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (contract,) = (one for one in linter["contracts"] if one.get("containers") == ["goreprox"])
    layers = [set(layer.split(" | ")) for layer in contract["layers"] if layer != "__main__"]
    block = re.search(r"Layers on one line [^:]+:\n\n((?:    .+\n)+)", ARCHITECTURE)
    assert block is not None
    assert [set(line.strip().split(", ")) - {"brokers"} for line in block[1].splitlines()] == layers


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_are_named_exist(document: Path) -> None:
    named = PATH.findall(document.read_text(encoding="utf-8"))
    assert [name for name in named if not any((ROOT / (name + ending)).exists() for ending in ("", ".py"))] == []
