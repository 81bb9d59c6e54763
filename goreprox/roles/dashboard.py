"""The dashboard that a role starts as a child (`--dashboard`), and starts again if it ends."""

import asyncio
import os
import sys
from asyncio.subprocess import DEVNULL
from typing import Final, Self

from brokers import LimitedLog
from goreprox.config.dashboard import missing_packages
from goreprox.config.process import ProcessConfig
from goreprox.errors import StartError
from goreprox.process.child import start
from goreprox.process.supervisor import VARIABLES

BACKOFF_MIN_S: Final = 0.1
BACKOFF_MAX_S: Final = 30.0
STABLE_S: Final = 60.0
"""After it has lived this long, the backoff begins anew."""
_CODE: Final = "import sys; sys.path[:] = {path!r}; from goreprox.__main__ import main; sys.exit(main())"
"""Not `-m`, which searches the working directory first, where we may not."""


class Dashboard:
    """A context in which there is one, if it is configured. It ends with standard input, however this process does."""

    def __init__(self, config: ProcessConfig) -> None:
        self._config = config
        self._log = LimitedLog()
        self._keeping: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._config.dashboard is not None:
            self._keeping = asyncio.get_running_loop().create_task(self._keep(), name="dashboard")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait([self._keeping])

    async def _keep(self) -> None:
        pause_s = BACKOFF_MIN_S
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            how = await self._run()
            if loop.time() - began > STABLE_S:
                pause_s = BACKOFF_MIN_S
            self._log.say("dashboard_ended", f"the dashboard {how}; restarting in {pause_s:g} s")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, BACKOFF_MAX_S)

    async def _run(self) -> str:
        """Run it to its end, or to that of this task; return how it ended."""
        command = [sys.executable, "-c", _CODE.format(path=sys.path), *self._arguments]
        env = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        try:
            process = await start(command, env, stdout=DEVNULL)
        except OSError as exc:
            return f"cannot be started: {exc.strerror}"
        try:
            return f"ended with code {await process.wait()}"
        finally:
            if process.returncode is None:  # at an upgrade, connections wait for this, and the next code has no child
                process.kill()
                await process.wait()

    @property
    def _arguments(self) -> list[str]:
        config = self._config
        token = [] if config.dashboard_token_file is None else ["--token-file", str(config.dashboard_token_file)]
        log = ["--log-level", config.log.level, *(["--log-json"] if config.log.json else [])]
        where = ["--listen", str(config.dashboard), "--runtime-dir", str(config.lock_dir)]
        return ["dashboard", "--of-role", *where, *token, *log]


def check_installed(config: ProcessConfig) -> None:
    """Require what a dashboard needs, if there is to be one.

    Raises:
        StartError: it is not installed.
    """
    if config.dashboard is not None and (missing := missing_packages()):
        raise StartError(f"dashboard: it needs {missing}; pip install 'goreprox[dashboard]'")
