"""One ledger and one store for the process, made at the first request."""

from __future__ import annotations

from functools import lru_cache

from pipelines.ledger.embeddings import Embeddings
from pipelines.ledger.postgres import PostgresLedger, connect
from pipelines.runs.editing import Editor
from pipelines.settings import get_settings
from pipelines.store import S3Store


@lru_cache
def ledger() -> PostgresLedger:
    """The ledger of the settings."""
    return PostgresLedger(connect(get_settings().database_url))


@lru_cache
def editor() -> Editor:
    """What computes cutouts that a person draws; its process starts at the first use."""
    embeddings = Embeddings(ledger().engine, store())
    return Editor(store(), embeddings, get_settings().photo_max_megapixels)


@lru_cache
def store() -> S3Store:
    """The store of the settings."""
    return S3Store(get_settings())
