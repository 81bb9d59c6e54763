"""The compositions that we ship, with the Compose that is there (v2, or v1.29 as Debian has it)."""

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from docker.models.containers import Container

from tests.containers.cluster import IMAGE, PREFIX, TOOLS, Traffic, eventually

FOLDER = Path(__file__).parents[2] / "docker"
COMPOSE = ["docker-compose"] if shutil.which("docker-compose") else ["docker", "compose"]
ANY_PORT = {"GOREPROX_PORT": "0", "GOREPROX_PORT_2": "0", "GOREPROX_PROVIDER_PORT": "0"}
ECHO = """
import socket
with socket.create_connection(("localhost", 8080), timeout=30) as client:
    client.sendall(b"echo\\nping")
    assert client.recv(4, socket.MSG_WAITALL) == b"ping"
"""
FETCH = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=30).read().decode())"
DRAIN_S = 30


class Composition:
    """One of our files as a project of its own."""

    def __init__(self, file: str, **variables: str) -> None:
        """Start nothing yet."""
        self.name = f"{PREFIX}{secrets.token_hex(3)}"
        self._command = [*COMPOSE, "-f", str(FOLDER / file), "-p", self.name]
        self._environment = {**os.environ, "GOREPROX_IMAGE": IMAGE, "COMPOSE_HTTP_TIMEOUT": "300", **variables}

    def run(self, *arguments: str) -> str:
        """Have Compose do something."""
        command = [*self._command, *arguments]
        done = subprocess.run(command, env=self._environment, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def container(self, engine: docker.DockerClient, service: str) -> Container:
        """Return the container of a service."""
        return engine.containers.get(self.run("ps", "-q", service).strip())

    def __enter__(self) -> "Composition":
        try:
            self.run("up", "-d", "--no-build")
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(self, *error: object) -> None:
        if any(error):
            sys.stderr.write(self.run("logs", "--no-color", "--tail", "40"))
        self.run("down", "--volumes", "--timeout", "5")


@pytest.fixture
def engine() -> Iterator[docker.DockerClient]:
    with contextlib.closing(docker.from_env(timeout=300)) as client:
        yield client


def fetch(container: Container, url: str) -> str:
    """Fetch a page from within a container, or return an empty text."""
    code, output = container.exec_run(["python3", "-c", FETCH, url])
    assert isinstance(output, bytes)
    return "" if code else output.decode()


def echoes(edge: Container) -> bool:
    """Whether a target of `traffic.py` responds to a new client."""
    return bool(edge.exec_run(["python3", "-c", ECHO]).exit_code == 0)


def providers_of(edge: Container) -> set[str]:
    """Return the names of the providers that an edge has sessions with that are up."""
    code, output = edge.exec_run(["goreprox", "status", "--json"])
    assert isinstance(output, bytes)
    peers = json.loads(output)[0]["peers"] if code == 0 else []
    return {peer["name"] for peer in peers if peer["state"] == "up"}


def test_the_image_is_compiled(engine: docker.DockerClient) -> None:
    assert engine.containers.run(IMAGE, ["--version"], remove=True).endswith(b" (compiled)\n")


def test_the_composition_of_all_roles_serves_its_page(engine: docker.DockerClient) -> None:
    with Composition("compose.yaml") as project:
        edge = project.container(engine, "edge-1")
        eventually(lambda: "It works" in fetch(edge, "http://localhost:8080/"), "the page is there")
        assert "It works" in fetch(edge, "http://edge-2:8080/")
        port = project.run("port", "edge-1", "8080").strip().removeprefix("0.0.0.0:")
        assert os.environ.get("GOREPROX_PORT", "8080") in {port, "0"}
        outside = engine.containers.run(
            TOOLS, ["-c", FETCH, f"http://127.0.0.1:{port}/"], entrypoint=["python3"], network_mode="host", remove=True
        )
        assert b"It works" in outside
        project.run("stop", "broker-1")
        assert "It works" in fetch(edge, "http://edge-2:8080/")
        added = project.run("run", "--rm", "--entrypoint", "goreprox", "keys", "keys", "add", "laptop")
        assert "goreprox://" in added
        for service in ("broker-2", "edge-1", "provider-1"):
            container = project.container(engine, service)
            assert (
                container.attrs["HostConfig"]["ReadonlyRootfs"] and container.attrs["Config"]["User"] == "10001:10001"
            )
            assert container.attrs["Config"]["StopTimeout"] > DRAIN_S
            assert container.labels["org.opencontainers.image.title"] == "goreprox"

        def healthy() -> bool:
            edge.reload()
            return bool(edge.attrs["State"]["Health"]["Status"] == "healthy")

        eventually(healthy, "its health is checked")


def test_the_composition_of_a_provider_beside_another_service_serves_its_page(engine: docker.DockerClient) -> None:
    with Composition("compose.server.yaml", GOREPROX_HOST="server", **ANY_PORT) as project:
        server = project.container(engine, "server")
        join = "/var/lib/goreprox/join/default.join"

        def joined() -> str:
            code, output = server.exec_run(["cat", join])
            assert isinstance(output, bytes)
            return "" if code else output.decode().strip()

        eventually(joined, "the join string is there")
        (network,) = server.attrs["NetworkSettings"]["Networks"]
        target = engine.containers.run(
            TOOLS,
            ["-m", "http.server", "3000", "--directory", "/usr/share"],
            entrypoint=["python3"],
            name=f"{project.name}-target",
            network=network,
            detach=True,
        )
        try:
            beside = {
                "GOREPROX_NETWORK": network,
                "GOREPROX_TARGET": f"{project.name}-target:3000",
                "GOREPROX_JOIN": joined(),
            }
            with Composition("compose.provider.yaml", **beside):
                eventually(lambda: "Directory listing" in fetch(server, "http://localhost:8080/"), "it goes through")
        finally:
            target.remove(force=True, v=True)


def test_the_composition_of_a_nats_cluster_loses_nothing_whichever_server_is_killed(
    engine: docker.DockerClient,
) -> None:
    with contextlib.ExitStack() as stack:
        project = stack.enter_context(Composition("compose.nats.yaml", OPENSSL_IMAGE=TOOLS, **ANY_PORT))
        edges = {name: project.container(engine, name) for name in ("edge-1", "edge-2")}
        for edge in edges.values():
            eventually(lambda edge=edge: "It works" in fetch(edge, "http://localhost:8080/"), "the page is there")  # type: ignore[misc] # of this turn
        project.run("rm", "--stop", "--force", "target")

        def host(name: str, network: str, *command: str) -> Container:
            made = engine.containers.create(
                TOOLS,
                [*command],
                name=f"{project.name}-{name}",
                network=f"{project.name}_{network}",
                networking_config={f"{project.name}_{network}": engine.api.create_endpoint_config(aliases=[name])},
            )
            stack.callback(made.remove, force=True, v=True)
            made.start()
            return made

        host("target", "private", "target")
        clients = [Traffic(host(f"client-of-{name}", "public", "lasting", f"--host={name}")) for name in edges]
        for client in clients:
            client.flowing()

        def serves(*providers: str) -> bool:
            return all(echoes(edge) and providers_of(edge) == set(providers) for edge in edges.values())

        for killed in (["n1"], ["n2"], ["n3"], ["n1", "n2", "n3"]):
            project.run("kill", *killed)
            if len(killed) == 1:
                eventually(lambda: serves("provider-1", "provider-2"), "the other servers take over")
            project.run("start", *killed)
            eventually(lambda: serves("provider-1", "provider-2"), "all is as before")
        for client in clients:
            assert client.finish()["idle"] > 0
        project.run("run", "--rm", "--entrypoint", "goreprox", "keys", "keys", "revoke", "provider-2")
        project.run("run", "--rm", "keys")
        project.run("kill", "-s", "HUP", "n1", "n2", "n3")
        eventually(lambda: serves("provider-1"), "a revoked key is of no use")
