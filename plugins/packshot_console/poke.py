"""Tells Airflow that somebody decided, so that `publish_reviewed` starts."""

from __future__ import annotations

import logging
import time

ASSET = "packshot_decisions"
"""Name of the asset, as in `operators/reviewed.py`."""

EVERY_SECONDS = 5.0
"""One event stands for all decisions of so many seconds. The DAG waits for longer than this before it acts."""

log = logging.getLogger(__name__)
_last = -EVERY_SECONDS


def poke() -> None:
    """Records an event of the asset. An event that is lost costs time only: the decisions are in the ledger, and the
    DAG's nightly run reads them too."""
    global _last
    if time.monotonic() - _last < EVERY_SECONDS:
        return
    _last = time.monotonic()
    try:
        _register()
    except Exception:  # the decision was made; whatever is wrong with Airflow's database must not look like a refusal
        log.exception("no event of %s: the nightly run acts on the decision", ASSET)


def _register() -> None:
    """Airflow has no public way to do this from its own process: an event through the REST API needs the role `op`."""
    from airflow.assets.manager import asset_manager
    from airflow.models.asset import AssetModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        asset = session.scalar(select(AssetModel).where(AssetModel.name == ASSET))
        if asset is None:
            log.warning("Airflow has no asset %s yet: is the DAG publish_reviewed read?", ASSET)
            return
        asset_manager.register_asset_change(asset=asset, session=session, source_is_api=True)
