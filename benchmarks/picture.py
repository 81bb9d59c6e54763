"""Draw `goreprox demo` as an animated SVG: `make picture`.

The demo runs once, in a terminal. Each screen it shows becomes a frame of a film strip, which CSS moves past a window
at the pace of that run. Only the prompt and the typing of the command are added.
"""

import fcntl
import itertools
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from html import escape
from typing import Final

import pyte

COMMAND: Final = "goreprox demo"
COLUMNS: Final = 78
"""At this width the last line breaks between two words."""
ROWS: Final = 7
TYPING_S, PAUSE_S, END_S = 0.07, 0.6, 6.0
SETTLED_S: Final = 0.02
"""A screen is complete when nothing was written for so long."""

CELL, LINE, MARGIN, BAR_OF_WINDOW = 9.0, 24, 22, 38
WIDTH: Final = COLUMNS * CELL + 2 * MARGIN
HEIGHT: Final = ROWS * LINE
COLORS: Final = {
    "default": "#d5dbe3",
    "red": "#f0a45d",
    "green": "#7bd88f",
    "3a3a3a": "#3b434d",
    "f92672": "#4aa8ff",
    "729c1f": "#7bd88f",
}
"""By pyte's names for the colours of rich. The last three: the rest of a bar, its filled part, and a full bar."""
STROKES: Final = {"━": (0.0, 1.0), "╸": (0.0, 0.5), "╺": (0.5, 1.0)}
"""Where the parts of the bar begin and end in their cells: they are drawn, since fonts leave gaps."""

Row = tuple[tuple[str, str], ...]
"""Characters and their colours."""
Screen = tuple[Row, ...]
Frame = tuple[float, Screen]
"""How many seconds a screen is shown."""


def coloured(text: str, color: str = "default") -> Row:
    return tuple((character, color) for character in text)


def prompt(typed: str) -> Row:
    return coloured("$ ", "green") + coloured(typed) + coloured("█")


def shown(terminal: pyte.Screen) -> Screen:
    lines = [[terminal.buffer[y][x] for x in range(COLUMNS)] for y in range(terminal.lines)]
    rows = [tuple((cell.data, cell.fg) for cell in line) for line in lines]
    return tuple(row for row in rows if any(character != " " for character, _ in row))


def recorded() -> Iterator[Frame]:
    """Run the demo, and give what its terminal shows until it ends.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    terminal = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(terminal)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", *COMMAND.split()],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm-256color", "COLORTERM": "truecolor"},
    )
    os.close(theirs)
    screen: Screen = ()
    since = time.monotonic()
    try:
        while data := os.read(ours, 1 << 16):
            stream.feed(data)
            if select.select([ours], [], [], SETTLED_S)[0] or shown(terminal) == screen:
                continue
            now = time.monotonic()
            yield now - since, screen
            screen, since = shown(terminal), now
    except OSError:  # Linux: no process has the terminal open any more
        pass
    os.close(ours)
    if code := process.wait():
        raise subprocess.CalledProcessError(code, COMMAND)
    yield END_S, (*shown(terminal), prompt(""))


def film() -> Iterator[Frame]:
    for length in range(len(COMMAND) + 1):
        yield TYPING_S if 0 < length < len(COMMAND) else PAUSE_S, (prompt(COMMAND[:length]),)
    command = prompt(COMMAND)[:-1]
    for seconds, screen in recorded():
        yield seconds, (command, *screen)


def drawn(row: Row) -> str:
    """Draw a row at the origin: a run of one colour is one element."""
    parts = []
    column = 0
    for (color, is_bar), cells in itertools.groupby(row, lambda cell: (cell[1], cell[0] in STROKES)):
        run = "".join(character for character, _ in cells)
        fill = COLORS[color]
        if is_bar:
            left = (column + STROKES[run[0]][0]) * CELL
            right = (column + len(run) - 1 + STROKES[run[-1]][1]) * CELL
            parts.append(f'<rect x="{left:g}" y="9" width="{right - left:g}" height="5" fill="{fill}"/>')
        elif run == "█":
            parts.append(f'<rect x="{column * CELL:g}" y="2" width="{CELL:g}" height="20" fill="{fill}"/>')
        elif text := run.strip():
            x = (column + len(run) - len(run.lstrip())) * CELL
            length = len(text) * CELL
            text = escape(text).replace(" ", "\N{NO-BREAK SPACE}")
            parts.append(f'<text x="{x:g}" y="17" textLength="{length:g}" fill="{fill}">{text}</text>')
        column += len(run)
    return "".join(parts)


def picture(frames: list[Frame]) -> str:
    total = sum(seconds for seconds, _ in frames)
    starts = itertools.accumulate((seconds for seconds, _ in frames), initial=0.0)
    keys = "".join(
        f"{100 * start / total:.2f}% {{ transform: translateY({-index * HEIGHT}px) }}\n"
        for (index, _), start in zip(enumerate(frames), starts, strict=False)
    )
    numbers = {row: number for number, row in enumerate(dict.fromkeys(row for _, screen in frames for row in screen))}
    rows = "\n".join(f'<g id="r{number}">{drawn(row)}</g>' for row, number in numbers.items())
    strip = "\n".join(
        "".join(f'<use href="#r{numbers[row]}" y="{index * HEIGHT + line * LINE}"/>' for line, row in enumerate(screen))
        for index, (_, screen) in enumerate(frames)
    )
    height = HEIGHT + BAR_OF_WINDOW + MARGIN
    lights = "".join(
        f'<circle cx="{22 + 20 * index}" cy="19" r="6" fill="{color}"/>'
        for index, color in enumerate(("#ff5f57", "#febc2e", "#28c840"))
    )
    size = f'viewBox="0 0 {WIDTH:g} {height}" width="{WIDTH:g}" height="{height}"'
    return f"""<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">
<title>goreprox demo: a download that survives cuts of its tunnel</title>
<style>
text {{ font: 15px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace }}
.name {{ font: 13px system-ui, sans-serif; text-anchor: middle }}
#strip {{ animation: play {total:.2f}s step-end infinite }}
@keyframes play {{
{keys}}}
@media (prefers-reduced-motion: reduce) {{
#strip {{ animation: none; transform: translateY({HEIGHT * (1 - len(frames))}px) }}
}}
</style>
<defs>
{rows}
</defs>
<rect x=".5" y=".5" width="{WIDTH - 1:g}" height="{height - 1}" rx="10" fill="#161b22" stroke="#30363d"/>
{lights}
<text class="name" x="{WIDTH / 2:g}" y="24" fill="#8b949e">{COMMAND}</text>
<svg x="{MARGIN}" y="{BAR_OF_WINDOW}" width="{COLUMNS * CELL:g}" height="{HEIGHT}">
<g id="strip">
{strip}
</g>
</svg>
</svg>
"""


if __name__ == "__main__":
    sys.stdout.write(picture(list(film())))
