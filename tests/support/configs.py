"""Configurations of roles whose options are given by their names, whatever the group."""

import dataclasses
from collections.abc import Iterator
from typing import Any, TypeVar

_T = TypeVar("_T")


def configured(kind: type[_T], **options: Any) -> _T:
    """Return a configuration with these options, each of which one of its groups has."""
    made = _made(kind, options)
    assert not options, f"{kind.__name__} has no {min(options)}"
    return made


def _made(kind: type[_T], options: dict[str, Any]) -> _T:
    assert dataclasses.is_dataclass(kind)
    arguments = {}
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.default_factory):
            arguments[field.name] = _made(field.default_factory, options)
        elif field.name in options:
            arguments[field.name] = options.pop(field.name)
    return kind(**arguments)


def leaves(config: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield the path and the value of each option."""
    assert dataclasses.is_dataclass(config)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(field.default_factory):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value
