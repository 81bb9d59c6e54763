"""Documents quote messages as the code has them."""

import ast
import re
from functools import cache
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
LEFT_OUT: Final = "…"
CELL: Final = re.compile(r"^\| `(.+?)` \|", re.MULTILINE)
"""The first column of a table."""
LINE: Final = re.compile(r"^ +(?:INFO|WARNING) +(.+)$", re.MULTILINE)
"""Output of a process."""


def document(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@cache
def texts() -> frozenset[str]:
    """Return every text in the code, with LEFT_OUT in place of values."""
    found = set()
    for folder in ("goreprox", "brokers"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = (part.value if isinstance(part, ast.Constant) else LEFT_OUT for part in node.values)
                    found.add("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.add(re.sub(r"\{[^{}]*\}", LEFT_OUT, node.value))
    return frozenset(found)


def test_troubleshooting_explains_messages_of_the_code() -> None:
    quoted = CELL.findall(document("docs/troubleshooting.md"))
    assert quoted
    known = "\n".join(texts())
    parts = {part.strip() for message in quoted for part in message.split(LEFT_OUT)}
    assert {part for part in parts if part not in known} == set()


@pytest.mark.parametrize("name", ["README.md", "docs/first-connection.md"])
def test_output_is_shown_as_the_code_writes_it(name: str) -> None:
    quoted = LINE.findall(document(name))
    assert quoted
    patterns = [
        re.compile(".+".join(map(re.escape, text.split(LEFT_OUT))))
        for text in texts()
        if re.search(r"\w{5}", text)  # and not values alone
    ]
    assert [line for line in quoted if not any(pattern.fullmatch(line) for pattern in patterns)] == []
