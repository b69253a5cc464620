"""What HQ-SAM's encoder made of photos, kept in the store so that a cutout's editor answers its first click at once.

An embedding is no evidence: it can be computed again from the photo. So there are LIMIT at most, and those that were
used least recently are dropped.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol

from sqlalchemy import Engine, text

from pipelines.contracts import Store
from pipelines.errors import IntegrityError

log = logging.getLogger(__name__)

LIMIT = 300
"""Embeddings that are kept, about 3.4 MB each."""


class RemovableStore(Store, Protocol):
    """A store whose objects can be removed."""

    def remove(self, digest: str) -> None:
        """Remove an object."""


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The embeddings of the ledger's photos; at most `limit` of them."""

    engine: Engine
    store: RemovableStore
    limit: int = LIMIT

    def find(self, photo: str, model: str) -> bytes:
        """The embedding of a photo by this model (sha256 each), or b"". It counts as used."""
        with self.engine.begin() as connection:
            digest = connection.scalar(text(_USE), {"photo": photo, "model": model})
        if digest is None:
            return b""
        try:
            return self.store.get(digest)
        except (KeyError, IntegrityError):
            return b""

    def keep(self, photo: str, model: str, data: bytes) -> None:
        """Keep an embedding, and drop those that were used least recently, if there are more than `limit`.

        Whatever prevents it is logged and not raised: a slow first click is no reason to lose a shot.
        """
        try:
            self._keep(photo, model, data)
        except Exception:
            log.exception("the embedding of photo %s is not kept", photo)

    def _keep(self, photo: str, model: str, data: bytes) -> None:
        digest = self.store.put(data, "application/vnd.packshot.embedding")
        row = {"photo": photo, "model": model, "digest": digest, "size": len(data)}
        with self.engine.begin() as connection:
            connection.execute(text(_KEEP), row)
            dropped = connection.scalars(text(_DROP), {"limit": self.limit}).all()
        for old in set(dropped) - {digest}:
            self.store.remove(old)
        if dropped:
            log.info("dropped %d embeddings", len(dropped))


_USE = "UPDATE embeddings SET used_at = clock_timestamp() WHERE photo = :photo AND model = :model RETURNING digest"

_KEEP = """
INSERT INTO embeddings (photo, model, digest, size, used_at) VALUES (:photo, :model, :digest, :size, clock_timestamp())
ON CONFLICT (photo, model) DO UPDATE SET digest = excluded.digest, size = excluded.size, used_at = excluded.used_at
"""

_DROP = """
DELETE FROM embeddings WHERE (photo, model) IN (
    SELECT photo, model FROM embeddings ORDER BY used_at DESC OFFSET :limit FOR UPDATE
) RETURNING digest
"""
