"""The command line: flags, environment and file become a configuration, and every error one line.

Imports little at the top: `--help` and `--version` load no networking. Knows how options are spelled and
where they come from; what they may be, `goreprox.config` knows. Every option is declared once and exists
three times: `--grace`, `GOREPROX_GRACE`, and `grace` in the file; the flag wins over the variable, over the
file, over the default.
"""

import contextlib
import difflib
import errno
import os
import sys
import tomllib
from collections.abc import Coroutine, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from cyclopts import App, CycloptsError, Parameter
from cyclopts.config import Dict, Env

from goreprox import __version__
from goreprox.errors import ConfigError, GoreproxError, StatusError
from goreprox.keys_cli import app as keys_app
from goreprox.options import (
    ADDRESSES,
    KEYS,
    LIFETIMES,
    LIMITS,
    AcceptingOptions,
    EndOptions,
    ProcessOptions,
    RoleOptions,
)
from goreprox.token_cli import app as token_app

if TYPE_CHECKING:
    from cyclopts import ArgumentCollection

    from goreprox.config import Address
    from goreprox.keys.join import Join

DEFAULT_FILE: Final = Path("goreprox.toml")
Role = Literal["server", "edge", "broker", "provider"]
ENV_PREFIX: Final = "GOREPROX_"


app: Final = App(
    name="goreprox",
    help="A reverse tunnel for TCP whose connections outlive the tunnel.",
    help_epilogue="Every option is also a variable (GOREPROX_GRACE=60) and a key of the file (grace = 60).",
    version=__version__,
    help_format="plaintext",
    result_action="return_value",
    exit_on_error=False,
    print_error=False,
    verbose=False,
    suppress_keyboard_interrupt=False,
)
app.command(keys_app)
app.command(token_app)
app.register_install_completion_command(help="Install completion for this shell.")


_Addresses = Annotated[list[str] | None, Parameter(group=ADDRESSES, negative="")]
_Path = Annotated[Path | None, Parameter(group=KEYS)]
_Join = Annotated[str | None, Parameter(group=KEYS)]
_MaxPeers = Annotated[int, Parameter(group=LIMITS)]


@app.command
def server(
    *,
    providers: Annotated[str, Parameter(group=ADDRESSES)] = "9887",
    edges: Annotated[str | None, Parameter(group=ADDRESSES)] = None,
    address: _Addresses = None,
    max_peers: _MaxPeers = 1024,
    state_dir: _Path = None,
    options: AcceptingOptions | None = None,
) -> None:
    """Accept clients, and pass them on to providers: an edge and a broker in one.

    ADDR is 8080, :8080, host:8080 or [::1]:8080.

    Parameters
    ----------
    providers
        ADDR for providers.
    edges
        ADDR for further edges. [default: none]
    address
        HOST[:PORT] at which providers reach this server, for its join strings; may be repeated. Remembered.
        [default: this machine's name]
    max_peers
        Providers and edges at a time.
    state_dir
        Directory of the keys. [default: STATE_DIRECTORY, or goreprox in XDG_STATE_HOME]
    """
    from goreprox.config import Address, ServerConfig

    options = options or AcceptingOptions()
    config = ServerConfig(
        providers=Address.parse(providers),
        edges=None if edges is None else Address.parse(edges),
        addresses=_reached_at(address),
        max_peers=max_peers,
        state_dir=_state_dir(options, state_dir),
        **options.accepting(),
    )
    _begin(options, [config.providers] if config.edges is None else [config.providers, config.edges])
    from goreprox.server import run

    _run(run(config))


@app.command
def edge(
    *,
    broker: _Addresses = None,
    workers: Annotated[int, Parameter(group=LIMITS)] = 1,
    join: _Join = None,
    join_file: _Path = None,
    options: AcceptingOptions | None = None,
) -> None:
    """Accept clients, and pass them on to providers over brokers elsewhere.

    Parameters
    ----------
    broker
        host[:port] of a broker, with its port for edges (9888); may be repeated. [default: as the join string says]
    workers
        Processes that share the ports. Connections and memory are limited in each of them.
    join
        The join string that `goreprox keys add --role edge` made. Others on this machine see it: better in join-file.
    join_file
        File with the join string.
    """
    from goreprox.config import EDGE_PORT, EdgeConfig

    options = options or AcceptingOptions()
    joined = _joined("edge", options, join, join_file)
    if not broker and joined is None:
        raise ConfigError("broker: none is given; say where it is, like `--broker host:9888`")
    config = EdgeConfig(
        brokers=_addresses(broker, EDGE_PORT, joined), workers=workers, **options.accepting() | _member(joined)
    )
    _begin(options, config.brokers)
    if config.workers > 1:
        from goreprox import workers as parent

        _run(parent.run(config, log_level=options.log_level, log_json=options.log_json))
    else:
        from goreprox.edge import run

        _run(run(config))


@app.command
def broker(
    *,
    providers: Annotated[str, Parameter(group=ADDRESSES)] = "9887",
    edges: Annotated[str, Parameter(group=ADDRESSES)] = "9888",
    address: _Addresses = None,
    max_peers: _MaxPeers = 1024,
    state_dir: _Path = None,
    options: RoleOptions | None = None,
) -> None:
    """Connect edges and providers with each other. It keeps no state, and there can be several.

    Parameters
    ----------
    providers
        ADDR for providers.
    edges
        ADDR for edges.
    address
        HOST[:PORT] at which providers reach this broker, for its join strings; may be repeated. Remembered.
        [default: this machine's name]
    max_peers
        Providers and edges at a time.
    state_dir
        Directory of the keys. [default: STATE_DIRECTORY, or goreprox in XDG_STATE_HOME]
    """
    from goreprox.config import Address, BrokerConfig

    options = options or RoleOptions()
    config = BrokerConfig(
        providers=Address.parse(providers),
        edges=Address.parse(edges),
        addresses=_reached_at(address),
        max_peers=max_peers,
        state_dir=_state_dir(options, state_dir),
        **options.role(),
    )
    _begin(options, [config.providers, config.edges])
    from goreprox.broker import run

    _run(run(config))


@app.command
def provider(
    target: _Addresses = None,
    *,
    server: _Addresses = None,
    dial_timeout: Annotated[float, Parameter(group=LIFETIMES)] = 5,
    weight: Annotated[float, Parameter(group=LIMITS)] = 1,
    proxy_protocol: Annotated[Literal["v1", "v2"] | None, Parameter(group=ADDRESSES)] = None,
    join: _Join = None,
    join_file: _Path = None,
    options: EndOptions | None = None,
) -> None:
    """Expose local TCP servers through goreprox servers or brokers.

    Parameters
    ----------
    target
        [SERVICE=][host:]port of a local server; the host is 127.0.0.1 if there is none. May be repeated. Required.
    server
        host[:port] of a server or broker, with its port for providers (9887); may be repeated.
        [default: as the join string says]
    dial_timeout
        Seconds for reaching the target.
    weight
        Share of new connections beside other providers of the same service, 0.01 to 1000.
    proxy_protocol
        Tell targets the client's address by a PROXY protocol header of this version, before its first byte.
    join
        The join string that the server made. Others on this machine see it: better in join-file.
    join_file
        File with the join string.
    """
    from goreprox.config import PROVIDER_PORT, ProviderConfig, Target
    from goreprox.proxyproto import Version

    options = options or EndOptions()
    if not target:
        raise ConfigError("target: none is given; say what to expose, like `goreprox provider 3000 --join-file FILE`")
    joined = _joined("provider", options, join, join_file)
    if not server and joined is None:
        raise ConfigError("server: none is given; say where it is, like `--server host:9887`")
    config = ProviderConfig(
        targets=tuple(map(Target.parse, target)),
        servers=_addresses(server, PROVIDER_PORT, joined),
        dial_timeout_s=dial_timeout,
        weight=weight,
        proxy_protocol=None if proxy_protocol is None else Version(proxy_protocol),
        **options.end() | _member(joined),
    )
    _begin(options, config.servers)
    from goreprox.provider import run

    _run(run(config))


def _state_dir(options: RoleOptions, given: Path | None) -> Path | None:
    """Give the directory of the keys, or None where there are to be none."""
    from goreprox.keys.state import default_state_dir

    if options.insecure:
        return None
    return default_state_dir() if given is None else given.expanduser()


def _reached_at(given: list[str] | None) -> tuple["Address", ...]:
    """Give what join strings are to name: hosts, with a port where it is not the one that is listened on."""
    from goreprox.config import Address
    from goreprox.keys.reach import SAME_PORT

    return tuple(Address.parse(text, SAME_PORT) for text in given or ())


def _joined(role: str, options: RoleOptions, join: str | None, join_file: Path | None) -> "Join | None":
    """Read the join string, or give None where there is to be none."""
    from goreprox.keys.files import read_secret
    from goreprox.keys.join import Join

    if join is not None and join_file is not None:
        raise ConfigError("join: there is a join-file, too; leave one of them out")
    if options.insecure:
        if join is not None or join_file is not None:
            raise ConfigError("insecure: there is a join string, too; leave one of them out")
        return None
    if join_file is not None:
        try:
            join = read_secret(join_file.expanduser())
        except OSError as exc:
            raise ConfigError(
                f"join-file {join_file}: {exc.strerror}; copy it from the server's join/NAME.join"
            ) from exc
    if join is None:
        more = " --role edge" if role == "edge" else ""
        raise ConfigError(
            f"join: none is given; `goreprox keys add NAME{more}` on the server makes one; give it by --join-file, "
            "or add --insecure for links in plaintext and without keys"
        )
    joined = Join.parse(join)
    if joined.role.name.lower() != role:
        raise ConfigError(f"join string: it is for {joined.role.name.lower()} {joined.name}, not for the role {role}")
    if options.name not in (None, joined.name):
        raise ConfigError(f"name {options.name}: the join string is for {joined.name}; leave --name out")
    return joined


def _addresses(given: list[str] | None, port: int, joined: "Join | None") -> tuple["Address", ...]:
    """Give the addresses of servers: the given ones, else those of the join string."""
    from goreprox.config import Address

    if joined is not None and not given:
        return joined.addresses
    return tuple(Address.parse(text, port) for text in given or ())


def _member(joined: "Join | None") -> dict[str, Any]:
    """Give what a configuration takes from a join string, except addresses."""
    return {} if joined is None else {"name": joined.name, "security": joined.security}


@app.command
def demo(
    *,
    size: int = 256,
    cuts: int = 5,
    keep: bool = False,
    options: ProcessOptions | None = None,  # noqa: ARG001 - `_read_file` has used it
) -> None:
    """Show a download survive a link that is cut again and again, all on this machine.

    Parameters
    ----------
    size
        MiB to download.
    cuts
        How often to cut the link.
    keep
        Leave it running afterwards to play with, until Ctrl-C.
    """
    import asyncio

    from goreprox.demo import run

    if not 1 <= size <= 65_536:
        raise ConfigError(f"size {size}: expected 1 to 65536 MiB")
    if not 0 <= cuts <= 1000:
        raise ConfigError(f"cuts {cuts}: expected 0 to 1000")
    asyncio.run(run(keep=keep, size_mib=size, cuts=cuts))


@app.command
def status(
    *,
    json: bool = False,
    name: str | None = None,
    role: Role | None = None,
    runtime_dir: Path | None = None,
    options: ProcessOptions | None = None,  # noqa: ARG001 - `_read_file` has used it
) -> None:
    """Show what the processes on this machine are doing.

    Parameters
    ----------
    json
        Print a JSON array, one object a process, as docs/status.md describes.
    name
        Only processes of this name.
    role
        Only processes of this role.
    runtime_dir
        Directory where they keep their lock files. [default: as theirs]
    """
    from goreprox.instance import default_runtime_dir
    from goreprox.report import show, show_json
    from goreprox.status import ask_all

    answers = ask_all(runtime_dir.expanduser() if runtime_dir else default_runtime_dir(), role=role, name=name)
    (show_json if json else show)(answers.documents)
    if answers.problems:
        raise StatusError("; ".join(answers.problems))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that `arguments` (default: the process's own) ask for, and return the exit code.

    0: done. 1: it could not run. 2: an option, a variable or a key of the file is wrong.
    """
    if sys.platform == "win32":
        return _fail("Windows is not supported; run it on Linux or macOS, or in WSL", 1)
    try:
        app(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
    except GoreproxError as exc:
        return _fail(str(exc), exc.exit_code)
    except CycloptsError as exc:
        return _fail(" ".join(str(exc).split()), ConfigError.exit_code)
    except OSError as exc:
        return _cannot_write(exc)
    return 0


def _cannot_write(exc: OSError) -> int:
    """Say that the standard output, or the file of a shell's completion, takes nothing.

    Raises:
        OSError: it was something else; our own files and sockets say more where they are used.
    """
    if exc.filename is not None:
        return _fail(f"cannot write {exc.filename}: {exc.strerror}", 1)
    if exc.errno not in (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EIO):
        raise exc
    with contextlib.suppress(OSError):  # or the interpreter tries, and fails, to write the rest as it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return _fail(f"cannot write to the standard output: {exc.strerror}", 1)


def _fail(message: str, code: int) -> int:
    from goreprox.log import say

    say(f"goreprox: {message}")
    return code


def _begin(options: RoleOptions, addresses: Iterable["Address"]) -> None:
    """Set up the log, and let nobody run in plaintext unknowingly."""
    from goreprox.log import configure

    configure(options.log_level, as_json=options.log_json)
    exposed = [str(address) for address in addresses if not address.is_loopback]
    if options.insecure and exposed:
        from loguru import logger

        logger.warning(
            "--insecure: links on {} are plaintext, and anybody who reaches that port can join",
            ", ".join(exposed),
        )


def _run(role: Coroutine[Any, Any, None]) -> None:
    import asyncio

    _raise_file_limit()
    asyncio.run(role)


def _raise_file_limit() -> None:
    """Let this process open as many files as it may: every connection is one."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return
    # macOS reports no limit and takes none above OPEN_MAX (10,240); the old limit is still one to run with.
    for limit in (hard, 10_240):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        except (ValueError, OSError):
            continue
        return


def _read_file(command_app: App, commands: tuple[str, ...], arguments: "ArgumentCollection") -> None:
    """Fill from the file what flags and variables left open; the command's table wins over the top."""
    if not commands or commands[0] not in _COMMANDS:
        return
    given = next((argument for argument in arguments if "--config" in argument.names and argument.tokens), None)
    name = given.tokens[-1].value if given else ""
    path = Path(name).expanduser() if name else DEFAULT_FILE
    if not name and not path.exists():
        return
    document = _load(path)
    known = {name: _keys(name) for name in _COMMANDS}
    tables = {key: value for key, value in document.items() if isinstance(value, dict)}
    top = {key: value for key, value in document.items() if key not in tables}
    _check_keys(tables, set(_COMMANDS), path, "")
    _check_keys(top, set().union(*known.values()), path, "")
    for name, table in tables.items():
        _check_keys(table, known[name], path, f"[{name}] ")
    command = commands[0]
    values = {key: value for key, value in top.items() if key in known[command]} | tables.get(command, {})
    Dict({command: values}, source=str(path))(command_app, commands, arguments)


def _read_state_dir(command_app: App, commands: tuple[str, ...], arguments: "ArgumentCollection") -> None:
    """Let `goreprox keys` work on the directory that the file names for a server; nothing else there is for it.

    Variables are not for it either: GOREPROX_NAME, which names this process, must not say whose key is revoked.
    """
    given = os.environ.get(f"{ENV_PREFIX}CONFIG")
    path = Path(given).expanduser() if given else DEFAULT_FILE
    if len(commands) < 2 or (not given and not path.exists()):
        return
    document = _load(path)
    tables = (*(document.get(role) for role in ("server", "broker")), document)  # as a server or broker would look
    found = next((table["state-dir"] for table in tables if isinstance(table, dict) and "state-dir" in table), None)
    if found is not None:
        Dict({commands[0]: {commands[1]: {"state-dir": found}}}, source=str(path))(command_app, commands, arguments)


def _load(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigError(f"file {path}: {exc.strerror}; --config names the file") from exc
    except ValueError as exc:  # not TOML, or not UTF-8
        raise ConfigError(f"file {path}: {exc}; see docs/configuration.md for its form") from exc


def _keys(command: str) -> set[str]:
    """Give the keys that a command has in the file: its flags without dashes, but for `--config`."""
    arguments = app[command].assemble_argument_collection()
    flags = {argument.name for argument in arguments if argument.name.startswith("--")}
    return {flag.removeprefix("--") for flag in flags} - {"config"}


def _check_keys(table: Iterable[str], known: set[str], path: Path, where: str) -> None:
    for key in table:
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0)
            raise ConfigError(f"file {path}: {where}{key} is not an option; the nearest one is {nearest[0]}")


_COMMANDS: Final = ("server", "edge", "broker", "provider", "demo", "status")
keys_app.config = (_read_state_dir,)
token_app.config = ()
app.config = (Env(ENV_PREFIX, command=False), _read_file)
