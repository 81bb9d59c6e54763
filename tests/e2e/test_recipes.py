"""The recipe of a private service, run as it is printed: each machine is a home directory.

Ports are those that the kernel gives, by variables or as port 0. `ssh HOST` runs its command with the home directory of
the public machine.
"""

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.roles import echoed
from tests.support.processes import Process, Tunnel, nothing_yet
from tests.support.sockets import HOST
from tests.support.traffic import echo
from tests.support.waiting import DEADLINE_S, eventually

ROOT: Final = Path(__file__).parents[2]
RECIPES: Final = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")


def commands() -> list[tuple[str, str]]:
    """Return the commands of the recipe, each with its machine."""
    found, machine = [], ""
    recipe = RECIPES.split("\n## A private service\n")[1].split("\n## ")[0]
    for line in recipe.splitlines():
        if line.startswith("    "):
            found.append((machine, line.strip()))
        elif named := re.findall(r"On the (public|private|admin's|friend's) machine", line):
            machine = named[-1].removesuffix("'s")
    return found


class Machines:
    """Where commands are run."""

    def __init__(self, made: Tunnel) -> None:
        self._made = made
        programs = made.tmp / "bin"
        programs.mkdir()
        for name, command in (
            ("goreprox", f'exec "{sys.executable}" -W error -m goreprox "$@"'),
            ("ssh", f'shift; HOME="{made.tmp / "public"}" exec "$@"'),
        ):
            (programs / name).write_text(f"#!/bin/sh\n{command}\n")
            (programs / name).chmod(0o755)

    def _home(self, machine: str) -> Path:
        home = self._made.tmp / machine
        home.mkdir(exist_ok=True)
        return home

    def _environment(self, machine: str) -> dict[str, str]:
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("GOREPROX_", "XDG_"))}
        ours.pop("STATE_DIRECTORY", None)
        ports = {"GOREPROX_PROVIDERS": f"{HOST}:0", "GOREPROX_EDGES": f"{HOST}:0"} if machine == "public" else {}
        return (
            ours
            | ports
            | {
                "HOME": str(self._home(machine)),
                "XDG_RUNTIME_DIR": str(self._home(machine) / "run"),
                "PATH": f"{self._made.tmp / 'bin'}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "GOREPROX_LOG_JSON": "true",
            }
        )

    async def run(self, machine: str, line: str) -> str:
        """Run a command that ends; return its output."""
        process = await asyncio.create_subprocess_exec(
            *("/bin/sh", "-c", line),
            cwd=self._home(machine),
            env=self._environment(machine),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        async with asyncio.timeout(DEADLINE_S):
            out, err = await process.communicate()
        assert process.returncode == 0, (line, err)
        return out.decode()

    async def start(self, machine: str, line: str) -> Process:
        """Start a role."""
        process = Process(
            await asyncio.create_subprocess_exec(
                *("/bin/sh", "-c", f"exec {line}"),
                cwd=self._home(machine),
                env=self._environment(machine),
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        )
        self._made._stack.push_async_callback(process.stop)
        await process.ready()
        return process

    def hand_over(self, name: str) -> None:
        """Give the file that the admin has made to the friend."""
        (self._home("friend") / name).write_bytes((self._home("admin") / name).read_bytes())
        (self._home("friend") / name).chmod(0o600)


async def test_a_private_service_is_reached_without_a_public_port(tmp_path: Path) -> None:
    async with nothing_yet(tmp_path) as made:
        machines, started = Machines(made), dict[str, Process]()
        target = await made.target(echo)
        steps = commands()
        assert [machine for machine, _ in steps] == ["public", "private", "private", "admin", "friend"]
        for machine, printed in steps:
            line = re.sub(r"(?<!ssh )\bHOST\b", HOST, printed)
            line = line.replace("db=5432", f"db={HOST}:{target} secret={HOST}:{target}").replace(":5432=db", ":0=db")
            if machine == "private":
                line = line.replace("--services db", "--services db,secret")
            if machine == "friend":
                machines.hand_over("friend.join")
            words = line.split()
            if words[0] == "goreprox":
                started[words[1]] = await machines.start(machine, line)
            else:
                assert await machines.run(machine, line) == ""
        assert "clients" not in await started["broker"].ready(), "there is no public port"
        client = await made.connect(await started["edge"].port("clients"))
        await echoed(client, b"through the tunnel")

        # The key opens nothing else, though the provider offers it.
        line = f"goreprox edge --listen {HOST}:0=secret --join-file friend.join"
        other = await machines.start("friend", line)
        why = "the key friend does not allow the service secret"
        await eventually(lambda: any(why in str(entry.get("message")) for entry in other.log), "the edge says why")
        assert not other.events("link_up")

        await machines.run("public", "goreprox keys revoke friend")
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(client[0].read(), DEADLINE_S)
