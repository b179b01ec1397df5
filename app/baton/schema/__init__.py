"""The schema: its tables, migrations, grants and maintenance."""
