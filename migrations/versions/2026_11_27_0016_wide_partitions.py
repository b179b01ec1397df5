"""Partitions of several days: a new one holds as many days as `partitioning` says.

Revision: 0016
Follows: 0015

The function reads the bounds of attached partitions instead of their names, so daily and wider partitions can coexist.
Code of the release before calls it as before. Replacing a function blocks no other session.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

LOCKS: dict[str, str] = {}

# `place` moves from yesterday to the day after the last wanted one. Each existing partition moves it to its end, and
# new partitions fill the gap before. A new partition ends where the number of days since 1970 is a multiple of the
# width, or before the next partition. `partitions.planned` predicts what this function will do.
BY_CONTENTS = """
CREATE OR REPLACE FUNCTION baton.create_partitions(days_ahead integer) RETURNS SETOF text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    today constant bigint := floor(extract(epoch FROM clock_timestamp()) / 86400);
    width constant bigint := coalesce((SELECT days FROM baton.partitioning), 1);
    place uuid := rpad(lpad(to_hex((today - 1) * 86400000), 12, '0'), 32, '0')::uuid;
    goal constant uuid := rpad(lpad(to_hex((today + days_ahead + 1) * 86400000), 12, '0'), 32, '0')::uuid;
    part record;
    edge uuid;
    day bigint;
    name text;
BEGIN
    IF days_ahead NOT BETWEEN 0 AND 365 THEN
        RAISE EXCEPTION 'days_ahead must lie between 0 and 365, not %', days_ahead;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('baton.create_partitions'));
    FOR part IN
        SELECT * FROM (
            SELECT format('%I.%I', n.nspname, c.relname) AS name, i.inhdetachpending AS detaching,
                   coalesce(substring(b.text FROM $x$FROM \\('([0-9a-f-]+)'\\)$x$), repeat('0', 32))::uuid AS first,
                   coalesce(substring(b.text FROM $x$TO \\('([0-9a-f-]+)'\\)$x$), repeat('f', 32))::uuid AS finish
            FROM pg_inherits AS i
            JOIN pg_class AS c ON c.oid = i.inhrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
            CROSS JOIN LATERAL pg_get_expr(c.relpartbound, c.oid) AS b (text)
            WHERE i.inhparent = 'baton.batch'::regclass AND b.text LIKE 'FOR VALUES FROM %'
            UNION ALL
            SELECT NULL, false, repeat('f', 32)::uuid, repeat('f', 32)::uuid
        ) AS there
        WHERE there.finish > place ORDER BY there.first
    LOOP
        WHILE place < least(part.first, goal) LOOP
            day := ('x' || left(replace(place::text, '-', ''), 12))::bit(48)::bigint / 86400000;
            edge := rpad(lpad(to_hex((day / width + 1) * width * 86400000), 12, '0'), 32, '0')::uuid;
            edge := least(edge, part.first);
            name := 'batch_' || to_char(to_timestamp(day * 86400) AT TIME ZONE 'UTC', 'YYYYMMDD');
            IF to_regclass('baton.' || name) IS NOT NULL THEN
                RAISE EXCEPTION 'baton.% is there and is no partition of baton.batch: attach, rename or drop it', name
                    USING HINT = 'If it is one, it holds other days than its name says.';
            END IF;
            EXECUTE format('CREATE TABLE baton.%I (LIKE baton.batch INCLUDING ALL)', name);
            EXECUTE format('ALTER TABLE baton.batch ATTACH PARTITION baton.%I FOR VALUES FROM (%L) TO (%L)',
                           name, place, edge);
            RETURN NEXT 'baton.' || name;
            place := edge;
        END LOOP;
        EXIT WHEN place >= goal;
        IF part.detaching THEN
            RAISE EXCEPTION 'the detachment of % from baton.batch is not finished: let it end, or '
                'ALTER TABLE baton.batch DETACH PARTITION % FINALIZE; then attach, rename or drop it',
                part.name, part.name;
        END IF;
        place := part.finish;
    END LOOP;
END
$$
"""

# The function of revision 0007.
BY_NAMES = """
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
    op.create_table(
        "partitioning",
        # The table has one row: the key has one value.
        sa.Column("single", sa.Boolean, server_default=sa.true()),
        sa.Column("days", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("single", name="pk_partitioning"),
        sa.CheckConstraint("single", name=op.f("ck_partitioning_single")),
        sa.CheckConstraint("days BETWEEN 1 AND 366", name=op.f("ck_partitioning_days")),
        schema="baton",
    )
    op.execute("INSERT INTO baton.partitioning (days) VALUES (1)")
    op.execute(BY_CONTENTS)


def downgrade() -> None:
    op.execute(BY_NAMES)
    op.drop_table("partitioning", schema="baton")
