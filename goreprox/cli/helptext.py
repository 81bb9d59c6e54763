"""The layout of `--help`: each option on its own line, its description below, at most 80 columns."""

import textwrap
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cyclopts.help import HelpEntry, HelpPanel
    from rich.console import Console, ConsoleOptions, RenderableType

COLUMNS: Final = 80
_INDENT: Final = " " * 6
_COMMAND_COLUMNS: Final = 14


def example(*lines: str) -> str:
    """Return the end of a command's help: command lines to copy."""
    return "\n".join(("Examples:", *(f"  {line}" for line in lines)))


class Formatter:
    """Formats help without boxes, so that it can be read on any terminal and searched."""

    def __call__(self, console: "Console", options: "ConsoleOptions", panel: "HelpPanel") -> None:
        """Print one group of options or of commands."""
        write = _command if panel.format == "command" else _option
        lines = [line for entry in panel.entries for line in write(entry)]
        if lines:
            _print(console, "", f"{panel.title}:", *lines)

    def render_usage(self, console: "Console", options: "ConsoleOptions", usage: object) -> None:
        """Print the usage line."""
        _print(console, f"Usage: {str(usage).removeprefix('Usage:').strip()}")

    def render_description(self, console: "Console", options: "ConsoleOptions", description: "RenderableType") -> None:
        """Print the description of the command."""
        _print(console, "", *_wrapped(_plain(description), ""))


def _option(entry: "HelpEntry") -> list[str]:
    labels = [label for label in entry.display_labels_with_metavar if not label.startswith("--empty-")]
    text = _plain(entry.description)
    if entry.choices:
        text += f" One of {', '.join(entry.choices)}."
    if entry.required:
        text += " Required."
    if entry.default is not None and entry.default != "False":
        text += f" [default: {entry.default}]"
    return [f"  {' '.join(labels)}", *_wrapped(text, _INDENT)]


def _command(entry: "HelpEntry") -> list[str]:
    first, *rest = _wrapped(_plain(entry.description), " " * _COMMAND_COLUMNS)
    name = "  " + ", ".join(entry.all_options)
    return [
        name.ljust(_COMMAND_COLUMNS) + first.lstrip() if len(name) < _COMMAND_COLUMNS else f"{name}\n{first}",
        *rest,
    ]


def _wrapped(text: str, indent: str) -> list[str]:
    return [
        line
        for paragraph in text.split("\n\n")
        for line in textwrap.wrap(
            " ".join(paragraph.split()),
            COLUMNS,
            initial_indent=indent,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
    ] or [indent]


def _plain(text: object) -> str:
    """Return the plain text of a rich renderable."""
    if text is None:
        return ""
    renderable = getattr(text, "primary_renderable", text)
    return str(getattr(renderable, "plain", renderable) or "").strip()


def _print(console: "Console", *lines: str) -> None:
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
