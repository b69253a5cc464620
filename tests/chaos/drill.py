"""Seeded faults at moments inside a real run, one after the other, on an installation of the drill's own.

    python -m tests.chaos.drill MOMENTS SEED FOLDER [FAULT]     FOLDER keeps the recorded outputs for the next time
    python -m tests.chaos.drill --few FOLDER

Every moment is a run of `catalog_refresh` over two products whose stage outputs are replayed (`tests.chaos.hooks`).
The remedy after a fault is the one that packshot's own message names. Then the run must have ended, with the published
bytes of the undisturbed run, no step computed after it was recorded, and no publication without its object.
"""

from __future__ import annotations

import csv
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from pipelines.catalogue.manifest import write_manifest
from pipelines.contracts import Product
from pipelines.errors import PackshotError
from pipelines.ledger.postgres import PostgresLedger, connect
from pipelines.ledger.reports import Report, report
from pipelines.runs.verify import verify
from pipelines.services import Installation, down, up
from pipelines.services.airflow_client import Airflow
from pipelines.services.daemons import process
from pipelines.services.installation import free_port
from pipelines.settings import ROOT, Settings, get_settings, read_settings
from pipelines.store import S3Store
from tests.chaos.hooks import PLACES, WAIT
from tests.chaos.proxy import Proxy, proxy_before

SCENE = "oak-window"
DAG = "catalog_refresh"
PHOTOS = ("smp-004", "smp-013")
TASKS = ("plan", "cutout", "describe", "generate", "upscale", "inspect", "publish")
SERVICES = ("postgres", "s3", "airflow-scheduler", "airflow-dag-processor", "airflow-api-server")
STANDSTILL = 120.0
"""Seconds without any change after which a line has to say so."""
PATIENCE = 420.0
"""Seconds after which a moment is given up."""
SICK = 60.0
"""Seconds that the supervisor has to start again what died. Then a person follows `packshot status`."""
DISK_MB, FULL = 600, 20.0
"""Size of the disk that the whole installation is on, and for how many seconds it is full."""


@dataclass(frozen=True, slots=True)
class Moment:
    """What happens, and when: the `nth` time that a task comes to a place."""

    fault: str
    task: str
    where: str
    nth: int

    def __str__(self) -> str:
        return f"{self.fault} @ {self.task}, {self.where} {self.nth}"


@dataclass(slots=True)
class Outcome:
    """What became of a moment. `wrong` is empty where all is as it has to be."""

    moment: Moment
    reached: bool = False
    seconds: float = 0.0
    still: float = 0.0
    remedies: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


FAULTS = (
    "kill task",
    "kill supervisor",
    *(f"kill {name}" for name in SERVICES),
    "down and up",
    "mark failed",
    "clear plan",
    "two schedulers",
    "disk full",
    "lose object",
    "rot object",
    *(f"store {kind}, {times}" for kind in ("500", "half a body", "wrong bytes") for times in (1, 12)),
    "store slow, 3",
)
"""Every kind. A number is how many answers of the store are faulty, one after the other."""


def schedule(count: int, seed: int, faults: Sequence[str] = FAULTS) -> list[Moment]:
    """`count` moments: every kind of fault as often as any other, at places that the seed draws."""
    draw = random.Random(seed)
    kinds: list[str] = []
    while len(kinds) < count:
        kinds += draw.sample(faults, len(faults))
    return [_at(fault, draw) for fault in kinds[:count]]


def _at(fault: str, draw: random.Random) -> Moment:
    if fault in ("lose object", "rot object"):
        return Moment(fault, draw.choice(("describe", "generate", "upscale", "inspect")), "reading", 1)
    if fault.startswith("store"):
        answers = ("reading",) if "bod" in fault or "bytes" in fault else ("reading", "writing")
        return Moment(fault, draw.choice(TASKS[1:]), draw.choice(answers), draw.choice((1, 2)))
    task = draw.choice(TASKS)
    places = {"plan": ("reading", "committing")}.get(task, PLACES)
    return Moment(fault, task, draw.choice(places), draw.choice((1, 2)))


class Drill:
    """An installation, and the undisturbed run that everything is compared with."""

    def __init__(self, folder: Path, proxy: Proxy, direct: Settings, settings: Settings, photos: Sequence[str]):
        self.folder, self.proxy, self.direct, self.settings, self.photos = folder, proxy, direct, settings, photos
        self.store, self.airflow = S3Store(direct), Airflow(settings)
        self.undisturbed: dict[str, str] = {}
        self.second: subprocess.Popen[bytes] | None = None

    @property
    def engine(self) -> Engine:
        """A new one: the server may have been killed."""
        return connect(self.settings.database_url)

    @property
    def metadata(self) -> Engine:
        """Airflow's database."""
        return create_engine(self.direct.airflow_database_url, poolclass=NullPool)

    def up(self) -> None:
        """`packshot up`, whose store is behind the proxy."""
        up(self.direct, airflow=False)
        up(self.settings, supervised=True)

    # ------------------------------------------------------------------------------------------------ runs

    def start(self) -> str:
        """Starts a run over the products, of which nothing is shown, that computes everything."""
        products = []
        with self.engine.begin() as connection:
            connection.execute(text("UPDATE publications SET superseded_at = now() WHERE superseded_at IS NULL"))
        with (ROOT / "pipelines/sample/catalog.csv").open(encoding="utf-8", newline="") as file:
            rows = {row["id"].lower(): row for row in csv.DictReader(file)}
        for number, photo in enumerate(self.photos, 2):
            row = rows[photo]
            data = (ROOT / "pipelines/sample" / row["image_link"]).read_bytes()
            digest = self.store.put(data, "image/jpeg")
            products.append(Product(photo, number, row["title"], row["product_type"], digest))
        feed = write_manifest(self.store, "feed.csv", "0" * 64, products)
        return self.again(feed, "all")

    def again(self, feed: str, reprocess: str) -> str:
        """Starts a run over a feed."""
        conf = {"feed": feed, "scene": SCENE, "reprocess": reprocess, "triggered_by": "drill"}
        return self.airflow.trigger(DAG, conf)

    def shown(self, run: str) -> dict[str, str]:
        """SKU → digest of what the run published."""
        documents = report(self.engine, run).documents
        rows = csv.DictReader(io.StringIO(self.store.get(documents["feed"]).decode())) if "feed" in documents else ()
        return {row["id"]: row["sha256"] for row in rows}

    # ------------------------------------------------------------------------------------------------ one moment

    def play(self, moment: Moment) -> Outcome:
        """A run with this fault, its remedy, and what came of it."""
        outcome = Outcome(moment)
        for file in ("armed.json", "taken.json", "reached.json", "go"):
            (self.folder / file).unlink(missing_ok=True)
        (self.folder / "computed").write_text("")
        about = {"task": moment.task, "where": moment.where, "nth": moment.nth}
        (self.folder / "armed.json").write_text(json.dumps(about))
        run = self.start()
        try:
            self._to_the_moment(run, outcome)
            began = time.monotonic()
            if outcome.reached:
                self._do(moment, run)
            (self.folder / "go").touch()
            run = self._to_the_end(run, outcome)
            outcome.seconds = time.monotonic() - began
            self._judge(run, outcome)
        except TimeoutError as error:
            outcome.wrong.append(str(error))
        finally:
            self.proxy.arm("", "", 0)
            if self.second is not None:
                os.killpg(self.second.pid, signal.SIGKILL)
                self.second.wait()
                self.second = None
        return outcome

    def _to_the_moment(self, run: str, outcome: Outcome) -> None:
        until = time.monotonic() + PATIENCE
        while not (self.folder / "reached.json").exists():
            found = self.airflow.run(DAG, run)
            if found is not None and found.ended:
                return  # it does not come by there so often
            if time.monotonic() > until:
                raise TimeoutError(f"run {run} did not come to its moment within {PATIENCE:.0f} s")
            time.sleep(0.5)
        outcome.reached = True

    def _do(self, moment: Moment, run: str) -> None:
        pid = json.loads((self.folder / "reached.json").read_text())["pid"]
        what, _, rest = moment.fault.partition(" ")
        if moment.fault == "kill task":
            psutil.Process(pid).kill()
        elif moment.fault == "kill supervisor":
            psutil.Process(pid).parent().kill()
        elif what == "kill":
            leader = process(self.direct.state_dir, rest)
            assert leader is not None
            leader.kill()
        elif moment.fault == "down and up":
            down(self.direct)
            self.up()
        elif moment.fault == "two schedulers":
            first = process(self.direct.state_dir, "airflow-scheduler")
            assert first is not None
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
            with self.metadata.connect() as connection:
                began = connection.scalar(text("SELECT now()"))
            self.second = subprocess.Popen(first.cmdline(), env=first.environ(), cwd=ROOT, **quiet)
            self._wait_for_the_second(began)
        elif moment.fault == "disk full":
            self._fill_the_disk()
        elif moment.fault == "mark failed":
            self.airflow.mark(DAG, run, "failed")
        elif moment.fault == "clear plan":
            self._clear(run, task_ids=["plan"])
        elif rest == "object":
            with self.engine.connect() as connection:
                digest = connection.scalar(text(_OF_CUTOUT), {"run": run})
            assert digest
            self.store.remove(digest)
            if what == "rot":
                _overwrite(self.direct, digest)
        else:
            kind, _, times = rest.partition(", ")
            self.proxy.arm(kind, {"reading": "GET", "writing": "PUT"}[moment.where], int(times))

    def _wait_for_the_second(self, began: object) -> None:
        """Returns when two schedulers beat: the task waits at its moment meanwhile, so the run has them both."""
        until = time.monotonic() + WAIT
        while time.monotonic() < until:
            with self.metadata.connect() as connection:
                if connection.scalar(text(_BEATING), {"began": began}) > 1:
                    return
            time.sleep(1)
        raise TimeoutError(f"the second scheduler does not beat after {WAIT:.0f} s")

    def _fill_the_disk(self) -> None:
        """No byte of the disk is free, while the run goes on; then somebody makes room."""
        ballast = self.direct.state_dir / "ballast"
        with ballast.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(2**20))
        (self.folder / "go").touch()
        time.sleep(FULL)
        ballast.unlink()

    def _clear(self, run: str, **which: object) -> None:
        how = {"dry_run": False, "reset_dag_runs": True, "include_downstream": True, "only_failed": False}
        body = {"dag_run_id": run, **how, **which}
        self.airflow._call("POST", f"/api/v2/dags/{DAG}/clearTaskInstances", json=body)

    def _to_the_end(self, run: str, outcome: Outcome) -> str:
        """Waits for the run's end, and does what packshot's messages say. Returns the run that is the last."""
        until, changed, last = time.monotonic() + PATIENCE, time.monotonic(), None
        sick_since: float | None = None
        while True:
            time.sleep(1)
            if time.monotonic() > until:
                raise TimeoutError(f"run {run} has not ended after {PATIENCE:.0f} s; last seen: {last}")
            try:
                now = [
                    (t["task_id"], t["map_index"], t["state"], t["try_number"]) for t in self.airflow.tasks(DAG, run)
                ]
                found = self.airflow.run(DAG, run)
                state = found.state if found else "unknown"
            except (PackshotError, httpx.HTTPError):
                now, state = [], "Airflow is away"
            if (now, state) != last:
                outcome.still = max(outcome.still, time.monotonic() - changed)
                last, changed = (now, state), time.monotonic()
            if not self._healthy():
                sick_since = sick_since or time.monotonic()
                # the store is behind the proxy: for the supervisor it is somebody else's
                if time.monotonic() - sick_since > (SICK if process(self.direct.state_dir, "s3") else 8):
                    outcome.remedies.append("packshot up")
                    try:
                        self.up()
                    except PackshotError as error:
                        outcome.wrong.append(f"packshot up: {error}")
                    sick_since = None
                continue
            sick_since = None
            if state in ("success", "failed"):
                try:
                    closed = report(self.engine, run)
                except (PackshotError, SQLAlchemyError):
                    continue
                if closed.finished_at is None:
                    continue
                if closed.state == "success":
                    return run
                if len(outcome.remedies) >= 4:
                    outcome.wrong.append(f"it fails again after {outcome.remedies}: {closed.problem}")
                    return run
                run = self._remedy(closed, outcome)
                changed = time.monotonic()

    def _healthy(self) -> bool:
        """As `packshot status` sees it, without the wait for a heartbeat that is late on a busy machine."""
        return all(process(self.direct.state_dir, name) for name in SERVICES)

    def _remedy(self, closed: Report, outcome: Outcome) -> str:
        """Does what the reasons of a failed run say."""
        said = " ".join(
            [(closed.problem or {}).get("reason", ""), *(s.reason for s in closed.shots if s.state == "failed")]
        )
        if "verify --hash --repair" in said:
            outcome.remedies.append("verify --hash --repair, run again")
            verify(PostgresLedger(self.engine), self.store, self.direct, read=True, repair=True)
            return self.again(_feed_of(self.engine, closed.run), "missing")
        if "clear the task" in said:
            outcome.remedies.append("clear the task")
            failed = {task["task_id"] for task in self.airflow.tasks(DAG, closed.run) if task["state"] == "failed"}
            self._clear(closed.run, task_ids=sorted(failed))
            return closed.run
        if "start it again" in said:
            outcome.remedies.append("start it again")
            return self.again(_feed_of(self.engine, closed.run), "missing")
        outcome.wrong.append(f"the run failed, and no message names a remedy: {said!r}")
        outcome.remedies += ["none named"] * 4
        return closed.run

    def _judge(self, run: str, outcome: Outcome) -> None:
        if (shown := self.shown(run)) != self.undisturbed:
            outcome.wrong.append(f"published {shown}, not {self.undisturbed}")
        with self.engine.connect() as connection:
            made = dict(
                connection.execute(text("SELECT key, extract(epoch FROM created_at) FROM steps")).tuples().all()
            )
            orphans = connection.scalars(text(_ORPHANS)).all()
        for line in (self.folder / "computed").read_text().splitlines():
            at, key = line.split()
            if key in made and float(at) > float(made[key]) + 0.5 and "verify" not in str(outcome.remedies):
                outcome.wrong.append(f"step {key[:12]} was computed after it was recorded")
        outcome.wrong += [f"publication {digest[:12]} has no step" for digest in orphans]
        outcome.wrong += [f"publication {d[:12]} has no object" for d in shown.values() if not self.store.has(d)]
        if outcome.still > STANDSTILL:
            outcome.wrong.append(f"nothing changed for {outcome.still:.0f} s")


_OF_CUTOUT = """
SELECT o.digest FROM run_steps u JOIN step_outputs o USING (key) WHERE u.run = :run AND u.stage = 'cutout'
ORDER BY o.role LIMIT 1
"""

_BEATING = """
SELECT count(*) FROM job WHERE job_type = 'SchedulerJob' AND state = 'running' AND latest_heartbeat > :began
"""

_ORPHANS = """
SELECT p.digest FROM publications p WHERE p.superseded_at IS NULL AND NOT EXISTS (
    SELECT FROM step_outputs o JOIN steps s USING (key)
    WHERE o.digest = p.digest AND s.stage = 'publish' AND s.state = 'done')
"""


def _feed_of(engine: Engine, run: str) -> str:
    with engine.connect() as connection:
        return str(connection.scalar(text("SELECT params ->> 'feed' FROM runs WHERE id = :run"), {"run": run}))


def _overwrite(settings: Settings, digest: str) -> None:
    from tests.pipelines.test_store import overwrite

    overwrite(S3Store(settings), settings, digest, b"rotten")


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A file system of DISK_MB at `folder`, where we may mount one."""
    folder.mkdir(mode=0o700)
    options = ["-t", "tmpfs", "-o", f"size={DISK_MB}m,mode=700", "tmpfs"]
    mounted = subprocess.run(["mount", *options, str(folder)], capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def installation(folder: Path, photos: Sequence[str]) -> Iterator[Drill]:
    """An installation whose store is behind a proxy, and its undisturbed run."""
    state = folder / "state"
    os.environ["PACKSHOT_STATE_DIR"], os.environ["PACKSHOT_AIRFLOW_PARALLELISM"] = str(state), "4"
    os.environ["PACKSHOT_DEVICE"] = "cpu"
    get_settings.cache_clear()
    config = state / "airflow" / "config"
    config.mkdir(parents=True)
    (config / "airflow_local_settings.py").write_text(
        "from pathlib import Path\n"
        "from tests.chaos.hooks import install, note_tasks as task_policy\n"
        f"install(Path({str(folder)!r}))\n"
    )
    try:
        up(read_settings(), airflow=False)
        drawn = Installation.read(state)
        direct = read_settings()
        with proxy_before(direct.s3_endpoint, free_port()) as proxy:
            address = f"127.0.0.1:{proxy.server_port}"
            up(direct.model_copy(update={"s3_endpoint": address}), supervised=True, report=print)
            behind = read_settings().model_copy(
                update={
                    "s3_endpoint": address,
                    "s3_access_key": drawn.s3_access_key,
                    "s3_secret_key": direct.s3_secret_key,
                }
            )
            drill = Drill(folder, proxy, direct, behind, photos)
            run = drill.start()
            assert drill.airflow.follow(DAG, run, timeout_seconds=1200), drill.airflow.failed(DAG, run)
            drill.undisturbed = drill.shown(run)
            assert set(drill.undisturbed) == set(photos), report(drill.engine, run)
            yield drill
    finally:
        with suppress(PackshotError):
            down(read_settings())


FEW = (
    Moment("kill task", "upscale", "committing", 1),
    Moment("store 500, 12", "generate", "reading", 1),
    Moment("rot object", "generate", "reading", 1),
)
"""What every test of the project plays."""


def main(moments: Sequence[Moment], folder: Path, photos: Sequence[str] = PHOTOS) -> int:
    """Play the moments and print the table. Returns how many went wrong."""
    wrong, began = 0, time.monotonic()
    with tempfile.TemporaryDirectory(prefix="packshot-chaos-") as scratch:
        place = Path(scratch)
        if (folder / "recorded").exists():
            shutil.copytree(folder / "recorded", place / "recorded")
        with small_disk(place / "state") as small, installation(place, photos) as drill:
            if not small:
                print("no right to mount a small disk: `disk full` is left out", flush=True)
                moments = [moment for moment in moments if moment.fault != "disk full"]
            count = len(moments)
            print(f"undisturbed: {time.monotonic() - began:.0f} s; {count} moments", flush=True)
            shutil.copytree(place / "recorded", folder / "recorded", dirs_exist_ok=True)
            head = f"{'fault':<28} {'moment':<26} {'outcome':<10} {'seconds':>7} {'still':>5}  remedy"
            print(head, flush=True)
            for moment in moments:
                outcome = drill.play(moment)
                wrong += bool(outcome.wrong)
                end = "WRONG" if outcome.wrong else "mended" if outcome.remedies else "by itself"
                where = f"{moment.task}, {moment.where} {moment.nth}" if outcome.reached else "not reached"
                print(
                    f"{moment.fault:<28} {where:<26} {end:<10} {outcome.seconds:>7.0f} {outcome.still:>5.0f}  "
                    + ", ".join(outcome.remedies),
                    *(f"\n    {line}" for line in outcome.wrong),
                    flush=True,
                )
    print(f"{count - wrong} of {count} moments ended as they have to, in {time.monotonic() - began:.0f} s")
    return wrong


if __name__ == "__main__":
    if "--few" in sys.argv:
        sys.exit(bool(main(FEW, Path(sys.argv[-1]), PHOTOS[:1])))
    how_many, seed, kept, *faults = sys.argv[1:]
    sys.exit(bool(main(schedule(int(how_many), int(seed), faults or FAULTS), Path(kept))))
