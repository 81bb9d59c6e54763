"""How options are declared: the kinds of values, as people write them, and the sections of `--help`.

A group of options is a dataclass, and each of its fields is an option that is declared there and nowhere else: the name
is that of the flag, the variable and the key of the file, the annotation says how a text becomes a value and in which
section of `--help` it is, the default is the default, and the docstring the help.
"""

import enum
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Final, TypeVar

from cyclopts import Group, Parameter, Token

from goreprox.config import units
from goreprox.config.addresses import Address
from goreprox.config.defaults import MIB

ADDRESSES: Final = Group("Addresses", sort_key=1)
KEYS: Final = Group("Keys", sort_key=2)
LIFETIMES: Final = Group("Lifetimes", sort_key=3)
LIMITS: Final = Group("Limits", sort_key=4)
PROCESS: Final = Group("Process", sort_key=5)

GROUP: Final = Parameter(name="*")
"""Decorates a group: its options have no prefix."""

_T = TypeVar("_T")
_E = TypeVar("_E", bound=enum.Enum)


def one(parse: Callable[[str], _T], metavar: str, show_default: bool | str | Callable[[_T], str] = True) -> Parameter:
    """Declare an option of one value; `parse` raises ValueError with what it expected, or ConfigError.

    `show_default` is the text of the default in `--help`, or a function that returns it, or whether there is any.
    """

    def convert(_: object, tokens: Sequence[Token]) -> object:
        return parse(tokens[0].value)

    return Parameter(converter=convert, n_tokens=1, accepts_keys=False, metavar=metavar, show_default=show_default)


def several(parse: Callable[[str], object], metavar: str) -> Parameter:
    """Declare an option that may be repeated; its value is a tuple."""

    def convert(_: object, tokens: Sequence[Token]) -> object:
        return tuple(parse(token.value) for token in tokens)

    return Parameter(
        converter=convert, n_tokens=1, accepts_keys=False, negative="", metavar=metavar, show_default=False
    )


def member_of(kind: type[_E]) -> Callable[[str], _E]:
    """Return a function that reads the value of a member of an enum, in any case."""

    def parse(text: str) -> _E:
        try:
            return kind(text.lower())
        except ValueError:
            raise ValueError(f"expected one of {', '.join(str(each.value) for each in kind)}") from None

    return parse


def _address(address: Address) -> str:
    return str(address).removeprefix(":")


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _bytes(text: str) -> int:
    return round(units.mebibytes(text) * MIB)


Seconds = Annotated[float, one(units.seconds, "SECONDS", "{:g}".format)]
Mebibytes = Annotated[int, one(_bytes, "MIB", lambda size: f"{size / MIB:g}")]
"""In bytes; people write MiB."""
SecondsOrNever = Annotated[float | None, one(lambda text: units.seconds(text) or None, "SECONDS", "0")]
"""0 is never (None)."""
Count = Annotated[int, one(units.count, "N")]
Number = Annotated[float, one(units.number, "N", "{:g}".format)]
File = Annotated[Path | None, one(_path, "FILE", show_default=False)]
Files = Annotated[tuple[Path, ...], several(_path, "FILE")]
Directory = Annotated[Path | None, one(_path, "DIR", show_default=False)]
Port = Annotated[Address, one(Address.parse, "ADDR", _address)]
"""An address to listen on."""
LinkPort = Annotated[Address, one(Address.parse_link, "[tls://]ADDR", _address)]
"""An address to accept links on."""
