"""What is shipped for NATS: the configurations, and the composition, whose commands run here without containers."""

import asyncio
import os
import shlex
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.nats_fleet import fleet, start_keyed
from tests.e2e.roles import ANY
from tests.support.nats import DEPLOY, NatsServer
from tests.support.programs import program, reserved_port
from tests.support.sockets import HOST
from tests.support.waiting import eventually

COMPOSITION: dict[str, Any] = yaml.safe_load((DEPLOY.parents[1] / "docker/compose.nats.yaml").read_text())
SERVERS = ("n1", "n2", "n3")
WHOLE = sorted({path.name for path in DEPLOY.glob("*.conf")} - {"settings.conf", "accounts.conf"})


def run(script: str, **environment: str) -> None:
    done = subprocess.run(
        ["sh", "-euc", script], env={**os.environ, **environment}, check=False, capture_output=True, text=True
    )
    assert not done.returncode, done.stderr


def certificates(tls: Path) -> None:
    """Run the service that makes them, for this machine."""
    program("openssl")
    tls.mkdir()
    (script,) = COMPOSITION["services"]["certificates"]["command"]
    names = ",".join(f"DNS:{name}" for name in SERVERS)
    assert names in script
    run(script.replace("/tls", str(tls)).replace(names, f"DNS:localhost,IP:{HOST}"))


def keys(state: Path, users: Path, ports: list[int]) -> None:
    """Run the service that makes them."""
    state.mkdir(mode=0o700)
    users.mkdir()
    (script,) = COMPOSITION["services"]["keys"]["command"]
    for name, port in zip(SERVERS, ports, strict=True):
        script = script.replace(f"nats://{name}", f"nats://localhost:{port}")
    script = script.replace("$$", "$").replace("/var/lib/goreprox", str(state)).replace("/run/goreprox", str(users))
    command = f'goreprox() {{ {sys.executable} -m goreprox "$@"; }}\n'
    for _ in range(2):  # it runs at each start
        run(command + script, GOREPROX_STATE_DIR=str(state), PYTHONPATH=os.pathsep.join(sys.path))


@pytest.mark.parametrize("name", WHOLE)
def test_configurations_are_what_nats_server_takes(name: str, tmp_path: Path) -> None:
    certificates(tmp_path / "tls")
    (tmp_path / "users").mkdir()
    (tmp_path / "users/users.conf").write_text("users: []\n")
    for path in DEPLOY.glob("*.conf"):
        (tmp_path / path.name).write_text(path.read_text())
    done = subprocess.run(
        [program("nats-server"), "-t", "-c", str(tmp_path / name)],
        env={**os.environ, "NATS_NAME": "n1"},
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
    )
    assert not done.returncode and "warning" not in done.stderr.lower(), done.stderr


def test_the_composition_gives_the_servers_the_files_that_their_configuration_names() -> None:
    configuration = (DEPLOY / "cluster.conf").read_text()
    for name in SERVERS:
        server = COMPOSITION["services"][name]
        assert server["environment"] == {"NATS_NAME": name} and f'"nats://{name}:6222"' in configuration
        mounted = dict(each.split(":")[:2] for each in server["volumes"])
        assert {"users", "tls"} <= mounted.keys() and server["command"] == ["-c", "/etc/nats/cluster.conf"]
        for source in mounted.keys() - {"users", "tls"}:
            assert (DEPLOY.parents[1] / "docker" / source).exists()


@pytest.mark.long
async def test_the_composition_loses_nothing_when_any_of_its_servers_is_killed(tmp_path: Path) -> None:
    async with fleet(tmp_path) as it, AsyncExitStack() as stack:
        ports = [stack.enter_context(reserved_port()) for _ in SERVERS]
        routes = [stack.enter_context(reserved_port()) for _ in SERVERS]
        tls, users, state = tmp_path / "tls", tmp_path / "users", tmp_path / "state"
        await asyncio.gather(asyncio.to_thread(certificates, tls), asyncio.to_thread(keys, state, users, ports))
        servers = []
        for name, port, route in zip(SERVERS, ports, routes, strict=True):
            text = (DEPLOY / "cluster.conf").read_text().replace("$NATS_NAME", name)
            text = text.replace("0.0.0.0:4222", f"{HOST}:{port}").replace("0.0.0.0:6222", f"{HOST}:{route}")
            for other, at in zip(SERVERS, routes, strict=True):
                text = text.replace(f"nats://{other}:6222", f"nats://localhost:{at}")
            server = NatsServer(tmp_path / name, port)
            server.whole = text
            for shared in (tls, users):
                (tmp_path / name / shared.name).symlink_to(shared)
            (tmp_path / name / "settings.conf").write_text((DEPLOY / "settings.conf").read_text())
            stack.push_async_callback(server.kill)
            servers.append(server)
        await asyncio.gather(*(server.start() for server in servers))
        for service in ("edge-1", "edge-2", "provider-1", "provider-2"):
            command = shlex.split(COMPOSITION["services"][service]["command"])
            paths = {"/joins": str(state / "join"), "/tls": str(tls)}
            moved = [each.replace(at, here) for each in command for at, here in paths.items() if at in each]
            arguments = [command[0], *(f"{HOST}:{it.made.target_port}" for each in command if each == "target:3000")]
            listen = ("--listen", ANY) if command[0] == "edge" else ()
            started = await start_keyed(it.made, *arguments, "--join-file", moved[0], "--server-ca", moved[1], *listen)
            (it.edges if command[0] == "edge" else it.providers).append(started)
        await it.connect("provider-1", "provider-2")
        for server in servers:
            await server.kill()
            await it.flows()
            await server.start()
        await it.end()
        for process in (*it.edges, *it.providers):
            await eventually(lambda: process.events("link_up") > 0, "it is connected")  # noqa: B023
