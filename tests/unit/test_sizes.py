"""A module of more than 400 lines, or a class of more than 25 methods, says why: `hence so long`, `hence so many`."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
MAX_LINES: Final = 400
MAX_METHODS: Final = 25
"""Without properties, which read like fields."""
MODULES: Final = sorted(path for top in ("goreprox", "brokers") for path in (ROOT / top).rglob("*.py"))


def is_property(method: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(isinstance(each, ast.Name) and each.id == "property" for each in method.decorator_list)


def unexplained(source: str) -> Iterator[str]:
    """Name what is too large and does not say why."""
    tree = ast.parse(source)
    if (lines := source.count("\n")) > MAX_LINES and "hence so long" not in (ast.get_docstring(tree) or ""):
        yield f"{lines} lines"
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            functions = (each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef))
            methods = sum(not is_property(each) for each in functions)
            if methods > MAX_METHODS and "hence so many" not in (ast.get_docstring(node) or ""):
                yield f"{node.name}: {methods} methods"


def test_what_is_large_says_why() -> None:
    for path in MODULES:
        assert not list(unexplained(path.read_text(encoding="utf-8"))), path


def test_what_is_too_large_is_found() -> None:
    methods = "".join(f"    def m{number}(self): ...\n" for number in range(MAX_METHODS + 1))
    properties = methods.replace("    def", "    @property\n    def")
    assert list(unexplained(f"class Large:\n{methods}")) == ["Large: 26 methods"]
    assert not list(unexplained(f'class Large:\n    """A method for each step, hence so many."""\n{methods}'))
    assert not list(unexplained(f"class Small:\n{properties}"))
    assert list(unexplained("\n" * (MAX_LINES + 1))) == ["401 lines"]
    assert not list(unexplained('"""One table, hence so long."""' + "\n" * (MAX_LINES + 1)))
