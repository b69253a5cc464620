"""`packshot channels list | check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.console import AsJson, answer, table

app = typer.Typer(no_args_is_help=True, help="List the channels, or check a channel file.")


@app.command("list")
def list_all(as_json: AsJson = False) -> None:
    """List the channels: name, size, format and description."""
    from pipelines.channels import list_channels

    channels = list_channels()
    rows = [(one.name, f"{one.width}×{one.height}", one.format, one.description) for one in channels]
    answer(
        as_json,
        [{"name": one.name, "width": one.width, "height": one.height, "format": one.format} for one in channels],
        table("name", "size", "format", "description", rows=rows),
    )


@app.command()
def check(file: Annotated[Path, typer.Argument(help="A channel's YAML file.")], as_json: AsJson = False) -> None:
    """Validate one channel file."""
    from pipelines.channels import check_channel

    channel = check_channel(file)
    answer(as_json, {"name": channel.name}, f"{file}: {channel.width}×{channel.height} {channel.format}: valid")
