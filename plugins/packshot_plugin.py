"""What packshot adds to Airflow: the console (menu entries, a tab on every run, the web app behind them), the
campaign's timetable, and a watch over the runs in the scheduler.

This module is imported in every Airflow process, tasks included; the web app only where it is served.
"""

from __future__ import annotations

import sys
import threading
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from airflow.configuration import conf
from airflow.listeners import hookimpl
from airflow.plugins_manager import AirflowPlugin
from packshot_timetable import ByHandOrBackfill

PREFIX = "/packshot"


class WatchInScheduler:
    """Starts the watch over the runs (`pipelines.services.watch`) as a thread of Airflow's scheduler."""

    @hookimpl
    def on_starting(self, component: object) -> None:
        """Airflow calls this in every process: in a scheduler's task too, with another component."""
        if type(component).__name__ != "Job" or sys.argv[1:2] != ["scheduler"]:
            return
        from pipelines.services.watch import watch
        from pipelines.settings import get_settings

        arguments = (get_settings(), conf.get("api", "base_url", fallback=""), threading.Event())
        threading.Thread(target=watch, args=arguments, name="packshot watch", daemon=True).start()


class PackshotPlugin(AirflowPlugin):
    """Pages about held images and runs."""

    name = "packshot"
    listeners = [WatchInScheduler()]  # noqa: RUF012
    timetables = [ByHandOrBackfill]  # noqa: RUF012  # no ClassVar, because Airflow's own class has none

    @cached_property
    def fastapi_apps(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The web app, imported when the api-server asks for it."""
        from packshot_console.app import create_app

        return [{"app": create_app(), "url_prefix": PREFIX, "name": "packshot"}]

    @cached_property
    def external_views(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The console's pages below *Browse*; one run's pictures as a tab of its DAG run."""
        base = urlsplit(conf.get("api", "base_url", fallback="/")).path.rstrip("/") + PREFIX
        pages = [
            {
                "name": f"Packshot {page}",
                "href": f"{base}/{page}",
                "destination": "nav",
                "category": "browse",
                "url_route": "packshot" if page == "runs" else f"packshot-{page}",
            }
            for page in ("overview", "review", "campaign", "live", "runs")
        ]
        tab = {
            "name": "Pictures",
            "href": f"{base}/runs/{{RUN_ID}}",
            "destination": "dag_run",
            "url_route": "packshot-pictures",
        }
        return [*pages, tab]
