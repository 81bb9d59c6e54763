"""A container engine of our own, for where there is none: on Debian, as root, from Debian's packages alone.

It lives in a network namespace of its own, so that it changes no rule and no link of this machine, and keeps all its
files in a temporary directory. Its base image is made of Debian's packages, too: no registry is asked. The packages
stay installed; all else ends with the context.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import docker
from docker.errors import DockerException

BASE: Final = "goreprox-tests-base"
PACKAGES: Final = ("docker.io", "docker-compose", "iptables", "iproute2", "mmdebstrap", "python3-venv", "util-linux")
IN_BASE: Final = "python3,python3-venv,iproute2,nftables"
SOURCES: Final = ("/etc/apt/sources.list", "/etc/apt/sources.list.d/debian.sources")
STRAYS: Final = ("/etc/docker/key.json", "/opt/containerd", "/run/containerd", "/run/docker")
"""What an engine makes outside its directories."""
STARTS_S: Final = 60.0
ENDS_S: Final = 60.0


class NoEngineError(Exception):
    """There is no engine, and none can be started."""


def answers() -> bool:
    """Whether there is an engine."""
    try:
        client = docker.from_env(timeout=10)
        client.ping()
        client.close()
    except DockerException:
        return False
    return True


@contextlib.contextmanager
def own_engine(wheels: Path, requirements: list[Path]) -> Iterator[None]:
    """Have DOCKER_HOST lead to an engine with the image BASE, and fill `wheels` with what that image's Python needs.

    Raises:
        NoEngineError: this is not Debian, or we are not root.
    """
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise NoEngineError("no container engine answers; start one, or be root on Debian to have one started")
    _install()
    with tempfile.TemporaryDirectory(prefix="goreprox-tests-") as temporary, contextlib.ExitStack() as stack:
        directory = Path(temporary)
        base = directory / "base.tar"
        sources = [path for path in SOURCES if Path(path).exists()]
        options = ["--quiet", "--variant=minbase", f"--include={IN_BASE}"]
        building = stack.enter_context(
            _process(["mmdebstrap", *options, _suite(), str(base), *sources], directory / "base.log")
        )
        _run("/usr/bin/python3", "-m", "venv", directory / "venv")
        wanted = [f"--requirement={path}" for path in requirements]
        _run(directory / "venv/bin/pip", "--quiet", "download", f"--dest={wheels}", "--require-hashes", *wanted)
        stack.enter_context(_daemon(directory, stack.enter_context(_namespace(directory.name))))
        if building.wait() != 0:
            raise NoEngineError(f"the base image cannot be made:\n{(directory / 'base.log').read_text()}")
        _run("docker", "import", base, BASE)
        base.unlink()
        yield


def _run(*command: str | Path) -> None:
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)


def _suite() -> str:
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    return release["VERSION_CODENAME"].strip('"')


def _install() -> None:
    """Install what is missing, without letting anything be started by it (policy-rc.d, invoke-rc.d(8))."""
    known = [subprocess.run(["dpkg", "-s", name], check=False, capture_output=True).returncode for name in PACKAGES]
    missing = [name for name, code in zip(PACKAGES, known, strict=True) if code]
    if not missing:
        return
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    os.environ["DEBIAN_FRONTEND"] = "noninteractive"
    try:
        _run("apt-get", "-qq", "-o", "Acquire::Retries=3", "update")
        _run("apt-get", "-qq", "-o", "Acquire::Retries=3", "install", "-y", "--no-install-recommends", *missing)
    finally:
        if ours:
            policy.unlink()


@contextlib.contextmanager
def _process(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program that ends with the context: politely first. Ctrl-C is for us alone, not for it."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, start_new_session=True, stdout=output, stderr=output)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(ENDS_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def _namespace(name: str) -> Iterator[str]:
    _run("ip", "netns", "add", name)
    try:
        _run("ip", "-n", name, "link", "set", "lo", "up")
        yield name
    finally:
        _run("ip", "netns", "delete", name)


@contextlib.contextmanager
def _daemon(directory: Path, namespace: str) -> Iterator[None]:
    socket = f"unix://{directory}/docker.sock"
    command = [
        "nsenter",  # not `ip netns exec`, which gives it another /sys
        f"--net=/run/netns/{namespace}",
        "dockerd",
        "--userland-proxy=false",
        "--log-level=error",
        f"--cgroup-parent=/{namespace}",
        f"--data-root={directory}/data",
        f"--exec-root={directory}/exec",
        f"--pidfile={directory}/docker.pid",
        f"--host={socket}",
    ]
    strays = [path for path in map(Path, STRAYS) if not path.exists()]
    before = os.environ.get("DOCKER_HOST")
    os.environ["DOCKER_HOST"] = socket
    try:
        with _process(command, directory / "docker.log") as process:
            give_up = time.monotonic() + STARTS_S
            while not answers():
                if process.poll() is not None or time.monotonic() > give_up:
                    raise NoEngineError(f"the engine does not start:\n{(directory / 'docker.log').read_text()}")
                time.sleep(0.2)
            yield
    finally:
        if before is None:
            del os.environ["DOCKER_HOST"]
        else:
            os.environ["DOCKER_HOST"] = before
        _clean(directory, namespace)
        for path in strays:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _clean(directory: Path, namespace: str) -> None:
    """Take away what an engine leaves behind: mounts, and its empty control group in each hierarchy."""
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for mount in reversed(mounts):
        if Path(mount).is_relative_to(directory):
            _run("umount", "--lazy", mount)
    for hierarchy in (Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()):
        group = hierarchy / namespace
        if group.is_dir():
            group.rmdir()
