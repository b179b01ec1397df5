"""Connection strings of Postgres, read as libpq reads them, and the files that they name."""
