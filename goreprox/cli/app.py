"""The tree of commands. cyclopts imports a command's module when that command is asked for."""

from typing import Final, Literal

from cyclopts import App

from goreprox import __version__, build
from goreprox.cli.helptext import Formatter, example
from goreprox.cli.sources import Sources


def _version() -> str:
    return f"{__version__} ({build()})"


ROLES: Final = ("server", "edge", "broker", "provider")
COMMANDS: Final = (*ROLES, "demo", "status")
"""Those whose options are also variables and keys of the file."""

app: Final = App(
    name="goreprox",
    usage="goreprox COMMAND [OPTIONS]",
    help="A reverse tunnel for TCP whose connections outlive the tunnel.",
    help_epilogue=(
        "`goreprox COMMAND --help` shows the options of a command. Each --some-option is\n"
        "also the environment variable GOREPROX_SOME_OPTION and the key some-option of\n"
        "goreprox.toml. ADDR is PORT, HOST:PORT or [IPV6]:PORT.\n"
        "\n"
        "The documents are in share/doc/goreprox of the environment it is installed in."
    ),
    version=_version,
    version_flags=("--version", "-V"),
    help_format="plaintext",
    help_formatter=Formatter(),
    result_action="return_value",
    exit_on_error=False,
    print_error=False,
    error_console=object(),  # type: ignore[arg-type] # never used: `main` prints errors; a real one imports rich
    verbose=False,
    suppress_keyboard_interrupt=False,
)
sources: Final = Sources(app, COMMANDS)
app.config = sources.all

app.command(
    "goreprox.cli.roles:server",
    sort_key=1,
    help="""Run on the public machine: accept clients and pass them on to providers.

    It is an edge and a broker in one process.""",
    help_epilogue=example(
        "goreprox server --address tunnel.example.org",
        "goreprox server --listen 8080=web --listen 2222=ssh",
        "goreprox server --listen https://443 --tls-cert cert.pem --tls-key key.pem",
    ),
)
app.command(
    "goreprox.cli.roles:provider",
    sort_key=2,
    help="Run on the private machine: expose local TCP servers through a server.",
    usage="goreprox provider [SERVICE=][HOST:]PORT... [OPTIONS]",
    help_epilogue=example(
        "goreprox provider 3000 --join-file laptop.join",
        "goreprox provider web=3000 ssh=22 --join-file laptop.join",
        "goreprox provider 192.168.1.5:80 --join-file laptop.join --server HOST",
    ),
)
app.command(
    "goreprox.cli.keys:app",
    name="keys",
    sort_key=3,
    help="Manage which providers and edges may connect to a server.",
)
app.command(
    "goreprox.cli.status:status",
    sort_key=4,
    help="Show what the processes on this machine are doing.",
    help_epilogue=example("goreprox status", "goreprox status --json --role server", "sudo goreprox status"),
)
app.command(
    "goreprox.cli.dashboard:app",
    name="dashboard",
    sort_key=4,
    help="Serve metrics and health of the processes on this machine over HTTP.",
)
app.command(
    "goreprox.cli.streams:streams",
    sort_key=4,
    help="List the open connections of the processes on this machine, each with its id.",
    help_epilogue=example("goreprox streams", "goreprox streams --service web --follow", "goreprox streams --json"),
)
app.command(
    "goreprox.cli.streams:end",
    sort_key=4,
    help="End connections, with a reset on both sides.",
    usage="goreprox end [ID...] [OPTIONS]",
    help_epilogue=example("goreprox end 3fa1c0-17 3fa1c0-42", "goreprox end --client 198.51.100.0/24 --role server"),
)
app.command(
    "goreprox.cli.events:events",
    sort_key=4,
    help="Show what happens on this machine: who connects, is lost and resumes, and why connections end.",
    help_epilogue=example("goreprox events", "goreprox events --follow", "goreprox events --follow --json"),
)
app.command(
    "goreprox.cli.requests:requests",
    sort_key=4,
    help="List the HTTP requests that servers and edges with --inspect have kept, or show one with its response.",
    usage="goreprox requests [ID] [OPTIONS]",
    help_epilogue=example(
        "goreprox requests --status 5", "goreprox requests --follow", "goreprox requests 3fa1c0-17 --curl"
    ),
)
app.command(
    "goreprox.cli.requests:replay",
    sort_key=4,
    help="Send a request that was kept once more through the tunnel, marked with the header Goreprox-Replay.",
    usage="goreprox replay ID [OPTIONS]",
    help_epilogue=example("goreprox replay 3fa1c0-17"),
)
app.command(
    "goreprox.cli.drain:drain",
    sort_key=4,
    help="""Let processes on this machine take no new connections.

    Those that are open go on. A process stays until it is stopped; there is no way back.""",
    help_epilogue=example("goreprox drain --name laptop", "sudo goreprox drain --role server"),
)
app.command(
    "goreprox.cli.reload:reload",
    sort_key=5,
    help="""Let the processes on this machine read their configuration again.

    Connections go on. If anything is wrong with the configuration, nothing changes.""",
    help_epilogue=example(
        "goreprox check server && goreprox reload --role server", "sudo goreprox reload --name tunnel"
    ),
)
app.command(
    "goreprox.cli.upgrade:upgrade",
    sort_key=5,
    help="""Replace running processes by the code that is installed now.

    Connections go on, and the process id stays. If the new code does not start, nothing changes.""",
    help_epilogue=example("goreprox upgrade", "sudo goreprox upgrade --name laptop"),
)
app.command(
    "goreprox.cli.check:check",
    sort_key=6,
    help="Check what a role would be started with, without starting it.",
    usage="goreprox check [ROLE] [OPTIONS] [OPTIONS OF ROLE]",
    help_epilogue=example(
        "goreprox check --config /etc/goreprox/goreprox.toml",
        "goreprox check server --show",
        "goreprox check provider web=3000 --server HOST --join-file laptop.join",
    ),
)
app.command(
    "goreprox.cli.doctor:doctor",
    sort_key=6,
    help="Find out why a role does not do its work: names, ports, keys, versions, services, targets, limits.",
    usage="goreprox doctor [ROLE] [OPTIONS] [OPTIONS OF ROLE]",
    help_epilogue=example(
        "goreprox doctor provider 3000 --join-file laptop.join",
        "goreprox doctor --config /etc/goreprox/goreprox.toml",
        "goreprox doctor server --json",
    ),
)
app.command(
    "goreprox.cli.demo:demo",
    sort_key=7,
    help="Show a download survive a link that is cut again and again, all on this machine.",
    help_epilogue=example("goreprox demo", "goreprox demo --size 1GiB --cuts 20"),
)
app.command(
    "goreprox.cli.roles:edge",
    sort_key=8,
    help="Accept clients and pass them on to providers over brokers elsewhere.",
    help_epilogue=example(
        "goreprox edge --listen 8080=web --join-file edge1.join",
        "goreprox edge --broker HOST1 --broker HOST2 --join-file edge1.join --workers 4",
    ),
)
app.command(
    "goreprox.cli.roles:broker",
    sort_key=9,
    help="Connect edges and providers with each other. It keeps no state, and there can be several.",
    help_epilogue=example(
        "goreprox broker --address broker1.example.org",
        "goreprox keys add edge1 --role edge     # for `goreprox edge` elsewhere",
    ),
)
app.command(
    "goreprox.cli.tokens:app",
    name="token",
    sort_key=10,
    help="Manage the tokens that HTTP requests must bring (server and edge --auth-tokens).",
)


@app.command(
    sort_key=11,
    help_epilogue=example(
        "goreprox completion bash > /etc/bash_completion.d/goreprox",
        "goreprox completion fish > ~/.config/fish/completions/goreprox.fish",
    ),
)
def completion(shell: Literal["bash", "zsh", "fish"], /) -> None:
    """Print a completion script for a shell.

    Parameters
    ----------
    shell
        For this shell.
    """
    print(app.generate_completion(shell=shell))


@app.command(name="help", sort_key=12, show=False)
def help_(*command: str) -> None:
    """Show the help of a command."""
    app.help_print(command)


@app.command(sort_key=13, show=False)
def version() -> None:
    """Show the version."""
    print(_version())
