"""docs/architecture.md lists the folders and layers that there are."""

import re
import tomllib
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
DOCUMENT: Final = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")


def test_every_folder_has_a_row() -> None:
    rows = re.findall(r"^\| `([\w/]+)/` \|", DOCUMENT, re.MULTILINE)
    packages = {str(path.parent.relative_to(ROOT)) for path in (ROOT / "goreprox").glob("*/__init__.py")}
    assert sorted(rows) == sorted(packages | {"brokers"})


def test_layers_are_those_of_the_contract() -> None:
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (contract,) = (one for one in linter["contracts"] if one.get("containers") == ["goreprox"])
    layers = [set(layer.split(" | ")) for layer in contract["layers"] if layer != "__main__"]
    block = re.search(r"Layers on one line [^:]+:\n\n((?:    .+\n)+)", DOCUMENT)
    assert block is not None
    assert [set(line.strip().split(", ")) - {"brokers"} for line in block[1].splitlines()] == layers
