"""The dtypes that from_arrays() stores in the segment, for every process that opens the map."""

import json
import subprocess
import sys

import numpy
import pytest
from support.commandline import run

from shmrhash import LayoutMismatch, RHashMap, SharedDict
from shmrhash._types.rowtypes import dtypes_of

TREE = [("a", "<i4"), ("b", ">f8", (2, 3)), ("c", [("day", "M8[D]"), ("word", "U3")])]
DTYPES = {
    "int64": "i8",
    "big-endian": ">u2",
    "float16": "f2",
    "complex": "c16",
    "truth": "?",
    "times": "M8[ns]",
    "spans": "m8[s]",
    "bytes": "S5",
    "text": "U7",
    "tree": TREE,
    "aligned": numpy.dtype([("a", "i1"), ("b", "f8"), ("c", "i2")], align=True),
    "bytes without a meaning": "V9",
    "one unsigned byte": numpy.dtype(("u1", (1,))),
    "rows": numpy.dtype(("i2", (3,))),
    "planes": numpy.dtype(("f4", (2, 2))),
    "planes of records": numpy.dtype(([("x", "i2"), ("y", "i2")], (2, 2))),
}

# What a process that knows only the name of a map prints about it.
READER = """
import sys
from shmrhash import RHashMap
with RHashMap.open(sys.argv[1], read_only=True) as m:
    keys, values = m.to_arrays()
    looked, found = m.lookup_many(keys)
    batch = m.lookup_batch()
    assert found.all() and (looked == values).all()
    assert set(batch.keys.tolist()) == set(keys.tolist())  # each walk has an order of its own
    assert (batch.values == values).all()
    assert m.dtypes[0] == keys.dtype
    print([str(rows.dtype) + str(rows.shape) for rows in (keys, values, looked, batch.values)])
"""


def some(dtype, count=5):
    """Return count different rows of a dtype."""
    dtype = numpy.dtype(dtype)
    raw = numpy.arange(count * dtype.itemsize, dtype="u4").astype("u1") & 1
    return numpy.frombuffer(raw.tobytes(), dtype, count).copy()


@pytest.mark.parametrize("name", DTYPES)
def test_arrays_come_back_with_their_dtypes(map_name, name):
    """Every operation that reads whole rows gives arrays of the stored dtypes to another handle."""
    dtype = numpy.dtype(DTYPES[name])
    keys, values = numpy.arange(5), some(dtype)

    with RHashMap.from_arrays(map_name, keys, values), RHashMap.open(map_name) as other:
        read = other.to_arrays()
        looked, found = other.lookup_many(keys)
        batch = other.lookup_batch()
        taken = other.lookup_and_delete_batch()
        other.unlink()

    assert found.all()
    walked = [read, (batch.keys, batch.values), (taken.keys, taken.values)]
    assert all(some_keys.dtype == "i8" for some_keys, _ in walked)
    for rows in (looked, *(rows[numpy.argsort(some_keys)] for some_keys, rows in walked)):
        assert (rows.dtype, rows.shape) == (values.dtype, values.shape)
        assert numpy.array_equal(rows, values)


def test_another_process_is_told_nothing_and_gets_the_same_dtypes(map_name):
    keys = numpy.array([b"one", b"two"])
    values = numpy.zeros(2, TREE)

    with RHashMap.from_arrays(map_name, keys, values) as m:
        command = [sys.executable, "-c", READER, map_name]
        said = subprocess.run(command, cwd="/", capture_output=True, text=True, check=True).stdout
        m.unlink()

    rows = f"{values.dtype}(2,)"
    assert said.strip() == str(["|S3(2,)", rows, rows, rows])


def test_a_call_may_name_other_dtypes(map_name):
    with RHashMap.from_arrays(map_name, numpy.arange(3), numpy.arange(3.0)) as m:
        keys, values = m.to_arrays(key_dtype="u8", value_dtype="V8")
        batch = m.lookup_batch(value_dtype="<u8")
        looked = m.lookup_many(keys, dtype="S8")[0]
        m.unlink()

    found = [rows.dtype.str for rows in (keys, values, batch.keys, batch.values, looked)]
    assert found == ["<u8", "|V8", "<i8", "<u8", "|S8"]


@pytest.mark.parametrize(
    "values",
    [
        numpy.zeros(3, "V8"),
        memoryview(numpy.zeros(3)),
        [bytes(8)] * 3,
        bytes(24),
        numpy.zeros(24, "u1"),
        numpy.zeros(3, {"names": ["b", "a"], "formats": ["i4", "i4"], "offsets": [4, 0]}),
        numpy.zeros(3, {"names": ["b", "a"], "formats": ["i8", "i4"], "offsets": [0, 0]}),
        numpy.zeros(3, [(f"a column with a long name, number {n}", "i1") for n in range(40)]),
    ],
    ids=["void", "memoryview", "list", "bytes", "flat", "reversed", "overlapping", "many fields"],
)
def test_a_dtype_that_cannot_be_kept_is_left_out_alone(map_name, values):
    size = getattr(getattr(values, "dtype", None), "itemsize", 8)
    size = 8 if size == 1 else size

    with RHashMap.from_arrays(map_name, numpy.arange(3), values, value_size=size) as m:
        dtypes = m.dtypes
        rows = m.lookup_many(numpy.arange(3))[0]
        m.unlink()

    assert dtypes == (numpy.dtype("i8"), None)
    assert rows.dtype == f"V{size}"


def test_maps_made_in_another_way_keep_no_dtypes(shm_map, map_name):
    shm_map.update_many(numpy.arange(3), numpy.arange(3.0))

    assert shm_map.dtypes == (None, None)
    assert shm_map.to_arrays()[1].dtype == "V8"
    with SharedDict(key="<q", value="<d", max_entries=10) as d:
        assert d.handle.dtypes == (None, None)


DAMAGED = [
    b"{",
    b"[" * 1000,
    b'{"v":2,"kind":"arrays","key":"<i8"}',
    b'{"v":1,"kind":"arrays","key":"<i4","value":"|O"}',
    b'{"v":1,"kind":"arrays","key":{"base":"<i4","shape":[-2]},"value":["a"]}',
    b'{"v":1,"kind":"arrays","key":{"base":"<i4","shape":[1000000,1000000]},"value":[["a","x"]]}',
    b'{"v":1,"kind":"arrays","key":"import os","value":{"shape":7}}',
    b'{"v":1,"kind":"arrays","key":7,"value":null}',
]


@pytest.mark.parametrize("schema", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_schema_keeps_no_dtypes(make_map, schema):
    """H1: a map with a damaged schema has no dtypes, and its arrays are read as bytes."""
    m = make_map(_schema=schema)
    m.update_many(numpy.arange(3), numpy.arange(3.0))

    assert m.dtypes == (None, None)
    assert [rows.dtype for rows in m.to_arrays()] == ["V8", "V8"]


def test_without_numpy_no_dtypes_and_plain_bytes(map_name):
    script = (
        "import sys; sys.modules['numpy'] = None; from shmrhash import RHashMap\n"
        "m = RHashMap.open(sys.argv[1]); print(m.dtypes, m.to_arrays()[0])"
    )

    with RHashMap.from_arrays(map_name, numpy.arange(1), numpy.arange(1.0)) as m:
        command = [sys.executable, "-c", script, map_name]
        said = subprocess.run(command, cwd="/", capture_output=True, text=True, check=True).stdout
        m.unlink()

    assert said.strip() == f"(None, None) {bytes(8)}"


def test_a_map_with_dtypes_is_as_any_other_map(map_name):
    """A map with dtypes is opened by open_or_create() and refused by SharedDict, like other
    maps."""
    with RHashMap.from_arrays(map_name, numpy.arange(3), numpy.arange(3.0), max_entries=9) as m:
        RHashMap.open_or_create(map_name, key_size=8, value_size=8, max_entries=9).close()
        with pytest.raises(LayoutMismatch, match="is a map, but not a SharedDict"):
            SharedDict.open(map_name)
        with pytest.raises(LayoutMismatch, match="is a map, but not a SharedDict"):
            SharedDict(map_name, key="<q", value="<d", if_different="replace")
        m.unlink()


@pytest.mark.parametrize("ending", ["snap", "ndjson", "npz", "csv"])
def test_command_line_treats_it_as_a_plain_map(map_name, tmp_path, ending):
    """.snap and .ndjson files keep a map's dtypes. Files of all four formats can be imported into a
    map without dtypes; a .csv is exported as bytes (--raw)."""
    keys, path = numpy.arange(3), tmp_path / f"rows.{ending}"
    with RHashMap.from_arrays(map_name, keys, keys * 0.5, max_entries=9) as m:
        shown = run("show", map_name)
        run("export", map_name, path, *(["--raw"] if ending == "csv" else []))
        m.unlink()
    sizes = ("--entries", 9, "--key-size", 8, "--value-size", 8) if ending == "csv" else ()
    run("create", map_name + "-plain", "key", 8, "value", 8, "entries", 9)
    run("import", path, map_name + "-plain")
    run("import", path, map_name + "-copy", *sizes)

    with RHashMap.open(map_name + "-copy") as copy, RHashMap.open(map_name + "-plain") as plain:
        dtypes = copy.dtypes
        values = copy.lookup_many(keys, dtype="f8")[0], plain.lookup_many(keys, dtype="f8")[0]
        copy.unlink()
        plain.unlink()

    assert shown.err == ""
    assert dtypes == (("i8", "f8") if ending in ("snap", "ndjson") else (None, None))
    assert all((rows == keys * 0.5).all() for rows in values)


def test_the_schema_is_json_that_other_languages_can_read(map_name):
    with RHashMap.from_arrays(map_name, numpy.arange(2), numpy.zeros((2, 3), ">f4")) as m:
        schema = json.loads(m.schema)
        m.unlink()

    value = {"base": ">f4", "shape": [3]}
    assert schema == {"v": 1, "kind": "arrays", "key": "<i8", "value": value}


def test_a_schema_is_read_once(map_name):
    """Several batches read the map's schema once, because reading it costs more than a small
    batch."""
    with RHashMap.from_arrays(map_name, numpy.arange(2), numpy.zeros(2)) as m:
        before = dtypes_of.cache_info()
        for _ in range(5):
            m.lookup_many(numpy.arange(2))
        after = dtypes_of.cache_info()
        m.unlink()

    assert after.misses - before.misses <= 1
    assert after.hits - before.hits >= 4
