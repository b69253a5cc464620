"""`packshot channels list | check | feed`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.console import AsJson, answer, err, table
from pipelines.errors import IntegrityError, UsageError

app = typer.Typer(no_args_is_help=True, help="List the channels, check a channel file, or write a feed.")


@app.command("list")
def list_all(as_json: AsJson = False) -> None:
    """List the channels: name, size, format and description."""
    from pipelines.scenes.channels import list_channels

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
    from pipelines.scenes.channels import check_channel

    channel = check_channel(file)
    answer(as_json, {"name": channel.name}, f"{file}: {channel.width}×{channel.height} {channel.format}: valid")


@app.command()
def feed(
    name: Annotated[str, typer.Argument(metavar="CHANNEL", help="A channel that has a feed.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")],
    as_json: AsJson = False,
) -> None:
    """Write a channel's feed as it is now, the same as its public address answers.

    The feed is checked first. A defective feed is not written.
    """
    from pipelines.ledger.postgres import connect
    from pipelines.ledger.shown import shown_images
    from pipelines.quality.tables import validate
    from pipelines.runs.channel_feed import channel_feed, versioned
    from pipelines.scenes.channels import load_channel
    from pipelines.settings import get_settings

    settings, channel = get_settings(), load_channel(name)
    if channel.feed is None:
        raise UsageError(f"channel {name} has no feed: give its file the key `feed`")
    if not settings.public_url:
        raise UsageError("PACKSHOT_PUBLIC_URL is not set: a feed needs the address at which its images are reachable")
    images = list(shown_images(connect(settings.database_url), name))
    rows = [{"id": one.sku, "scene": one.scene, "link": versioned(one, name, settings.public_url)} for one in images]
    for failure in validate("feed", rows).failures:
        words = f"{failure.reason}: {', '.join(failure.rows[:5])}"
        if failure.critical:
            raise IntegrityError(f"the feed of channel {name} is defective, and is not written: {words}")
        err.print(words, soft_wrap=True)
    partial = out.with_name(f".{out.name}.part")
    partial.write_bytes(b"".join(channel_feed(images, name, channel.feed, settings.public_url)))
    partial.replace(out)
    answer(as_json, {"channel": name, "images": len(images), "file": out}, f"{len(images)} images in {out}")
