"""Only the clocks that nobody sets decide: what knows the time of day shows or names things, and is listed here."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
TIME_OF_DAY = {"time", "time_ns", "localtime", "gmtime", "ctime", "now", "utcnow", "today", "CLOCK_REALTIME"}
OF_MODULES = {"time", "datetime", "date"}
FOR_PEOPLE = {
    "goreprox/net/certificates.py": "when a certificate expires",
    "goreprox/acme/orders.py": "from when to when a certificate is valid",
    "goreprox/roles/acme.py": "when a certificate is to be renewed, which other processes read, too",
    "goreprox/http/auth.py": "until when a token is valid, which people say in days",
    "goreprox/process/log.py": "when lines were lost",
    "goreprox/keys/state.py": "when a key was made",
    "goreprox/process/feed.py": "when an event happened",
    "goreprox/inspector/records.py": "when a request came",
    "goreprox/monitor/collector.py": "when the processes were looked at",
    "goreprox/status/snapshot.py": "since when a process runs",
    "goreprox/status/stream_log.py": "when a stream ended",
    "goreprox/cli/tokens.py": "which tokens have expired",
}
"""What it is for, there."""


def times_of_day(path: Path) -> list[str]:
    """Give the expressions of a module that read the time of day."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and node.attr in TIME_OF_DAY:
            owner = ast.unparse(node.value)
            if owner.rpartition(".")[2] in OF_MODULES:
                found.append(f"{owner}.{node.attr}")
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            found.extend(f"from time import {alias.name}" for alias in node.names)
    return found


def test_the_time_of_day_is_read_where_it_is_shown_and_nowhere_else() -> None:
    modules = [path for package in ("goreprox", "brokers") for path in sorted((ROOT / package).rglob("*.py"))]
    found = {str(path.relative_to(ROOT)): times for path in modules if (times := times_of_day(path))}
    assert set(found) == set(FOR_PEOPLE), found


def test_what_reads_the_time_of_day_is_found(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text("import time, datetime\nfrom time import time as t\ntime.time()\ndatetime.datetime.now()\n")
    assert times_of_day(module) == ["from time import time", "time.time", "datetime.datetime.now"]
