"""The review page: held images one after the other, decided with single keys.

    GET  /review                       the page
    GET  /review/queue                 the next images after one of them, as JSON
    GET  /review/images/{final}        one image
    GET  /review/decisions.csv         decisions that were made, as a file for a spreadsheet
    GET  /review/selection             count, fingerprint and a sample of what a batch would decide
    POST /review/decisions             decide one image, named by its sha256
    POST /review/decisions/{id}/undo
    POST /review/batches               decide a selection as one
    POST /review/batches/{batch}/undo

Looking needs `GET`, deciding `PUT` on the HITL details of `publish_reviewed`.
"""

from __future__ import annotations

import secrets
from http import HTTPStatus
from typing import Annotated, Any

from airflow.api_fastapi.core_api.security import GetUserDep
from fastapi import APIRouter, Depends, HTTPException, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from pydantic import StringConstraints

from packshot_console import queue
from packshot_console.guards import DECIDE, not_foreign, same_origin
from packshot_console.pages import page
from packshot_console.requests import Body, Words, answer, as_json, may_decide, read_body, read_choice
from packshot_console.services import ledger
from pipelines.ledger import decisions
from pipelines.ledger.decisions import DecisionFilter, Selection
from pipelines.runs.decision_list import decisions_csv

AT_ONCE = 6
"""Images of one answer: the one that is shown, and the next five."""

SAMPLE = 12

Digest = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Query(max_length=300)]

router = APIRouter(prefix="/review")


class OneDecision(Body):
    """Body of a decision about one image."""

    final: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    choice: str
    reason: Words = ""


class BatchDecision(Body):
    """Body of a decision about a selection."""

    run: Words = ""
    scene: Words = ""
    check: Words = ""
    fingerprint: Words
    choice: str
    reason: Words = ""


def selection(run: Name = "", scene: Name = "", check: Name = "") -> Selection:
    """The part of the queue that the address names."""
    return Selection(run, scene, check)


Selected = Annotated[Selection, Depends(selection)]


@router.get("")
def review_page(request: Request, user: GetUserDep, selected: Selected) -> Response:
    """The page; its script fetches the queue."""
    return page(request, "review.html", selected=selected, choices=queue.choices(), may_decide=may_decide(user))


@router.get("/queue")
def next_images(
    request: Request,
    selected: Selected,
    after: Annotated[str, Query(pattern=r"^([0-9a-f]{64})?$")] = "",
    seat: Annotated[str, Query(pattern=r"^[0-9a-f]{0,32}$")] = "",
    fresh: bool = False,
) -> Response:
    """The next images, and how many the selection has. With a seat they are handed to it."""
    if seat:
        not_foreign(request)
    if fresh and seat:
        queue.leave(seat)
    items, count = queue.items(selected, after, AT_ONCE, seat)
    return as_json({"items": items, "count": count})


@router.post("/seats/{seat}/leave", dependencies=[Depends(same_origin)], status_code=HTTPStatus.NO_CONTENT)
def leave(seat: Annotated[str, Path(pattern=r"^[0-9a-f]{1,32}$")]) -> None:
    """A page was closed: the images that it was handed are free for others at once."""
    queue.leave(seat)


@router.get("/images/{final}")
def one_image(final: Digest) -> Response:
    """One image."""
    found = queue.item(final)
    if found is None:
        raise HTTPException(HTTPStatus.NOT_FOUND, "no run has such an image")
    return as_json({"item": found})


@router.get("/selection")
def selection_page(selected: Selected) -> Response:
    """What a batch decision would decide."""
    batch = decisions.counted(ledger().engine, selected, SAMPLE)
    shown = [{"final": f, "title": t, "reason": r} for f, t, r in queue.described(batch.sample)]
    return as_json({"count": batch.count, "fingerprint": batch.fingerprint, "sample": shown})


@router.get("/decisions.csv")
def decisions_file(
    run: Name = "", scene: Name = "", channel: Name = "", sku: Name = "", check: Name = ""
) -> StreamingResponse:
    """Decisions, those that were undone too, newest first. They are read while they are sent."""
    found = decisions.list_decisions(ledger().engine, DecisionFilter(run, scene, channel, sku.strip(), check))
    headers = {"Content-Disposition": 'attachment; filename="decisions.csv"'}
    return StreamingResponse(decisions_csv(found), media_type="text/csv; charset=utf-8", headers=headers)


@router.post("/decisions", dependencies=DECIDE)
async def decide(request: Request, user: GetUserDep) -> Response:
    """Decide one image. 409 if it was superseded, decided or published meanwhile, with what is there now."""
    body = await read_body(request, OneDecision)
    choice = read_choice(body.choice)
    return await run_in_threadpool(
        answer, lambda: decisions.decide(ledger().engine, body.final, choice, user.get_name(), body.reason)
    )


@router.post("/decisions/{decision}/undo", dependencies=DECIDE)
async def undo(decision: Annotated[int, Path(ge=1, lt=2**63)], user: GetUserDep) -> Response:
    """Take one decision back."""
    return await run_in_threadpool(answer, lambda: decisions.undo(ledger().engine, decision, user.get_name()))


@router.post("/batches", dependencies=DECIDE)
async def decide_batch(request: Request, user: GetUserDep) -> Response:
    """Decide a selection as one."""
    body = await read_body(request, BatchDecision)
    choice, batch = read_choice(body.choice), secrets.token_hex(8)

    def act() -> dict[str, Any]:
        where = Selection(body.run, body.scene, body.check)
        count = decisions.decide_selection(
            ledger().engine, where, body.fingerprint, choice, user.get_name(), batch, body.reason
        )
        return {"batch": batch, "count": count}

    return await run_in_threadpool(answer, act)


@router.post("/batches/{batch}/undo", dependencies=DECIDE)
async def undo_batch(batch: Annotated[str, Path(pattern=r"^[0-9a-f]{16}$")], user: GetUserDep) -> Response:
    """Take a batch back."""
    return await run_in_threadpool(
        answer, lambda: {"count": decisions.undo_batch(ledger().engine, batch, user.get_name())}
    )
