"""A configuration as its options: the name of each, and its values as people write them."""

import dataclasses
import enum
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple, get_args

from cyclopts import Parameter

from goreprox.config.addresses import Address

_NAMES: Final = {
    "addresses": "address",
    "brokers": "broker",
    "servers": "server",
    "targets": "target",
    "security": "join",
}
"""Options that roles take themselves, where the field has another name."""
_HIDDEN: Final = "security"
"""The field whose value is never shown."""


class Leaf(NamedTuple):
    """An option of a configuration."""

    name: str
    value: object
    texts: tuple[str, ...]
    """The values as people write them; none if it is not set."""


@dataclasses.dataclass(frozen=True, slots=True)
class Given:
    """An option, its values, and where they come from."""

    role: str
    option: str
    values: tuple[str, ...]
    source: str


def options_of(config: object) -> dict[str, tuple[str, ...]]:
    """Return the values of all options of a role, or of a group, by their names; none for one that is not set."""
    return {leaf.name: leaf.texts for leaf in leaves(config)}


def leaves(config: object) -> Iterator[Leaf]:
    """Yield all options of a role, or of a group."""
    assert dataclasses.is_dataclass(config)
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        if is_group(each):
            yield from leaves(value)
        elif each.name == _HIDDEN:
            yield Leaf(option_of(each), value, () if value is None else ("(secret)",))
        else:
            yield Leaf(option_of(each), value, _written(value, _declared(each)))


def is_group(field: "dataclasses.Field[Any]") -> bool:
    """Whether a field is a group of options, not an option."""
    return field.default_factory is not dataclasses.MISSING


def option_of(field: "dataclasses.Field[Any]") -> str:
    """Return the name of the option that a field is."""
    named = next((name for parameter in _declared(field) for name in parameter.name or ()), None)
    return (named or _NAMES.get(field.name, field.name)).removeprefix("--").replace("_", "-")


def _declared(field: "dataclasses.Field[Any]") -> list[Parameter]:
    return [part for part in get_args(field.type) if isinstance(part, Parameter)]


def _written(value: object, declared: Sequence[Parameter]) -> tuple[str, ...]:
    """Return how people write a value, as it is shown as a default in `--help`."""
    if isinstance(value, tuple):
        return tuple(map(_text, value))
    shown = next((parameter.show_default for parameter in declared if parameter.show_default is not None), None)
    if value is None:
        return (shown,) if isinstance(shown, str) else ()
    return (str(shown(value)) if callable(shown) else _text(value),)


def _text(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case float():
            return f"{value:g}"
        case enum.Enum():
            return str(value.value)
        case Address():
            return str(value).removeprefix(":")
        case _:
            return str(getattr(value, "text", value))
