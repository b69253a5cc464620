"""Ledger and store as of one moment are written into a folder, and come back in another, empty installation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from pipelines.cli.main import app
from pipelines.contracts import sha256_hex
from pipelines.errors import UsageError
from pipelines.ledger import snapshot
from pipelines.ledger.postgres import PostgresLedger, connect
from pipelines.ledger.reports import report
from pipelines.runs.backup import backup, restore
from pipelines.runs.prune import prune
from pipelines.runs.verify import verify
from pipelines.services import down, up
from pipelines.settings import Settings, get_settings, read_settings
from pipelines.stages import keys
from pipelines.store import S3Store
from tests.operators.test_differences import STAGES, Shop
from tests.pipelines.test_store import overwrite

pytestmark = pytest.mark.slow


@pytest.fixture
def shop(ledger, store, context, monkeypatch) -> Shop:
    monkeypatch.setattr(keys, "STAGES", STAGES)
    monkeypatch.setattr(keys, "fingerprint", lambda recipe: sha256_hex(b"the recipe"))
    return Shop(ledger, store, context)


@pytest.fixture(scope="module")
def elsewhere(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Another installation, which is empty. `get_settings()` agrees."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PACKSHOT_STATE_DIR", str(tmp_path_factory.mktemp("elsewhere") / "state"))
        for name in ("DATABASE_URL", "OWNER_DATABASE_URL", "S3_BUCKET"):
            patch.delenv(f"PACKSHOT_{name}", raising=False)
        get_settings.cache_clear()
        try:
            up(read_settings(), airflow=False)
            get_settings.cache_clear()
            yield get_settings()
        finally:
            down(read_settings())
    get_settings.cache_clear()


def listed(folder: Path) -> set[str]:
    """Digests of the objects in a backup."""
    return {line.split()[0] for line in next(folder.glob("objects-*.txt")).read_text().splitlines()}


def test_a_backup_has_what_its_moment_names_and_the_next_one_copies_only_what_is_new(
    shop: Shop, settings: Settings, tmp_path: Path
) -> None:
    first = shop.night()
    orphan = shop.store.put(b"a task is about to record this", "image/png")
    made = backup(tmp_path / "backup", settings)
    assert (made.lost, made.copied) == ((), made.objects)
    named = listed(tmp_path / "backup")
    assert orphan not in named
    assert set(shop.shown(first).values()) | {first.documents["feed"], shop.manifest()} <= named
    assert all((tmp_path / "backup/objects/sha256" / digest[:2] / digest).is_file() for digest in named)

    shop.feed["cup"] = "another cup"
    shop.night()
    again = backup(tmp_path / "backup", settings)
    assert again.copied == again.objects - made.objects == len(listed(tmp_path / "backup") - named)
    assert again.copied > 0
    assert {file.name for file in (tmp_path / "backup").iterdir()} == {
        *("backup.json", "lock", "objects", again.ledger, again.list)
    }
    assert all(file.stat().st_mode & 0o077 == 0 for file in (tmp_path / "backup").glob("ledger-*"))


def test_nothing_is_pruned_while_a_backup_is_written(shop: Shop, settings: Settings) -> None:
    with snapshot.objects_held(settings.database_url), pytest.raises(UsageError, match="a backup is in progress"):
        prune(shop.ledger, shop.store, 30, 7, apply=True)
    prune(shop.ledger, shop.store, 30, 7, apply=True)


def test_what_a_backup_cannot_be_is_one_line_with_the_remedy(shop: Shop, settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cup.png").write_bytes(b"a photo")
    with pytest.raises(UsageError, match="name an empty folder"):
        backup(tmp_path / "photos", settings)
    with pytest.raises(UsageError, match="it is no backup, or its first backup did not end"):
        restore(tmp_path / "photos", settings)

    shop.night()
    folder = tmp_path / "backup"
    backup(folder, settings)
    with pytest.raises(UsageError, match=r"is not empty: restore into another database \(PACKSHOT_DATABASE_URL\)"):
        restore(folder, settings)
    about = json.loads((folder / "backup.json").read_text())
    (folder / "backup.json").write_text(json.dumps(about | {"revision": "9999"}))
    with pytest.raises(UsageError, match="of a newer packshot"):
        restore(folder, settings)


def test_a_backup_comes_back_whole_in_another_installation_and_the_next_night_computes_nothing(
    shop: Shop, settings: Settings, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    first = shop.night()
    lost = shop.shown(first)["pot"]
    folder = tmp_path / "backup"
    backup(folder, settings)
    overwrite(shop.store, settings, lost, b"rotten")
    result = CliRunner().invoke(app, ["backup", str(tmp_path / "rotten"), "--json"])
    assert result.exit_code == 1
    assert json.loads(result.stdout)["lost"] == [lost]

    there: Settings = request.getfixturevalue("elsewhere")
    store, ledger = S3Store(there), PostgresLedger(connect(there.database_url))
    other = store.put(b"somebody else's", "text/plain")
    with pytest.raises(UsageError, match=r"1 objects that the backup does not name: restore into an empty bucket"):
        restore(folder, there)
    store.remove(other)
    store.put(next((folder / "objects").rglob(lost)).read_bytes(), "image/png")  # of a restore that was interrupted

    result = CliRunner().invoke(app, ["restore", str(folder), "--json"])
    assert result.exit_code == 0, result.output
    done = json.loads(result.stdout)
    assert done["copied"] == done["objects"] - 1
    assert verify(ledger, store, there, read=True).lost == ()
    assert report(ledger.engine, first.run).to_json() == first.to_json()
    assert {digest for digest, _ in store.objects()} == listed(folder)

    shop.ledger, shop.store = ledger, store
    again = shop.night()
    assert shop.looked_at == 0
    assert sum(count.computed for count in again.steps.values()) == 0
    assert shop.shown(again) == shop.shown(first)
    shop.feed["cup"] = "another cup"
    assert shop.night().published == 2, "a worker may write what is new"
    with pytest.raises(Exception, match=r"append-only|permission denied"), ledger.engine.begin() as connection:
        connection.execute(text("DELETE FROM publications"))
