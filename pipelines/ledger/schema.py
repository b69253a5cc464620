"""The ledger's tables, and bringing a database to them. `sql/migrations` creates them; a test compares the two.

products ─< product_versions ─< run_shots >─ runs          what was asked for
            shots ─────────────┘  └─ run_steps >─┐
steps ─< step_inputs · step_outputs · step_models · verdicts   what ran: the lineage
artifacts                                        publications · decisions   what is shown
spot_checks                                      passed images that a person is asked about
embeddings                                       what the cutout editor need not compute again
model_revisions ─< model_promotions              which weights a profile's parts have
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.pool import NullPool

from pipelines.ledger import roles
from pipelines.settings import ROOT

SQL = ROOT / "sql"
"""Migrations and views."""

metadata = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
    }
)


def _now() -> Column:
    return Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now())


products = Table(
    "products",
    metadata,
    Column("sku", Text, primary_key=True),
    Column("row", Integer, nullable=False, comment="Row of the feed that it was last read from."),
    Column("version", BigInteger, ForeignKey("product_versions.id"), nullable=False, comment="The current one."),
    Column("first_seen_at", DateTime(timezone=True), nullable=False),
    Column("feed", Text, nullable=False, server_default="", comment="Name of the whole feed it is in."),
    Column("left_at", DateTime(timezone=True), comment="When that feed no longer had it; null while it has."),
)
Index("products_left_idx", products.c.sku, postgresql_where=products.c.left_at.is_not(None))

product_versions = Table(
    "product_versions",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("sku", Text, nullable=False),
    Column("content", Text, nullable=False, comment="sha256 over everything below but the time."),
    Column("title", Text, nullable=False),
    Column("category", Text, nullable=False),
    Column("image_link", Text, nullable=False),
    Column("photo", Text, comment="Digest of the photo; null with a photo_problem."),
    Column("photo_problem", Text, nullable=False, server_default=""),
    Column("item_group_id", Text, nullable=False, server_default=""),
    Column("extra", JSONB, nullable=False),
    Column("photo_of", Text, nullable=False, server_default="", comment="SKU that it is an additional photo of."),
    Column("photo_number", Integer, nullable=False, server_default="1", comment="1: the main photo of its row."),
    Column("changed_at", DateTime(timezone=True), nullable=False),
    Index(None, "sku", "content"),
    Index(None, "changed_at"),
    Index(None, "photo"),
)

Index(
    "product_versions_additional_idx", product_versions.c.photo_of, postgresql_where=product_versions.c.photo_of != ""
)
Index(
    "product_versions_group_idx",
    product_versions.c.item_group_id,
    postgresql_where=product_versions.c.item_group_id != "",
)

photo_links = Table(
    "photo_links",
    metadata,
    Column("link", Text, primary_key=True, comment="sha256 of the address in the feed."),
    Column("photo", Text, nullable=False, comment="Digest of what it gave."),
    Column("address", Text, nullable=False, comment="Where redirects led: whose word the next two are."),
    Column("etag", Text, nullable=False),
    Column("last_modified", Text, nullable=False),
    Column("asked_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)

scenes = Table(
    "scenes",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("definition", JSONB, nullable=False),
    _now(),
)

shots = Table(
    "shots",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("sku", Text, nullable=False),
    Column("scene", Text, nullable=False),
    Column("channel", Text, nullable=False),
    UniqueConstraint("sku", "scene", "channel"),
)

runs = Table(
    "runs",
    metadata,
    Column("id", Text, primary_key=True, comment="Airflow's dag_run_id."),
    Column("dag_id", Text, nullable=False),
    Column("scene", Text, nullable=False),
    Column("channel", Text, nullable=False),
    Column("feed", Text, nullable=False, server_default="", comment="Digest of the manifest, where there is one."),
    Column("params", JSONB, nullable=False),
    Column("triggered_by", Text, nullable=False, server_default=""),
    Column("state", Text, nullable=False, comment="running, success, failed or cancelled."),
    Column("started_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("finished_at", DateTime(timezone=True)),
    Column("problem", JSONB, comment="What stopped publication: failed expectations and their rows."),
    Column("totals", JSONB, comment="What the run came to, as `outcomes` counts it; null while it runs."),
    Column("number", BigInteger, Identity(), nullable=False, comment="Runs in the order in which they were planned."),
    Column("line", Text, nullable=False, server_default="", comment="Runs of one line build on one another."),
    Column("selected", Integer, nullable=False, server_default="0", comment="Shots, those that did not change too."),
    Column("recipe", Text, nullable=False, server_default="", comment="Fingerprint of what decides, products apart."),
    Column("put_off", Integer, nullable=False, server_default="0", comment="Shots left to the next wave."),
    Column("notified_at", DateTime(timezone=True), comment="When its failure was sent to the webhook and by mail."),
    Index(None, "triggered_by", "started_at"),
    Index(None, "started_at"),
    Index(None, "line", "number"),
)

run_shots = Table(
    "run_shots",
    metadata,
    Column("run", Text, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("shot", BigInteger, ForeignKey("shots.id"), nullable=False),
    Column("version", BigInteger, ForeignKey("product_versions.id"), nullable=False),
    Column("row", Integer, nullable=False),
    Column("shard", Integer, comment="Null: no stage has anything to do."),
    Column("state", Text, nullable=False, server_default="pending"),
    Column("reason", Text, nullable=False, server_default=""),
    Column("final", Text, comment="Digest of the `final` image that was inspected; null before."),
    Column(
        "checks", ARRAY(Text), nullable=False, server_default="{}", comment="Failed checks, in order of the stages."
    ),
    Column("settled", Boolean, nullable=False, server_default="false", comment="Nothing is left to be tried."),
    Column("until", BigInteger, comment="Number of the run of this line from which on it no longer counts."),
    Column(
        "superseded",
        Boolean,
        nullable=False,
        server_default="false",
        comment="Of a held image: a later run made another one. False where nobody looked yet.",
    ),
    UniqueConstraint("run", "shot"),
    Index(None, "shot"),
)
Index(
    "run_shots_queue_idx",
    run_shots.c.run,
    run_shots.c.position,
    postgresql_include=["shot", "final", "checks"],
    postgresql_where=(run_shots.c.state == "held") & run_shots.c.final.is_not(None) & ~run_shots.c.superseded,
)
Index("run_shots_final_idx", run_shots.c.final, postgresql_where=run_shots.c.final.is_not(None))
Index("run_shots_seen_idx", run_shots.c.shot, run_shots.c.run, postgresql_where=run_shots.c.final.is_not(None))
Index("run_shots_standing_idx", run_shots.c.run, postgresql_where=run_shots.c.until.is_(None))

artifacts = Table(
    "artifacts",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("media_type", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    _now(),
)

steps = Table(
    "steps",
    metadata,
    Column("key", Text, primary_key=True),
    Column("base", Text, nullable=False, comment="The key without the attempt; the newest of a base supersedes."),
    Column("stage", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("parameters", JSONB, nullable=False),
    Column("seed", BigInteger),
    Column("attempt", Text, nullable=False, server_default=""),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=False, server_default=""),
    Column("facts", JSONB, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("device", Text, nullable=False),
    Column("worker", Text, nullable=False, comment="host:process that computed it."),
    Column(
        "run", Text, nullable=False, server_default="", comment="The run that computed it; empty where it is not known."
    ),
    _now(),
    Index(None, "stage", "created_at"),
    Index(None, "base"),
    Index(None, "run", "stage"),
)


def _of_step(name: str, *columns: Column | Index) -> Table:
    key = Column("key", Text, ForeignKey("steps.key", ondelete="CASCADE"), primary_key=True)
    return Table(name, metadata, key, *columns)


step_inputs = _of_step(
    "step_inputs",
    Column("role", Text, primary_key=True),
    Column("digest", Text, nullable=False),
    Index(None, "digest"),
)

step_outputs = _of_step(
    "step_outputs",
    Column("role", Text, primary_key=True),
    Column("digest", Text, ForeignKey("artifacts.digest"), nullable=False),
    Column("position", Integer, nullable=False),
    Index(None, "digest"),
)

step_models = _of_step(
    "step_models",
    Column("name", Text, primary_key=True),
    Column("revision", Text, nullable=False),
    Column("sha256", Text, nullable=False),
)

verdicts = _of_step(
    "verdicts",
    Column("position", Integer, primary_key=True),
    Column("check", Text, nullable=False),
    Column("score", Double, nullable=False),
    Column("threshold", Double, nullable=False),
    Column("passed", Boolean, nullable=False),
    Column("reason", Text, nullable=False),
    Column("picture", Text, nullable=False, comment="Role of the step's output that shows where."),
)

lost_steps = _of_step(
    "lost_steps",
    _now(),
    Column("pruned", Boolean, nullable=False, server_default="false", comment="Its outputs were removed on purpose."),
)
"""Steps whose outputs the store has lost: they are looked for no more, until the same bytes are there again."""

run_steps = Table(
    "run_steps",
    metadata,
    Column("run", Text, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("shot", BigInteger, ForeignKey("shots.id"), primary_key=True),
    Column("key", Text, ForeignKey("steps.key"), primary_key=True),
    Column("stage", Text, nullable=False),
    Column("reused", Boolean, nullable=False),
    Column("chosen", Boolean, nullable=False),
    Index(None, "key"),
    Index("run_steps_counted_idx", "run", "stage", "reused", "chosen"),
)

run_artifacts = Table(
    "run_artifacts",
    metadata,
    Column("run", Text, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("role", Text, primary_key=True),
    Column("digest", Text, ForeignKey("artifacts.digest"), nullable=False),
    _now(),
)

decisions = Table(
    "decisions",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("final", Text, nullable=False, comment="Digest of the image that it is about."),
    Column("run", Text, ForeignKey("runs.id", ondelete="CASCADE"), nullable=False, comment="The run that held it."),
    Column("shot", BigInteger, ForeignKey("shots.id"), nullable=False),
    Column("choice", Text, nullable=False, comment="approve, reject or retry."),
    Column("reason", Text, nullable=False, server_default=""),
    Column("by", Text, nullable=False),
    Column("batch", Text, nullable=False, server_default="", comment="Names those that were made as one, if any."),
    _now(),
    Column("acted_run", Text, comment="The run that published the image, or tries again."),
    Column("undone_by", Text),
    Column("undone_at", DateTime(timezone=True)),
    Index(None, "shot"),
)
Index("decisions_final_key", decisions.c.final, unique=True, postgresql_where=decisions.c.undone_at.is_(None))
Index("decisions_batch_idx", decisions.c.batch, postgresql_where=decisions.c.batch != "")
Index(
    "decisions_open_idx",
    decisions.c.id,
    postgresql_where=decisions.c.undone_at.is_(None)
    & decisions.c.acted_run.is_(None)
    & (decisions.c.choice != "reject"),
)

spot_checks = Table(
    "spot_checks",
    metadata,
    Column("final", Text, primary_key=True, comment="Digest of the image that was drawn."),
    Column(
        "run",
        Text,
        ForeignKey("runs.id", ondelete="CASCADE"),
        nullable=False,
        comment="The run that published it, and drew it when it ended.",
    ),
    Column("shot", BigInteger, ForeignKey("shots.id"), nullable=False),
    _now(),
    Index(None, "run"),
)
"""Passed images that a person is asked about (`pipelines.ledger.spot_checks`)."""

embeddings = Table(
    "embeddings",
    metadata,
    Column("photo", Text, primary_key=True, comment="Digest of the photo."),
    Column("model", Text, primary_key=True, comment="sha256 of the weights that made it."),
    Column("digest", Text, nullable=False, comment="Digest of the object."),
    Column("size", BigInteger, nullable=False),
    Column("used_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Index(None, "used_at"),
)
"""HQ-SAM's embeddings of photos that a person may cut out anew (`pipelines.ledger.embeddings`)."""

publications = Table(
    "publications",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("shot", BigInteger, ForeignKey("shots.id"), nullable=False),
    Column("digest", Text, ForeignKey("artifacts.digest"), nullable=False),
    Column("run", Text, ForeignKey("runs.id"), nullable=False),
    Column("published_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("superseded_at", DateTime(timezone=True)),
    Column("withdrawn_by", Text, comment="Who took it back; null where a later image superseded it."),
    Index(None, "shot", "digest"),
    Index(None, "run"),
)
Index(
    "publications_current_published_at_idx",
    publications.c.published_at,
    publications.c.id,
    postgresql_where=publications.c.superseded_at.is_(None),
)
Index("publications_withdrawn_idx", publications.c.shot, postgresql_where=publications.c.withdrawn_by.is_not(None))
Index(
    "publications_current_key",
    publications.c.shot,
    unique=True,
    postgresql_where=publications.c.superseded_at.is_(None),
)

model_revisions = Table(
    "model_revisions",
    metadata,
    Column("profile", Text, primary_key=True),
    Column("part", Text, primary_key=True),
    Column("sha256", Text, primary_key=True, comment="Of the weights, as a step's key has it."),
    Column("parent", Text, nullable=False, comment="sha256 of the weights that it was compared with."),
    Column("files", JSONB, nullable=False, comment="File name to digest of the object."),
    Column("data", Text, nullable=False, comment="Digest of the data set that it was trained on."),
    Column("stages", JSONB, nullable=False, comment="Of each stage: pictures, steps, samples."),
    Column("evaluation", JSONB, nullable=False, comment="E+ of its pictures of the frozen set."),
    Column("baseline", JSONB, nullable=False, comment="E+ of the parent's pictures of that set."),
    Column("by", Text, nullable=False),
    _now(),
)

model_promotions = Table(
    "model_promotions",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("profile", Text, nullable=False),
    Column("part", Text, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("by", Text, nullable=False),
    Column("reason", Text, nullable=False, comment="The comparison, or what a person overruled."),
    Column("forced", Boolean, nullable=False, comment="A person decided against the figures."),
    Column("promoted_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("rolled_back_at", DateTime(timezone=True)),
    Column("rolled_back_by", Text, nullable=False, server_default=""),
    ForeignKeyConstraint(
        ["profile", "part", "sha256"],
        ["model_revisions.profile", "model_revisions.part", "model_revisions.sha256"],
    ),
    Index(None, "profile", "part"),
)


def migrate(url: str, worker: str = "") -> None:
    """Bring a database to the newest schema, make the views of `sql/views` anew and protect what is append-only.

    `url` is the owner's. Role `worker` gets its rights (`pipelines.ledger.roles`); "" grants none. Safe to run again
    and at once by several processes: they take turns.
    """
    from alembic import command
    from alembic.config import Config

    views = {file.stem: file.read_text(encoding="utf-8") for file in sorted((SQL / "views").glob("*.sql"))}
    config = Config(SQL / "alembic.ini")
    engine = create_engine(url, poolclass=NullPool, connect_args={"application_name": "packshot migrate"})
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtextextended('packshot migrate', 0))"))
        for name in views:  # a view would hold on to the columns that a migration changes
            connection.execute(text(f'DROP VIEW IF EXISTS "{name}"'))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        for definition in views.values():
            connection.execute(text(definition))
        roles.protect(connection)
        if worker:
            roles.grant(connection, worker, list(views))
