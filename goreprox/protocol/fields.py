"""A map of an export (`export`), with a check of every value that is taken from it."""

from typing import TypeVar

from goreprox.endpoint import Endpoint
from goreprox.protocol.errors import ExportError
from goreprox.protocol.limits import MAX_OFFSET

T = TypeVar("T")


class Fields:
    """Values by name. What is not asked for is ignored, so that an older version may read what a newer one writes."""

    __slots__ = ("_values",)

    def __init__(self, value: object) -> None:
        """Take a map.

        Raises:
            ExportError: it is none. So do the methods, if there is no such value or it has another type.
        """
        if not isinstance(value, dict):
            raise ExportError(f"{type(value).__name__} in the export, expected a map")
        self._values: dict[object, object] = value

    def count(self, name: str, most: int = MAX_OFFSET) -> int:
        """Return a number from 0 to `most`."""
        value = self._take(name, int)
        if not 0 <= value <= most:
            raise ExportError(f"{name} {value} in the export, expected 0 to {most}")
        return value

    def count_or_none(self, name: str) -> int | None:
        """Return a number, if there is one."""
        return None if self._values.get(name) is None else self.count(name)

    def flag(self, name: str) -> bool:
        """Return a truth value."""
        return self._take(name, bool)

    def seconds(self, name: str) -> float:
        """Return a time."""
        return self._take(name, float)

    def seconds_or_none(self, name: str) -> float | None:
        """Return a time, if there is one."""
        return None if self._values.get(name) is None else self._take(name, float)

    def text(self, name: str) -> str:
        """Return a text."""
        return self._take(name, str)

    def text_or_none(self, name: str) -> str | None:
        """Return a text, if there is one."""
        return None if self._values.get(name) is None else self._take(name, str)

    def endpoint(self, name: str) -> Endpoint:
        """Return an address and a port, which are a text."""
        text = self.text(name)
        found = Endpoint.parse(text)
        if found is None:
            raise ExportError(f"{name} {text!r} in the export, expected an address and a port")
        return found

    def data(self, name: str) -> bytes:
        """Return bytes."""
        return self._take(name, bytes)

    def data_or_none(self, name: str) -> bytes | None:
        """Return bytes, if there are any."""
        return None if self._values.get(name) is None else self._take(name, bytes)

    def items(self, name: str) -> list[object]:
        """Return a list."""
        return self._take(name, list)

    def items_or_none(self, name: str) -> list[object] | None:
        """Return a list, if there is one."""
        return None if self._values.get(name) is None else self._take(name, list)

    def fields(self, name: str) -> "Fields":
        """Return a map."""
        return Fields(self._values.get(name))

    def fields_or_none(self, name: str) -> "Fields | None":
        """Return a map, if there is one."""
        return None if self._values.get(name) is None else self.fields(name)

    def by_text(self) -> dict[str, object]:
        """Return all values, whose names are texts."""
        return {name: value for name, value in self._values.items() if isinstance(name, str)}

    def _take(self, name: str, kind: type[T]) -> T:
        value = self._values.get(name)
        if type(value) is not kind:
            raise ExportError(f"{name} in the export is of the type {type(value).__name__}, expected {kind.__name__}")
        return value
