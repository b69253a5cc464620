"""Who may look, who may decide, and from where: dependencies of the routes.

Airflow protects no route against forged requests, and its cookie is sent by any page of the same host, also on another
port. So whatever changes something comes from a page of this server, or from a program that sends a token and no
cookie.
"""

from __future__ import annotations

from http import HTTPStatus
from urllib.parse import urlsplit

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import requires_access_dag
from airflow.configuration import conf
from fastapi import Depends, HTTPException, Request

CAMPAIGN = "campaign_backfill"
DAGS = ("catalog_refresh", CAMPAIGN)
"""The DAGs whose runs make images."""

REVIEWED = "publish_reviewed"
"""The DAG that acts on decisions: whoever may answer for it may decide."""

reader = requires_access_dag("GET", DagAccessEntity.HITL_DETAIL, REVIEWED)
editor = requires_access_dag("PUT", DagAccessEntity.HITL_DETAIL, REVIEWED)
starter = requires_access_dag("POST", DagAccessEntity.RUN, CAMPAIGN)
"""The right that Airflow's own API demands of whoever starts a run or a backfill."""


NOT_OURS = "this request does not come from a page of this server"


def no_nul(request: Request) -> None:
    """Nothing is named by a NUL character, and Postgres has no text for it."""
    if "\x00" in request.scope["path"] or "%00" in request.url.query:
        raise HTTPException(HTTPStatus.NOT_FOUND, "nothing has a name with a NUL character")


def same_origin(request: Request) -> None:
    """Refuses a request that another site's page made. Browsers name the site that a request comes from; a request
    without such a name is a program's, and must log in with a token alone."""
    headers = request.headers
    if headers.get("authorization", "").lower().startswith("bearer ") and "cookie" not in headers:
        return
    if "sec-fetch-site" not in headers and "origin" not in headers:
        raise HTTPException(HTTPStatus.FORBIDDEN, NOT_OURS)
    not_foreign(request)


def not_foreign(request: Request) -> None:
    """Refuses a request of which the browser says that another site's page made it. Enough where a request is a GET and
    takes something for a while only: old browsers name no site there."""
    headers = request.headers
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    ours = {headers.get("host"), _host(conf.get("api", "base_url", fallback=""))} - {None, ""}
    if (site is not None and site != "same-origin") or (origin is not None and _host(origin) not in ours):
        raise HTTPException(HTTPStatus.FORBIDDEN, NOT_OURS)


def _host(address: str) -> str:
    """Host and port; "" for what is no address, such as the origin `null` of a sandboxed page."""
    try:
        return urlsplit(address).netloc
    except ValueError:
        return ""


LOOK = [*(Depends(requires_access_dag("GET", None, dag_id)) for dag_id in DAGS), Depends(reader), Depends(no_nul)]
DECIDE = [Depends(editor), Depends(same_origin)]
START = [Depends(starter), Depends(same_origin)]
CANCEL = [*(Depends(requires_access_dag("PUT", DagAccessEntity.RUN, dag_id)) for dag_id in DAGS), Depends(same_origin)]
"""The right that Airflow's own API demands of whoever marks a run as failed."""
