"""Revisions of a profile's models: registered with the figures that speak for them, promoted only when these do.

    made = register(engine, store, profile, "brushnet", folder, ...)     weights into the store, a row into Postgres
    promote(engine, profile, "brushnet", made.revision, by="ada")        refused where it is not better beyond chance
    install(engine, store, "mini", state_dir)                            what was promoted, for this machine

Postgres says what is promoted, and the object store has the weights, so every worker comes to the same answer with no
disk in common: a task installs what is promoted into its state directory before it loads the profile, and what is there
already is not fetched again. Without services (`packshot shoot`) what was installed last is used.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Row, func, select, text, update
from sqlalchemy.dialects.postgresql import insert

from pipelines.contracts import Store, canonical_json
from pipelines.errors import UsageError
from pipelines.ledger.rows import insert_missing
from pipelines.ledger.schema import artifacts, model_promotions, model_revisions
from pipelines.models.files import sha256_of
from pipelines.models.profile import Profile, load_profile, promoted_file, revision_folder
from pipelines.revisions.comparison import Comparison, Evaluation, compare

KEPT = frozenset({".json", ".md", ".png", ".safetensors"})
"""What of an exported model's folder belongs to a revision: weights, configuration, card, what it paints."""

MEDIA_TYPE = "application/octet-stream"


class NotBetter(UsageError):
    """A revision that the figures do not speak for, or that was compared with other weights than those in use."""


@dataclass(frozen=True, slots=True)
class Revision:
    """Weights of one part, and why to use them.

    `sha256` is of the weights, `parent` of those in use when it was made; `evaluation` and `baseline` are E+ of both on
    the same frozen set. `data` is the digest of what it was trained on, `stages` what each stage had (JSON).
    """

    profile: str
    part: str
    sha256: str
    parent: str
    files: Mapping[str, str]
    data: str
    stages: Mapping[str, Mapping[str, Any]]
    evaluation: Evaluation
    baseline: Evaluation
    by: str
    created_at: datetime
    promoted: bool = False

    @property
    def revision(self) -> str:
        """The name that people and keys use: the digest's first 12 digits."""
        return self.sha256[:12]

    @property
    def comparison(self) -> Comparison:
        """How much better than its parent it is."""
        return compare(self.baseline, self.evaluation)

    def to_json(self) -> dict[str, Any]:
        """What `packshot models revisions --json` prints of it."""
        found = self.comparison
        return {
            "part": self.part, "revision": self.revision, "sha256": self.sha256, "parent": self.parent,
            "promoted": self.promoted, "data": self.data, "stages": dict(self.stages),
            "figures": self.evaluation.figures(), "parent_figures": self.baseline.figures(),
            "gain": found.gain, "gain_interval": list(found.interval), "better": found.better,
            "by": self.by, "created_at": self.created_at.isoformat(),
        }  # fmt: skip


def register(
    engine: Engine,
    store: Store,
    profile: Profile,
    part: str,
    folder: Path,
    *,
    data: str,
    stages: Mapping[str, Mapping[str, Any]],
    evaluation: Evaluation,
    baseline: Evaluation,
    by: str,
) -> Revision:
    """Keep the model exported in `folder` as a revision of `part`, a child of the weights that `profile` has there.

    Registering the same weights again changes nothing. Raises UsageError where the folder has no weights.
    """
    files = keep_files(store, folder)
    sizes = {digest: (folder / name).stat().st_size for name, digest in files.items()}
    rows = [{"digest": digest, "media_type": MEDIA_TYPE, "size": size} for digest, size in sizes.items()]
    sha256 = sha256_of(*sorted(folder.glob("*.safetensors")))
    row = {
        "profile": profile.name, "part": part, "sha256": sha256, "parent": profile.ref(part).sha256,
        "files": files, "data": data, "stages": {name: dict(stage) for name, stage in stages.items()},
        "evaluation": evaluation.to_json(), "baseline": baseline.to_json(), "by": by,
    }  # fmt: skip
    with engine.begin() as connection:
        insert_missing(connection, artifacts, rows)
        insert_missing(connection, model_revisions, [row])
        return _find(connection, profile.name, part, sha256)


def keep_files(store: Store, folder: Path) -> dict[str, str]:
    """Put an exported model's files into the store: name → digest. Raises UsageError where it has no weights."""
    if not any(folder.glob("*.safetensors")):
        raise UsageError(f"{folder}: no *.safetensors in it")
    kept = sorted(path for path in folder.iterdir() if path.suffix in KEPT)
    return {path.name: store.put(path.read_bytes(), MEDIA_TYPE) for path in kept}


def bring_files(store: Store, files: Mapping[str, str], folder: Path) -> None:
    """Have an exported model's files in `folder`, whole; nothing is fetched where all are there with their digests.

    Several processes may do so at once. Raises KeyError or IntegrityError where the store lacks or has lost them.
    """

    def whole() -> bool:
        return all((folder / name).is_file() and sha256_of(folder / name) == files[name] for name in files)

    if whole():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix="."))
    try:
        for name, digest in files.items():
            (fresh / name).write_bytes(store.get(digest))
        if whole():
            return  # another process was quicker
        if folder.exists():
            shutil.rmtree(folder)  # a part of it was removed or changed
        try:
            fresh.rename(folder)
        except OSError:
            if not whole():
                raise  # else another process was quicker
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def revisions(engine: Engine, profile: str, part: str | None = None) -> list[Revision]:
    """The revisions of a profile, of one part or of all, newest first."""
    statement = select(model_revisions).where(model_revisions.c.profile == profile)
    if part is not None:
        statement = statement.where(model_revisions.c.part == part)
    with engine.connect() as connection:
        current = _promoted(connection, profile)
        rows = connection.execute(statement.order_by(model_revisions.c.created_at.desc())).all()
    return [_read(row, current) for row in rows]


def promote(engine: Engine, profile: Profile, part: str, revision: str, by: str, force: bool = False) -> Revision:
    """Make a revision what the profile has as `part`, from the next task that begins.

    Args:
        engine: The ledger's database.
        profile: The one that it is of.
        part: The part that it is of.
        revision: Its name, or as much of its digest as tells it apart.
        by: Who does it; kept.
        force: A person decided so whatever the figures say; kept too.

    Raises:
        UsageError: there is no such revision, or it is promoted already.
        NotBetter: without `force`, where it is not better beyond its confidence interval than the weights in use, or
            was compared with others.
    """
    with engine.begin() as connection:
        _one_at_a_time(connection)
        found = _find(connection, profile.name, part, revision)
        if found.promoted:
            raise UsageError(f"{part} {found.revision} is promoted already")
        current = _in_use(connection, profile, part)
        reason = str(found.comparison)
        objection = ""
        if found.parent != current:
            objection = f"it was compared with {found.parent[:12]}, but {current[:12]} is in use; train anew"
        elif not found.comparison.better:
            objection = f"it is not better beyond chance than {current[:12]}: {reason}"
        if objection and not force:
            raise NotBetter(f"{part} {found.revision} was not promoted: {objection}; --force if you decide so")
        connection.execute(
            insert(model_promotions).values(
                profile=profile.name, part=part, sha256=found.sha256, by=by, reason=objection or reason,
                forced=bool(objection),
            )
        )  # fmt: skip
        return _find(connection, profile.name, part, found.sha256)


def rollback(engine: Engine, profile: Profile, part: str, by: str) -> str:
    """Take the last promotion of `part` back; returns the revision that is in use again, the profile's own at last.

    Raises UsageError where nothing is promoted.
    """
    profile.part(part)
    with engine.begin() as connection:
        _one_at_a_time(connection)
        newest = connection.scalar(
            select(func.max(model_promotions.c.id)).where(
                model_promotions.c.profile == profile.name,
                model_promotions.c.part == part,
                model_promotions.c.rolled_back_at.is_(None),
            )
        )
        if newest is None:
            raise UsageError(f"nothing to roll back: no revision of {part} is promoted in profile {profile.name}")
        connection.execute(
            update(model_promotions)
            .where(model_promotions.c.id == newest)
            .values(rolled_back_at=func.now(), rolled_back_by=by)
        )
        return _in_use(connection, profile, part)[:12]


def install(engine: Engine, store: Store, profile: str, state_dir: Path) -> dict[str, str]:
    """Have what is promoted on this machine, and `load_profile` find it; returns part → sha256.

    Files are fetched once and verified. Several processes may do so at once: each puts a whole folder in place.
    """
    with engine.connect() as connection:
        current = _promoted(connection, profile)
        found = [_find(connection, profile, part, sha256) for part, sha256 in current.items()]
    for revision in found:
        bring_files(store, revision.files, revision_folder(state_dir, profile, revision.part, revision.sha256))
    file = promoted_file(state_dir, profile)
    wanted = canonical_json(
        {revision.part: {"sha256": revision.sha256, "files": dict(revision.files)} for revision in found}
    )
    if (file.read_text(encoding="utf-8") if file.is_file() else "{}") != wanted:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".json.{os.getpid()}")
        temporary.write_text(wanted, encoding="utf-8")
        temporary.replace(file)
    load_profile.cache_clear()  # another process may have written it since this one read it
    return current


def _one_at_a_time(connection: Connection) -> None:
    connection.execute(text("SELECT pg_advisory_xact_lock(hashtextextended('packshot promotions', 0))"))


def _promoted(connection: Connection, profile: str) -> dict[str, str]:
    """Part → sha256 of the newest promotion that was not rolled back."""
    statement = (
        select(model_promotions.c.part, model_promotions.c.sha256)
        .distinct(model_promotions.c.part)
        .where(model_promotions.c.profile == profile, model_promotions.c.rolled_back_at.is_(None))
        .order_by(model_promotions.c.part, model_promotions.c.id.desc())
    )
    return dict(connection.execute(statement).tuples().all())


def _in_use(connection: Connection, profile: Profile, part: str) -> str:
    """sha256 of what is promoted, else of the profile's own weights."""
    own = load_profile(profile.name, profile.models_dir, promoted=False)
    return _promoted(connection, profile.name).get(part) or own.ref(part).sha256


def _find(connection: Connection, profile: str, part: str, revision: str) -> Revision:
    """The one whose digest begins so. Raises UsageError where there is none, or more than one."""
    rows = connection.execute(
        select(model_revisions).where(
            model_revisions.c.profile == profile,
            model_revisions.c.part == part,
            model_revisions.c.sha256.startswith(revision.lower(), autoescape=True),
        )
    ).all()
    if len(rows) != 1:
        what = f"{len(rows)} revisions of {part} begin with" if rows else f"there is no revision of {part} called"
        raise UsageError(f"{what} {revision!r} in profile {profile}: see packshot models revisions")
    return _read(rows[0], _promoted(connection, profile))


def _read(row: Row, current: Mapping[str, str]) -> Revision:
    return Revision(
        profile=row.profile,
        part=row.part,
        sha256=row.sha256,
        parent=row.parent,
        files=row.files,
        data=row.data,
        stages=row.stages,
        evaluation=Evaluation.from_json(row.evaluation),
        baseline=Evaluation.from_json(row.baseline),
        by=row.by,
        created_at=row.created_at,
        promoted=current.get(row.part) == row.sha256,
    )
