"""The command sequences of README.md, run as they are printed; each machine is a home directory and an address.

Ports are those that the kernel gives: what listens gets them by variables or as port 0, and clients are told. `ssh` to
a tunnelled port is a look at the greeting there, `scp` a copy from the other machine's home directory.
"""

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.support.processes import Process, Tunnel, nothing_yet
from tests.support.programs import program
from tests.support.sockets import HOST
from tests.support.tls import Authority

ROOT: Final = Path(__file__).parents[2]
README: Final = (ROOT / "README.md").read_text(encoding="utf-8")
JOIN: Final = "'goreprox://…@HOST:9887'"
ADDRESSES: Final = {"HOST": HOST, "HOST1": HOST, "HOST2": "127.0.0.2", "EDGE": HOST}
PAGE: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\npage"
GREETING: Final = b"SSH-2.0-target\r\n"
SECTIONS: Final = ("Two machines", "Several services", "Several processes", "HTTP")

pytestmark = [
    pytest.mark.programs,
    pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is this machine on Linux alone"),
]


def commands(text: str) -> list[tuple[str, str]]:
    """Give the commands of a part of the README, and on which machine each is run."""
    found = re.findall(r"```sh (\w+)\n(.*?)```", text, re.DOTALL)
    return [(where, line) for where, block in found for line in block.splitlines()]


def section(name: str) -> str:
    return README.split(f"\n## {name}\n")[1].split("\n## ")[0]


def test_every_command_in_the_readme_is_in_a_tested_section() -> None:
    assert sum(len(commands(section(name))) for name in SECTIONS) == len(commands(README)) > 0
    assert README.count("```sh ") * 2 == README.count("```")


async def page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(PAGE)
    writer.close()


async def greeting(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(GREETING)
    writer.close()


class Machines:
    """Where a section's commands are run."""

    def __init__(self, tmp: Path, made: Tunnel) -> None:
        self._tmp = tmp
        self._made = made
        self.targets: dict[str, int] = {}
        self.clients: list[int] = []
        """Where clients come in."""
        self._links: dict[str, object] = {}
        """Ports of the first server or broker; another one has the same, at its own address."""
        programs = tmp / "bin"
        programs.mkdir()
        (programs / "goreprox").write_text(f'#!/bin/sh\nexec "{sys.executable}" -W error -m goreprox "$@"\n')
        (programs / "goreprox").chmod(0o755)

    def home(self, machine: str) -> Path:
        home = self._tmp / machine.lower()
        home.mkdir(exist_ok=True)
        return home

    def environment(self, machine: str, *, is_broker: bool = False) -> dict[str, str]:
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("GOREPROX_", "XDG_"))}
        ours.pop("STATE_DIRECTORY", None)
        address = ADDRESSES.get(machine, HOST)
        return ours | {
            "HOME": str(self.home(machine)),
            "XDG_RUNTIME_DIR": str(self.home(machine) / "run"),
            "PATH": f"{self._tmp / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "GOREPROX_LISTEN": f"{HOST}:0",
            "GOREPROX_PROVIDERS": f"{address}:{self._links.get('providers', 0)}",
            # A server, unlike a broker, has no port for edges unless it is told so.
            "GOREPROX_EDGES": f"{address}:{self._links.get('edges', 0)}" if is_broker else "",
            "GOREPROX_LOG_JSON": "true",
            "CURL_CA_BUNDLE": str(self.home("HOST") / "ca.pem"),
        }

    def _translated(self, line: str) -> str:
        join = self.home("HOST") / ".local/state/goreprox/join/default.join"
        if JOIN in line:
            line = line.replace(JOIN, f"'{join.read_text().strip()}'")
        line = re.sub(r"\bscp (-r )?(\w+):(\S+)", lambda m: f"cp {m[1] or ''}{self.home(m[2])}/{m[3]}", line)
        line = re.sub(r"(?<=provider )3000\b|(?<=web=)3000\b", str(self.targets["web"]), line)
        line = re.sub(r"(?<=ssh=)22\b", str(self.targets["ssh"]), line)
        line = re.sub(r"(?<=--listen )8080|(?<=--listen )2222|(?<=--listen https://)8443", "0", line)
        line = re.sub(r"(?<=:)(8080|8443)/", lambda _: f"{self.clients[0]}/", line)
        return re.sub(r"\b(HOST[12]?|EDGE)\b(?=[:/ ]|$)", lambda m: ADDRESSES[m[1]], line)

    async def run(self, machine: str, line: str) -> None:
        if line.startswith("ssh -p 2222 "):
            reader, writer = await asyncio.open_connection(HOST, self.clients[1])
            assert await reader.read() == GREETING
            writer.close()
        elif re.match(r"goreprox (server|broker|edge|provider)\b", line):
            await self._start(machine, self._translated(line))
        else:
            command = self._translated(line)
            if command.startswith("curl"):
                command = command.replace("curl", f"{program('curl')} --silent --show-error --fail", 1)
            done = await asyncio.to_thread(
                subprocess.run,
                ["/bin/sh", "-c", command],
                check=False,
                capture_output=True,
                cwd=self.home("HOST" if machine == "CLIENT" else machine),
                env=self.environment(machine),
            )
            assert done.returncode == 0, (line, done.stderr)
            if line.startswith("curl"):
                assert done.stdout == b"page"

    async def _start(self, machine: str, command: str) -> None:
        raw = await asyncio.create_subprocess_exec(
            *("/bin/sh", "-c", f"exec {command}"),
            cwd=self.home(machine),
            env=self.environment(machine, is_broker=command.startswith("goreprox broker")),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        process = Process(raw)
        self._made._stack.push_async_callback(process.stop)
        ready = await process.ready()
        if isinstance(clients := ready.get("clients"), list):
            self.clients = clients
        self._links |= {kind: ready[kind] for kind in ("providers", "edges") if kind in ready}


@pytest.mark.parametrize("name", SECTIONS)
async def test_the_commands_of_a_section_work_as_printed(tmp_path: Path, name: str) -> None:
    async with nothing_yet(tmp_path) as made:
        machines = Machines(tmp_path, made)
        machines.targets = {"web": await made.target(page), "ssh": await made.target(greeting)}
        Authority(machines.home("HOST"))
        for machine, line in commands(section(name)):
            await machines.run(machine, line)
