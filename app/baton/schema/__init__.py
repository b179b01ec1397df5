"""The database schema: tables, migrations, privileges and maintenance."""
