"""The command `keys`: which peers a server authorises. It changes the state directory, whether a server runs or not.

A join string is a secret: `add` prints it, `list` does not, and `show` only on a terminal.
"""

import json as json_
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

from cyclopts import App, Parameter

from brokers import Role
from goreprox.cli.app import sources
from goreprox.cli.columns import columns
from goreprox.cli.helptext import example
from goreprox.cli.options import StateDir as StateDirOption
from goreprox.config.addresses import Address, check_dialable
from goreprox.config.names import parse_services
from goreprox.config.options import KEYS
from goreprox.config.paths import default_state_dir
from goreprox.config.published import Grant, parse_grants
from goreprox.errors import ConfigError
from goreprox.keys.guard import assumption, command_line
from goreprox.keys.join import FILE
from goreprox.keys.state import Authorized, StateDir
from goreprox.process.files import become_owner, read_file
from goreprox.process.log import counted  # before root becomes another user, who may not be able to read it

if TYPE_CHECKING:
    from cyclopts.completion import CompletionContext

ANY: Final = "any"
NONE: Final = "none"
OF_UNIT: Final = Path("/var/lib/goreprox")
"""The state directory of the systemd unit: the default of root, unless root has keys of its own."""
_StateDir = Annotated[
    StateDirOption,
    Parameter(
        env_var="GOREPROX_STATE_DIR",
        show_env_var=False,
        help="Use the keys in this directory. [default: that of a server]",
    ),
]

app: Final = App(
    name="keys",
    help_epilogue=example(
        "goreprox keys add laptop --services web,ssh",
        "(umask 077; ssh SERVER goreprox keys add laptop >laptop.join)",
        "goreprox keys set laptop --services web",
        "goreprox keys set laptop --publish 'http://*.laptop.example.com'",
        "goreprox keys revoke laptop",
    ),
    help_format="plaintext",
)
app.config = (sources.read_state_dir,)


def _names(context: "CompletionContext") -> list[str]:
    """Return the names of all keys, for completion in a shell."""
    return [key.name for key in _state(context["state_dir"].value).all()]


_Name = Annotated[str, Parameter(completer=_names)]
_Services = Annotated[str | None, Parameter(group=KEYS, metavar="A,B")]
_Publish = Annotated[list[str] | None, Parameter(group=KEYS, negative="", metavar="NAME")]
_Share = Annotated[bool, Parameter(group=KEYS, negative="")]
_Json = Annotated[bool, Parameter(group=KEYS, negative="")]


@app.command(
    help_epilogue=example(
        "goreprox keys add laptop --services web,ssh",
        "goreprox keys add edge1 --role edge --address tunnel.example.org",
        "(umask 077; ssh SERVER goreprox keys add laptop >laptop.join)",
    )
)
def add(
    name: str,
    /,
    *,
    role: Annotated[Literal["provider", "edge"], Parameter(group=KEYS, metavar="ROLE")] = "provider",
    services: _Services = None,
    publish: _Publish = None,
    share: _Share = False,
    address: Annotated[
        list[str] | None, Parameter(group=KEYS, negative="", metavar="[tls://|nats://]HOST[:PORT]")
    ] = None,
    json: _Json = False,
    state_dir: _StateDir = None,
) -> None:
    """Authorise one more provider or edge, and print its join string.

    On a terminal it prints the command to run on the other machine, elsewhere only the join string.

    Parameters
    ----------
    name
        Its name; several processes with one name are replicas.
    role
        Authorise it for this role.
    services
        Allow these services, to offer or, as an edge, to open, separated by commas; `none` allows none. [default: any]
    publish
        Allow a provider to publish this: http://HOST, tls://HOST, each also for *.HOST, tcp://PORT or tcp://PORT-PORT.
        May be repeated. [default: nothing]
    share
        Allow names that another key has, too.
    address
        Put this address of the server, or of a NATS server, into the join string. May be repeated. [default: that of
        server --address]
    json
        Print a JSON object: that of `list --json`, the addresses, and the join string.
    """
    state = _state(state_dir, make=True)
    reach = state.reach()
    here = reach.providers if role == "provider" else reach.edges
    given = [Address.parse_remote(text, here.port) for text in address or ()]
    addresses = [each.within_tls if here.tls and not each.nats else each for each in given] or None
    for each in addresses or ():
        check_dialable("address", each)
    path = state.add(Role[role.upper()], name, _wanted(services), addresses, publish=_grants(publish), share=share)
    text = read_file(path, FILE).strip()
    if json:
        named = [str(each) for each in addresses or reach.addresses(Role[role.upper()])]
        print(json_.dumps(_document(state, state.key(name)) | {"addresses": named, "join": text}), flush=True)
    else:
        print(command_line(path, Role[role.upper()]) if sys.stdout.isatty() else text, flush=True)
    if addresses is None and reach.assumed_host is not None:
        print(assumption(reach.assumed_host), file=sys.stderr)


@app.command(name="list", help_epilogue=example("goreprox keys list", "sudo goreprox keys list --json"))
def list_(*, json: _Json = False, state_dir: _StateDir = None) -> None:
    """Show all authorised keys.

    Parameters
    ----------
    json
        Print a JSON array, one object per key.
    """
    state = _state(state_dir)
    if json:
        print(json_.dumps([_document(state, key) for key in state.all()], indent=2))
        return
    rows = [("NAME", "ROLE", "SERVICES", "PUBLISH", "CREATED", "JOIN FILE")]
    rows += [
        (key.name, str(key.role), _services(key), _published(key), key.created, _join_file(state, key) or "removed")
        for key in state.all()
    ]
    print(columns(rows))


@app.command(
    help_epilogue=example("goreprox keys show laptop", "goreprox keys show laptop --state-dir /var/lib/goreprox")
)
def show(name: _Name, /, *, state_dir: _StateDir = None) -> None:
    """Show one key, and on a terminal the command to run on the other machine.

    Parameters
    ----------
    name
        Whose key.
    """
    state = _state(state_dir)
    key = state.key(name)
    print(f"name      {key.name}\nrole      {key.role}\nservices  {_services(key)}\npublish   {_published(key)}")
    print(f"created   {key.created}\nkey       {key.public.decode()}")
    path = _join_file(state, key)
    if path is not None:
        print(f"join      {path}")
        if sys.stdout.isatty():
            print(command_line(state.join_file(name), key.role))


@app.command(
    name="set",
    help_epilogue=example(
        "goreprox keys set laptop --services web,ssh",
        "goreprox keys set laptop --services any",
        "goreprox keys set laptop --publish tcp://20000-20009",
        "goreprox keys set laptop --publish none",
    ),
)
def set_(
    name: _Name,
    /,
    *,
    services: _Services = None,
    publish: _Publish = None,
    share: _Share = False,
    state_dir: _StateDir = None,
) -> None:
    """Change what a key may offer, or open as an edge, or publish. It takes effect within a second.

    A connected peer that announces more is disconnected, and its connections are reset.

    Parameters
    ----------
    name
        Whose key.
    services
        Allow these services, to offer or, as an edge, to open, separated by commas; `any` allows all, `none` none.
    publish
        Allow a provider to publish this, and nothing else: http://HOST, tls://HOST, each also for *.HOST, tcp://PORT or
        tcp://PORT-PORT. May be repeated; `none` allows nothing.
    share
        Allow names that another key has, too.
    """
    if services is None and not publish:
        raise ConfigError("keys set: --services or --publish is missing")
    state = _state(state_dir)
    key = state.allow(
        name,
        services=... if services is None else _wanted(services),
        publish=_grants(publish) if publish else ...,
        share=share,
    )
    print(f"{name} may {'offer' if key.role is Role.PROVIDER else 'open'}: {_services(key)}")
    if key.role is Role.PROVIDER:
        print(f"{name} may publish: {_published(key)}")


@app.command(
    help_epilogue=example("goreprox keys revoke laptop", "goreprox keys revoke laptop --state-dir /var/lib/goreprox")
)
def revoke(name: _Name, /, *, state_dir: _StateDir = None) -> None:
    """Revoke a key, and remove its files.

    A connected peer is disconnected within a second, and its connections are reset.

    Parameters
    ----------
    name
        Whose key.
    """
    _state(state_dir).revoke(name)
    print(f"{name} is no longer authorised")


@app.command(help_epilogue=example("goreprox keys rotate", "goreprox keys show laptop     # for its new join string"))
def rotate(*, state_dir: _StateDir = None) -> None:
    """Replace the server's key by its next one. Links reconnect, connections continue."""
    state = _state(state_dir)
    renewed = state.rotate()
    print(f"the server uses its next key; {counted(len(renewed), 'join string')} in {state.shown / 'join'} renewed")
    print("peers with older join strings stay connected until the next rotation; give them the new ones before it")


@app.command(
    name="nats-config",
    help_epilogue=example(
        "goreprox keys nats-config",
        "goreprox keys nats-config --output /etc/nats/users.conf --pid-file /run/nats/nats.pid",
        "goreprox keys nats-config --output users.conf --pid-file nats.pid --server nats://n1.example.org --watch",
    ),
)
def nats_config_(
    *,
    output: Annotated[Path | None, Parameter(group=KEYS, metavar="FILE")] = None,
    pid_file: Annotated[Path | None, Parameter(group=KEYS, metavar="FILE")] = None,
    server: Annotated[list[str] | None, Parameter(group=KEYS, negative="", metavar="nats://HOST[:PORT]")] = None,
    server_ca: Annotated[Path | None, Parameter(group=KEYS, metavar="FILE")] = None,
    watch: Annotated[bool, Parameter(group=KEYS, negative="")] = False,
    state_dir: _StateDir = None,
) -> None:
    """Print what NATS servers are to know of all keys: the users, and what each may publish and subscribe to.

    It is part of a server's configuration, to be included there.

    Parameters
    ----------
    output
        Write it to this file instead, if it has changed.
    pid_file
        Then let the nats-server whose process this file names read its configuration again.
    server
        Then tell peers at this NATS server whose keys were revoked, so that connections are reset at once. May be
        repeated.
    server_ca
        Trust these CAs for NATS servers. [default: those of the system]
    watch
        Do so again whenever keys change, until a signal.
    """
    if output is None and (watch or server or pid_file):
        raise ConfigError("keys nats-config: --output is missing; name the file that the servers include")
    servers = [Address.parse_remote(text) for text in server or ()]
    for each in servers:
        if not each.nats:
            raise ConfigError(f"server {each}: expected a NATS server, like nats://n1.example.org")
    # Root may change to another directory, and another user.
    output, pid_file, server_ca = (None if path is None else path.absolute() for path in (output, pid_file, server_ca))
    state = _state(state_dir)
    if output is None:
        from goreprox.keys.nats_config import nats_config

        print(nats_config(state.all(), state.server_keys().present.public), end="")
        return
    from goreprox.roles.cluster import check_installed
    from goreprox.roles.nats_users import NatsUsers

    check_installed(servers)
    users = NatsUsers(state, output, pid_file=pid_file, servers=servers, ca=server_ca)
    if watch:
        users.watch()
    else:
        users.update()


def _state(directory: Path | None, *, make: bool = False) -> StateDir:
    """Open the state directory of a server, or `make` it; to list, revoke or rotate keys of a new one is a mistake.

    Root changes to the owner of the directory, for instance the dynamic user of a systemd unit.
    """
    path = directory or default_state_dir()
    if not directory and os.geteuid() == 0 and not (path / "server.key").exists() and (OF_UNIT / "server.key").exists():
        path = OF_UNIT
    if not make and not os.path.exists(path / "server.key"):  # noqa: PTH110 -- also false where it cannot be looked at
        if os.path.lexists(path) and not os.access(path, os.X_OK):
            raise ConfigError(f"state-dir {path}: it is another user's; run this as root or as its owner")
        raise ConfigError(
            f"state-dir {path}: no server.key is there, so no server uses it; start `goreprox server` once, or name "
            "another --state-dir"
        )
    return StateDir(become_owner(path), shown=path)


def _wanted(services: str | None) -> list[str] | None:
    """Return the services in a text; None: all of them."""
    if services in (None, ANY):
        return None
    return [] if services == NONE else parse_services(services)


def _grants(publish: list[str] | None) -> tuple[Grant, ...]:
    return () if publish == [NONE] else parse_grants(publish or ())


def _services(key: Authorized) -> str:
    return ANY if key.services is None else ", ".join(key.services) or NONE


def _published(key: Authorized) -> str:
    return ", ".join(grant.text for grant in key.publish) or NONE


def _join_file(state: StateDir, key: Authorized) -> str | None:
    path = state.join_file(key.name)
    return str(state.shown / path.relative_to(state.directory)) if path.exists() else None


def _document(state: StateDir, key: Authorized) -> dict[str, object]:
    """Return the JSON of a key, which has no secret."""
    return {
        "name": key.name,
        "role": str(key.role),
        "services": None if key.services is None else list(key.services),
        "publish": [grant.text for grant in key.publish],
        "created": key.created,
        "key": key.public.decode(),
        "join_file": _join_file(state, key),
    }
