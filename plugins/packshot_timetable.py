"""A timetable for a DAG that people start: by hand, or day by day as a backfill, and never by itself.

The DAG names it, and Airflow needs it in every process that reads the DAG: the plugin registers it.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, time
from typing import Any, Self

from airflow.timetables.base import DagRunInfo
from airflow.timetables.trigger import CronPartitionTimetable


class ByHandOrBackfill(CronPartitionTimetable):
    """One partition a day, `YYYY-MM-DD` in UTC, for backfills. It proposes no run, so the scheduler never makes one.

    Airflow backfills only what is periodic, as Airflow's own cron timetables are and `schedule=None` is not.
    """

    can_be_scheduled = False

    def __init__(self) -> None:
        super().__init__("0 0 * * *", timezone="UTC", key_format="%Y-%m-%d")
        self.description = "Never by itself: by hand, or one run a day as a backfill"

    @property
    def summary(self) -> str:
        """What Airflow's pages show in the place of a cron."""
        return "by hand or backfill"

    def next_dagrun_info(self, **about: Any) -> DagRunInfo | None:
        """No run."""
        return None

    def next_dagrun_info_v2(self, **about: Any) -> DagRunInfo | None:
        """No run."""
        return None

    def iter_partition_dagrun_infos(self, *, earliest: datetime, latest: datetime) -> Iterable[DagRunInfo]:
        """The days of a backfill: from that of `earliest`, whatever its time of day, to that of `latest` or today.

        Airflow would take a day that is still to come, hold its run back until then, and refuse every other backfill as
        long.
        """
        first = datetime.combine(earliest.astimezone(UTC), time(), UTC)
        return super().iter_partition_dagrun_infos(earliest=first, latest=min(latest, datetime.now(UTC)))

    def serialize(self) -> dict[str, Any]:
        """Nothing: there is one of its kind."""
        return {}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> Self:
        """The only one of its kind."""
        return cls()
