"""Which module may import which, read from the syntax trees."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SANS_IO = ("brokers", "asyncio", "socket", "zmq", "time", "random", "loguru", "select", "threading")
# What may not be imported where. Direction: cli -> server -> edge|provider -> driver, bridge -> protocol.
FORBIDDEN = {
    "brokers": ("goreprox",),
    "goreprox/protocol": (
        *SANS_IO,
        *(f"goreprox.{m}" for m in ("driver", "bridge", "edge", "provider", "server")),
    ),
    "goreprox/status/document.py": (
        "brokers",
        *(f"goreprox.{m}" for m in ("protocol", "driver", "bridge", "snapshot", "report")),
    ),
    "goreprox/cli/report.py": ("brokers", *(f"goreprox.{m}" for m in ("protocol", "driver", "bridge", "snapshot"))),
    "goreprox/status/snapshot.py": tuple(f"goreprox.{m}" for m in ("edge", "provider", "server", "report", "cli")),
    "goreprox/tunnel/driver.py": tuple(f"goreprox.{m}" for m in ("bridge", "edge", "provider", "server", "cli")),
    "goreprox/tunnel/bridge.py": tuple(f"goreprox.{m}" for m in ("driver", "edge", "provider", "server", "cli")),
    "goreprox/roles/balancer.py": ("goreprox", "brokers", "asyncio", "time", "loguru"),
    "goreprox/roles/waiting.py": tuple(f"goreprox.{m}" for m in ("driver", "edge", "provider", "server", "cli")),
    "goreprox/http": tuple(f"goreprox.{m}" for m in ("driver", "edge", "provider", "server", "cli")),
    **dict.fromkeys(
        (
            "goreprox/http/requests.py",
            "goreprox/http/own_responses.py",
            "goreprox/http/writer.py",
            "goreprox/http/commands.py",
            "goreprox/http/exchange.py",
            "goreprox/http/gateway.py",
            "goreprox/http/reader.py",
            "goreprox/config/routes.py",
        ),
        (*SANS_IO, *(f"goreprox.{m}" for m in ("protocol", "bridge", "poller", "sockets", "http.front"))),
    ),
    "goreprox/net/certificates.py": ("brokers", "asyncio", "socket", "goreprox.net.poller", "goreprox.protocol"),
    **dict.fromkeys(
        ("goreprox/net/tls.py", "goreprox/net/handshakes.py"),
        tuple(f"goreprox.{m}" for m in ("driver", "bridge", "http", "edge", "provider", "server", "cli")),
    ),
    "goreprox/net/listeners.py": tuple(
        f"goreprox.{m}" for m in ("driver", "bridge", "edge", "provider", "server", "cli")
    ),
    "goreprox/roles/broker.py": tuple(
        f"goreprox.{m}" for m in ("driver", "bridge", "edge", "provider", "server", "cli")
    ),
    "goreprox/roles/edge.py": tuple(f"goreprox.{m}" for m in ("provider", "server", "broker", "workers", "cli")),
    "goreprox/roles/provider.py": ("goreprox.roles.edge", "goreprox.roles.server", "goreprox.cli.main"),
    "goreprox/roles/server.py": ("goreprox.roles.provider", "goreprox.roles.workers", "goreprox.cli.main"),
    "goreprox/roles/workers.py": (
        "goreprox.roles.provider",
        "goreprox.roles.server",
        "goreprox.roles.broker",
        "goreprox.cli.main",
    ),
    "goreprox/keys": tuple(
        f"goreprox.{m}"
        for m in ("driver", "bridge", "edge", "provider", "broker", "server", "workers", "cli", "keys_cli")
    ),
    "goreprox/config/doors.py": ("goreprox.config.values", "brokers", "asyncio", "socket"),
    "goreprox/net/proxy_protocol.py": ("goreprox", *SANS_IO),
    "goreprox/net/proxies.py": tuple(
        f"goreprox.{m}" for m in ("driver", "bridge", "edge", "provider", "server", "cli")
    ),
    "goreprox/config/values.py": ("goreprox.cli.main", "goreprox.cli.options", "cyclopts", "asyncio"),
    "goreprox/cli/options.py": ("goreprox.cli.main", "asyncio"),
    "goreprox/errors.py": ("goreprox.",),
}


def imported(path: Path) -> set[str]:
    """Give the dotted names of what a module imports, also in functions; `from a import b` may be `a.b`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


@pytest.mark.parametrize("where", FORBIDDEN)
def test_imports_point_one_way_only(where: str) -> None:
    path = ROOT / where
    modules = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    assert modules
    wrong = [
        f"{module.relative_to(ROOT)} imports {name}"
        for module in modules
        for name in imported(module)
        if any(f"{name}.".startswith(prefix.rstrip(".") + ".") for prefix in FORBIDDEN[where])
    ]
    assert not wrong
