"""The command `dashboard`. Its options are flags only: GOREPROX_LISTEN and the file are those of roles."""

import asyncio
import importlib.util
from typing import Annotated, Final

from cyclopts import App, Parameter

from goreprox.cli.helptext import example
from goreprox.config.dashboard import DASHBOARD, DashboardConfig
from goreprox.config.options import ADDRESSES, KEYS, PROCESS, Directory, File, Port
from goreprox.config.paths import default_runtime_dir
from goreprox.config.process import LogConfig
from goreprox.errors import StartError

app: Final = App(
    name="dashboard",
    help_epilogue=example(
        "goreprox dashboard",
        "goreprox dashboard --runtime-dir /run/goreprox-server",
        "goreprox dashboard --listen 9886 --token-file /etc/goreprox/dashboard.token",
    ),
    help_format="plaintext",
)
app.config = ()
_LOG: Final = LogConfig()


@app.default
def dashboard(
    *,
    listen: Annotated[Port, Parameter(group=ADDRESSES)] = DASHBOARD,
    token_file: Annotated[File, Parameter(group=KEYS)] = None,
    runtime_dir: Annotated[Directory, Parameter(group=PROCESS)] = None,
    of_role: Annotated[bool, Parameter(group=PROCESS, negative="")] = False,
    log: LogConfig = _LOG,
) -> None:
    """Serve metrics and health of the processes of this machine over HTTP: /metrics, /live and /ready.

    Parameters
    ----------
    listen
        Respond here.
    token_file
        Require the token in this file. [default: none is needed, on this machine]
    runtime_dir
        Ask the processes of this directory. [default: that of roles]
    of_role
        End with standard input, as the child of a role does.
    """
    directory = default_runtime_dir() if runtime_dir is None else runtime_dir
    config = DashboardConfig(directory=directory, listen=listen, token_file=token_file, of_role=of_role)
    if importlib.util.find_spec("prometheus_client") is None:
        raise StartError("the dashboard needs prometheus_client; pip install 'goreprox[dashboard]'")
    from goreprox.monitor.dashboard import run  # noqa: PLC0415 -- takes long, and mistakes need no more
    from goreprox.process.log import configure  # noqa: PLC0415

    configure(log.level, as_json=log.json)
    asyncio.run(run(config))
