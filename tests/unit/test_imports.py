"""What import-linter's contracts (pyproject.toml) cannot say of imports, read from the syntax trees."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import brokers
import brokers.nats

ROOT = Path(__file__).parents[2]
MODULES = sorted(path for top in ("goreprox", "brokers") for path in (ROOT / top).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
PUBLIC = {"brokers": brokers.__all__, "brokers.nats": brokers.nats.__all__}
USERS = [path for path in MODULES if path.is_relative_to(ROOT / "goreprox")]


def faults(source: str) -> Iterator[str]:
    """Name each import of `brokers` that asks for more than its public names."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] == "brokers")
        elif isinstance(node, ast.ImportFrom) and node.module in PUBLIC:
            public = PUBLIC[node.module]
            yield from (f"{node.module}.{alias.name}" for alias in node.names if alias.name not in public)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("brokers."):
            yield str(node.module)


def test_users_of_the_fabric_import_its_public_names_only() -> None:
    for path in USERS:
        assert not list(faults(path.read_text(encoding="utf-8"))), path


@pytest.mark.parametrize(
    "source",
    [
        "import brokers",
        "import brokers.link",
        "from brokers import link",
        "from brokers.link import Link",
        "from brokers.nats import client",
    ],
)
def test_other_imports_of_the_fabric_are_found(source: str) -> None:
    assert list(faults(source))


def test_imports_are_absolute() -> None:
    for path in MODULES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        relative = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
        assert not relative, path


def imported(source: str) -> Iterator[str]:
    """Name each module, and each name of one, that is imported."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_test(name: str) -> bool:
    """Tell names of tests, and of what is in them."""
    return name.startswith("tests.") and any(part.startswith("test_") for part in name.split("."))


def test_tests_import_no_test_and_what_they_share_imports_nothing_else_of_them() -> None:
    for path in TESTS:
        names = [name for name in imported(path.read_text(encoding="utf-8")) if name.startswith("tests.")]
        assert not [name for name in names if is_test(name)], path
        if path.parent.name == "support":
            assert not [name for name in names if not name.startswith("tests.support.")], path


@pytest.mark.parametrize(
    "source",
    ["import tests.e2e.test_http", "from tests.e2e import test_http", "from tests.e2e.test_http import curl"],
)
def test_imports_of_tests_are_found(source: str) -> None:
    assert any(map(is_test, imported(source)))
