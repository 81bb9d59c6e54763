"""What was logged, found by the fields of its lines: no test depends on their wording."""

from collections.abc import Iterable, Sequence

from tests.support.waiting import eventually

Entry = dict[str, object]
Events = list[Entry]


def matching(log: Iterable[Entry], event: str, **fields: object) -> list[Entry]:
    """Return the entries of this event that have these fields."""
    wanted = {"event": event, **fields}
    return [entry for entry in log if all(entry.get(key) == value for key, value in wanted.items())]


async def logged(log: Sequence[Entry], event: str, **fields: object) -> str:
    """Wait for an entry of this event with these fields; return the message of the first."""
    await eventually(lambda: matching(log, event, **fields), f"{event} {fields} is logged")
    return message(matching(log, event, **fields)[0])


def message(entry: Entry) -> str:
    """Return what people read, for tests of the values in it."""
    return str(entry["message"])
