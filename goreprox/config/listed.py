"""A configuration as its options: the name of each, and its values as people write them."""

import dataclasses
import enum
from collections.abc import Iterator, Sequence
from typing import Final, get_args

from cyclopts import Parameter

from goreprox.config.addresses import Address

_NAMES: Final = {"brokers": "broker", "servers": "server", "targets": "target", "security": "join"}
"""Options that roles take themselves, where the field has another name."""
_SECRET: Final = ("security",)
"""Fields whose value is never shown."""


def options_of(config: object) -> dict[str, tuple[str, ...]]:
    """Return the values of all options of a role, or of a group, by their names; none for one that is not set."""
    return dict(_options(config))


def _options(config: object) -> Iterator[tuple[str, tuple[str, ...]]]:
    assert dataclasses.is_dataclass(config)
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        if each.default_factory is not dataclasses.MISSING:  # a group
            yield from _options(value)
        else:
            declared = [part for part in get_args(each.type) if isinstance(part, Parameter)]
            yield _name(each.name, declared), _secret(value) if each.name in _SECRET else _written(value, declared)


def _name(field: str, declared: Sequence[Parameter]) -> str:
    named = next((name for parameter in declared for name in parameter.name or ()), None)
    return (named or _NAMES.get(field, field)).removeprefix("--").replace("_", "-")


def _secret(value: object) -> tuple[str, ...]:
    return () if value is None else ("(secret)",)


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
