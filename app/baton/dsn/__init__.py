"""Connection strings of Postgres as libpq reads them, and what they lead to."""
