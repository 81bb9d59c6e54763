"""A container engine of our own, for where there is none: on Debian, as root, from Debian's packages alone.

Whatever it makes is in namespaces of its own. Its processes, its mounts and its network end with the first process
there, also by SIGKILL; its files are in memory, and so are the changes that it makes to this machine's directories. Its
base image is made of Debian's packages, too: no registry is asked. The packages stay installed.

`prepare`, `enclosed` and `clean` are for the process outside; `start` is for the one within.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import docker
from docker.errors import DockerException

BASE: Final = "goreprox-tests-base"
PACKAGES: Final = ("docker.io", "docker-compose", "iptables", "iproute2", "mmdebstrap", "python3", "util-linux")
IN_BASE: Final = "python3,python3-venv,python3-dev,gcc,iproute2,nftables,openssl"
SOURCES: Final = ("/etc/apt/sources.list", "/etc/apt/sources.list.d/debian.sources")
APT: Final = ("apt-get", "-qq", "-o", "Acquire::Retries=3", "-o", "Acquire::http::Timeout=30")
STARTS_S: Final = 120.0
ENDS_S: Final = 60.0
PR_SET_CHILD_SUBREAPER: Final = 36
START: Final = """
for path in etc opt run; do
    mkdir -p "$1/$path" "$1/$path.work"
    mount -t overlay -o "lowerdir=/$path,upperdir=$1/$path,workdir=$1/$path.work" overlay "/$path"
done
ip link set lo up
exec dockerd --userland-proxy=false --log-level=error --exec-opt=native.cgroupdriver=cgroupfs \
    --cgroup-parent="/${1##*/}" --data-root="$1/data" --exec-root="$1/exec" --pidfile="$1/docker.pid" \
    --host="unix://$1/docker.sock" --default-address-pool=base=172.16.0.0/12,size=24
"""
"""`sh -euc START sh DIRECTORY`: what an engine writes elsewhere (/etc/docker, /opt/containerd, /run) is thrown away."""


class NoEngineError(Exception):
    """There is no engine, and none can be started."""


def responds() -> bool:
    """Whether there is an engine."""
    try:
        with contextlib.closing(docker.from_env(timeout=10)) as client:
            client.ping()
    except DockerException:
        return False
    return True


def prepare() -> None:
    """Have the packages that an engine needs, and become the one who waits for its processes.

    Raises:
        NoEngineError: this is not Debian, we are not root, or we may not do what an engine does.
    """
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise NoEngineError("no container engine responds: start one, or be root on Debian to have one started")
    try:
        _install()
    except subprocess.CalledProcessError as exc:
        raise NoEngineError(f"no container engine responds, and none can be installed: {' '.join(exc.cmd)}") from exc
    needed = [*enclosed(Path("/tmp")), "unshare", "--net", "ip", "link", "set", "lo", "up"]
    done = subprocess.run(needed, check=False, capture_output=True, text=True)
    if done.returncode:
        raise NoEngineError(f"no container engine responds, and none may be started here: {done.stderr.strip()}")
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)  # whoever loses its parent is ours, to be waited for


def enclosed(directory: Path) -> list[str]:
    """Return how a command begins that runs enclosed, with `directory` in memory; it ends at the latest with us."""
    mount = 'mount -t tmpfs tmpfs "$0" && exec "$@"'
    die = ["setpriv", "--pdeathsig=KILL", "unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
    return [*die, "sh", "-euc", mount, str(directory)]


def clean(directory: Path) -> None:
    """End what runs enclosed; take away the engine's control groups, which nothing encloses."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    while found := children.read_text().split():
        for pid in found:
            os.kill(int(pid), signal.SIGKILL)
        os.wait()
    for hierarchy in (Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()):
        for group, _, _ in os.walk(hierarchy / directory.name, topdown=False):
            _remove_group(Path(group))


def start(directory: Path, wheels: Path, requirements: Sequence[Path]) -> None:
    """Have DOCKER_HOST lead to an engine with the image BASE, and fill `wheels` with what that image's Python needs.

    All of it ends with the namespaces that we are in.

    Raises:
        NoEngineError: something did not work.
    """
    os.environ["DOCKER_HOST"] = f"unix://{directory}/docker.sock"
    os.environ["TMPDIR"] = str(directory)
    base = directory / "base.tar"
    sources = [path for path in SOURCES if Path(path).exists()]
    options = ["--quiet", "--variant=minbase", f"--include={IN_BASE}"]
    building = _begin(["mmdebstrap", *options, _suite(), str(base), *sources], directory / "base.log")
    daemon = _begin(
        ["unshare", "--net", "--mount", "sh", "-euc", START, "sh", str(directory)], directory / "docker.log"
    )
    download = [sys.executable, "-m", "pip", "--quiet", "--python=/usr/bin/python3", "download", "--require-hashes"]
    wanted = [f"--requirement={path}" for path in requirements]
    if subprocess.run([*download, f"--dest={wheels}", *wanted], check=False).returncode:
        raise NoEngineError("the image's packages cannot be had")
    give_up = time.monotonic() + STARTS_S
    while not responds():
        if daemon.poll() is not None or time.monotonic() > give_up:
            raise NoEngineError(f"the engine does not start: {(directory / 'docker.log').read_text()}")
        time.sleep(0.2)  # nothing to be told by: another program is starting
    if building.wait() != 0:
        raise NoEngineError(f"the base image cannot be made: {(directory / 'base.log').read_text()}")
    with contextlib.closing(docker.from_env(timeout=300)) as client:
        client.api.import_image_from_file(str(base), repository=BASE)
    base.unlink()


def _install() -> None:
    """Install what is missing, without letting anything be started by it (policy-rc.d, invoke-rc.d(8))."""
    known = [subprocess.run(["dpkg", "-s", name], check=False, capture_output=True).returncode for name in PACKAGES]
    missing = [name for name, code in zip(PACKAGES, known, strict=True) if code]
    if not missing:
        return
    sys.stdout.write(f"installing {' '.join(missing)}\n")
    sys.stdout.flush()
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        for command in ([*APT, "update"], [*APT, "install", "-y", "--no-install-recommends", *missing]):
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    finally:
        if ours:
            policy.unlink()


def _suite() -> str:
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    return release["VERSION_CODENAME"].strip('"')


def _begin(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)


def _remove_group(group: Path) -> None:
    """Remove an empty control group; its last processes may still be dying."""
    give_up = time.monotonic() + ENDS_S
    while True:
        try:
            group.rmdir()
        except OSError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.05)  # nothing to be told by: the kernel is at it
        else:
            return
