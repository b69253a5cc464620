"""Tells Airflow that somebody decided, so that `publish_reviewed` starts."""

from __future__ import annotations

import logging
import threading
import time

ASSET = "packshot_decisions"
"""Name of the asset, as in `operators/reviewed.py`."""

EVERY_SECONDS = 5.0
"""One event stands for all decisions of so many seconds. The DAG waits for longer than this before it acts."""

log = logging.getLogger(__name__)
_lock = threading.Lock()
_last = -EVERY_SECONDS
_waiting: threading.Timer | None = None


def poke() -> None:
    """Records an event of the asset: now, or once EVERY_SECONDS are over since the one before, so that the last of many
    decisions has one too. An event that is lost costs time only: the decisions are in the ledger, and the DAG's nightly
    run reads them."""
    global _waiting
    with _lock:
        if _waiting is not None:
            return
        wait = _last + EVERY_SECONDS - time.monotonic()
        if wait > 0:
            _waiting = threading.Timer(wait, _record)
            _waiting.daemon = True
            _waiting.start()
            return
    _record()


def _record() -> None:
    global _last, _waiting
    with _lock:
        _last, _waiting = time.monotonic(), None
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
