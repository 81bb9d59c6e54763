"""The command line: flags, environment and file become a configuration, and every error one line.

Imports little at the top: `--help` and `--version` load no networking. Knows how options are spelled; what they may
be, `goreprox.config` knows, and where else they come from, `goreprox.cli.sources`. Every option is declared once
and exists three times: `--grace`, `GOREPROX_GRACE`, and `grace` in the file.
"""

import contextlib
import errno
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Final, Literal

from cyclopts import App, CycloptsError, Parameter

from goreprox import __version__
from goreprox.cli.helptext import Formatter, example
from goreprox.cli.keys import app as keys_app
from goreprox.cli.launch import begin, run_role
from goreprox.cli.options import (
    ADDRESSES,
    KEYS,
    LIFETIMES,
    LIMITS,
    AcceptingOptions,
    Count,
    Directory,
    EndOptions,
    File,
    FileOptions,
    Mebibytes,
    Number,
    RoleOptions,
    Seconds,
    Several,
)
from goreprox.cli.sources import Sources, forget_empty_variables
from goreprox.cli.tokens import app as token_app
from goreprox.cli.usage import explain
from goreprox.errors import ConfigError, GoreproxError, StatusError

if TYPE_CHECKING:
    pass

Role = Literal["server", "edge", "broker", "provider"]
COMMANDS: Final = ("server", "edge", "broker", "provider", "demo", "status")
"""Those whose options are also variables and keys of the file."""


app: Final = App(
    name="goreprox",
    usage="goreprox COMMAND [OPTIONS]",
    help="A reverse tunnel for TCP whose connections outlive the tunnel.",
    help_epilogue=(
        "`goreprox COMMAND --help` shows the options of a command. Each --some-option is\n"
        "also the environment variable GOREPROX_SOME_OPTION and the key some-option of\n"
        "goreprox.toml. ADDR is PORT, HOST:PORT or [IPV6]:PORT."
    ),
    version=__version__,
    version_flags=("--version", "-V"),
    help_format="plaintext",
    help_formatter=Formatter(),
    result_action="return_value",
    exit_on_error=False,
    print_error=False,
    verbose=False,
    suppress_keyboard_interrupt=False,
)
app.command(keys_app)
app.command(token_app)


_Addr = Annotated[str, Parameter(group=ADDRESSES, metavar="ADDR")]
_Remotes = Annotated[Several, Parameter(group=ADDRESSES, metavar="HOST[:PORT]")]
_Join = Annotated[str | None, Parameter(group=KEYS, metavar="STRING")]
_JoinFile = Annotated[File, Parameter(group=KEYS)]
_StateDir = Annotated[Directory, Parameter(group=KEYS)]
_MaxPeers = Annotated[Count, Parameter(group=LIMITS)]


@app.command(
    sort_key=1,
    help_epilogue=example(
        "goreprox server --address tunnel.example.org",
        "goreprox server --listen 8080=web --listen 2222=ssh",
        "goreprox server --listen https://443 --tls-cert cert.pem --tls-key key.pem",
    ),
)
def server(
    *,
    providers: _Addr = "9887",
    edges: Annotated[str | None, Parameter(group=ADDRESSES, metavar="ADDR")] = None,
    address: _Remotes = None,
    max_peers: _MaxPeers = 1024,
    state_dir: _StateDir = None,
    options: AcceptingOptions | None = None,
) -> None:
    """Run on the public machine: accept clients and pass them on to providers.

    It is an edge and a broker in one process.

    Parameters
    ----------
    providers
        Accept providers here.
    edges
        Accept further edges here. [default: none]
    address
        The public address of this server, which join strings name. It is remembered. May be repeated. [default: this
        machine's name]
    max_peers
        Providers and edges at a time.
    state_dir
        Directory of the keys. [default: STATE_DIRECTORY, else goreprox in XDG_STATE_HOME or ~/.local/state]
    """
    from goreprox.cli.joining import keys_directory, reached_at
    from goreprox.config.addresses import Address
    from goreprox.config.roles import ServerConfig

    options = options or AcceptingOptions()
    config = ServerConfig(
        providers=Address.parse(providers),
        edges=None if edges is None else Address.parse(edges),
        addresses=reached_at(address),
        max_peers=max_peers,
        state_dir=keys_directory(options, state_dir),
        **options.accepting(),
    )
    ports = [config.providers] if config.edges is None else [config.providers, config.edges]
    begin(options, _sources.unknown_variables(), ports)
    from goreprox.roles.server import run

    run_role(run(config))


@app.command(
    sort_key=6,
    help_epilogue=example(
        "goreprox edge --listen 8080=web --join-file edge1.join",
        "goreprox edge --broker HOST1 --broker HOST2 --join-file edge1.join --workers 4",
    ),
)
def edge(
    *,
    broker: _Remotes = None,
    workers: Annotated[Count, Parameter(group=LIMITS)] = 1,
    join: _Join = None,
    join_file: _JoinFile = None,
    options: AcceptingOptions | None = None,
) -> None:
    """Accept clients and pass them on to providers over brokers elsewhere.

    Parameters
    ----------
    broker
        A broker and its port for edges, 9888 by default. May be repeated. [default: as the join string says]
    workers
        Processes that share the ports. Limits of connections and memory are for each of them.
    join
        The join string that `goreprox keys add --role edge` made. Other users of this machine can see it in the list of
        processes: prefer --join-file.
    join_file
        File with the join string.
    """
    from goreprox.cli.joining import addresses, joined, member
    from goreprox.config.defaults import EDGE_PORT
    from goreprox.config.roles import EdgeConfig

    options = options or AcceptingOptions()
    joined_by = joined("edge", options, join, join_file)
    if not broker and joined_by is None:
        raise ConfigError("broker: none is given; say where it is, like `--broker host:9888`")
    config = EdgeConfig(
        brokers=addresses(broker, EDGE_PORT, joined_by), workers=workers, **options.accepting() | member(joined_by)
    )
    begin(options, _sources.unknown_variables(), config.brokers)
    if config.workers > 1:
        from goreprox.roles import workers as parent

        run_role(parent.run(config, log_level=options.log_level, log_json=options.log_json))
    else:
        from goreprox.roles.edge import run

        run_role(run(config))


@app.command(
    sort_key=7,
    help_epilogue=example(
        "goreprox broker --address broker1.example.org",
        "goreprox keys add edge1 --role edge     # for `goreprox edge` elsewhere",
    ),
)
def broker(
    *,
    providers: _Addr = "9887",
    edges: _Addr = "9888",
    address: _Remotes = None,
    max_peers: _MaxPeers = 1024,
    state_dir: _StateDir = None,
    options: RoleOptions | None = None,
) -> None:
    """Connect edges and providers with each other. It keeps no state, and there can be several.

    Parameters
    ----------
    providers
        Accept providers here.
    edges
        Accept edges here.
    address
        The address of this broker, which join strings name. It is remembered. May be repeated. [default: this machine's
        name]
    max_peers
        Providers and edges at a time.
    state_dir
        Directory of the keys. [default: STATE_DIRECTORY, else goreprox in XDG_STATE_HOME or ~/.local/state]
    """
    from goreprox.cli.joining import keys_directory, reached_at
    from goreprox.config.addresses import Address
    from goreprox.config.roles import BrokerConfig

    options = options or RoleOptions()
    config = BrokerConfig(
        providers=Address.parse(providers),
        edges=Address.parse(edges),
        addresses=reached_at(address),
        max_peers=max_peers,
        state_dir=keys_directory(options, state_dir),
        **options.role(),
    )
    begin(options, _sources.unknown_variables(), [config.providers, config.edges])
    from goreprox.roles.broker import run

    run_role(run(config))


@app.command(
    sort_key=2,
    usage="goreprox provider [SERVICE=][HOST:]PORT... [OPTIONS]",
    help_epilogue=example(
        "goreprox provider 3000 --join-file laptop.join",
        "goreprox provider web=3000 ssh=22 --join-file laptop.join",
        "goreprox provider 192.168.1.5:80 --join-file laptop.join --server HOST",
    ),
)
def provider(
    target: Annotated[Several, Parameter(group=ADDRESSES)] = None,
    *,
    server: _Remotes = None,
    dial_timeout: Annotated[Seconds, Parameter(group=LIFETIMES)] = 5,
    weight: Annotated[Number, Parameter(group=LIMITS)] = 1,
    proxy_protocol: Annotated[Literal["v1", "v2"] | None, Parameter(group=ADDRESSES, metavar="VERSION")] = None,
    target_ca: _JoinFile = None,
    target_insecure: Annotated[bool, Parameter(group=KEYS)] = False,
    join: _Join = None,
    join_file: _JoinFile = None,
    options: EndOptions | None = None,
) -> None:
    """Run on the private machine: expose local TCP servers through a server.

    Parameters
    ----------
    target
        [SERVICE=][tls://][HOST:]PORT of a TCP server to expose; tls:// if it speaks TLS only. The service is `default`
        and the host 127.0.0.1 if not given. May be repeated. Required.
    server
        A server or broker and its port for providers, 9887 by default. May be repeated. [default: as the join string
        says]
    dial_timeout
        How long connecting to the target may take.
    weight
        Share of new connections beside other providers of the same service, 0.01 to 1000.
    proxy_protocol
        Tell targets the client's address by a PROXY protocol header before its first byte.
    target_ca
        PEM file of CA certificates that sign those of tls:// targets. [default: those of the system]
    target_insecure
        Accept any certificate of tls:// targets.
    join
        The join string that the server printed. Other users of this machine can see it in the list of processes: prefer
        --join-file.
    join_file
        File with the join string.
    """
    from goreprox.cli.joining import addresses, joined, member
    from goreprox.config.addresses import ProxyVersion, Target
    from goreprox.config.defaults import PROVIDER_PORT
    from goreprox.config.roles import ProviderConfig

    options = options or EndOptions()
    if not target:
        raise ConfigError("target: none is given; say what to expose, like `goreprox provider 3000 --join-file FILE`")
    joined_by = joined("provider", options, join, join_file)
    if not server and joined_by is None:
        raise ConfigError("server: none is given; say where it is, like `--server host:9887`")
    config = ProviderConfig(
        targets=tuple(map(Target.parse, target)),
        servers=addresses(server, PROVIDER_PORT, joined_by),
        dial_timeout_s=dial_timeout,
        weight=weight,
        proxy_protocol=None if proxy_protocol is None else ProxyVersion(proxy_protocol),
        target_ca=None if target_ca is None else target_ca.expanduser(),
        target_insecure=target_insecure,
        **options.end() | member(joined_by),
    )
    begin(options, _sources.unknown_variables(), config.servers)
    from goreprox.roles.provider import run

    run_role(run(config))


@app.command(sort_key=5, help_epilogue=example("goreprox demo", "goreprox demo --size 1GiB --cuts 20"))
def demo(
    *,
    size: Mebibytes = 256,
    cuts: Count = 5,
    keep: bool = False,
    options: FileOptions | None = None,  # noqa: ARG001 - `Sources.read_file` has used it
) -> None:
    """Show a download survive a link that is cut again and again, all on this machine.

    Parameters
    ----------
    size
        How much to download.
    cuts
        How often to cut the link.
    keep
        Leave it running afterwards, until Ctrl-C.
    """
    import asyncio

    from goreprox.cli.demo import run

    if not 1 <= size <= 65_536:
        raise ConfigError(f"size {size:g}: expected 1 to 65536 MiB")
    if not 0 <= cuts <= 1000:
        raise ConfigError(f"cuts {cuts}: expected 0 to 1000")
    asyncio.run(run(keep=keep, size_bytes=round(size * (1 << 20)), cuts=cuts))


@app.command(
    sort_key=4, help_epilogue=example("goreprox status", "goreprox status --json --role server", "sudo goreprox status")
)
def status(
    *,
    json: bool = False,
    verbose: bool = False,
    name: Annotated[str | None, Parameter(metavar="NAME")] = None,
    role: Annotated[Role | None, Parameter(metavar="ROLE")] = None,
    runtime_dir: Directory = None,
    options: FileOptions | None = None,  # noqa: ARG001 - `Sources.read_file` has used it
) -> None:
    """Show what the processes on this machine are doing.

    Parameters
    ----------
    json
        Print a JSON array, one object per process, as docs/status.md describes.
    verbose
        Show all there is, as tables, in the words of docs/architecture.md.
    name
        Only processes of this name.
    role
        Only processes of this role.
    runtime_dir
        Directory of their lock files. [default: as theirs, and /run/goreprox*]
    """
    from goreprox.cli.report import show, show_json
    from goreprox.config.paths import runtime_dirs
    from goreprox.status.document import ask_all

    answers = ask_all([runtime_dir.expanduser()] if runtime_dir else runtime_dirs(), role=role, name=name)
    if json:
        show_json(answers.documents)
    else:
        show(answers.documents, verbose=verbose)
    if answers.problems:
        raise StatusError("; ".join(answers.problems))


@app.command(sort_key=9, help_epilogue=example("goreprox completion bash > /etc/bash_completion.d/goreprox"))
def completion(shell: Literal["bash", "zsh", "fish"], /) -> None:
    """Print a completion script for a shell.

    Parameters
    ----------
    shell
        For this shell.
    """
    print(app.generate_completion(shell=shell))


@app.command(name="help", sort_key=10, show=False)
def help_(*command: str) -> None:
    """Show the help of a command."""
    app.help_print(command)


@app.command(sort_key=11, show=False)
def version() -> None:
    """Show the version."""
    print(__version__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that `arguments` (default: the process's own) ask for, and return the exit code.

    0: done. 1: it could not run. 2: an option, a variable or a key of the file is wrong.
    """
    if sys.platform == "win32":
        return _fail("Windows is not supported; run it on Linux or macOS, or in WSL", 1)
    forget_empty_variables()
    try:
        app(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
    except GoreproxError as exc:
        return _fail(str(exc), exc.exit_code)
    except CycloptsError as exc:
        return _fail(explain(exc), ConfigError.exit_code)
    except OSError as exc:
        return _cannot_write(exc)
    return 0


def _cannot_write(exc: OSError) -> int:
    """Say that the standard output takes nothing.

    Raises:
        OSError: it was something else; our own files and sockets say more where they are used.
    """
    if exc.filename is not None or exc.errno not in (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EIO):
        raise exc
    with contextlib.suppress(OSError):  # or the interpreter tries, and fails, to write the rest as it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return _fail(f"cannot write to the standard output: {exc.strerror}", 1)


def _fail(message: str, code: int) -> int:
    from goreprox.process.log import say

    say(f"goreprox: {message}")
    return code


_sources: Final = Sources(app, COMMANDS)
keys_app.config = (_sources.read_state_dir,)
token_app.config = ()
app.config = _sources.all
