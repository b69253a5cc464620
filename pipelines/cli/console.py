"""What the commands share: the terminal, progress bars, one answer as JSON or as text, and options of one meaning."""

from __future__ import annotations

import dataclasses
import json
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, SpinnerColumn, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed
from rich.table import Column, Table
from rich.text import Text

if TYPE_CHECKING:
    from pipelines.contracts import ShotState

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
SceneName = Annotated[str, typer.Option("--scene", "-s", help="A scene: see `packshot scenes list`.")]
ChannelName = Annotated[
    str, typer.Option("--channel", help="A channel: see `packshot channels list`.", show_default="the scene's own")
]
ChannelNames = Annotated[
    list[str] | None,
    typer.Option(
        "--channel",
        help="A channel: see `packshot channels list`. May be repeated: each has a run of its own.",
        show_default="the scene's own",
    ),
]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or 'latest': the last that `run` triggered.")]


class Terminal(Console):
    """Prints strings literally. SKUs, titles and reasons come from strangers: brackets are no markup and `:cup:` is no
    emoji. A control character is printed as its escape (`\\x1b`), so that it cannot control the terminal."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Renders every string, printed or in a table's cell."""
        return super().render_str(visible(text), **options)


out = Terminal()
err = Terminal(stderr=True)


def visible(text: str) -> str:
    """Escapes control characters and halves of surrogate pairs; line breaks and tabs stay."""
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in ("Cc", "Cs") and char not in "\n\t"
        else char
        for char in text
    )


def print_error(message: str) -> None:
    """Prints one line on standard error, after the command's name."""
    err.print(line(("packshot:", "red"), f" {message}"), soft_wrap=True)


def line(*pieces: str | tuple[str, str]) -> Text:
    """One line of text. A piece is a string, or a string and its style."""
    return Text.assemble(*(visible(p) if isinstance(p, str) else (visible(p[0]), p[1]) for p in pieces))


def table(*headings: str, rows: Iterable[Sequence[object]]) -> Table:
    """A table of these rows; a cell that is no `Text` is shown as its string. None is cut where the terminal is narrow:
    an address or a path without its end is of no use."""
    made = Table(*(Column(heading, overflow="fold") for heading in headings))
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else str(cell) for cell in row))
    return made


def short_path(path: Path | None) -> str:
    """A path as a reader wants it: relative where it is below the working directory; – where there is none."""
    if path is None:
        return "–"
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def answer(as_json: bool, document: Any, *parts: str | Text | Table) -> None:
    """The result of a command on standard output: `document` as JSON with `--json`, otherwise `parts` for a reader."""
    if as_json:
        print(json.dumps(document, indent=2, ensure_ascii=False, default=_plain))
        return
    for part in parts:
        out.print(part, soft_wrap=not isinstance(part, Table))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, date | datetime):
        return value.isoformat()
    return str(value)


def as_warnings(alike: Sequence[tuple[str, str]], most: int = 20) -> list[str]:
    """A line for each of the first pairs of products that show nearly the same picture, and one for the others."""
    lines = [f"{one} and {other} show nearly the same picture: is one photo wrong?" for one, other in alike[:most]]
    more = len(alike) - most
    return [*lines, f"and {more} more pairs: see --json"] if more > 0 else lines


def progress_bar(*counts: ProgressColumn) -> Progress:
    """A progress bar on standard error. `counts` replace "m of n" and the task's field `note`, which is required."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(),
        *(counts or (MofNCompleteColumn(), TextColumn("{task.fields[note]}", markup=False))),
        Elapsed(),
        console=err,
    )


def exit_code(states: Sequence[ShotState]) -> int:
    """1 where a product failed, 2 where every product was rejected, otherwise 0."""
    if "failed" in states:
        return 1
    return 2 if states and set(states) == {"rejected"} else 0
