"""Templates, style sheets and scripts: what every page shares."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path
from typing import Any

import jinja2
from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import HTMLResponse

HERE = Path(__file__).resolve().parent
STATIC = {file.name: file for file in sorted((HERE / "static").iterdir())}
MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript"}

router = APIRouter()


@router.get("/static/{file}")
def static(file: str) -> Response:
    """A style sheet or a script, for whoever may see the pages."""
    if file not in STATIC:
        raise HTTPException(HTTPStatus.NOT_FOUND, "there is no such file")
    return Response(STATIC[file].read_bytes(), media_type=MEDIA_TYPES[STATIC[file].suffix])


@lru_cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def path_of(request: Request, name: str, query: Mapping[str, Any] | None = None, **path: str) -> str:
    """Path of a route on this server, below whatever prefix it is served; never a host."""
    target = request.url_for(name, **path)
    if query:
        target = target.include_query_params(**query)
    return f"{target.path}?{target.query}" if target.query else target.path


def page(request: Request, template: str, status: int = HTTPStatus.OK, **values: Any) -> Response:
    """Render a template; `url(name, **path)` in it is `path_of`."""

    def url(name: str, query: Mapping[str, Any] | None = None, **path: str) -> str:
        return path_of(request, name, query, **path)

    return HTMLResponse(_templates().get_template(template).render(url=url, here=template, **values), status)
