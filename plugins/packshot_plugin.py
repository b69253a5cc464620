"""What packshot adds to Airflow: the console (menu entries, a tab on every run, the web app behind them) and the
campaign's timetable.

This module is imported in every Airflow process, tasks included; the web app only where it is served.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from airflow.configuration import conf
from airflow.plugins_manager import AirflowPlugin
from packshot_timetable import ByHandOrBackfill

PREFIX = "/packshot"


class PackshotPlugin(AirflowPlugin):
    """Pages about held images and runs."""

    name = "packshot"
    timetables = [ByHandOrBackfill]  # noqa: RUF012  # no ClassVar, because Airflow's own class has none

    @cached_property
    def fastapi_apps(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The web app, imported when the api-server asks for it."""
        from packshot_console.app import create_app

        return [{"app": create_app(), "url_prefix": PREFIX, "name": "packshot"}]

    @cached_property
    def external_views(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """Review and all runs in the menu; one run's pictures as a tab of its DAG run."""
        base = urlsplit(conf.get("api", "base_url", fallback="/")).path.rstrip("/")
        return [
            {
                "name": "Packshot overview",
                "href": f"{base}{PREFIX}/overview",
                "destination": "nav",
                "category": "browse",
                "url_route": "packshot-overview",
            },
            {
                "name": "Packshot review",
                "href": f"{base}{PREFIX}/review",
                "destination": "nav",
                "category": "browse",
                "url_route": "packshot-review",
            },
            {
                "name": "Packshot live",
                "href": f"{base}{PREFIX}/live",
                "destination": "nav",
                "category": "browse",
                "url_route": "packshot-live",
            },
            {
                "name": "Packshot runs",
                "href": f"{base}{PREFIX}/runs",
                "destination": "nav",
                "category": "browse",
                "url_route": "packshot",
            },
            {
                "name": "Pictures",
                "href": f"{base}{PREFIX}/runs/{{RUN_ID}}",
                "destination": "dag_run",
                "url_route": "packshot-pictures",
            },
        ]
