"""Ledger and store as one point in time, in a folder; and back from there into an empty installation.

    FOLDER/backup.json        names the other two files; written last, so that a backup is whole
           ledger-TIME.dump   `pg_dump` of one snapshot of the ledger
           objects-TIME.txt   digest and size of every object that the snapshot names
           objects/           the objects by digest; a later backup into the same folder copies only what is new

A restore brings the objects first and the ledger last, in one transaction. If it is interrupted, it can be repeated.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from more_itertools import chunked

from pipelines.errors import IntegrityError, UsageError
from pipelines.ledger import snapshot
from pipelines.ledger.postgres import connect
from pipelines.ledger.schema import SQL
from pipelines.ledger.snapshot import Snapshot
from pipelines.services import dumps
from pipelines.services.installation import write_private
from pipelines.services.lifecycle import migrate_ledger, with_embedded
from pipelines.services.postgres import host
from pipelines.settings import Settings
from pipelines.store import FolderStore, S3Store

COPIERS = 8
"""Objects that are copied at once."""

Progress = Callable[[str, int, int | None], None]
"""Is called with what is being done, the number of objects so far, and of how many."""

ABOUT, OBJECTS = "backup.json", "objects"


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup: when its snapshot was taken, the ledger's schema, how many objects it has, and bytes of them all.
    `ledger` and `list` are its files. `copied` objects are new in the folder. `lost` ones could not be read."""

    taken_at: str
    revision: str
    objects: int
    bytes: int
    ledger: str
    list: str
    copied: int
    lost: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Restored:
    """What was restored: the time of its snapshot, its objects, and bytes of them all. `copied` objects were new in
    the store. `lost` ones are missing or damaged in the backup."""

    taken_at: str
    objects: int
    bytes: int
    copied: int
    lost: tuple[str, ...]


def backup(folder: Path, settings: Settings, progress: Progress = lambda doing, count, total: None) -> Backup:
    """Writes ledger and store, as they are now, into a folder. Packshot may work meanwhile.

    Raises:
        UsageError: the folder is no folder of backups, or another backup writes into it.
        ServiceFailed: `pg_dump` failed.
    """
    settings = with_embedded(settings)
    owner, store = settings.owner_database_url or settings.database_url, S3Store(settings)
    connect(owner).dispose()  # it says what to do where no address is known
    with _alone(folder), snapshot.objects_held(owner):
        # 1. One point in time
        progress("Reading the ledger", 0, None)
        with snapshot.snapshot(owner) as now:
            time = now.taken_at.strftime("%Y%m%dT%H%M%S.%fZ")
            ledger, listed = folder / f"ledger-{time}.dump", folder / f"objects-{time}.txt"
            dumps.dump(owner, now.id, now.schema, ledger)
            named, unreadable = _named_in_documents(now, store)
            count, size = _write_list(listed, now.objects(named))
            lost = {*now.lost(), *unreadable}

        # 2. Its objects. They never change, so they may be copied later
        objects = FolderStore(folder / OBJECTS)
        objects.prepare()
        copied, failed = _copy(_read_list(listed), store, objects, count, progress)

        # 3. From here on, it is the folder's backup
        lost |= set(failed)
        made = Backup(
            now.taken_at.isoformat(), now.revision, count, size, ledger.name, listed.name, copied, tuple(sorted(lost))
        )
        write_private(folder / ABOUT, json.dumps(asdict(made), indent=1))
        _remove_others(folder, made)
    return made


def restore(folder: Path, settings: Settings, progress: Progress = lambda doing, count, total: None) -> Restored:
    """Brings the backup of a folder into an empty installation, whose services run.

    Raises:
        UsageError: there is no backup, it is of a newer packshot, or the installation is not empty.
        ServiceFailed: `pg_restore` failed.
    """
    made = _read_about(folder)
    settings = with_embedded(settings)
    owner, store = settings.owner_database_url or settings.database_url, S3Store(settings)
    engine = connect(owner)
    if not snapshot.is_empty(engine):
        raise UsageError(
            f"the ledger at {host(owner)} is not empty: restore into another database (PACKSHOT_DATABASE_URL), or into "
            "another PACKSHOT_STATE_DIR after `packshot up --no-airflow`"
        )
    engine.dispose()
    store.prepare()
    _refuse_others(store, folder / made.list)

    objects = FolderStore(folder / OBJECTS)
    copied, lost = _copy(_read_list(folder / made.list), objects, store, made.objects, progress)
    progress("Restoring the ledger", made.objects, made.objects)
    dumps.load(owner, snapshot.clear(owner), folder / made.ledger)
    migrate_ledger(settings)
    snapshot.analyze(owner)
    return Restored(made.taken_at, made.objects, made.bytes, copied, tuple(sorted({*lost, *made.lost})))


# ---------------------------------------------------------------------- the folder


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Makes the folder. No other backup writes into it."""
    if folder.exists() and not (folder / "lock").exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} has files and no backup: name an empty folder, or one of earlier backups")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another backup writes into {folder}: wait until it has ended") from None
        yield


def _read_about(folder: Path) -> Backup:
    file = folder / ABOUT
    if not file.exists():
        raise UsageError(f"{folder} has no {ABOUT}: it is no backup, or its first backup did not end")
    fields = json.loads(file.read_text())
    made = Backup(**{name: value for name, value in fields.items() if name in Backup.__slots__})
    try:
        ScriptDirectory.from_config(Config(SQL / "alembic.ini")).get_revision(made.revision)
    except CommandError:
        raise UsageError(
            f"the backup in {folder} is of a newer packshot (schema {made.revision}): restore it with that version"
        ) from None
    for name in (made.ledger, made.list):
        if not (folder / name).exists():
            raise UsageError(f"{folder / name} is missing: the backup cannot be restored without it")
    return made


def _remove_others(folder: Path, made: Backup) -> None:
    """Removes the ledgers and lists of earlier backups. Their objects stay."""
    for file in [*folder.glob("ledger-*.dump"), *folder.glob("objects-*.txt")]:
        if file.name not in (made.ledger, made.list):
            file.unlink()


def _write_list(file: Path, objects: Iterator[tuple[str, int]]) -> tuple[int, int]:
    """Returns how many objects there are, and bytes of them all."""
    count = total = 0
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        for digest, size in objects:
            out.write(f"{digest} {size}\n")
            count, total = count + 1, total + size
        out.flush()
        os.fsync(out.fileno())
    return count, total


def _read_list(file: Path) -> Iterator[tuple[str, int]]:
    with file.open() as lines:
        for line in lines:
            digest, size = line.split()
            yield digest, int(size)


# ---------------------------------------------------------------------- objects


def _named_in_documents(now: Snapshot, store: S3Store) -> tuple[list[str], list[str]]:
    """Digests that manifests and data sets name, and those of the documents that cannot be read."""
    named: set[str] = set()
    unreadable = []
    for digest in now.documents(store.dated_objects()):
        try:
            named.update(found.decode() for found in re.findall(rb"\b[0-9a-f]{64}\b", store.get(digest)))
        except (KeyError, IntegrityError):
            unreadable.append(digest)
    return sorted(named), unreadable


def _refuse_others(store: S3Store, listed: Path) -> None:
    """Raises UsageError if the store has an object that the backup does not name."""
    there = {digest for digest, _ in store.objects()}
    if there and (others := there - {digest for digest, _ in _read_list(listed)}):
        raise UsageError(
            f"the store has {len(others)} objects that the backup does not name: restore into an empty bucket "
            "(PACKSHOT_S3_BUCKET), or into another PACKSHOT_STATE_DIR after `packshot up --no-airflow`"
        )


def _copy(
    objects: Iterator[tuple[str, int]],
    source: S3Store | FolderStore,
    target: S3Store | FolderStore,
    count: int,
    progress: Progress,
) -> tuple[int, Sequence[str]]:
    """Copies what the target does not have yet. Returns how many were copied, and digests that the source has lost."""

    def one(listed: tuple[str, int]) -> tuple[bool, str]:
        digest, size = listed
        try:
            if target.stat(digest).size == size:
                return False, ""
        except KeyError:
            pass
        try:
            data = source.get(digest)
            target.put(data, source.stat(digest).media_type)
        except (KeyError, IntegrityError):
            return False, digest
        return True, ""

    copied, done, lost = 0, 0, []
    with ThreadPoolExecutor(COPIERS) as pool:
        for chunk in chunked(objects, 100):
            for new, missing in pool.map(one, chunk):
                copied += new
                lost += [missing] if missing else []
            done += len(chunk)
            progress("Copying objects", done, count)
    return copied, lost
