"""What must be right with a database before a worker works with it."""

from __future__ import annotations

from ..database_entries import DatabaseEntry
from ..db import database_identity
from ..db.database_identity import DatabaseIdentity
from ..db.named_errors import naming
from ..db.postgres import connect
from ..db.schema_revision import check_schema
from ..hints import opening
from ..settings import Settings


async def check_database(settings: Settings, database: DatabaseEntry) -> DatabaseIdentity:
    """Check that notifications arrive, and that the schema and the number fit. `settings` are the database's.

    Raises:
        DatabaseUnreachable: the database does not answer, or is a standby at the moment.
        ConfigurationError: it does not fit.
    """
    with naming(database):
        await opening.check(settings)
        connection = await connect(settings.dsn, name="baton worker", prepare=settings.prepare)
        try:
            await check_schema(connection)
            return await database_identity.check_number(connection, database)
        finally:
            await connection.close()
