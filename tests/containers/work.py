"""`python -m tests.containers.work [--own-engine] DIRECTORY [PYTEST-ARGUMENTS]`: build the images, run the tests.

Cleans up nothing, and is killed when it is to end early: it belongs to `python -m tests.containers`.
"""

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import docker
from docker.errors import BuildError

from tests.containers import engine
from tests.containers.cluster import IMAGE, KEYS, NATS, PREFIX, STATE_DIR, TOOLS

ROOT: Final = Path(__file__).parents[2]
ALLOWED: Final = re.findall(r"^!([\w.]+)", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
CONTEXT: Final = tuple(dict.fromkeys(ALLOWED))
"""What images are made of; the rest of a repository may be large."""
OF_TOOLS: Final = ("Dockerfile", "traffic.py")
NATS_SERVER: Final = ROOT / "build/bin/nats-server"
"""Where `.ci/run` puts it. Without it, Compose asks a registry for the image that the composition names."""
AT_ONCE: Final = 16
AT_ONCE_ELSEWHERE: Final = 8
"""Tests mostly wait. Each has three networks, and an engine as it comes has addresses for 30."""
ANY_PORT: Final = {"GOREPROX_PORT": "0", "GOREPROX_PORT_2": "0"}
"""There is no telling which ports are free beside an engine that is not ours."""
LEAN: Final = ("--noconftest", "-p", "no:cacheprovider", "-p", "no:hypothesispytest")
"""A third of what workers take to start."""
MAKE_KEYS: Final = """
for role in edge provider; do
    for name in $role-1 $role-2; do
        goreprox keys add $name --role $role --address broker-1 >/dev/null
    done
done
"""


def images(context: Path, tools: Path, base: dict[str, str]) -> None:
    """Have the images, and a volume with keys; `tools` has what those of the tests are made of."""
    targets = {"tools": TOOLS}
    if (tools / NATS_SERVER.name).exists():
        targets["nats"] = NATS
    with contextlib.closing(docker.from_env(timeout=300)) as client:
        try:
            client.images.build(
                path=str(context), dockerfile="docker/Dockerfile", tag=IMAGE, buildargs=base, rm=True, forcerm=True
            )
            for target, tag in targets.items():
                client.images.build(path=str(tools), target=target, tag=tag, buildargs=base, rm=True, forcerm=True)
        except BuildError as exc:
            sys.stderr.writelines(str(line.get("stream", "")) for line in exc.build_log)
            sys.exit(f"test-containers: {exc}")
        client.volumes.create(KEYS)
        volumes = {KEYS: {"bind": STATE_DIR, "mode": "rw"}}
        client.containers.run(IMAGE, ["-euc", MAKE_KEYS], entrypoint="sh", name=f"{PREFIX}make-keys", volumes=volumes)


def main() -> int:
    """Return what pytest returns."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # containers inherit it, and are to notice SIGTERM
    parser = argparse.ArgumentParser()
    parser.add_argument("--own-engine", action="store_true")
    parser.add_argument("directory", type=Path)
    args, arguments = parser.parse_known_args()
    began = time.monotonic()
    context = args.directory / "context"
    context.mkdir()
    for name in CONTEXT:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, context / name)
    shutil.copy(ROOT / ".dockerignore", context)
    tools = args.directory / "tools"
    tools.mkdir()
    for name in OF_TOOLS:
        shutil.copy(ROOT / "tests/containers" / name, tools)
    nats = {}
    if NATS_SERVER.exists():
        shutil.copy(NATS_SERVER, tools)
        nats["NATS_IMAGE"] = NATS
    base, at_once, ports = {}, AT_ONCE_ELSEWHERE, ANY_PORT
    if args.own_engine:
        requirements = [context / "docker" / name for name in ("requirements.txt", "build-requirements.txt")]
        engine.start(args.directory, context / "docker/wheels", requirements)
        base, at_once, ports = {"BASE_IMAGE": engine.BASE}, AT_ONCE, {}
        sys.stdout.write(f"the engine is ready after {time.monotonic() - began:.0f} s\n")
        sys.stdout.flush()
    images(context, tools, base)
    sys.stdout.write(f"the images are ready after {time.monotonic() - began:.0f} s\n")
    sys.stdout.flush()
    pytest = [sys.executable, "-m", "pytest", *LEAN, f"-n{at_once}", "--dist=worksteal", "tests/containers"]
    return subprocess.run([*pytest, *arguments], cwd=ROOT, env={**os.environ, **ports, **nats}, check=False).returncode


if __name__ == "__main__":
    try:
        sys.exit(main())
    except engine.NoEngineError as exc:
        sys.exit(f"test-containers: {exc}")
