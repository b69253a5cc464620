"""How Alembic reaches the ledger's database: on `migrate`'s connection, or by PACKSHOT_OWNER_DATABASE_URL."""

from __future__ import annotations

import os

from alembic import context
from sqlalchemy import Connection, create_engine

from pipelines.ledger.schema import metadata


def run(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True)
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    with create_engine(os.environ["PACKSHOT_OWNER_DATABASE_URL"]).begin() as own:
        run(own)
