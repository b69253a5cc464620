"""The embedded services as their user meets them: started, killed, repaired, stopped, and shut to everybody else."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import stat
import subprocess
import time
from base64 import urlsafe_b64decode
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import httpx
import psutil
import psycopg2
import pytest
from minio.error import S3Error
from sqlalchemy.engine import make_url

from pipelines.contracts import sha256_hex
from pipelines.runs.sheet_links import Sheet, sign
from pipelines.services import DAEMONS, Installation, ServiceFailed, airflow_environment, down, status, up
from pipelines.services.airflow_history import old_history
from pipelines.services.daemons import Daemon, ensure, process, stop
from pipelines.services.installation import GRPC_OFFSET, WORKER
from pipelines.services.lifecycle import _connected, _without_embedded
from pipelines.services.postgres import AS_NOBODY
from pipelines.services.s3 import store_answers, store_client
from pipelines.services.supervisor import PAUSE, last_word
from pipelines.settings import ROOT, Settings, environment_file, read_settings
from pipelines.store import S3Store


def _pid(state_dir: Path, name: str) -> int:
    return json.loads((state_dir / "run" / f"{name}.json").read_text())["pid"]


def _connect(url: str, **override: str):
    parsed = make_url(url).set(drivername="postgresql", **override)
    return psycopg2.connect(parsed.render_as_string(hide_password=False), connect_timeout=5)


def _listed(channel: grpc.Channel) -> bool:
    """Whether a gRPC port lists the store's buckets."""
    listing = channel.unary_stream("/filer_pb.SeaweedFiler/ListEntries", bytes, bytes)
    try:
        return bool(list(listing(b"\x0a\x08/buckets", timeout=5)))
    except grpc.RpcError:
        return False


def _until(holds: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.2)


@pytest.fixture(scope="module")
def own(services: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """State folder of an installation of this module's own, to kill and repair."""
    state_dir = tmp_path_factory.mktemp("installation") / "state"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PACKSHOT_STATE_DIR", str(state_dir))
        try:
            up(read_settings(), airflow=False)
            yield state_dir
        finally:
            down(read_settings())


class TestEmbedded:
    def test_whether_a_store_works_is_asked_of_its_own_bucket_alone(self, own: Path) -> None:
        client = store_client(read_settings())
        before = {bucket.name for bucket in client.list_buckets()}
        assert not store_answers(client, "a-shops-own")  # `status` makes nothing
        assert {bucket.name for bucket in client.list_buckets()} == before
        assert store_answers(client, "a-shops-own", make=True)
        assert store_answers(client, "a-shops-own")
        assert {bucket.name for bucket in client.list_buckets()} == before | {"a-shops-own"}

    def test_a_second_up_changes_nothing_and_takes_no_time(self, own: Path) -> None:
        before = {name: _pid(own, name) for name in ("postgres", "s3")}
        lines: list[str] = []
        since = time.monotonic()
        up(read_settings(), airflow=False, report=lines.append)
        assert time.monotonic() - since < 10
        assert {name: _pid(own, name) for name in before} == before
        assert all("was running" in line for line in lines)

    def test_only_the_owner_reads_credentials_and_data(self, own: Path) -> None:
        for path in (own, own / "environment", own / "services.json", own / "postgres", own / "s3", own / "logs"):
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path

    def test_everything_listens_on_loopback_only(self, own: Path) -> None:
        addresses = {
            connection.laddr.ip
            for name in ("postgres", "s3")
            for connection in psutil.Process(_pid(own, name)).net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
        assert addresses == {"127.0.0.1"}

    def test_postgres_wants_the_password(self, own: Path) -> None:
        url = read_settings().database_url
        with _connect(url) as connection, connection.cursor() as cursor:
            cursor.execute("SHOW server_version_num")
            assert cursor.fetchone()[0].startswith("18")
        with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
            _connect(url, password="wrong")

    def test_airflow_and_packshot_cannot_enter_each_others_database(self, own: Path) -> None:
        with pytest.raises(psycopg2.OperationalError, match="permission denied"):
            _connect(read_settings().database_url, database="airflow")

    def test_the_store_wants_the_secret(self, own: Path) -> None:
        settings = read_settings()
        digest = S3Store(settings).put(b"a photo", "image/png")
        strange = settings.model_copy(update={"s3_secret_key": type(settings.s3_secret_key)("wrong")})
        with pytest.raises(S3Error, match="signature"):
            S3Store(strange).get(digest)
        anonymous = httpx.get(
            f"http://{settings.s3_endpoint}/{settings.s3_bucket}/sha256/{digest[:2]}/{digest}", trust_env=False
        )
        assert anonymous.status_code == 403

    def test_without_its_certificate_no_other_port_of_the_store_gives_anything(self, own: Path) -> None:
        """Whoever is another user of the machine has the ports and no file of the installation."""
        S3Store(read_settings()).put(b"a photo", "image/png")
        s3, *others = Installation.read(own).s3_ports
        stranger = ssl.create_default_context(cafile=own / "s3-security" / "ca.pem")
        for port in others:
            assert httpx.get(f"http://127.0.0.1:{port}/", trust_env=False).status_code == 400
            with pytest.raises((httpx.HTTPError, ssl.SSLError), match="CERTIFICATE_REQUIRED"):
                httpx.get(f"https://127.0.0.1:{port}/", trust_env=False, verify=stranger)
        for port in (s3, *others):
            assert not _listed(grpc.insecure_channel(f"127.0.0.1:{port + GRPC_OFFSET}"))
        files = {name: (own / "s3-security" / name).read_bytes() for name in ("ca.pem", "key.pem", "cert.pem")}
        parts_own = grpc.secure_channel(
            f"127.0.0.1:{others[2] + GRPC_OFFSET}", grpc.ssl_channel_credentials(*files.values())
        )
        assert _listed(parts_own)  # so the question would be answered

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
    def test_another_user_reads_none_of_the_stores_credentials(self, own: Path) -> None:
        for path in sorted((own / "s3-security").iterdir()):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
            assert subprocess.run([*AS_NOBODY, "cat", path], capture_output=True).returncode != 0, path

    def test_killed_services_come_back_with_their_data(self, own: Path) -> None:
        settings = read_settings()
        owner = Installation.read(own).owner_database_url
        with _connect(owner) as connection, connection.cursor() as cursor:
            cursor.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        digest = S3Store(settings).put(b"kept", "text/plain")
        for name in ("postgres", "s3"):
            os.kill(_pid(own, name), signal.SIGKILL)
        time.sleep(0.5)
        assert {s.name: s.state for s in status(settings).services}["postgres"] == "down"

        up(read_settings(), airflow=False)
        with _connect(owner) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT answer FROM kept")
            assert cursor.fetchone() == (42,)
        assert S3Store(settings).get(digest) == b"kept"
        assert sha256_hex(b"kept") == digest

    def test_the_supervisor_starts_again_what_dies_and_says_so(self, own: Path) -> None:
        settings = read_settings()
        digest = S3Store(settings).put(b"kept by nobody", "text/plain")
        up(settings, airflow=False, supervised=True)
        try:
            dead = {name: psutil.Process(_pid(own, name)) for name in ("postgres", "s3")}
            for killed in dead.values():
                killed.kill()
            _until(lambda: "s3 died, and runs again since" in self._told(settings), 60)
            assert all(_pid(own, name) != killed.pid for name, killed in dead.items())
            assert S3Store(read_settings()).get(digest) == b"kept by nobody"
        finally:
            down(settings)
        assert process(own, "supervisor") is None
        time.sleep(PAUSE + 1)
        assert process(own, "postgres") is None, "what was stopped stays so"
        up(read_settings(), airflow=False)

    @staticmethod
    def _told(settings: Settings) -> str:
        """What `packshot status` says of the supervisor."""
        return {s.name: s.detail for s in status(settings, airflow=False).services}["supervisor"]

    def test_what_survived_a_killed_postgres_is_started_anew(self, own: Path) -> None:
        ensure(own, Daemon("airflow-triggerer", ["sleep", "600"]))
        up(read_settings(), airflow=False)
        assert process(own, "airflow-triggerer"), "Postgres was running"
        os.kill(_pid(own, "postgres"), signal.SIGKILL)
        up(read_settings(), airflow=False)
        assert process(own, "airflow-triggerer") is None

    def test_a_port_that_somebody_took_meanwhile_is_replaced(self, own: Path) -> None:
        settings = read_settings()
        digest = S3Store(settings).put(b"moved", "text/plain")
        down(settings)
        with socket.socket() as stranger:
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            stranger.bind(("127.0.0.1", int(settings.s3_endpoint.rpartition(":")[2])))
            stranger.listen()
            up(settings, airflow=False)
        moved = read_settings()
        assert moved.s3_endpoint != settings.s3_endpoint
        assert S3Store(moved).get(digest) == b"moved"

    def test_down_spares_a_stranger_that_got_the_old_pid(self, own: Path) -> None:
        stranger = subprocess.Popen(["sleep", "60"])
        record = own / "run" / "airflow-scheduler.json"
        record.write_text(json.dumps({"pid": stranger.pid, "started": 1, "fingerprint": "", "stop_signal": 15}))
        try:
            down(read_settings())
            assert stranger.poll() is None
        finally:
            stranger.kill()
            stranger.wait()
            up(read_settings(), airflow=False)

    def test_an_up_that_was_killed_while_it_made_the_cluster_is_made_good(self, own: Path) -> None:
        down(read_settings())
        (own / "postgres").rename(own / "postgres.new")
        (own / "postgres.new" / "global" / "pg_control").unlink()
        up(read_settings(), airflow=False)
        assert not (own / "postgres.new").exists()

    def test_a_service_that_cannot_start_names_its_log(self, own: Path) -> None:
        down(read_settings())
        control = own / "postgres" / "global" / "pg_control"
        whole = control.read_bytes()
        control.write_bytes(b"")
        try:
            with pytest.raises(ServiceFailed, match=r"postgres stopped while starting .*logs/postgres\.log"):
                up(read_settings(), airflow=False)
        finally:
            control.write_bytes(whole)
            up(read_settings(), airflow=False)


class TestInstallation:
    def test_tokens_are_signed_with_a_secret_of_64_random_bytes(self, tmp_path: Path) -> None:
        one, other = Installation.read(tmp_path).jwt_secret, Installation.read(tmp_path).jwt_secret
        assert one != other
        assert len(urlsafe_b64decode(one + "=" * (-len(one) % 4))) == 64
        assert (
            airflow_environment(read_settings(), Installation(jwt_secret=one))["AIRFLOW__API_AUTH__JWT_SECRET"] == one
        )

    def test_airflows_processes_carry_neither_its_admins_password_nor_the_owners(
        self, services: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        installation = Installation.read(services.state_dir)
        environment = airflow_environment(_connected(services, installation), installation)
        drawn = (installation.admin_password, installation.packshot_password, installation.postgres_password)
        for secret in (*drawn, installation.sheet_key):
            assert secret not in " ".join(environment.values())
        for name, value in environment.items():
            if name.startswith("PACKSHOT_"):
                monkeypatch.setenv(name, value)
        carried = read_settings()  # with the environment file that `up` left
        assert carried.airflow_password.get_secret_value() == carried.owner_database_url == ""
        assert f"//{WORKER}:" in carried.database_url

    def test_an_installation_from_before_the_workers_role_is_still_ours(self, tmp_path: Path) -> None:
        installation = Installation()
        settings = Settings(state_dir=tmp_path, database_url=installation.owner_database_url)
        connected = _connected(_without_embedded(settings, installation), installation)
        assert connected.database_url == installation.database_url
        assert connected.owner_database_url == installation.owner_database_url

    def test_an_older_installation_keeps_its_secrets(self, tmp_path: Path) -> None:
        older = Installation(jwt_secret="a secret that an older packshot drew")
        older.write(tmp_path)
        assert Installation.read(tmp_path) == older


class TestSomebodyElses:
    def test_services_named_by_the_environment_are_used_and_never_started(
        self, services: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        state_dir = tmp_path / "state"
        monkeypatch.setenv("PACKSHOT_STATE_DIR", str(state_dir))
        monkeypatch.setenv("PACKSHOT_DATABASE_URL", services.database_url)
        monkeypatch.setenv("PACKSHOT_S3_ENDPOINT", services.s3_endpoint)
        monkeypatch.setenv("PACKSHOT_S3_ACCESS_KEY", services.s3_access_key)
        monkeypatch.setenv("PACKSHOT_S3_SECRET_KEY", services.s3_secret_key.get_secret_value())
        with pytest.raises(ServiceFailed, match=r"'packshot_worker' is not the owner.*PACKSHOT_OWNER_DATABASE_URL"):
            up(read_settings(), airflow=False)
        owner = Installation.read(services.state_dir).owner_database_url
        monkeypatch.setenv("PACKSHOT_OWNER_DATABASE_URL", owner)
        now = up(read_settings(), airflow=False)
        assert {s.name: s.state for s in now.services if not s.embedded} == {"postgres": "up", "s3": "up"}
        assert not list((state_dir / "run").iterdir())
        assert services.s3_secret_key.get_secret_value() not in environment_file(state_dir).read_text()

        down(read_settings())
        assert status(read_settings()).services[0].state == "up"

    def test_a_wrong_address_is_one_line_that_names_the_setting(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PACKSHOT_STATE_DIR", str(tmp_path / "state"))
        monkeypatch.setenv("PACKSHOT_DATABASE_URL", "postgresql+psycopg2://me:secret@127.0.0.1:1/packshot")
        with pytest.raises(ServiceFailed) as failure:
            up(read_settings(), airflow=False)
        assert "127.0.0.1:1/packshot" in str(failure.value)
        assert "PACKSHOT_DATABASE_URL" in str(failure.value)
        assert "secret" not in str(failure.value)


def _runs(process: psutil.Process) -> bool:
    """Whether a process still does something. One that has ended may wait for its new parent, the machine's init."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


@pytest.mark.slow
class TestAirflow:
    @pytest.fixture
    def api(self, airflow_up: Settings) -> Iterator[httpx.Client]:
        body = {"username": airflow_up.airflow_user, "password": airflow_up.airflow_password.get_secret_value()}
        with httpx.Client(base_url=airflow_up.airflow_url, timeout=30, trust_env=False) as client:
            token = client.post("/auth/token", json=body).json()["access_token"]
            client.headers["Authorization"] = f"Bearer {token}"
            yield client

    def test_every_dag_is_there_and_parses(self, api: httpx.Client) -> None:
        assert api.get("/api/v2/importErrors").json()["total_entries"] == 0
        assert api.get("/api/v2/dags").json()["total_entries"] == len(list((ROOT / "dags").glob("*.py")))

    def test_pool_gpu_has_the_slots_of_the_settings(self, api: httpx.Client, airflow_up: Settings) -> None:
        assert api.get("/api/v2/pools/gpu").json()["slots"] == airflow_up.gpu_slots

    def test_nobody_enters_without_a_password(self, airflow_up: Settings) -> None:
        assert httpx.get(f"{airflow_up.airflow_url}/api/v2/dags", trust_env=False).status_code == 401
        wrong = {"username": "admin", "password": "admin"}
        assert httpx.post(f"{airflow_up.airflow_url}/auth/token", json=wrong, trust_env=False).status_code == 401

    def test_a_killed_scheduler_comes_back_without_its_old_workers(self, airflow_up: Settings) -> None:
        state_dir = airflow_up.state_dir
        old = psutil.Process(_pid(state_dir, "airflow-scheduler"))
        workers = old.children(recursive=True)
        old.kill()
        up(airflow_up)
        assert _pid(state_dir, "airflow-scheduler") != old.pid
        assert workers
        assert not any(_runs(worker) for worker in workers)
        assert status(airflow_up).healthy

    def test_old_history_is_listed_then_removed_and_new_history_stays(self, airflow_up: Settings) -> None:
        log = airflow_up.state_dir / "logs" / "tasks" / "run_id=long ago" / "attempt=1.log"
        log.parent.mkdir(parents=True)
        log.write_text("it went well")
        long_ago = time.time() - 100 * 86400
        os.utime(log, (long_ago, long_ago))
        database = Installation.read(airflow_up.state_dir).airflow_database_url
        count = "SELECT count(*) FILTER (WHERE event = 'long ago'), count(*) FROM log"
        with _connect(database) as connection, connection.cursor() as cursor:
            cursor.execute("INSERT INTO log (dttm, event) VALUES (to_timestamp(%s), 'long ago')", [long_ago])
        with _connect(database) as connection, connection.cursor() as cursor:
            cursor.execute(count)
            old, everything = cursor.fetchone()
        assert old < everything

        listed = old_history(airflow_up, 90, apply=False)
        assert (listed.rows, listed.logs, listed.bytes, log.exists()) == ({"log": 1}, 1, 12, True)
        assert old_history(airflow_up, 90, apply=True).rows == listed.rows
        assert not log.parent.exists()
        with _connect(database) as connection, connection.cursor() as cursor:
            cursor.execute(count)
            old, remaining = cursor.fetchone()
        assert (old, remaining >= everything - 1) == (0, True)

    @pytest.mark.exhaustive  # Airflow takes its time to call a heartbeat too old
    def test_a_scheduler_that_lives_and_works_no_more_is_started_anew(self, airflow_up: Settings) -> None:
        up(airflow_up, supervised=True)
        try:
            old = psutil.Process(_pid(airflow_up.state_dir, "airflow-scheduler"))
            old.suspend()
            _until(lambda: "scheduler works no more, and runs again" in last_word(airflow_up.state_dir), 240)
            assert not _runs(old)
            assert status(airflow_up).healthy
        finally:
            stop(airflow_up.state_dir, "supervisor")

    def test_down_stops_every_process_and_up_may_end_the_links_to_contact_sheets(self, airflow_up: Settings) -> None:
        state_dir = airflow_up.state_dir

        now = time.time()
        token = sign(Sheet(now, int(now) + 3600, 0), Installation.read(state_dir).sheet_key)

        def opened() -> int:
            return httpx.get(f"{airflow_up.airflow_url}/packshot/public/sheets/{token}", trust_env=False).status_code

        assert opened() == 200, "the API server has the key that the installation drew"
        leaders = [psutil.Process(_pid(state_dir, name)) for name in DAEMONS]
        processes = [*leaders, *(child for leader in leaders for child in leader.children(recursive=True))]
        down(airflow_up)
        try:
            assert not any(_runs(process) for process in processes)
        finally:
            up(airflow_up, end_sheet_links=True)
        assert opened() == 403
