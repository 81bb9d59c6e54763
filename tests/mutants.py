"""Run the mutants of one module against the tests that cover it: `python -m tests.mutants MODULE.py [TESTS...]`.

Mutants are made in a copy of the tree, below build/mutants. A run that was interrupted continues; those that survived
run again once the tests have changed, and all of them once the module has. Exit code 1: some survive.
"""

import argparse
import ast
import contextlib
import hashlib
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
IGNORED: Final = shutil.ignore_patterns(".*", "build", "dist", "__pycache__", "*.egg-info")
OPERATORS: Final = re.compile(
    r"""core/(
    ReplaceBinaryOperator_(Add_Sub|Sub_Add|Mul_FloorDiv|Div_Mul|FloorDiv_Mul|Mod_FloorDiv
        |LShift_RShift|RShift_LShift|BitOr_BitAnd|BitAnd_BitOr|BitXor_BitOr)
    |ReplaceComparisonOperator_(Eq_NotEq|NotEq_Eq|Is_IsNot|IsNot_Is
        |Lt_LtE|Lt_GtE|LtE_Lt|LtE_Gt|Gt_GtE|Gt_LtE|GtE_Gt|GtE_Lt)
    |ReplaceUnaryOperator_(USub_UAdd|Delete_Not|Delete_Invert)
    |ReplaceTrueWithFalse|ReplaceFalseWithTrue|ReplaceAndWithOr|ReplaceOrWithAnd|AddNot|NumberReplacer
    |ReplaceBreakWithContinue|ReplaceContinueWithBreak|ZeroIterationForLoop|RemoveDecorator|ExceptionReplacer
    )""",
    re.VERBOSE,
)
"""Of cosmic-ray, which has none for strings: one opposite of each operator, and the other side of each bound."""
LOG: Final = re.compile(r"\b(logger|_?log)\.")
Span = tuple[tuple[int, int], tuple[int, int]]


def main() -> int:
    """Run what is left to run; print the survivors and the score."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("module", metavar="MODULE.py", type=Path)
    parser.add_argument("tests", metavar="TESTS", nargs="*", help="by default those of tests/unit for its folder")
    options = parser.parse_args()
    module: Path = options.module
    tests = options.tests or covering(module)
    work = ROOT / "build/mutants" / ".".join(module.with_suffix("").parts)
    tree = work / "tree"
    if tree.exists():
        shutil.rmtree(tree)
    shutil.copytree(ROOT, tree, ignore=IGNORED)
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    # A mutant of the same second and the same length as the one before would be taken for it.
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    began = time.monotonic()
    subprocess.run(command, cwd=tree, env=environment, check=True)
    timeout_s = 30 + 5 * (time.monotonic() - began)
    (work / "config.toml").write_text(
        f'[cosmic-ray]\nmodule-path = "{module}"\ntimeout = {timeout_s:.0f}\nexcluded-modules = []\n'
        f'test-command = "{" ".join(command)}"\n[cosmic-ray.distributor]\nname = "local"\n'
    )
    prepare(work, module, tests, environment)
    cosmic_ray(work, "exec", environment)
    return report(work)


def covering(module: Path) -> list[str]:
    """Return the tests of a module: its own first, then all of its folder."""
    folder = Path("tests/unit", *[part for part in module.parent.parts if part != "goreprox"])
    own = folder / f"test_{module.name}"
    return [str(path) for path in (own, folder) if (ROOT / path).exists()]


def cosmic_ray(work: Path, command: str, environment: dict[str, str]) -> None:
    program = [sys.executable, "-m", "cosmic_ray.cli", command, "../config.toml", "../session.sqlite"]
    subprocess.run(program, cwd=work / "tree", env=environment, check=True)


def prepare(work: Path, module: Path, tests: list[str], environment: dict[str, str]) -> None:
    """Make the mutants, or choose those that are to run again."""
    source = (ROOT / module).read_text()
    present = {"module": _digest([ROOT / module]), "tests": _digest([ROOT / each for each in tests])}
    made = {path.name: path.read_text() for path in (work / "made").glob("*")}
    if made.get("module") != present["module"]:
        cosmic_ray(work, "init", environment)
        with _session(work) as session:
            spans = list(unwanted(ast.parse(source)))
            rows = session.execute("SELECT job_id, operator_name, start_pos_row, start_pos_col FROM mutation_specs")
            for job, operator, row, column in rows.fetchall():
                if not OPERATORS.fullmatch(operator) or any(first <= (row, column) < last for first, last in spans):
                    session.execute("DELETE FROM mutation_specs WHERE job_id = ?", (job,))
                    session.execute("DELETE FROM work_items WHERE job_id = ?", (job,))
    elif made.get("tests") != present["tests"]:
        with _session(work) as session:
            session.execute("DELETE FROM work_results WHERE test_outcome = 'SURVIVED'")
    (work / "made").mkdir(exist_ok=True)
    for name, digest in present.items():
        (work / "made" / name).write_text(digest)


def _digest(paths: list[Path]) -> str:
    files = sorted({file for path in paths for file in (path.rglob("*.py") if path.is_dir() else [path])})
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


@contextlib.contextmanager
def _session(work: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(work / "session.sqlite")) as session, session:
        yield session


def unwanted(tree: ast.Module) -> Iterator[Span]:
    """Yield where a mutant would change nothing that a program depends on: annotations and log calls."""
    for node in ast.walk(tree):
        match node:
            case ast.AnnAssign(annotation=annotation) | ast.arg(annotation=ast.expr() as annotation):
                yield _span(annotation)
            case ast.FunctionDef(returns=ast.expr() as annotation):
                yield _span(annotation)
            case ast.Call(func=ast.Attribute() as function) if re.search(
                r"\blogger\.|\b_?log\.", ast.unparse(function)
            ):
                yield _span(node)


def _span(node: ast.expr) -> Span:
    return (node.lineno, node.col_offset), (node.end_lineno or node.lineno, node.end_col_offset or node.col_offset)


def report(work: Path) -> int:
    """Print each survivor and the score; return the exit code."""
    with _session(work) as session:
        rows = session.execute("SELECT test_outcome, diff FROM work_results ORDER BY diff").fetchall()
    survivors = [diff for outcome, diff in rows if outcome == "SURVIVED"]
    for diff in survivors:
        sys.stdout.write("\n".join(diff.splitlines()[2:]) + "\n")
    killed = len(rows) - len(survivors)
    sys.stdout.write(f"{killed} of {len(rows)} mutants killed, {killed / max(1, len(rows)):.1%}\n")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
