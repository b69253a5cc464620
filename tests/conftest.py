"""Fixtures that several packages share: a real Postgres and a real S3 store for the session, a database a module.

Nothing of the developer's own installation is read: PACKSHOT_* and AIRFLOW_* leave the environment before anything
else happens, and Airflow is configured before its first import, which is when it reads its configuration.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

for name in [name for name in os.environ if name.startswith(("PACKSHOT_", "AIRFLOW_"))]:
    del os.environ[name]
for name in ("COLUMNS", "LINES"):  # of the terminal, from xdist: a test that wants a width says so
    os.environ.pop(name, None)
workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
# how threads wait is decided by `import pipelines`, for every process
os.environ.setdefault("OMP_NUM_THREADS", "2" if workers == 1 else "1")
STATE_DIR = Path(tempfile.mkdtemp(prefix="packshot-tests-"))
os.environ["PACKSHOT_STATE_DIR"] = str(STATE_DIR)

import psycopg2
import pytest
from psycopg2 import sql
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool

from pipelines.services import Installation, airflow_environment, down, up
from pipelines.settings import ROOT, Settings, get_settings, read_settings
from tests.receivers import Webhook, webhook

# Ports and passwords are drawn now, so that Airflow's configuration can name a Postgres that starts only when a test
# needs it.
INSTALLATION = Installation.read(STATE_DIR)
INSTALLATION.write(STATE_DIR)
IN_PROCESS_AIRFLOW = {
    **airflow_environment(read_settings(), INSTALLATION),
    "AIRFLOW_HOME": str(STATE_DIR / "airflow-in-process"),
    "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": make_url(INSTALLATION.superuser_url)
    .set(database="airflow_in_process")
    .render_as_string(hide_password=False),
}
os.environ.update({name: value for name, value in IN_PROCESS_AIRFLOW.items() if value})  # a test may log in


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--docs-pictures", action="store_true", help="write the docs' screenshots into docs/pictures")


def pytest_sessionstart() -> None:
    """A `kill` or a time limit stops the services too, as Ctrl-C does."""
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish() -> Iterator[None]:
    """Where an error stops the session (`-x`), fixtures end in this hook: the state goes once services are down."""
    try:
        return (yield)
    finally:
        shutil.rmtree(STATE_DIR, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs services by the fixtures it asks for, and run the slow tests last."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if "services" in fixtures:
            item.add_marker("services")
        if fixtures & {"airflow_db", "airflow_up"}:
            item.add_marker("airflow")
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real photos and weights beside the checkout."""
    folder = (ROOT / "../shared").resolve()
    if not folder.is_dir():
        pytest.skip("needs the shared data, which are not beside this checkout (../shared)")
    return folder


@pytest.fixture(scope="session")
def services() -> Iterator[Settings]:
    """A running Postgres (database `packshot`, migrated) and S3 store, for this session alone."""
    try:
        up(read_settings(), airflow=False)
        # copied at once: later a test with an Airflow of its own may have filled it
        create = sql.SQL("CREATE DATABASE template_packshot TEMPLATE packshot OWNER packshot")
        _as_superuser(create)
        yield read_settings()
    finally:
        down(read_settings())


def _as_superuser(statement: sql.Composable, database: str = "postgres") -> None:
    url = make_url(INSTALLATION.superuser_url).set(drivername="postgresql", database=database)
    connection = psycopg2.connect(url.render_as_string(hide_password=False))
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(statement)
    connection.close()


@pytest.fixture(scope="session")
def _template(services: Settings) -> str:
    """A migrated, empty database to copy."""
    return "template_packshot"


def create_database(name: str) -> None:
    """An empty database beside the ledger's, of the superuser's."""
    _as_superuser(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))


_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def settings(services: Settings, _template: str) -> Iterator[Settings]:
    """Settings with a fresh, migrated database and an empty bucket of this module's own; `get_settings()` agrees."""
    name = f"test_{next(_numbers)}"
    database = sql.Identifier(name)
    _as_superuser(sql.SQL("CREATE DATABASE {} TEMPLATE {} OWNER packshot").format(database, sql.Identifier(_template)))
    urls = {"DATABASE_URL": services.database_url, "OWNER_DATABASE_URL": INSTALLATION.owner_database_url}
    with pytest.MonkeyPatch.context() as patch:
        for variable, url in urls.items():
            patch.setenv(f"PACKSHOT_{variable}", make_url(url).set(database=name).render_as_string(hide_password=False))
        patch.setenv("PACKSHOT_S3_BUCKET", name.replace("_", "-"))
        get_settings.cache_clear()
        yield get_settings()
    get_settings.cache_clear()
    _as_superuser(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(database))


@pytest.fixture(scope="module")
def store(settings: Settings):
    """The module's S3 store, empty at first."""
    from pipelines.store import S3Store

    s3 = S3Store(settings)
    s3.prepare()
    return s3


@pytest.fixture(scope="module")
def ledger(settings: Settings):
    """The module's ledger, empty at first."""
    from pipelines.ledger.postgres import PostgresLedger, connect

    return PostgresLedger(connect(settings.database_url))


@pytest.fixture(scope="module")
def damage(settings: Settings) -> Callable[..., None]:
    """Executes a statement on the module's database as nobody may: as the superuser, with no trigger awake."""
    url = make_url(INSTALLATION.superuser_url).set(database=make_url(settings.database_url).database)
    options = {"options": "-c session_replication_role=replica"}
    engine = create_engine(url, poolclass=NullPool, connect_args=options)

    def execute(statement: str, **parameters: object) -> None:
        with engine.begin() as connection:
            connection.execute(text(statement), parameters)

    return execute


@pytest.fixture(scope="session")
def airflow_db(services: Settings) -> Settings:
    """Migrated metadata for Airflow in this process (`dag.test`, an api-server's app), apart from `airflow_up`'s."""
    create_database("airflow_in_process")
    argv = [sys.executable, "-m", "airflow", "db", "migrate"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return services


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """A headless Chromium."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("needs Debian's chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def pictures(pytestconfig: pytest.Config) -> Path:
    """Where screenshots go: `docs/pictures` with --docs-pictures, else `build/pictures`."""
    folder = ROOT / ("docs" if pytestconfig.getoption("--docs-pictures") else "build") / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def hook() -> Iterator[Webhook]:
    """The receiver that `airflow_up` notifies of failed runs."""
    with webhook() as receiver:
        yield receiver


@pytest.fixture(scope="session")
def airflow_up(services: Settings, hook: Webhook) -> Settings:
    """A whole running Airflow over the DAGs of this checkout, working on `services` (not on a module's database)."""
    os.environ["PACKSHOT_WEBHOOK_URL"] = hook.url  # for whatever starts these services again
    os.environ["PACKSHOT_ALLOW_PRIVATE_WEBHOOK"] = "true"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PACKSHOT_STATE_DIR", str(services.state_dir))  # a module may have an installation of its own
        up(read_settings())
        return read_settings()
