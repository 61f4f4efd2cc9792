"""NearCache over PostgreSQL: triggers tell of changes, and queries return the values."""

import asyncio
import json
import re
from pathlib import Path

import pytest
from support import near_postgres

psycopg = pytest.importorskip("psycopg", reason="the client psycopg is not installed")

# ruff: noqa: E402 (after the skip)
from support.near_postgres import PATIENCE_S, QUERY, near_of, put, source_of
from support.waiting import until

from shmrhash import InvalidArgument, Unsupported
from shmrhash.postgres import PostgresSource, triggers

pytestmark = pytest.mark.skipif(bool(near_postgres.missing()), reason=near_postgres.missing())
GUIDE = Path(__file__).parents[2] / "docs" / "howto" / "near_postgres.md"


def test_a_value_is_asked_for_once_and_again_after_each_change(sql, pg_near):
    def misses():
        return pg_near.info()["entries"]["misses"]

    def asks_nobody():
        before = misses()
        return [pg_near.get("k1") for _ in range(100)] == ["one"] * 100 and misses() == before

    put(sql, "1", "one")
    until(asks_nobody)
    assert misses() <= 3  # the first read, and those after the notification
    assert pg_near.info()["tracking"] == "notify"
    for number in range(10):
        put(sql, "1", str(number))
        until(lambda: pg_near.get("k1") == str(number))  # noqa: B023 (called at once)
    assert pg_near.get_many(["k1", "k2"]) == {"k1": "9"}
    sql.execute("DELETE FROM items WHERE id = '1'")
    until(lambda: pg_near.get("k1") is None)


@pytest.mark.parametrize(
    ("change", "after"),
    [
        ("UPDATE items SET id = '2' WHERE id = '1'", {"k2": "one"}),
        ("TRUNCATE items", {}),
        ("WITH gone AS (DELETE FROM items RETURNING *) SELECT * FROM gone", {}),
        ("COPY items FROM PROGRAM 'echo 2,two' (FORMAT csv)", {"k1": "one", "k2": "two"}),
        (
            "SET session_replication_role = replica; UPDATE items SET value = 'uno';"
            "RESET session_replication_role",
            {"k1": "uno"},
        ),
        ("SET search_path = ''; DELETE FROM public.items; RESET search_path", {}),
        ("DO $$ BEGIN UPDATE items SET value = 'x'; COMMIT; DELETE FROM items; END $$", {}),
        (
            "MERGE INTO items USING (VALUES ('1', 'uno'), ('2', 'due')) AS new (id, value) "
            "ON items.id = new.id WHEN MATCHED THEN UPDATE SET value = new.value "
            "WHEN NOT MATCHED THEN INSERT VALUES (new.id, new.value)",
            {"k1": "uno", "k2": "due"},
        ),
    ],
)
def test_each_way_to_change_a_table_is_told(sql, pg_near, change, after):
    put(sql, "1", "one")
    until(lambda: pg_near.get("k1") == "one")
    assert pg_near.get("k2") is None

    sql.execute(change)

    until(lambda: pg_near.get_many(["k1", "k2"]) == after)


def test_a_table_tells_for_each_of_its_prefixes(postgres, sql):
    """A table with two prefixes tells a change under each of them. Executing the SQL of the
    triggers a second time changes nothing."""
    for _ in range(2):
        sql.execute(triggers("public.items", "value", "by value "))
    told = []
    with postgres.connect() as listening:
        listening.add_notify_handler(lambda notice: told.append(notice.payload))
        listening.execute("LISTEN shmrhash_near")
        put(sql, "1", "one")
        put(sql, "1", "uno")
        until(lambda: listening.execute("SELECT 1") and len(told) >= 5)
    assert sorted(told) == ["=by value one", "=by value one", "=by value uno", "=k1", "=k1"]


def test_a_rollback_reports_nothing_and_a_long_transaction_reports_at_its_end(
    postgres, sql, pg_near
):
    put(sql, "1", "one")
    until(lambda: pg_near.get("k1") == "one")
    misses = pg_near.info()["entries"]["misses"]
    with postgres.connect() as other:
        other.execute("BEGIN; UPDATE items SET value = 'two'; ROLLBACK")
        other.execute("BEGIN; UPDATE items SET value = 'three'")
        put(sql, "2", "told later, and come")
        until(lambda: pg_near.get("k2") is not None)
        assert pg_near.get("k1") == "one"
        assert pg_near.info()["entries"]["misses"] >= misses
        other.execute("COMMIT")
        until(lambda: pg_near.get("k1") == "three")


@pytest.mark.parametrize("key", ["", "with 'quotes' and \\", "schlüssel", "=", "*", "x" * 3000])
def test_any_text_is_a_key(sql, pg_near, key):
    assert pg_near.get(f"k{key}") is None
    put(sql, key, "here")
    until(lambda: pg_near.get(f"k{key}") == "here")


def test_a_key_that_is_too_long_to_be_told_discards_everything(sql, pg_near):
    """A change of a key that is too long for a notification discards all values. (An index refuses
    such a key, so the table here has none.)"""
    sql.execute("DROP INDEX items_id_idx")
    sql.execute("INSERT INTO items VALUES ('1', 'one')")
    until(lambda: pg_near.get("k1") == "one")
    long = "x" * 7900
    assert pg_near.get(f"k{long}") is None
    epochs = pg_near.info()["nodes"][0]["epochs"]

    sql.execute("INSERT INTO items VALUES (%s, 'here'), (NULL, 'no key')", [long])

    until(lambda: pg_near.get(f"k{long}") == "here")
    assert pg_near.info()["nodes"][0]["epochs"] == epochs + 1
    assert pg_near.get("k1") == "one"


def test_an_unknown_payload_discards_everything(sql, pg_near):
    epochs = pg_near.info()["nodes"][0]["epochs"]
    for payload in ("", "?"):
        sql.execute("SELECT pg_notify('shmrhash_near', %s)", [payload])
    until(lambda: pg_near.info()["nodes"][0]["epochs"] == epochs + 2)


@pytest.mark.parametrize(
    ("column", "stored", "found"),
    [
        ("bytea", "'\\x00c1ff'", b"\x00\xc1\xff"),
        ("json", """'{"a":  1}'""", b'{"a":  1}'),
        ("bigint", "12", b"12"),
        ("text", "''", b""),
        ("text", "NULL", None),
    ],
)
def test_a_value_is_the_text_of_the_column_or_its_bytes(postgres, column, stored, found):
    query = f"SELECT k, {stored}::{column} FROM unnest(%s::text[]) AS k"
    source = source_of(postgres, query)
    assert [one.value for one in source.fetch([b"k1", b"k2"])] == [found, found]
    source.close()


def test_a_third_column_is_the_time_to_live(postgres, map_name):
    query = "SELECT k, 'soon', 0.2 FROM unnest(%s::text[]) AS k"
    with near_of(postgres, map_name, source_of(postgres, query)) as near:
        assert near.ready(PATIENCE_S)
        assert [near.get("k1"), near.get("k1")] == ["soon", "soon"]
        assert near.info()["entries"]["misses"] == 1
        until(lambda: near.get("k1") and near.info()["entries"]["misses"] == 2)


def test_a_function_may_answer_and_its_errors_are_the_callers(postgres, map_name):
    def ask(connection, keys):
        if "bad" in keys:
            connection.execute("SELECT 1 / 0")
        return [(key, key.upper()) for key in keys]

    with near_of(postgres, map_name, source_of(postgres, ask)) as near:
        assert near.ready(PATIENCE_S)
        assert near.get("ka") == "A"
        with pytest.raises(psycopg.errors.DivisionByZero):
            near.get("kbad")
        assert near.get_many(["kb", "kc"]) == {"kb": "B", "kc": "C"}


def test_coroutines_ask_in_threads_of_their_own(postgres, map_name, sql):
    async def work():
        with near_of(postgres, map_name) as near:
            await asyncio.to_thread(near.ready, PATIENCE_S)
            put(sql, "1", "one")
            found = await asyncio.gather(*(near.aget(f"k{number % 3}") for number in range(60)))
            assert found[1::3] == ["one"] * 20
            assert near.info()["entries"]["misses"] <= 6
            with pytest.raises(Unsupported, match="invalidate"):
                await near.aset("k1", "two")

    asyncio.run(work())


def test_writes_are_the_programs_and_forgotten_at_once(sql, pg_near):
    """N3: the program itself writes; after its commit and invalidate() every process reads the new
    value."""
    for number in range(20):
        put(sql, "1", str(number))
        pg_near.invalidate("k1")
        assert pg_near.get("k1") == str(number)
    with pytest.raises(Unsupported, match="invalidate"):
        pg_near.set("k1", "two")
    with pytest.raises(Unsupported, match="invalidate"):
        pg_near.delete("k1")


@pytest.mark.parametrize(
    ("queries", "options"),
    [
        ({}, {}),
        ({"a": QUERY, "ab": QUERY}, {}),
        ({b"a": QUERY}, {}),
        ({"a": QUERY}, {"channel": "Needs Quotes"}),
        ({"a": QUERY}, {"channel": "x" * 41}),
        ({"a": QUERY}, {"connections": 0}),
    ],
)
def test_wrong_arguments_are_refused(queries, options):
    with pytest.raises(InvalidArgument):
        PostgresSource("dbname=x", queries, **options)


def test_a_server_is_named_without_secrets():
    source = PostgresSource("postgresql://me:secret@db.example/shop", {"a": QUERY})
    assert source.name == "postgres at db.example:5432/shop as me, channel shmrhash_near, keys a"
    with pytest.raises(InvalidArgument, match="name="):
        PostgresSource(lambda: None, {"a": QUERY})
    with pytest.raises(InvalidArgument, match="connection string"):
        PostgresSource("nothing of it", {"a": QUERY})
    for table, column in (("a b", "id"), ("a.b.c", "id"), ("a", 'x"')):
        with pytest.raises(InvalidArgument):
            triggers(table, column, "p")


def test_a_connection_of_the_program_may_have_settings_of_its_own(postgres, map_name, sql):
    """The program's connection may return rows as dicts, use another encoding, and belong to a user
    who has no right to ask for the system's identifier."""

    def connect():
        return psycopg.connect(
            postgres.address.replace("user=tester", "user=web"),
            row_factory=psycopg.rows.dict_row,
            client_encoding="latin1",
        )

    sql.execute(
        "DROP ROLE IF EXISTS web; CREATE ROLE web LOGIN; GRANT SELECT ON items TO web;"
        "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC"
    )
    try:
        source = PostgresSource(connect, {"k": QUERY}, name="the server")
        with near_of(postgres, map_name, source) as near:
            assert near.ready(PATIENCE_S)
            assert near.get("kschlüssel") is None
            put(sql, "schlüssel", "größe")
            until(lambda: near.get("kschlüssel") == "größe")
            assert source.name == "postgres at the server, channel shmrhash_near, keys k"
    finally:
        sql.execute(
            "GRANT EXECUTE ON FUNCTION pg_control_system() TO PUBLIC;"
            "REVOKE ALL ON items FROM web; DROP ROLE web"
        )


def test_the_programs_of_the_guide_do_what_its_comments_say(postgres, sql):
    if not GUIDE.exists():
        pytest.skip("the documents are not here")
    text = "".join(
        re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    )
    sql.execute(
        "DROP TABLE IF EXISTS users, orders; CREATE TABLE users (id bigint PRIMARY KEY, name text);"
        "CREATE TABLE orders (id bigint, user_id bigint); INSERT INTO users VALUES (7, 'seven')"
    )
    first, second = text.split("from shmrhash import NearCache\n")
    done = {}
    exec(first, done)
    sql.execute(done["migration"])
    program = "from shmrhash import NearCache\n" + second
    exec(program.replace("host=db dbname=shop", postgres.address), done)
    with done["near"] as near:
        assert near.ready(PATIENCE_S)
        assert json.loads(near.get("user:7")) == {"name": "seven", "orders": 0}
        sql.execute("INSERT INTO orders VALUES (1, 7)")
        until(lambda: json.loads(near.get("user:7")) == {"name": "seven", "orders": 1})
