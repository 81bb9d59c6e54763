"""docs/troubleshooting.md quotes what the code says."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
DOCUMENT: Final = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
QUOTED: Final = re.compile(r"^\| `(.+?)` \|", re.MULTILINE)
"""The first column of the tables."""
LEFT_OUT: Final = "…"


def texts() -> Iterator[str]:
    """Give every text in the code; in place of a value it has LEFT_OUT."""
    for folder in ("goreprox", "brokers"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(
                        str(part.value) if isinstance(part, ast.Constant) else LEFT_OUT for part in node.values
                    )
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield re.sub(r"\{[^{}]*\}", LEFT_OUT, node.value)


def test_every_message_that_is_quoted_is_one_of_the_code() -> None:
    quoted = QUOTED.findall(DOCUMENT)
    assert quoted
    known = "\n".join(texts())
    parts = {part.strip() for message in quoted for part in message.split(LEFT_OUT)}
    assert {part for part in parts if part not in known} == set()
