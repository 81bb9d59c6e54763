"""Results as JSON, as tables for a terminal and for docs/benchmarks.md, and as charts."""

import json
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks.rows import CHARTS, ROWS, TABLES, Row
from benchmarks.verdicts import Party, Values, Verdict, judge, summary

BEGIN: Final = "<!-- results: `make bench` writes what is between these two lines -->"
END: Final = "<!-- end of results -->"
SAYS: Final = {True: "holds", False: "**does not hold**", None: "not measured"}


@dataclass
class Results:
    """The results of one run, as in the JSON file."""

    command: str
    began: str
    """When, in ISO 8601, UTC."""
    quick: bool
    machine: dict[str, str]
    versions: dict[str, str]
    settings: dict[str, Any]
    parties: list[Party]
    rounds: int = 0
    """How many were finished."""
    values: Values = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, side: str, rows: Iterable[str], figures: dict[str, float]) -> None:
        """Take the figures of one side in one round; a row without one gets None."""
        for row in rows:
            self.values.setdefault(row, {}).setdefault(side, []).append(figures.get(row))

    def save(self, path: Path) -> None:
        """Write the JSON file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Results":
        """Read the JSON file."""
        document = json.loads(path.read_text(encoding="utf-8"))
        document["parties"] = [Party(**party) for party in document["parties"]]
        return cls(**document)

    def verdicts(self) -> list[Verdict]:
        """Return what became of every floor and goal."""
        return judge(self.values, self.parties)


def machine() -> dict[str, str]:
    """Describe this machine."""
    found = {"system": f"{platform.system()} {platform.release().split('-')[0]}", "Python": platform.python_version()}
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8").splitlines()
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        found["CPU"] = f"{len(models)} × {models[0]}" if models else "unknown"
    memory = Path("/proc/meminfo")
    if memory.exists():
        found["memory"] = f"{int(memory.read_text(encoding='utf-8').split()[1]) / (1 << 20):.1f} GiB"
    return found


def version(command: tuple[str, ...]) -> str:
    """Return the first line in which a program tells its version."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=15, check=False)
    said = (done.stdout + done.stderr).splitlines()
    found = next((line for line in said if re.search(r"\d+\.\d+", line) and "Timestamp" not in line), "unknown")
    boast = r"^(nginx version: nginx/|Build Version: +|wrk |HAProxy version )|( - http\S+|\[|Copyright).*$"
    return re.sub(boast, "", found).strip()


def number(row: Row, value: float | None) -> str:
    """Format one figure."""
    return "–" if value is None else f"{value:,.{row.digits}f}"


def cell(row: Row, values: list[float | None]) -> str:
    """Format the figure of all rounds, and how far they were apart."""
    there = [value for value in values if value is not None]
    text = number(row, summary(row, values))
    if len(there) < 2:
        return text
    return f"{text} ({number(row, min(there))} – {number(row, max(there))})"


def tables(results: Results) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Give each table: title, heads, lines. A column or line without a figure is left out."""
    for title, keys in TABLES.items():
        rows = [ROWS[key] for key in keys if _figures(results, key)]
        lines = []
        for party in results.parties:
            cells = [cell(row, results.values[row.key].get(party.key, [])) for row in rows]
            if any(text != "–" for text in cells):
                lines.append([party.title, *cells])
        if lines:
            yield title, ["", *(f"{row.title}, {row.unit}" for row in rows)], lines
    lines = [
        [
            verdict.row.title,
            verdict.bound.level,
            verdict.text,
            _figure(verdict) + (f" ({verdict.where})" if verdict.where else ""),
            SAYS[verdict.holds],
        ]
        for verdict in results.verdicts()
    ]
    yield "Floors and goals", ["row", "", "bound", "measured", ""], lines


def _figures(results: Results, key: str) -> bool:
    return any(value is not None for values in results.values.get(key, {}).values() for value in values)


def _figure(verdict: Verdict) -> str:
    if verdict.figure is None:
        return "–"
    if verdict.bound.relation == "times":
        return f"{verdict.figure:.2f} ×"
    return number(verdict.row, verdict.figure)


def show(console: Console, results: Results) -> None:
    """Print the tables."""
    for title, heads, lines in tables(results):
        table = Table(*heads, title=title, title_justify="left")
        for line in lines:
            if line[-1] != SAYS[None]:
                table.add_row(*(text.replace("**", "") for text in line))
        if table.row_count:
            console.print(table)
    for note in results.notes:
        console.print(f"note: {note}", style="yellow", markup=False)


def write(results: Results, folder: Path) -> None:
    """Write FOLDER/benchmarks/results.json, the charts beside it, and the results into FOLDER/benchmarks.md."""
    results.save(folder / "benchmarks" / "results.json")
    charts = list(draw(results, folder / "benchmarks"))
    page = folder / "benchmarks.md"
    text = page.read_text(encoding="utf-8") if page.exists() else f"# Benchmarks\n\n{BEGIN}\n{END}\n"
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n\n{markdown(results, charts)}\n{END}{after}", encoding="utf-8")


def markdown(results: Results, charts: Iterable[str]) -> str:
    """Return the results as a part of a Markdown page; `charts` are file names in the folder `benchmarks`."""
    held = [verdict for verdict in results.verdicts() if verdict.holds is not None]
    counts = [
        f"{sum(bool(verdict.holds) for verdict in held if verdict.bound.level == level)} of "
        f"{sum(verdict.bound.level == level for verdict in held)} measured {level}s hold"
        for level in ("floor", "goal")
    ]
    rounds = "one round" if results.rounds == 1 else f"{results.rounds} rounds"
    lines = [
        f"`{results.command}`, begun {results.began}, {rounds}. {'; '.join(counts)}.",
        "",
        *(f"- {name}: {text}" for name, text in {**results.machine, **results.versions}.items()),
        "",
    ]
    lines += [f"![{name.removesuffix('.svg')}](benchmarks/{name})" for name in charts]
    for title, heads, body in tables(results):
        lines += ["", f"### {title}", "", "| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        lines += ["| " + " | ".join(cells) + " |" for cells in body]
    if results.notes:
        lines += ["", "### Notes", "", *(f"- {note}" for note in _merged(results.notes))]
    return "\n".join(lines) + "\n"


def _merged(notes: list[str]) -> Iterator[str]:
    """Return each note once, with its count."""
    for note in dict.fromkeys(notes):
        times = notes.count(note)
        yield note if times == 1 else f"{note} ({times} times)"


def draw(results: Results, folder: Path) -> Iterator[str]:
    """Draw the charts, and give their file names."""
    import pygal  # noqa: PLC0415 - only whoever draws needs it
    from pygal.style import CleanStyle  # noqa: PLC0415

    folder.mkdir(parents=True, exist_ok=True)
    for name, keys in CHARTS.items():
        rows = [ROWS[key] for key in keys if _figures(results, key)]
        if not rows:
            continue
        there = [p for p in results.parties if any(_summary(results, row, p) is not None for row in rows)]
        unit = rows[0].unit
        chart = pygal.HorizontalBar(
            style=CleanStyle,
            js=(),
            no_prefix=True,  # no random names: the same figures make the same file
            title=rows[0].title if len(rows) == 1 else "",
            x_title=unit,
            width=900,
            height=80 + 20 * len(there) * (1 + len(rows)),
            legend_at_bottom=True,
            show_legend=len(rows) > 1,
            print_values=True,
            print_values_position="top",
            value_formatter=lambda value, digits=rows[0].digits: f"{value:,.{digits}f}",
            x_label_rotation=0,
            include_x_axis=True,
        )
        chart.x_labels = [party.title for party in reversed(there)]
        for row in rows:
            chart.add(row.title, [_summary(results, row, party) for party in reversed(there)])
        # A picture: it needs no script. The settings of the library, and their paths, are of no interest either.
        picture = re.sub(rb"<script.*?</script>", b"", chart.render(), flags=re.DOTALL)
        (folder / f"{name}.svg").write_bytes(picture + b"\n")
        yield f"{name}.svg"


def _summary(results: Results, row: Row, party: Party) -> float | None:
    return summary(row, results.values.get(row.key, {}).get(party.key, []))


def command_line() -> str:
    """Return how this program was called, without paths of this machine."""
    return " ".join(("python -m benchmarks", *("DIR" if Path(word).is_absolute() else word for word in sys.argv[1:])))
