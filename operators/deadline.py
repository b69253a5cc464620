"""The nightly refresh has to be ready by the morning: a notification if it is late."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from airflow.sdk import AsyncCallback, DeadlineAlert, DeadlineReference  # type: ignore[attr-defined]

from pipelines.settings import get_settings


def nightly_deadline() -> DeadlineAlert | None:
    """Airflow's alert for a nightly run that has not ended in time; None while there is no nightly run."""
    settings = get_settings()
    if not settings.nightly_schedule:
        return None
    return DeadlineAlert(
        reference=DeadlineReference.DAGRUN_QUEUED_AT,
        interval=timedelta(hours=settings.nightly_hours),
        callback=AsyncCallback(notify_late),
        name="nightly",
    )


async def notify_late(context: dict[str, Any]) -> None:
    """Notifies people that a scheduled run is late. Airflow's triggerer calls it, and shows an error that it raises.

    A run that somebody started has no deadline, and people are notified already of one that failed.
    """
    run = context["dag_run"]
    if run["run_type"] != "scheduled" or run["state"] not in ("queued", "running"):
        return
    from airflow.configuration import conf

    from pipelines.services.airflow_client import run_page
    from pipelines.services.messages import Message, send

    settings = get_settings()
    page = run_page(conf.get("api", "base_url", fallback=""), run["dag_id"], run["dag_run_id"])
    reason = (
        f"the nightly run has not ended after {settings.nightly_hours:g} hours; see which task runs or waits, and "
        "whether pool gpu is free"
    )
    message = Message(
        "run_late", run["dag_run_id"], run["dag_id"], (run["conf"] or {}).get("scene") or "", reason, page
    )
    await asyncio.to_thread(send, message, settings)
