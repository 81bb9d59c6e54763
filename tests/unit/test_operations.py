"""The tests that docs/operations.md names exist, and its table leaves nothing out."""

import ast
import itertools
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| ([a-z ]+) \| (killed|frozen|cut off) \| .+ \| (.+) \|$", re.MULTILINE)
TEST = re.compile(r"`(test_\w+)`")


def all_tests() -> set[str]:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "tests").rglob("test_*.py")]
    nodes = [node for tree in trees for node in tree.body]
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_test_that_is_named_exists() -> None:
    named = set(TEST.findall(DOCUMENT))
    assert named
    assert named - all_tests() == set()


def test_every_cell_of_what_survives_what_names_its_test() -> None:
    cells = {(process, loss): TEST.findall(shown) for process, loss, shown in ROW.findall(DOCUMENT)}
    for cell in itertools.product(("server", "edge", "broker", "provider"), ("killed", "frozen", "cut off")):
        assert cells.get(cell), f"no test for: {' '.join(cell)}"
