"""The commands `dashboard` and `dashboard invite`. Options are flags only: variables and the file are for roles."""

import asyncio
from typing import Annotated, Final

from cyclopts import App, Parameter

from goreprox.cli.helptext import example
from goreprox.config.dashboard import DASHBOARD, DashboardConfig, PageUrl, missing_packages
from goreprox.config.options import ADDRESSES, KEYS, PROCESS, Directory, File, Port
from goreprox.config.paths import default_runtime_dir, runtime_dirs
from goreprox.config.process import LogConfig
from goreprox.control.client import ask_all
from goreprox.errors import ControlError, StartError

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
    tls_cert: Annotated[File, Parameter(group=KEYS)] = None,
    tls_key: Annotated[File, Parameter(group=KEYS)] = None,
    url: Annotated[str | None, Parameter(group=ADDRESSES, metavar="URL")] = None,
    allow_actions: Annotated[bool, Parameter(group=KEYS, negative="")] = False,
    of_role: Annotated[bool, Parameter(group=PROCESS, negative="")] = False,
    log: LogConfig = _LOG,
) -> None:
    """Serve a page, metrics and health of the processes of this machine over HTTP.

    On a terminal it prints a URL that opens the page once; `goreprox dashboard invite` prints another.

    Parameters
    ----------
    listen
        Respond here.
    token_file
        Require the token in this file for metrics; it opens the page, too. [default: metrics need none on this machine]
    tls_cert
        Use this certificate and its chain for https; PEM, reread when it changes.
    tls_key
        Use this private key of the certificate; PEM, reread when it changes.
    url
        Expect browsers at this URL, where a proxy in front leads them. [default: that of --listen]
    allow_actions
        Let the page end connections. [default: it changes nothing]
    runtime_dir
        Ask the processes of this directory. [default: that of roles]
    of_role
        End with standard input, as the child of a role does.
    """
    config = DashboardConfig(
        directory=default_runtime_dir() if runtime_dir is None else runtime_dir,
        listen=listen,
        token_file=token_file,
        tls_cert=tls_cert,
        tls_key=tls_key,
        url=None if url is None else PageUrl.parse(url),
        allow_actions=allow_actions,
        of_role=of_role,
    )
    if missing := missing_packages():
        raise StartError(f"the dashboard needs {missing}; pip install 'goreprox[dashboard]'")
    from goreprox.monitor.dashboard import run  # noqa: PLC0415 -- takes long, and mistakes need no more
    from goreprox.process.log import configure  # noqa: PLC0415

    configure(log.level, as_json=log.json)
    asyncio.run(run(config))


@app.command(help_epilogue=example("goreprox dashboard invite", "sudo goreprox dashboard invite"))
def invite(*, runtime_dir: Annotated[Directory, Parameter(group=PROCESS)] = None) -> None:
    """Print a URL that opens the page of a running dashboard once, within ten minutes.

    Parameters
    ----------
    runtime_dir
        Ask the dashboards of this directory. [default: that of roles, and /run/goreprox*]
    """
    directories = runtime_dirs() if runtime_dir is None else [runtime_dir]
    for reply in ask_all(directories, "invite", roles=["dashboard"]):
        match reply.result:
            case {"url": str(found)}:
                print(found)
            case _:
                raise ControlError(reply.problem or f"{reply.who} runs another version of goreprox")
