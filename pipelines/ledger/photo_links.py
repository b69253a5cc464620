"""What the addresses of photos gave when they were last asked, so that an unchanged photo is not sent again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Engine, func, select
from sqlalchemy.dialects.postgresql import insert

from pipelines.catalogue.downloads import Validators
from pipelines.catalogue.photos import FetchedPhoto
from pipelines.contracts import sha256_hex
from pipelines.ledger.schema import photo_links


@dataclass(frozen=True, slots=True)
class PhotoLinks:
    """The memory of links in the ledger. A link that was asked after `since` is not asked again: a task that was
    killed goes on. Without `since`, each link is asked."""

    engine: Engine
    since: datetime | None = None

    def recall(self, links: Sequence[str]) -> dict[str, FetchedPhoto]:
        """What these links gave; those that never gave a photo are left out."""
        names = {_name(link): link for link in links}
        with self.engine.connect() as connection:
            found = connection.execute(select(photo_links).where(photo_links.c.link.in_(names))).all()
        return {
            names[row.link]: FetchedPhoto(row.photo, Validators(row.address, row.etag, row.last_modified))
            for row in found
        }

    def recent(self, links: Sequence[str]) -> set[str]:
        """Those of the links that were asked after `since`."""
        if self.since is None:
            return set()
        names = {_name(link): link for link in links}
        asked = select(photo_links.c.link).where(photo_links.c.link.in_(names), photo_links.c.asked_at >= self.since)
        with self.engine.connect() as connection:
            return {names[name] for name in connection.scalars(asked)}

    def remember(self, photos: Mapping[str, FetchedPhoto]) -> None:
        """Keep what links gave just now."""
        rows = [
            {
                "link": _name(link),
                "photo": fetched.photo,
                "address": fetched.validators.address,
                "etag": fetched.validators.etag,
                "last_modified": fetched.validators.last_modified,
            }
            for link, fetched in sorted(photos.items())
        ]
        new = insert(photo_links)
        kept = new.on_conflict_do_update(
            index_elements=["link"],
            set_={name: new.excluded[name] for name in ("photo", "address", "etag", "last_modified")}
            | {"asked_at": func.now()},
        )
        with self.engine.begin() as connection:
            connection.execute(kept, rows)


def _name(link: str) -> str:
    """A link's name in the table. Addresses may be longer than an index takes."""
    return sha256_hex(link.encode("utf-8", "surrogatepass"))
