"""Sources of options besides flags: environment variables and a TOML file."""

import contextlib
import difflib
import os
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cyclopts import App, Token
from cyclopts.config import Dict, Env

from goreprox.errors import ConfigError, StartError
from goreprox.process.files import FileKind, read_file

if TYPE_CHECKING:
    from cyclopts import Argument, ArgumentCollection

DEFAULT_FILE: Final = Path("goreprox.toml")
MAX_BYTES: Final = 1 << 20
"""10,000 routes of 100 bytes each."""
PREFIX: Final = "GOREPROX_"


class Sources:
    """Fills in options. Flags take precedence over variables, these over the file, and that over defaults."""

    def __init__(self, app: App, commands: Sequence[str]) -> None:
        """The file has options of these `commands`, at its top level and in tables with their names."""
        self._app = app
        self._commands: Final = commands
        self.all: Final = (Env(PREFIX, command=False, show=False), self.read_file)
        self._known: dict[str, dict[str, bool]] = {}
        """The keys of the commands that are imported."""
        self._loaded: Collection[str] | None = None
        """Commands that may be looked at; None: all, which imports them."""
        self.filled: Iterable[Argument] = ()
        """The options of the command that was read last, each with what was given for it and where."""

    def keys(self, command: str) -> dict[str, bool]:
        """Return the keys of a command in the file, and whether each takes a list."""
        if command not in self._known and (self._loaded is None or command in self._loaded):
            self._known[command] = self._look_up(command)
        return self._known.get(command, {})

    @contextlib.contextmanager
    def only(self, loaded: Collection[str]) -> Iterator[None]:
        """Import no command while in this context: keys and tables of others than those loaded are not looked at."""
        self._loaded = loaded
        try:
            yield
        finally:
            self._loaded = None

    def _look_up(self, command: str) -> dict[str, bool]:
        arguments = self._app[command].assemble_argument_collection()
        return {
            argument.name.removeprefix("--"): argument.token_count()[1]
            for argument in arguments
            if argument.name.startswith("--") and argument.name != "--config"
        }

    def unknown_variables(self) -> Iterator[str]:
        """Yield a warning for each variable that begins with GOREPROX_ and is no option."""
        given = sorted(name for name in os.environ if name.startswith(PREFIX) and name != f"{PREFIX}CONFIG")
        keys = self._keys_of_any({name.removeprefix(PREFIX).lower().replace("_", "-") for name in given})
        known = {f"{PREFIX}{key.upper().replace('-', '_')}" for key in keys} | {f"{PREFIX}CONFIG"}
        for name in given:
            if name not in known:
                nearest = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.85)
                yield f"{name} is not an option and is ignored{f'; did you mean {nearest[0]}?' if nearest else ''}"

    def _keys_of_any(self, wanted: Set[str]) -> dict[str, bool]:
        """Return the keys of commands until all that are wanted are found; other commands are not imported."""
        known: dict[str, bool] = {}
        for command in self._commands:
            if wanted <= known.keys():
                break
            known |= self.keys(command)
        return known

    def read_file(self, command_app: App, commands: tuple[str, ...], arguments: "ArgumentCollection") -> None:
        """Fill in options from the file. The command's table takes precedence over the top level.

        Raises:
            ConfigError: the file cannot be read, or a key of it is wrong.
        """
        self.filled = arguments
        if not commands or commands[0] not in self._commands:
            return
        given = next((argument for argument in arguments if "--config" in argument.names and argument.tokens), None)
        name = given.tokens[-1].value if given else ""
        path = Path(name).expanduser() if name else DEFAULT_FILE
        if not name and not path.exists():
            return
        document = _load(path, given=bool(name))
        for problem in self.problems(document, path):
            raise problem
        top, tables = self._parts(document)
        command = commands[0]
        known = self.keys(command)
        values = {key: value for key, value in top.items() if key in known} | tables.get(command, {})
        values |= {} if name else {"config": str(path)}  # so that the log says where they come from
        _fill(arguments, {key: value for key, value in values.items() if known.get(key)}, str(path))
        Dict({command: values}, source=str(path))(command_app, commands, arguments)

    def read(self, name: Path | None) -> tuple[Path | None, dict[str, object]]:
        """Return the path and the content of the file of that name, or of the default one; (None, {}): there is none.

        Raises:
            ConfigError: it cannot be read.
        """
        path = DEFAULT_FILE if name is None else name.expanduser()
        if name is None and not path.exists():
            return None, {}
        return path, _load(path, given=name is not None)

    def problems(self, document: Mapping[str, object], path: Path) -> Iterator[ConfigError]:
        """Yield an error for each key of a file that no command has, or whose value is a table."""
        top, tables = self._parts(document)
        yield from _problems(top, self._keys_of_any(top.keys()), path, "", also=self._commands)
        for table, content in tables.items():
            if known := self.keys(table):
                yield from _problems(content, known, path, f"[{table}] ")

    def _parts(self, document: Mapping[str, object]) -> tuple[dict[str, object], dict[str, dict[str, object]]]:
        """Return the top level of a file, and its tables of commands."""
        tables = {key: value for key, value in document.items() if isinstance(value, dict) and key in self._commands}
        return {key: value for key, value in document.items() if key not in tables}, tables

    def read_state_dir(self, command_app: App, commands: tuple[str, ...], arguments: "ArgumentCollection") -> None:
        """Fill in the state directory of `goreprox keys` from the file; it takes no other option from there.

        Nor does it take other options from variables: GOREPROX_NAME, the name of a process, must not be the name of a
        key to revoke.
        """
        given = os.environ.get(f"{PREFIX}CONFIG")
        path = Path(given).expanduser() if given else DEFAULT_FILE
        if len(commands) < 2 or (not given and not path.exists()):
            return
        document = _load(path, given=bool(given))
        tables = (*(document.get(role) for role in ("server", "broker")), document)  # as a server or broker would look
        found = next((table["state-dir"] for table in tables if isinstance(table, dict) and "state-dir" in table), None)
        if found is not None:
            Dict({commands[0]: {commands[1]: {"state-dir": found}}}, source=str(path))(command_app, commands, arguments)


def _fill(arguments: "ArgumentCollection", lists: Mapping[str, object], source: str) -> None:
    """Fill in options that take lists. Dict does, too, but compares each value with all before: a minute for 20,000."""
    for key, values in lists.items():
        argument = arguments[f"--{key}"]
        if not argument.tokens and isinstance(values, list) and all(isinstance(each, str | int) for each in values):
            argument.tokens += [
                Token(keyword=f"[{key}]", value=str(each), source=source, index=index)
                for index, each in enumerate(values)
            ]


def forget_empty_variables() -> None:
    """Unset variables that are empty, as `NAME=${OTHER}` in an environment file may make them."""
    for name in [name for name, value in os.environ.items() if name.startswith(PREFIX) and not value.strip()]:
        del os.environ[name]


def _load(path: Path, *, given: bool) -> dict[str, object]:
    """Read the file, which may be a pipe if its name was `given`."""
    kind = FileKind("the options of goreprox in TOML", encoding="utf-8", most_bytes=MAX_BYTES, piped=given)
    try:
        return tomllib.loads(read_file(path, kind))
    except StartError as exc:
        raise ConfigError(f"file {exc}, or name another with --config") from exc
    except OSError as exc:
        raise ConfigError(f"file {path}: {exc.strerror}; --config names the file") from exc
    except ValueError as exc:  # not TOML, or not UTF-8
        raise ConfigError(f"file {path}: {exc}; see docs/configuration.md for its form") from exc


def _problems(
    table: Mapping[str, object], known: Mapping[str, bool], path: Path, where: str, also: Iterable[str] = ()
) -> Iterator[ConfigError]:
    """Yield an error for each key that is not `known` or has a table. `also` are further names to suggest."""
    for key, value in table.items():
        if key not in known:
            nearest = difflib.get_close_matches(key.lower(), [*known, *also], n=1, cutoff=0.6)
            more = f"did you mean {nearest[0]}?" if nearest else "`goreprox COMMAND --help` shows what there is"
            yield ConfigError(f"file {path}: {where}{key} is not an option; {more}")
        elif isinstance(value, dict):
            form = f'a list, like {key} = ["…", "…"]' if known[key] else "one value"
            yield ConfigError(f"file {path}: {where}{key} is a table; expected {form}")
