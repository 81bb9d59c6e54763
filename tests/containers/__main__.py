"""`python -m tests.containers [PYTEST-ARGUMENTS]`: find or start an engine, build the images, run the tests, clean up.

What it made is removed at the end, also after a failure, Ctrl-C or SIGTERM.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import docker
from docker.errors import APIError, BuildError, NotFound

from tests.containers.cluster import IMAGE, KEYS, PREFIX, STATE_DIR, TOOLS
from tests.containers.engine import BASE, NoEngineError, answers, own_engine

ROOT: Final = Path(__file__).parents[2]
CONTEXT: Final = ("LICENSE", "README.md", "brokers", "docker", "goreprox", "pyproject.toml")
AT_ONCE: Final = 8
"""Tests mostly wait."""
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
MAKE_KEYS: Final = """
for role in edge provider; do
    for name in $role-1 $role-2; do
        goreprox keys add $name --role $role --address broker-1
    done
done
"""


def remove(action: Callable[[], object]) -> None:
    """Do what may be done already; what cannot be done is said."""
    try:
        action()
    except APIError as exc:
        if not isinstance(exc, NotFound):
            sys.stderr.write(f"left behind: {exc.explanation}\n")


@contextlib.contextmanager
def images(context: Path, base: dict[str, str]) -> Iterator[None]:
    """Have the images and a volume with keys; take away what bears our names at the end."""
    engine = docker.from_env(timeout=300)
    try:
        try:
            engine.images.build(path=str(context), dockerfile="docker/Dockerfile", tag=IMAGE, buildargs=base, rm=True)
            engine.images.build(path=str(ROOT / "tests/containers"), tag=TOOLS, buildargs=base, rm=True)
        except BuildError as exc:
            sys.stderr.writelines(str(line) for line in exc.build_log)
            raise
        engine.volumes.create(KEYS)
        engine.containers.run(
            IMAGE, ["-euc", MAKE_KEYS], entrypoint="sh", volumes={KEYS: {"bind": STATE_DIR, "mode": "rw"}}, remove=True
        )
        yield
    finally:
        ours: dict[str, str | list[str] | bool] = {"name": PREFIX}
        for container in engine.containers.list(all=True, filters=ours, ignore_removed=True):
            remove(partial(container.remove, force=True, v=True))
        for network in engine.networks.list(filters=ours):
            remove(network.remove)
        for volume in engine.volumes.list(filters=ours):
            remove(partial(volume.remove, force=True))
        for image in (IMAGE, TOOLS):
            remove(partial(engine.images.remove, image, force=True))
        engine.close()


def test(arguments: Sequence[str]) -> int:
    """Run pytest, for as long as we are not to end; what its tests were doing then is cleaned up by name."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"-n{AT_ONCE}", "--dist=worksteal"]
    process = subprocess.Popen([*command, "tests/containers", *arguments], cwd=ROOT, start_new_session=True)
    try:
        return process.wait()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise


def ignore_signals() -> None:
    """Let nothing disturb the cleaning up."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def end(number: int, _: object) -> None:
    """End as after Ctrl-C."""
    ignore_signals()
    sys.exit(128 + number)


def main() -> int:
    """Return what pytest returns."""
    for number in SIGNALS:
        signal.signal(number, end)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="goreprox-context-") as temporary, contextlib.ExitStack() as stack:
        context = Path(temporary)
        for name in CONTEXT:
            (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, context / name)
        shutil.copy(ROOT / ".dockerignore", context)
        base = {}
        if not answers():
            requirements = [context / "docker" / name for name in ("requirements.txt", "build-requirements.txt")]
            stack.enter_context(own_engine(context / "docker/wheels", requirements))
            base = {"BASE_IMAGE": BASE}
        stack.enter_context(images(context, base))
        sys.stdout.write(f"engine and images are ready after {time.monotonic() - began:.0f} s\n")
        sys.stdout.flush()
        code = test(sys.argv[1:])
        ignore_signals()
        return code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except NoEngineError as exc:
        sys.exit(f"test-containers: {exc}")
