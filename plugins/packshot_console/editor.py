"""The cutout editor: a person corrects what is product by clicks, a box, brush and eraser; HQ-SAM answers.

    POST /editor/process            has the process that answers, for a page on which the editor can be opened
    GET  /editor/{final}            the page, for a held image
    POST /editor/{final}/open       has the photo ready, so that the first click is answered at once
    POST /editor/{final}/answers    the mask after a click or a box
    POST /editor/{final}/cutouts    saves the mask as a new cutout, and sends back what stands on the old one

A mask travels as one bit a pixel. Torch is in a child process (`pipelines.runs.editing`), and requests wait for it
without holding a thread of the server.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from http import HTTPStatus
from typing import Annotated, Any

import anyio
from airflow.api_fastapi.core_api.security import GetUserDep
from fastapi import APIRouter, HTTPException, Path, Request, Response
from pydantic import Field, StringConstraints

from packshot_console import queue
from packshot_console.guards import DECIDE
from packshot_console.pages import page
from packshot_console.requests import Body, answer, as_json, may_decide, read_body, refused
from packshot_console.services import editor, ledger, store
from pipelines.contracts import BY_HAND, Artifact, Job, State, Step, Verdict
from pipelines.errors import Rejected, UsageError
from pipelines.ledger.decisions import affected
from pipelines.models.profile import load_profile
from pipelines.revisions.registry import install
from pipelines.runs.editing import Mask, Prompts
from pipelines.scenes import load_scene
from pipelines.settings import get_settings
from pipelines.stages.keys import cutout_job
from pipelines.workflow import Recipe

BODY_BYTES = 400_000
SIDE = 1024
"""Longer side of the picture that is edited, px: that at which the segmenters work."""

MAX_CLICKS = 200

Digest = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0, le=1)]
Side = Annotated[int, Field(ge=16, le=SIDE)]

router = APIRouter(prefix="/editor")
one_at_a_time = anyio.CapacityLimiter(1)


class Drawn(Body):
    """Body of a request with a mask: one bit a pixel, row by row, in base64."""

    width: Side
    height: Side
    mask: Annotated[str, StringConstraints(max_length=SIDE * SIDE // 6 + 8)]

    def read(self) -> Mask:
        """The mask, or 422."""
        try:
            bits = base64.b64decode(self.mask, validate=True)
        except binascii.Error:
            raise HTTPException(HTTPStatus.UNPROCESSABLE_ENTITY, "the mask is no base64") from None
        if len(bits) != (self.width * self.height + 7) // 8:
            raise HTTPException(HTTPStatus.UNPROCESSABLE_ENTITY, "the mask is not of the size that it names")
        return Mask(self.width, self.height, bits)


class Asked(Drawn):
    """Body of a question: all clicks so far, or a box, in shares of the picture."""

    clicks: Annotated[list[tuple[Share, Share, Annotated[int, Field(ge=0, le=1)]]], Field(max_length=MAX_CLICKS)]
    box: Annotated[list[Share], Field(max_length=4)]


@dataclass(frozen=True, slots=True)
class Editing:
    """What is edited: the cutout of a held image.

    `job` is the step that a person's cutout is an attempt of, `bases` are those of the cutouts that it replaces, and
    `model` is the sha256 of HQ-SAM's weights.
    """

    item: queue.QueueItem
    photo: str
    cutout: str
    job: Job
    bases: tuple[str, ...]
    model: str


@router.post("/process", dependencies=DECIDE, status_code=HTTPStatus.NO_CONTENT)
def start_process() -> None:
    """Have the process that answers; its start takes seconds. It ends by itself if nobody needs it."""
    editor().start()


@router.get("/{final}")
def editor_page(request: Request, user: GetUserDep, final: Digest) -> Response:
    """The page; its script opens the photo."""
    try:
        found = editing(final)
    except UsageError as refusal:
        raise HTTPException(HTTPStatus.NOT_FOUND, str(refusal)) from None
    images, scenes = affected(ledger().engine, found.bases)
    return page(
        request, "editor.html", view=found, images=images, scenes=scenes, may_decide=may_decide(user), side=SIDE
    )


@router.post("/{final}/open", dependencies=DECIDE)
async def open_photo(final: Digest) -> Response:
    """Have the photo's encoding in memory."""

    def act() -> Response:
        found = editing(final)
        editor().open(found.photo, found.model)
        return as_json({"ready": True})

    return await _in_turn(act)


@router.post("/{final}/answers", dependencies=DECIDE)
async def answers(request: Request, final: Digest) -> Response:
    """The mask after a click or a box."""
    body = await read_body(request, Asked, BODY_BYTES)
    mask = body.read()
    if bool(body.clicks) == bool(body.box) or len(body.box) not in (0, 4):
        raise HTTPException(HTTPStatus.UNPROCESSABLE_ENTITY, "a question has clicks, or the four sides of a box")

    def act() -> Response:
        found = _opened(final)
        bits = editor().answer(found.photo, found.model, mask, Prompts(body.clicks, body.box))
        return as_json({"mask": base64.b64encode(bits).decode()})

    return await _in_turn(act)


@router.post("/{final}/cutouts", dependencies=DECIDE)
async def save(request: Request, user: GetUserDep, final: Digest) -> Response:
    """Save the mask as a new cutout; answers how many held images are made again."""
    body = await read_body(request, Drawn, BODY_BYTES)
    mask = body.read()

    def act() -> dict[str, Any]:
        found = editing(final)
        data, facts = editor().finish(found.photo, found.cutout, mask)
        made = Artifact(store().put(data, "image/png"), "cutout", "image/png", len(data))
        job = replace(found.job, attempt=f"{BY_HAND} {secrets.token_hex(8)}")
        judged = Verdict("cutout", 1.0, 0.5, True, picture="cutout")
        step = Step(job.key, job, State.DONE, (made,), facts | {"by": user.get_name()}, (judged,))
        batch = secrets.token_hex(8)
        sent = ledger().correct(step, found.bases, final, user.get_name(), "the cutout was corrected", batch)
        return {"step": step.key, "sent": len(sent)}

    return await _in_turn(lambda: answer(act))


async def _in_turn(act: Callable[[], Response]) -> Response:
    """Whoever waits for the child holds none of the server's threads."""

    def refusing() -> Response:
        try:
            return act()
        except (Rejected, UsageError) as refusal:
            return refused(UsageError(str(refusal)))
        except KeyError as lost:
            return refused(UsageError(f"the store no longer has {lost}: run `packshot verify`"))

    return await anyio.to_thread.run_sync(refusing, limiter=one_at_a_time)


@lru_cache(64)
def _opened(final: str) -> Editing:
    """`editing`, remembered: between two clicks nothing of it matters that could change."""
    return editing(final)


def editing(final: str) -> Editing:
    """What the editor needs of a held image. Raises UsageError for an image that has no cutout to correct."""
    item = queue.item(final)
    if item is None or item.spot:
        raise UsageError("no held image has this sha256")
    (shot,) = ledger().shots(item.run, skus=[item.sku])
    step = ledger().chosen(item.run, [shot], ["cutout"]).get(item.sku, {}).get("cutout")
    if step is None or shot.product.photo is None:
        raise UsageError(f"{item.sku} has no cutout in run {item.run}")
    settings = get_settings()
    install(ledger().engine, store(), settings.profile, settings.state_dir)
    profile = load_profile(settings.profile, settings.models_dir)
    job = cutout_job(shot, {}, Recipe(profile, load_scene(item.scene)), 0)
    bases = tuple(dict.fromkeys((job.base, step.job.base)))
    return Editing(item, shot.product.photo, step.output("cutout"), job, bases, profile.ref("hqsam").sha256)
