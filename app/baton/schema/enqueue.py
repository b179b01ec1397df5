"""The function `baton.enqueue`, with which an application creates a stream in a transaction of its own."""

from __future__ import annotations

from typing import Final

SIGNATURE: Final = (
    "baton.enqueue(text, json, jsonb, text, text, double precision, double precision, double precision, "
    "double precision, text, timestamptz, text, text, text, boolean)"
)

# Creates a queued stream, which appears when the transaction commits, and returns its id. NULL means the default. The
# limits are in seconds.
#
# It is created *held*: its id is older than the commit, so a worker that reads the queue by position or by id could
# already have read past it. Admission reads what is held without such a bound (see `db.stream_queue`).
#
# An input is stored as it was written. Postgres accepts numbers, escapes and depths in JSON that other parsers refuse,
# and an input that no worker can read would be read again and again. So it is checked as jsonb, which has no \\u0000.
#
# `api.models.CreateStream` has the same fields, bounds and defaults, and `db.stream_creation` the same columns.
_DEFINITION: Final = r"""
CREATE OR REPLACE FUNCTION baton.enqueue(
    generator text,
    input json,
    metadata jsonb DEFAULT NULL,
    tenant text DEFAULT NULL,
    on_worker_lost text DEFAULT NULL,
    max_duration_seconds double precision DEFAULT NULL,
    idle_timeout_seconds double precision DEFAULT NULL,
    queue_timeout_seconds double precision DEFAULT NULL,
    cancel_when_unwatched_seconds double precision DEFAULT NULL,
    priority text DEFAULT NULL,
    start_after timestamptz DEFAULT NULL,
    webhook text DEFAULT NULL,
    idempotency_key text DEFAULT NULL,
    traceparent text DEFAULT NULL,
    notify boolean DEFAULT true
) RETURNS uuid LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
DECLARE
    new_id uuid;
    known_id uuid;
    known_hash bytea;
    hash bytea;
    content constant bytea := convert_to(coalesce(input, 'null')::text, 'UTF8');
    checked constant jsonb := replace(coalesce(input, 'null')::text, '\u0000', '\u0001')::jsonb;
    labels constant jsonb := coalesce(metadata, '{}');
    owner constant text := coalesce(tenant, '');
    policy constant text := coalesce(on_worker_lost, 'continue');
    wanted_priority constant text := coalesce(priority, 'normal');
    seconds double precision;
    wrong text;
BEGIN
    wrong := CASE
        WHEN coalesce(length(generator), 0) NOT BETWEEN 1 AND 100 THEN 'generator: 1 to 100 characters'
        WHEN generator = 'external' THEN 'generator: ''external'' is for streams that are written over HTTP'
        WHEN octet_length(content) > 33554432 THEN 'input: at most 32 MiB'
        WHEN jsonb_path_exists(checked, '$.**{241}') THEN 'input: at most 240 levels'
        WHEN jsonb_path_exists(jsonb_build_array(checked, labels),
                               '$.** ? (@.type() == "number" && (@ > 1.7e308 || @ < -1.7e308))')
            THEN 'input and metadata: numbers within the range of a double'
        WHEN jsonb_typeof(labels) <> 'object' THEN 'metadata: an object'
        WHEN (SELECT count(*) > 32 OR bool_or(length(key) NOT BETWEEN 1 AND 100
                  OR jsonb_typeof(value) NOT IN ('string', 'number', 'boolean') OR length(value #>> '{}') > 512)
              FROM jsonb_each(labels))
            THEN 'metadata: at most 32 entries, with names of 1 to 100 characters, each a string of at most 512 '
                 'characters, a number or a boolean'
        WHEN length(owner) > 200 OR owner ~ '[\x01-\x1f\x7f]' THEN 'tenant: at most 200 printable characters'
        WHEN policy NOT IN ('continue', 'retry', 'fail') THEN 'on_worker_lost: continue, retry or fail'
        WHEN wanted_priority NOT IN ('high', 'normal', 'low') THEN 'priority: high, normal or low'
        WHEN cancel_when_unwatched_seconds < 10 THEN 'cancel_when_unwatched_seconds: at least 10'
        WHEN start_after NOT BETWEEN clock_timestamp() - interval '1000 years' AND clock_timestamp() + interval '7 days'
            THEN 'start_after: at most 7 days ahead, and no more than 1000 years ago'
        WHEN length(webhook) > 2000 OR webhook !~ '^https?://[!-~]+$' THEN 'webhook: a URL'
        WHEN idempotency_key !~ '^[ -~]{1,255}$' THEN 'idempotency_key: 1 to 255 printable ASCII characters'
        WHEN traceparent !~ '^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$' THEN 'traceparent: W3C Trace Context'
    END;
    FOREACH seconds IN ARRAY ARRAY[
        max_duration_seconds, idle_timeout_seconds, queue_timeout_seconds, cancel_when_unwatched_seconds
    ] LOOP
        IF NOT (seconds > 0 AND seconds <= 604800) THEN
            wrong := 'a limit: more than 0 and at most 604800 seconds';
        END IF;
    END LOOP;
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION 'baton.enqueue takes this for %.', wrong USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF start_after > clock_timestamp()
       AND EXISTS (SELECT FROM baton.worker AS w WHERE coalesce(w.code, '') < '0024') THEN
        RAISE EXCEPTION 'Workers of an older release still run, which would start the stream at once.'
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Leave out start_after until they have stopped.';
    END IF;
    -- Before the stream gets its id: see `db.live_counts`.
    PERFORM pg_current_xact_id();
    new_id := @new_id@;
    IF idempotency_key IS NOT NULL THEN
        hash := sha256(convert_to(jsonb_build_array(
            'enqueue', generator, encode(content, 'hex'), labels, policy, max_duration_seconds, idle_timeout_seconds,
            queue_timeout_seconds, cancel_when_unwatched_seconds, wanted_priority,
            extract(epoch FROM start_after), webhook
        )::text, 'UTF8'));
        INSERT INTO baton.idempotency_key AS k (tenant, key, request_hash, stream_id, expires_at)
        VALUES (owner, idempotency_key, hash, new_id, clock_timestamp() + interval '24 hours')
        ON CONFLICT ON CONSTRAINT pk_idempotency_key DO UPDATE
        SET request_hash = excluded.request_hash, stream_id = excluded.stream_id, expires_at = excluded.expires_at
        WHERE k.expires_at < clock_timestamp()
        RETURNING k.stream_id INTO known_id;
        IF known_id IS NULL THEN
            SELECT k.stream_id, k.request_hash INTO known_id, known_hash
            FROM baton.idempotency_key AS k WHERE k.tenant = owner AND k.key = idempotency_key;
            IF known_hash IS DISTINCT FROM hash THEN
                RAISE EXCEPTION 'This idempotency_key has created another stream. Use a new key for a new stream.'
                    USING ERRCODE = 'unique_violation';
            END IF;
            RETURN known_id;
        END IF;
    END IF;
    INSERT INTO baton.stream (
        id, tenant, generator, input, metadata, on_worker_lost, max_duration, idle_timeout, queue_timeout,
        unwatched_timeout, traceparent, may_continue, priority, start_after, queue_position, held_until, webhook
    ) VALUES (
        new_id, owner, enqueue.generator, content, labels, CASE policy WHEN 'fail' THEN 'fail' ELSE 'retry' END,
        max_duration_seconds, idle_timeout_seconds, queue_timeout_seconds,
        cancel_when_unwatched_seconds, enqueue.traceparent, policy = 'continue',
        CASE wanted_priority WHEN 'high' THEN 1 WHEN 'low' THEN -1 ELSE 0 END, enqueue.start_after, NULL,
        greatest(enqueue.start_after, clock_timestamp()), enqueue.webhook
    );
    IF notify THEN
        PERFORM pg_notify('baton_queue', 'held');
    END IF;
    RETURN new_id;
END
$$
"""


def definition(new_id: str) -> str:
    """Return the statement that creates the function; `new_id` is the SQL of a new stream's id."""
    return _DEFINITION.replace("@new_id@", new_id)
