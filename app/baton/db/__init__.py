"""Postgres: connections, and the statements of each table, in the module that owns it."""
