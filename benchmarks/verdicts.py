"""Whether the figures reach their floors and goals. Ratios are taken within a round, then their median."""

import statistics
from dataclasses import dataclass

from benchmarks.rows import ENCRYPTED_TUNNELS, PLAIN_TUNNELS, ROWS, TUNNELS, Bound, Row

Values = dict[str, dict[str, list[float | None]]]
"""By row, by side: one figure for each round, None where there is none."""


@dataclass(frozen=True)
class Party:
    """A side, as far as verdicts go."""

    key: str
    title: str
    tunnel: bool
    """A tunnel of others."""
    encrypted: bool


@dataclass(frozen=True)
class Verdict:
    """One bound, and what became of it."""

    row: Row
    bound: Bound
    text: str
    """The bound in words."""
    figure: float | None
    """What is compared with the bound's number: a ratio, a difference or the value; None: not measured."""
    holds: bool | None
    where: str = ""
    """The tunnel that came nearest, or was ahead."""


def summary(row: Row, values: list[float | None]) -> float | None:
    """Return the figure of all rounds: their median, or the worst where that is what counts."""
    there = [value for value in values if value is not None]
    if not there:
        return None
    if row.worst:
        return min(there) if row.higher_is_better else max(there)
    return statistics.median(there)


def judge(values: Values, parties: list[Party]) -> list[Verdict]:
    """Return a verdict on every bound of every row."""
    return [_judge(row, bound, values, parties) for row in ROWS.values() for bound in row.bounds]


def _judge(row: Row, bound: Bound, values: Values, parties: list[Party]) -> Verdict:
    titles = {party.key: party.title for party in parties}
    text = _text(row, bound, titles)
    own = values.get(row.key, {}).get(bound.side, [])
    if bound.relation == "value":
        figure = summary(row, own)
        return Verdict(row, bound, text, figure, None if figure is None else _reaches(row, bound, figure))
    if bound.against_row:
        others = {bound.side: values.get(bound.against_row, {}).get(bound.side, [])}
    else:
        others = {key: values.get(row.key, {}).get(key, []) for key in _opponents(bound, parties)}
    compared = {key: _compare(row, bound, own, other) for key, other in others.items()}
    found = {key: figure for key, figure in compared.items() if figure is not None}
    if not found:
        return Verdict(row, bound, text, None, None)
    nearest = min(found, key=found.__getitem__) if row.higher_is_better else max(found, key=found.__getitem__)
    where = titles.get(nearest, nearest) if bound.against in _GROUPS else ""
    return Verdict(row, bound, text, found[nearest], _reaches(row, bound, found[nearest]), where)


_GROUPS = (TUNNELS, PLAIN_TUNNELS, ENCRYPTED_TUNNELS)


def _opponents(bound: Bound, parties: list[Party]) -> list[str]:
    if bound.against not in _GROUPS:
        return [bound.against]
    wanted = {TUNNELS: (False, True), PLAIN_TUNNELS: (False,), ENCRYPTED_TUNNELS: (True,)}[bound.against]
    return [party.key for party in parties if party.tunnel and party.encrypted in wanted]


def _compare(row: Row, bound: Bound, own: list[float | None], other: list[float | None]) -> float | None:
    pairs = [(a, b) for a, b in zip(own, other, strict=False) if a is not None and b is not None]
    if bound.relation == "above":
        return summary(row, [a - b for a, b in pairs])
    return summary(row, [a / b for a, b in pairs if b])


def _reaches(row: Row, bound: Bound, figure: float) -> bool:
    return figure >= bound.number if row.higher_is_better else figure <= bound.number


def _text(row: Row, bound: Bound, titles: dict[str, str]) -> str:
    sign = "≥" if row.higher_is_better else "≤"
    side = titles.get(bound.side, bound.side)
    against = ROWS[bound.against_row].title if bound.against_row else titles.get(bound.against, bound.against)
    match bound.relation:
        case "value":
            return f"{side} {sign} {bound.number:g} {row.unit}"
        case "above":
            return f"{side} {sign} {against} + {bound.number:g} {row.unit}"
        case "times":
            return f"{side} {sign} {bound.number:g} × {against}"
