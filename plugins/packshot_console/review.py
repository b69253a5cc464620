"""The review page: held images one after the other, decided with single keys.

    GET  /review                       the page
    GET  /review/queue                 the next images after one of them, as JSON
    GET  /review/images/{final}        one image
    GET  /review/selection             count, fingerprint and a sample of what a batch would decide
    POST /review/decisions             decide one image, named by its sha256
    POST /review/decisions/{id}/undo
    POST /review/batches               decide a selection as one
    POST /review/batches/{batch}/undo

Looking needs `GET`, deciding `PUT` on the HITL details of `publish_reviewed`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated, Any, TypeVar

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.api_fastapi.core_api.security import GetUserDep
from fastapi import APIRouter, Depends, HTTPException, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.encoders import jsonable_encoder
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from packshot_console import queue
from packshot_console.guards import DECIDE, REVIEWED, same_origin
from packshot_console.pages import page
from packshot_console.poke import poke
from packshot_console.services import ledger
from pipelines.errors import UsageError
from pipelines.ledger import decisions
from pipelines.ledger.decisions import AlreadyDecided, Choice, Selection, SelectionChanged, Superseded

AT_ONCE = 6
"""Images of one answer: the one that is shown, and the next five."""

SAMPLE = 12
BODY_BYTES = 20_000

Digest = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]
Words = Annotated[str, StringConstraints(max_length=500, pattern=r"^[^\x00]*$")]
Name = Annotated[str, Query(max_length=300)]

router = APIRouter(prefix="/review")


class Body(BaseModel):
    """What a page sends: nothing unknown, nothing of another type."""

    model_config = ConfigDict(extra="forbid", strict=True)


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


B = TypeVar("B", bound=Body)


def selection(run: Name = "", scene: Name = "", check: Name = "") -> Selection:
    """The part of the queue that the address names."""
    return Selection(run, scene, check)


Selected = Annotated[Selection, Depends(selection)]


@router.get("")
def review_page(request: Request, user: GetUserDep, selected: Selected) -> Response:
    """The page; its script fetches the queue."""
    details = DagDetails(id=REVIEWED)
    may_decide = get_auth_manager().is_authorized_dag(
        method="PUT", access_entity=DagAccessEntity.HITL_DETAIL, details=details, user=user
    )
    return page(
        request, "review.html", selected=selected, choices=queue.choices(), may_decide=may_decide, user=user.get_name()
    )


@router.get("/queue")
def next_images(
    selected: Selected,
    after: Annotated[str, Query(pattern=r"^([0-9a-f]{64})?$")] = "",
    seat: Annotated[str, Query(pattern=r"^[0-9a-f]{0,32}$")] = "",
    fresh: bool = False,
) -> Response:
    """The next images, and how many the selection has."""
    if fresh and seat:
        queue.leave(seat)
    count, _ = decisions.counted(ledger().engine, selected)
    return _json({"items": queue.items(selected, after, AT_ONCE, seat), "count": count})


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
    return _json({"item": found})


@router.get("/selection")
def selection_page(selected: Selected) -> Response:
    """What a batch decision would decide."""
    count, fingerprint = decisions.counted(ledger().engine, selected)
    shown = [{"final": f, "title": t, "reason": r} for f, t, r in queue.sample(selected, SAMPLE)]
    return _json({"count": count, "fingerprint": fingerprint, "sample": shown})


@router.post("/decisions", dependencies=DECIDE)
async def decide(request: Request, user: GetUserDep) -> Response:
    """Decide one image. 409 if it was superseded, decided or published meanwhile, with what is there now."""
    body = await _body(request, OneDecision)
    choice = _choice(body.choice)
    return await run_in_threadpool(
        _answer, lambda: decisions.decide(ledger().engine, body.final, choice, user.get_name(), body.reason)
    )


@router.post("/decisions/{decision}/undo", dependencies=DECIDE)
async def undo(decision: Annotated[int, Path(ge=1, lt=2**63)], user: GetUserDep) -> Response:
    """Take one decision back."""
    return await run_in_threadpool(_answer, lambda: decisions.undo(ledger().engine, decision, user.get_name()))


@router.post("/batches", dependencies=DECIDE)
async def decide_batch(request: Request, user: GetUserDep) -> Response:
    """Decide a selection as one."""
    body = await _body(request, BatchDecision)
    choice, batch = _choice(body.choice), secrets.token_hex(8)

    def act() -> dict[str, Any]:
        where = Selection(body.run, body.scene, body.check)
        count = decisions.decide_selection(
            ledger().engine, where, body.fingerprint, choice, user.get_name(), batch, body.reason
        )
        return {"batch": batch, "count": count}

    return await run_in_threadpool(_answer, act)


@router.post("/batches/{batch}/undo", dependencies=DECIDE)
async def undo_batch(batch: Annotated[str, Path(pattern=r"^[0-9a-f]{16}$")], user: GetUserDep) -> Response:
    """Take a batch back."""
    return await run_in_threadpool(
        _answer, lambda: {"count": decisions.undo_batch(ledger().engine, batch, user.get_name())}
    )


def _answer(act: Callable[[], Any]) -> Response:
    """What `act` returns; a refusal as 409, with the image that took the place of a superseded one."""
    try:
        done = act()
    except Superseded as refusal:
        return _refusal("superseded", refusal, item=queue.item(refusal.final))
    except AlreadyDecided as refusal:
        return _refusal("decided", refusal)
    except SelectionChanged as refusal:
        return _refusal("changed", refusal)
    except UsageError as refusal:
        return _refusal("refused", refusal)
    poke()
    return _json(done)


def _refusal(problem: str, refusal: UsageError, **more: Any) -> Response:
    return _json({"problem": problem, "words": str(refusal), **more}, HTTPStatus.CONFLICT)


def _json(document: Any, status: HTTPStatus = HTTPStatus.OK) -> Response:
    return JSONResponse(jsonable_encoder(document), int(status))


def _choice(name: str) -> Choice:
    try:
        return Choice(name)
    except ValueError:
        raise HTTPException(HTTPStatus.UNPROCESSABLE_ENTITY, "a choice is approve, reject or retry") from None


async def _body(request: Request, kind: type[B]) -> B:
    """The request's JSON. It is read here, after the guards: FastAPI would answer malformed bodies before them."""
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > BODY_BYTES:
            raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "a decision is shorter")
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise HTTPException(HTTPStatus.UNPROCESSABLE_ENTITY, said) from None
