"""Partitions ahead count as created only if they are attached, not if a table has their name.

Revision: 0007
Follows: 0006

Before, a table with the name of a future partition passed for it, until that day came and nothing could be written.
Replacing a function blocks no other session.
"""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

LOCKS: dict[str, str] = {}

HEAD = """
CREATE OR REPLACE FUNCTION baton.create_partitions(days_ahead integer) RETURNS SETOF text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    today date := (clock_timestamp() AT TIME ZONE 'UTC')::date;
    day date;
    name text;
    bounds text[];
BEGIN
    IF days_ahead NOT BETWEEN 0 AND 365 THEN
        RAISE EXCEPTION 'days_ahead must lie between 0 and 365, not %', days_ahead;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('baton.create_partitions'));
    FOR day IN SELECT generate_series(today - 1, today + days_ahead, interval '1 day')::date LOOP
        name := 'batch_' || to_char(day, 'YYYYMMDD');
"""

BY_ATTACHMENT = """
        CONTINUE WHEN EXISTS (
            SELECT FROM pg_inherits
            WHERE inhparent = 'baton.batch'::regclass AND inhrelid = to_regclass('baton.' || name)
              AND NOT inhdetachpending
        );
        IF EXISTS (
            SELECT FROM pg_inherits
            WHERE inhparent = 'baton.batch'::regclass AND inhrelid = to_regclass('baton.' || name)
        ) THEN
            RAISE EXCEPTION 'the detachment of baton.% from baton.batch is not finished: let it end, or '
                'ALTER TABLE baton.batch DETACH PARTITION baton.% FINALIZE; then attach, rename or drop it', name, name;
        END IF;
        IF to_regclass('baton.' || name) IS NOT NULL THEN
            RAISE EXCEPTION 'baton.% is there and is no partition of baton.batch: attach, rename or drop it', name;
        END IF;
"""

BY_NAME = """
        CONTINUE WHEN to_regclass('baton.' || name) IS NOT NULL;
"""

TAIL = """
        SELECT array_agg(rpad(lpad(to_hex((extract(epoch FROM edge) * 1000)::bigint), 12, '0'), 32, '0')::uuid::text)
        INTO bounds FROM unnest(ARRAY[day::timestamp, (day + 1)::timestamp]) AS edge;
        EXECUTE format('CREATE TABLE baton.%I (LIKE baton.batch INCLUDING ALL)', name);
        EXECUTE format('ALTER TABLE baton.batch ATTACH PARTITION baton.%I FOR VALUES FROM (%L) TO (%L)',
                       name, bounds[1], bounds[2]);
        RETURN NEXT name;
    END LOOP;
END
$$
"""


def upgrade() -> None:
    op.execute(HEAD + BY_ATTACHMENT + TAIL)


def downgrade() -> None:
    op.execute(HEAD + BY_NAME + TAIL)
