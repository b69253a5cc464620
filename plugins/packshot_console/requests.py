"""Requests that change something: their bodies, who may send them, and how a refusal of the ledger is answered."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated, Any, TypeVar

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from fastapi import HTTPException, Request, Response
from fastapi.encoders import jsonable_encoder
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from packshot_console import queue
from packshot_console.guards import CAMPAIGN, DAGS, REVIEWED
from packshot_console.poke import poke
from pipelines.errors import UsageError
from pipelines.ledger.decisions import AlreadyDecided, Choice, SelectionChanged, Superseded

BODY_BYTES = 20_000

Words = Annotated[str, StringConstraints(max_length=500, pattern=r"^[^\x00]*$")]


class Body(BaseModel):
    """What a page sends: nothing unknown, nothing of another type."""

    model_config = ConfigDict(extra="forbid", strict=True)


B = TypeVar("B", bound=Body)


def may_decide(user: BaseUser) -> bool:
    """Whether the user passes `guards.editor`."""
    return get_auth_manager().is_authorized_dag(
        method="PUT", access_entity=DagAccessEntity.HITL_DETAIL, details=DagDetails(id=REVIEWED), user=user
    )


def may_start(user: BaseUser) -> bool:
    """Whether the user passes `guards.starter`."""
    return get_auth_manager().is_authorized_dag(
        method="POST", access_entity=DagAccessEntity.RUN, details=DagDetails(id=CAMPAIGN), user=user
    )


def may_cancel(user: BaseUser) -> bool:
    """Whether the user passes `guards.CANCEL`."""
    manager, entity = get_auth_manager(), DagAccessEntity.RUN
    return all(
        manager.is_authorized_dag(method="PUT", access_entity=entity, details=DagDetails(id=dag_id), user=user)
        for dag_id in DAGS
    )


async def read_body(request: Request, kind: type[B], limit: int = BODY_BYTES) -> B:
    """The request's JSON, of at most `limit` bytes.

    It is read here, after the guards: FastAPI would answer malformed bodies before them."""
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > limit:
            raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a request has at most {limit} bytes")
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise HTTPException(HTTPStatus.UNPROCESSABLE_ENTITY, said) from None


def read_choice(name: str) -> Choice:
    """The choice of this name, or 422."""
    try:
        return Choice(name)
    except ValueError:
        raise HTTPException(HTTPStatus.UNPROCESSABLE_ENTITY, "a choice is approve, reject, retry or confirm") from None


def answer(act: Callable[[], Any]) -> Response:
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
        return refused(refusal)
    poke()
    return as_json(done)


def reply(act: Callable[[], Any]) -> Response:
    """What `act` returns; a refusal as 409. Unlike `answer`, nothing was decided that Airflow has to know of."""
    try:
        return as_json(act())
    except UsageError as refusal:
        return refused(refusal)


def as_json(document: Any, status: HTTPStatus = HTTPStatus.OK) -> Response:
    """Dataclasses and times as JSON."""
    return JSONResponse(jsonable_encoder(document), int(status))


def refused(refusal: UsageError) -> Response:
    """The sentence of a refusal, as 409."""
    return _refusal("refused", refusal)


def _refusal(problem: str, refusal: UsageError, **more: Any) -> Response:
    return as_json({"problem": problem, "words": str(refusal), **more}, HTTPStatus.CONFLICT)
