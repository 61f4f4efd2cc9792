"""The SQL by which a table of PostgreSQL tells near caches which of its rows have changed."""

from __future__ import annotations

import hashlib
import re

from shmrhash._errors import InvalidArgument

CHANNEL = "shmrhash_near"
CHANNEL_BYTES_MAX = 40  # PostgreSQL allows 63; the tracker adds 17 for a channel of its own
PAYLOAD_BYTES_MAX = 7900  # PostgreSQL refuses 8,000, and the transaction with them

# Payloads of the channel. A payload that begins with neither is taken as EVERYTHING.
ONE_KEY = "="  # the key is what follows
EVERYTHING = "*"

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

# Names of other schemas are not looked up: a replication worker has no search path.
_TABLE = """\
CREATE OR REPLACE FUNCTION {function}() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
    told text[] := '{{}}';
    key text;
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        PERFORM pg_notify('{channel}', '{everything}');
        RETURN NULL;
    END IF;
    -- An update can change the key: both are told. PostgreSQL sends equal ones once.
    IF TG_OP <> 'INSERT' THEN told := array_append(told, {prefix} || OLD.{column}::text); END IF;
    IF TG_OP <> 'DELETE' THEN told := array_append(told, {prefix} || NEW.{column}::text); END IF;
    FOREACH key IN ARRAY told LOOP
        -- A key that is too long for a payload: everything is forgotten.
        IF octet_length(convert_to(key, 'UTF8')) > {bytes_max} THEN
            PERFORM pg_notify('{channel}', '{everything}');
        ELSIF key IS NOT NULL THEN
            PERFORM pg_notify('{channel}', '{one_key}' || key);
        END IF;
    END LOOP;
    RETURN NULL;
END $$;
DROP TRIGGER IF EXISTS {trigger} ON {table};
CREATE TRIGGER {trigger} AFTER INSERT OR UPDATE OR DELETE ON {table}
    FOR EACH ROW EXECUTE FUNCTION {function}();
ALTER TABLE {table} ENABLE ALWAYS TRIGGER {trigger};
DROP TRIGGER IF EXISTS {trigger}_all ON {table};
CREATE TRIGGER {trigger}_all AFTER TRUNCATE ON {table}
    FOR EACH STATEMENT EXECUTE FUNCTION {function}();
ALTER TABLE {table} ENABLE ALWAYS TRIGGER {trigger}_all;
"""


def checked_channel(channel: str) -> str:
    """A name for LISTEN that needs no quotes. Raises InvalidArgument."""
    plain = _NAME.fullmatch(channel) and channel == channel.lower()
    if not plain or len(channel) > CHANNEL_BYTES_MAX:
        raise InvalidArgument(
            f"a channel is named by small letters, digits and _, at most {CHANNEL_BYTES_MAX}, not "
            f"{channel!r}"
        )
    return channel


def triggers(table: str, column: str, prefix: str, *, channel: str = CHANNEL) -> str:
    """The SQL after which a table tells near caches of each changed row: for a migration.

    table: its name, with its schema if it has one. column: whose text, after the prefix, is the
    key; in a table whose rows are parts of another one's values it is the column that refers to
    these. prefix: as in PostgresSource(). It may be executed again, and for several tables.

    A row that is inserted, updated or deleted tells its key, after the commit; TRUNCATE tells that
    everything has changed. The triggers fire ALWAYS, also where logical replication writes. Who
    writes the table needs no right besides.

    Raises InvalidArgument (a name that would need quotes).
    """
    checked_channel(channel)
    parts = table.split(".")
    for name in (*parts, column):
        if not _NAME.fullmatch(name):
            raise InvalidArgument(f"{name!r} needs quotes: write its trigger by this one's model")
    schema = f"{parts[0]}." if len(parts) == 2 else ""
    if len(parts) > 2:
        raise InvalidArgument(f"a table is 'name' or 'schema.name', not {table!r}")
    # A name for each table, column and prefix, of at most 63 bytes with the four that are added.
    digest = hashlib.blake2b(f"{table} {column} {prefix}".encode(), digest_size=4).hexdigest()
    short = f"{channel}_{parts[-1]}_{column}"[:50] + f"_{digest}"
    return _TABLE.format(
        function=schema + short,
        trigger=short,
        table=table,
        column=column,
        channel=channel,
        prefix="'" + prefix.replace("'", "''") + "'",
        bytes_max=PAYLOAD_BYTES_MAX - len(ONE_KEY),
        everything=EVERYTHING,
        one_key=ONE_KEY,
    )
