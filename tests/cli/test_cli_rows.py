"""Maps that keep the dtypes of their rows: what the commands show of them, and how they read and
write rows."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.commandline import FOLDER, run

from shmrhash import RHashMap
from shmrhash._types.arrays import dtype_record
from shmrhash.cli.entries.formats import Raw
from shmrhash.cli.entries.rows import Row, part_of, row_format, shown
from shmrhash.cli.errors import Failure
from shmrhash.cli.words import Words

np = pytest.importorskip("numpy", reason="NumPy is not installed")

RECORD = [("id", "<u4"), ("at", ">f8", (2,)), ("name", "S5")]


@pytest.fixture
def table(own_directory):
    """A map with three rows of several kinds, by a number."""
    rows = np.zeros(3, RECORD)
    rows["id"], rows["name"] = [7, 8, 9], [b"ab", b"c", b""]
    rows["at"] = [[1.5, -2], [np.nan, np.inf], [0, 1e300]]
    with RHashMap.from_arrays("table", np.array([-1, 0, 1], "<i2"), rows, max_entries=9) as made:
        yield made
        made.check()


@pytest.fixture
def numbers(own_directory):
    keys = np.arange(5)
    with RHashMap.from_arrays("numbers", keys, keys / 2, max_entries=9) as made:
        yield made
        made.check()


def test_entries_are_shown_by_the_dtypes(table, numbers):
    assert sorted(run("dump", "table").lines) == [
        "Found 3 elements",
        'key: -1  value: {"id": 7, "at": [1.5, -2.0], "name": "ab"}',
        'key: 0  value: {"id": 8, "at": ["nan", "inf"], "name": "c"}',
        'key: 1  value: {"id": 9, "at": [0.0, 1e+300], "name": ""}',
    ]
    assert "key: 3  value: 1.5\n" in run("dump", "numbers").out
    assert run("lookup", "table", "key", "-1").lines[0].startswith('key: -1  value: {"id": 7')
    assert run("lookup", "table", "key", "5", status=1).lines == ["key:", "5", "", "Not found"]


def test_json_has_bytes_as_bpftool_and_the_rows_as_formatted(numbers):
    bare = run("-j", "dump", "numbers", "--raw").json
    found = run("-j", "dump", "numbers").json

    assert [entry.pop("formatted") for entry in found] == [
        {"key": int(entry["key"][0], 16), "value": int(entry["key"][0], 16) / 2} for entry in bare
    ]
    assert found == bare
    assert run("dump", "numbers", "--raw").out.count("key: 0") == 5
    assert run("-p", "lookup", "numbers", "key", "3").json["formatted"] == {"key": 3, "value": 1.5}


@pytest.mark.parametrize(
    "words", ["3", "0x3", "3 0 0 0 0 0 0 0", "hex 03 0 0 0 0 0 0 0", "hex 0300000000000000"]
)
def test_a_key_is_a_number_or_bytes_as_bpftool_wants_them(numbers, words):
    assert run("lookup", "numbers", "key", *words.split()).out == "key: 3  value: 1.5\n"


def test_entries_are_stored_by_fields_or_bytes(table):
    run("update", "table", "key", "5", "value", "1", "2.5", "-3", "word")
    run("update", "table", "key", "6", "0", "value", "hex", "01000000" + "00" * 16 + "4142000000")

    rows, _ = table.lookup_many(np.array([5, 6], "<i2"))

    assert [plain(row, rows.dtype) for row in rows] == [
        {"id": 1, "at": [2.5, -3.0], "name": "word"},
        {"id": 1, "at": [0.0, 0.0], "name": "AB"},
    ]
    run("delete", "table", "key", "5")
    assert len(table) == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("1 2", "key expected 1 field(s), or 8 bytes, got 2"),
        ("x", "key does not fit the dtype"),
        ("0x8000000000000000", "key does not fit the dtype"),
        ("hex 03", "key expected 8 bytes got 1"),
    ],
)
def test_what_is_no_row_is_refused(numbers, words, message):
    assert message in run("lookup", "numbers", "key", *words.split(), status=2).err


@pytest.mark.parametrize("ending", ["ndjson", "csv", "snap"])
def test_rows_come_back_unchanged(table, tmp_path, ending):
    file = tmp_path / f"table.{ending}"
    before = [part.tobytes() for part in table.to_arrays()]
    run("export", "table", file)
    table.clear()
    run("import", file, "table")
    assert sorted(before) == sorted(part.tobytes() for part in table.to_arrays())

    if ending == "ndjson":
        assert '{"key":-1,"value":{"id":7,"at":[1.5,-2.0],"name":"ab"}}\n' in file.read_text()
        run("import", file, "another")
        with RHashMap.open("another") as another:
            assert another.dtypes == table.dtypes
    elif ending == "csv":
        assert '-1,"{""id"": 7, ""at"": [1.5, -2.0], ""name"": ""ab""}"\n' in file.read_text()


def test_lines_are_read_as_they_were_written_whatever_the_map_keeps(table, tmp_path):
    """Lines with typed rows can be imported into a map of plain bytes; lines with bytes, as bpftool
    writes them or in hex, into a map with dtypes."""
    run("export", "table", tmp_path / "rows.ndjson")
    run("export", "table", tmp_path / "hex.ndjson", "--raw")
    bare = "".join(json.dumps(entry) + "\n" for entry in run("-j", "dump", "table", "--raw").json)
    (tmp_path / "bpftool.ndjson").write_text(bare)
    entries = dict(table.items())
    with RHashMap.create("bytes", key_size=2, value_size=25, max_entries=9) as plain:
        for name, options in (("rows", ()), ("hex", ("--raw",)), ("bpftool", ())):
            for target in (plain, table):
                target.clear()
                run("import", tmp_path / f"{name}.ndjson", target.name, *options)
                assert dict(target.items()) == entries
    assert "is no number" in run("import", tmp_path / "hex.ndjson", "table", status=5).err


def test_rows_are_shown_without_numpy(numbers):
    command = (
        "import sys; sys.modules['numpy'] = None; sys.argv = ['shmrhash', 'dump', 'numbers']; "
        "from shmrhash.cli import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", command], cwd=FOLDER, capture_output=True, text=True, check=True
    )

    assert "key: 3  value: 1.5\n" in done.stdout


KINDS = st.sampled_from(["i1", "<i2", ">u4", "<u8", "<f2", ">f4", "<f8", "?", "S3", "<U2", ">U1"])
SHAPES = st.lists(st.integers(1, 3), min_size=1, max_size=2).map(tuple)
DTYPES = st.recursive(
    KINDS,
    lambda inner: st.lists(st.tuples(inner, SHAPES), min_size=1, max_size=4).map(
        lambda parts: [(f"f{at}", *part) for at, part in enumerate(parts)]
    ),
    max_leaves=6,
)


@given(DTYPES, st.data())
def test_bytes_of_any_dtype_are_shown_and_read_back(kind, data):
    """Every content of a row is shown, and is read back from JSON unchanged; what JSON could not
    show exactly is written in base64."""
    dtype = np.dtype(kind)
    row = data.draw(st.binary(min_size=dtype.itemsize, max_size=dtype.itemsize))
    made = row_format(json.loads(json.dumps(dtype_record(dtype))), dtype.itemsize)

    assert isinstance(made, Row)
    assert made.from_json(json.loads(json.dumps(made.to_json(row))), "value") == row
    json.dumps(made.to_display(row))
    made.to_text(row)


def plain(thing, dtype):
    """Return a row made of lists, dicts and the other types of JSON."""
    if dtype.subdtype is not None:
        part, shape = dtype.subdtype
        inner = part if len(shape) == 1 else np.dtype((part, shape[1:]))
        return [plain(item, inner) for item in thing]
    if dtype.names is not None:
        return {name: plain(thing[name], dtype[name]) for name in dtype.names}
    found = thing.item() if hasattr(thing, "item") else thing
    return found.decode() if isinstance(found, bytes) else found


@given(DTYPES)
def test_rows_look_as_numpy_has_them(kind):
    dtype = np.dtype(kind)
    zero = np.zeros((), dtype)

    found = shown(part_of(json.loads(json.dumps(dtype_record(dtype)))), zero.tobytes())

    assert found == plain(zero, dtype)


@pytest.mark.parametrize(
    "record",
    [
        *("", "<", "<i3", "<i8x", "|S", "|S0", "|S-1", "|V8", "|O", 7, None, [], [[]], [["a"]], {}),
        *([["a", "<i8", [-1]]], [["a", "<i8", [1 << 70]]], {"base": "<i8", "shape": "x"}),
        *({"base": "<i1", "shape": [1] * 100}, {"base": "<i1", "shape": [0]}, [["", "|V8"]]),
        *([[["t"], "<i8"]], [["a", "|V-8"], ["b", "<i8"]]),
    ],
)
def test_what_is_no_dtype_is_shown_as_bytes(record):
    assert type(row_format(record, 8)) is Raw


def test_a_dtype_that_is_too_deep_is_shown_as_bytes():
    record = "<i8"
    for _ in range(200):
        record = [["a", record]]

    assert type(row_format(record, 8)) is Raw


def test_a_row_of_many_numbers_is_shown_by_its_size(own_directory):
    with RHashMap.from_arrays("wide", np.arange(2), np.ones((2, 100), "<u2"), max_entries=9):
        assert run("lookup", "wide", "key", "1").out.endswith("200 bytes>\n")
        assert run("-j", "lookup", "wide", "key", "1").json["formatted"]["value"]["bytes"] == 200


def test_an_empty_text_is_no_hex():
    made = row_format("|S5", 5)

    assert made.from_words(Words(["hex"]), "key") == b"hex\0\0"
    with pytest.raises(Failure, match="room for 5 bytes, not for 6"):
        made.from_words(Words(["letter"]), "key")
