"""A tunnel in which every process is a host of its own, and what can happen to hosts and networks from outside.

    client ──front── edge-N ──middle── broker-N ──middle── provider-N ──back── target

Faults that need the inside of a host's network run in a container that shares only its network: so the hosts have no
rights, and no engine is too remote. `python -m tests.containers` removes, by their names, what tests left.
"""

import contextlib
import json
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import docker
from docker.errors import APIError
from docker.models.containers import Container
from docker.models.networks import Network

PREFIX: Final = "goreprox-tests-"
"""Of the names of all containers, networks and volumes that tests make."""
IMAGE: Final = "goreprox:tests"
TOOLS: Final = "goreprox-tools:tests"
NATS: Final = "goreprox-nats:tests"
KEYS: Final = f"{PREFIX}keys"
"""A volume with keys for two edges and two providers, made once for all clusters."""
STATE_DIR: Final = "/var/lib/goreprox"
DEADLINE_S: Final = 180.0
POLL_S: Final = 1.0
"""To ask a host costs half a second of a processor, and many tests do."""
DRAIN_S: Final = 120
STOP_S: Final = 150
"""So that nothing here depends on how fast this machine is; what is shipped has 30 s and 40 s."""


def eventually(condition: Callable[[], object], what: str, *, deadline_s: float = DEADLINE_S) -> None:
    """Wait until `condition` holds."""
    give_up = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < give_up, f"not within {deadline_s} s: {what}"
        time.sleep(POLL_S)


class Traffic:
    """A client's container at work (traffic.py)."""

    def __init__(self, container: Container) -> None:
        """Follow `container`."""
        self.container = container

    def said(self) -> list[dict[str, Any]]:
        """Return what it said so far."""
        return [json.loads(line) for line in self.container.logs(stdout=True, stderr=False).splitlines()]

    def _state(self) -> str:
        said = self.said()
        assert not said or said[-1]["state"] != "failed", said
        return str(said[-1]["state"]) if said else ""

    def flowing(self) -> None:
        """Wait until bytes have passed."""
        eventually(lambda: self._state() == "flowing", "traffic flows")

    def finish(self) -> dict[str, Any]:
        """Let it end; return its report. Whatever was lost, altered or reset fails here."""
        assert self._state() == "flowing", self.said()
        self.container.kill("SIGUSR1")
        eventually(lambda: self._state() == "done", "everything arrives")
        return self.said()[-1]


class Cluster:
    """Hosts and networks of one test."""

    def __init__(self) -> None:
        """Have three networks, none of which leads anywhere."""
        self.engine = docker.from_env(timeout=300)
        self.prefix = f"{PREFIX}{secrets.token_hex(3)}"
        self.hosts: dict[str, Container] = {}
        self.networks: dict[str, Network] = {}
        for name in ("front", "middle", "back"):
            self.networks[name] = self.engine.networks.create(f"{self.prefix}-{name}", internal=True)

    def host(self, name: str, command: list[str], *networks: str, image: str = IMAGE) -> Container:
        """Start a host under its name in some of the networks."""
        container = self.engine.containers.create(
            image,
            command,
            name=f"{self.prefix}-{name}",
            hostname=name,
            read_only=True,
            healthcheck={"test": ["NONE"]},  # 60 hosts at a time: it would be half of all work
            cap_drop=["ALL"],
            security_opt=["no-new-privileges:true"],
            volumes={KEYS: {"bind": STATE_DIR, "mode": "ro"}} if image == IMAGE else {},
            environment={"GOREPROX_DRAIN": str(DRAIN_S)},
            network=self.networks[networks[0]].name,
            networking_config={
                str(self.networks[networks[0]].name): self.engine.api.create_endpoint_config(aliases=[name])
            },
        )
        self.hosts[name] = container
        for network in networks[1:]:
            self.networks[network].connect(container, aliases=[name])
        container.start()
        return container

    def tunnel(self, *, brokers: int = 1, edges: int = 1, providers: int = 1) -> None:
        """Start all roles and a target; clients wait at the edges until the rest is there."""
        self.host("target", ["target"], "back", image=TOOLS)
        target = self.address("target", "back")  # not the name: what hangs is to be the links' business alone
        names = [f"broker-{n + 1}" for n in range(brokers)]
        for name in names:
            self.host(name, ["broker"], "middle")
        for n in range(edges):
            name = f"edge-{n + 1}"
            where = [f"--broker={broker}" for broker in names]
            self.host(name, ["edge", f"--join-file={STATE_DIR}/join/{name}.join", *where], "middle", "front")
        for n in range(providers):
            name = f"provider-{n + 1}"
            where = [f"--server={broker}" for broker in names]
            join = f"--join-file={STATE_DIR}/join/{name}.join"
            self.host(name, ["provider", f"{target}:3000", join, *where], "middle", "back")

    def traffic(self, *command: str, edge: str = "edge-1") -> Traffic:
        """Start a client at an edge, and wait until its bytes pass."""
        name = f"client-{len(self.hosts)}"
        traffic = Traffic(self.host(name, [*command, f"--host={edge}"], "front", image=TOOLS))
        traffic.flowing()
        return traffic

    def status(self, name: str) -> dict[str, Any]:
        """Return what a host's process says of itself."""
        try:
            document: dict[str, Any] = json.loads(self.run(name, "goreprox", "status", "--json"))[0]
        except (APIError, IndexError, ValueError):  # it is not up
            return {}
        return document

    def run(self, name: str, *command: str) -> str:
        """Run a command in a host; return its output."""
        output = self.hosts[name].exec_run(list(command)).output
        assert isinstance(output, bytes)
        return output.decode()

    def outages(self, name: str) -> int:
        """Return how many outages a host has seen."""
        return sum(peer["outages"] for peer in self.status(name).get("peers", ()))

    def resumed(self, name: str) -> int:
        """Return how many outages a host has seen that are over."""
        peers = self.status(name).get("peers", ())
        return sum(peer["outages"] - (peer["state"] != "up") for peer in peers)

    def linked(self, name: str) -> bool:
        """Whether all links of a host are up."""
        links = self.status(name).get("links")
        return bool(links) and all(link["state"] == "up" for link in links or ())

    def address(self, name: str, network: str = "middle") -> str:
        """Return a host's address in a network."""
        container = self.hosts[name]
        container.reload()
        found = container.attrs["NetworkSettings"]["Networks"][self.networks[network].name]["IPAddress"]
        return str(found)

    def cut(self, name: str) -> None:
        """Take a host's cable out of the middle network."""
        self.networks["middle"].disconnect(self.hosts[name])

    def mend(self, name: str) -> None:
        """Put it back; the address may be another one."""
        self.networks["middle"].connect(self.hosts[name], aliases=[name])

    def pause(self, name: str) -> None:
        """Freeze a host: again, where the engine gives up, as runc does on a busy machine (freezer of cgroup v1)."""
        container = self.hosts[name]

        def paused() -> bool:
            with contextlib.suppress(APIError):
                container.pause()
            container.reload()
            return bool(container.status == "paused")

        eventually(paused, f"{name} is paused")

    def inside(self, name: str, script: str) -> str:
        """Run a script with all rights over the network of a host, and nothing else of it; $I is its interface.

        The middle network's interface, that is: hosts are in several.
        """
        find = f"I=$(ip -o -4 addr show to {self.address(name)} | awk '{{print $2}}'); set -eu; "
        output: bytes = self.engine.containers.run(
            TOOLS,
            [find + script],
            entrypoint=["sh", "-c"],
            user="root",
            network_mode=f"container:{self.hosts[name].id}",
            cap_add=["NET_ADMIN"],
            name=f"{self.prefix}-inside-{secrets.token_hex(3)}",
            remove=True,
        )
        return output.decode()

    def close(self) -> None:
        """Remove all of it."""
        for container in self.hosts.values():
            container.remove(force=True, v=True)
        for network in self.networks.values():
            network.remove()
        self.engine.close()

    def logs(self) -> str:
        """Return the last that each host said."""
        return "\n".join(
            f"--- {name}\n{container.logs(tail=40, timestamps=True).decode(errors='replace')}"
            for name, container in self.hosts.items()
        )


@contextlib.contextmanager
def cluster(**counts: int) -> Iterator[Cluster]:
    """A tunnel for one test; when it fails, its logs are shown."""
    made = Cluster()
    try:
        made.tunnel(**counts)
        yield made
    except BaseException:
        with contextlib.suppress(APIError):
            sys.stderr.write(made.logs())
        raise
    finally:
        made.close()
