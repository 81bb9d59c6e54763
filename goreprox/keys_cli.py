"""The command `goreprox keys`: whom the server knows. It works on the state directory, whether a server runs or not.

A join string is a secret: it is printed to terminals only; elsewhere the file is named that holds it.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

from cyclopts import App, Group, Parameter

from goreprox.columns import columns

if TYPE_CHECKING:
    from brokers import Role
    from goreprox.keys.state import Authorized, StateDir

_KEYS: Final = Group("Keys", sort_key=2)
StateOption = Annotated[
    Path | None,
    Parameter(
        group=_KEYS,
        env_var="GOREPROX_STATE_DIR",
        help="Directory of the server's keys. [default: STATE_DIRECTORY, or goreprox in XDG_STATE_HOME]",
    ),
]

app: Final = App(
    name="keys",
    help="Say who may connect to this server.",
    help_epilogue="Only --state-dir is also a variable (GOREPROX_STATE_DIR) and a key of the file (state-dir).",
    help_format="plaintext",
)


@app.command
def add(
    name: str,
    /,
    *,
    role: Annotated[Literal["provider", "edge"], Parameter(group=_KEYS)] = "provider",
    services: Annotated[str | None, Parameter(group=_KEYS)] = None,
    address: Annotated[list[str] | None, Parameter(group=_KEYS, negative="")] = None,
    state_dir: StateOption = None,
) -> None:
    """Authorise one more provider or edge, and make its join string.

    Parameters
    ----------
    name
        Its name; several processes of one name are replicas.
    role
        What it may be.
    services
        The services that it may offer, separated by commas. [default: any]
    address
        HOST[:PORT] where it reaches this server; may be repeated. [default: as the server was told by --address]
    """
    from brokers import Role
    from goreprox.config import Address, check_dialable, parse_services
    from goreprox.keys.guard import assumption

    state = _state(state_dir, make=True)
    reach = state.reach()
    wanted = None if services is None else parse_services(services)
    default_port = (reach.providers if role == "provider" else reach.edges).port
    addresses = [Address.parse(text, default_port) for text in address] if address else None
    for each in addresses or ():
        check_dialable("address", each)
    path = state.add(Role[role.upper()], name, wanted, addresses)
    _print_join(path, Role[role.upper()])
    if addresses is None and reach.assumed_host is not None:
        print(assumption(reach.assumed_host), file=sys.stderr)


@app.command(name="list")
def list_(*, state_dir: StateOption = None) -> None:
    """Show all authorised keys."""
    state = _state(state_dir)
    rows = [("NAME", "ROLE", "SERVICES", "CREATED", "JOIN STRING")]
    rows += [
        (key.name, key.role.name.lower(), _services(key), key.created, "here" if _here(state, key) else "handed over")
        for key in state.all()
    ]
    print(columns(rows))


@app.command
def show(name: str, /, *, state_dir: StateOption = None) -> None:
    """Show one key, and on a terminal its join string.

    Parameters
    ----------
    name
        Whose key.
    """
    state = _state(state_dir)
    key = state.key(name)
    print(f"name      {key.name}\nrole      {key.role.name.lower()}\nservices  {_services(key)}")
    print(f"created   {key.created}\nkey       {key.public.decode()}")
    if _here(state, key):
        _print_join(state.join_file(name), key.role)


@app.command
def revoke(name: str, /, *, state_dir: StateOption = None) -> None:
    """Let a peer in no more; one that is connected is put out within a second, and its connections are reset.

    Parameters
    ----------
    name
        Whose key.
    """
    _state(state_dir).revoke(name)
    print(f"{name} is no longer authorised")


@app.command
def rotate(*, state_dir: StateOption = None) -> None:
    """Give the server its next key. Links are made anew, connections go on."""
    state = _state(state_dir)
    renewed = state.rotate()
    print(f"the server has its next key; {len(renewed)} join strings in {state.join} are renewed")
    print("hand out new ones before you rotate again: those made before this rotation work until then")


def _print_join(path: Path, role: "Role") -> None:
    """Show a join string on a terminal; elsewhere say where it is."""
    from goreprox.keys.guard import command_line

    print(command_line(path, role) if sys.stdout.isatty() else f"its join string is in {path}", flush=True)


def _state(directory: Path | None, *, make: bool = False) -> "StateDir":
    """Use a server's directory, or `make` it: whoever lists, revokes or rotates elsewhere has the wrong one."""
    from goreprox.errors import ConfigError
    from goreprox.keys.state import StateDir, default_state_dir

    path = directory.expanduser() if directory else default_state_dir()
    if not make and not os.path.exists(path / "server.key"):  # noqa: PTH110 -- also false where it cannot be looked at
        raise ConfigError(f"state-dir {path}: no server.key is there, so no server uses it; name another --state-dir")
    return StateDir(path)


def _services(key: "Authorized") -> str:
    return "any" if key.services is None else ", ".join(key.services) or "none"


def _here(state: "StateDir", key: "Authorized") -> bool:
    return state.join_file(key.name).exists()
