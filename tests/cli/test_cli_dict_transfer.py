"""export and import of SharedDicts and maps with special fields: objects, deadlines, refusals."""

import importlib.util
import itertools
import json
import os
import signal
import struct
import subprocess
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.commandline import run, start

from shmrhash import Array, Kptr, Refcount, RHashMap, SharedDict, Timer

ENDINGS = ("snap", "ndjson")
HOUR = 3600
LONG = "long key " * 10
HEAD = struct.Struct("<8sIIIIQQQ200s4xI")

need_msgspec = pytest.mark.skipif(
    importlib.util.find_spec("msgspec") is None, reason="msgspec is not installed"
)
need_numpy = pytest.mark.skipif(
    importlib.util.find_spec("numpy") is None, reason="NumPy is not installed"
)


@dataclass(frozen=True)
class Job:
    name: str
    at: float


def make_dict(entries, name="jobs", **options):
    """Make a dict with these entries, to which no process is attached."""
    with SharedDict.create(name, **options) as d:
        for key, value in entries.items():
            d[key] = value


def entries_of(name, **types):
    with SharedDict.open(name, trust=True, **types) as d:
        return dict(d)


KINDS = {
    "str to int": (str, int, {"a": -7, LONG: 2**63 - 1, "": 0}),
    "int to str": (int, str, {-1: "", 5: "straße\0\n", 6: "x" * 100_000}),
    "bytes to bytes": (bytes, bytes, {b"": b"\0\xff", b"k" * 500: b"", b"\xff": b"v" * 70_000}),
    "float to bool": (float, bool, {0.5: True, -1e300: False}),
    "struct to struct": ("<Hf", "<3sdB", {(1, 0.5): (b"a\0b", float("inf"), 9)}),
    "native struct": ("b?", "c5si", {(-1, True): (b"\0", b"abcde", -5)}),
    "object to object": (
        object,
        object,
        {None: 1, 7: [1, {2, 3}], "7": None, (1, ("a", b"b")): LONG, 2.5: 10**50, 1 << 9000: 4j},
    ),
    "int to int": (int, int, {number: number * number for number in range(1000)}),
}


@pytest.mark.parametrize(("key", "value", "entries"), KINDS.values(), ids=KINDS)
@pytest.mark.thorough
def test_a_dict_comes_back_unchanged(tmp_path, key, value, entries):
    """An exported dict is imported into a new dict, which gets its types and limits, and then into
    that dict again."""
    options = {"key": key, "value": value, "max_entries": 5000}
    references = value in (str, bytes, object) or key in (str, bytes, object)
    if references:
        options["max_bytes"] = 64 << 20
    make_dict(entries, **options)
    for ending in ENDINGS:
        path = tmp_path / f"jobs.{ending}"
        run("export", "jobs", path)

        assert run("import", path, ending).out == ""
        assert run("-j", "import", path, ending).json["entries"] == len(entries)

        assert entries_of(ending) == entries
        run("check", ending)
        with SharedDict.open("jobs", trust=True) as d, SharedDict.open(ending, trust=True) as copy:
            assert copy.handle.schema == d.handle.schema
            assert copy.max_entries == 5000
            assert copy.handle.max_bytes == d.handle.max_bytes


@need_numpy
@pytest.mark.thorough
def test_arrays_come_back_unchanged(tmp_path):
    import numpy as np

    row = np.dtype([("id", "<u4"), ("at", "<f8")])
    make_dict({np.int16(3): np.arange(12.0).reshape(3, 4)}, "a", key=np.int16, value=Array("<f8"))
    make_dict({1: np.array((7, 0.1), row)[()]}, "b", key=int, value=row)
    make_dict({1: np.float32(0.1)}, "c", key=int, value=np.float32)
    for name in "abc":
        for ending in ENDINGS:
            run("export", name, tmp_path / f"{name}.{ending}")
            run("import", tmp_path / f"{name}.{ending}", f"{name}-{ending}")

            (before,) = entries_of(name).items()
            (after,) = entries_of(f"{name}-{ending}").items()
            assert before[0] == after[0]
            assert before[1].tobytes() == after[1].tobytes()
            assert (before[1].dtype, before[1].shape) == (after[1].dtype, after[1].shape)


@need_msgspec
def test_dataclasses_come_back_unchanged(tmp_path):
    """Exported dataclasses come back unchanged; exported lines show their fields, too."""
    entries = {number: Job(f"job {number}", number / 2) for number in range(50)}
    make_dict(entries, key=int, value=Job)
    for ending in ENDINGS:
        run("export", "jobs", tmp_path / f"jobs.{ending}")
        run("import", tmp_path / f"jobs.{ending}", ending)

        assert entries_of(ending, value=Job) == entries
    lines = [json.loads(line) for line in (tmp_path / "jobs.ndjson").read_text().splitlines()]
    assert {"name": "job 3", "at": 1.5} in [line["value"]["fields"] for line in lines[1:]]


def test_exported_lines_of_a_dict_are_readable(tmp_path):
    """The first exported line describes the dict; the other lines alone can be imported into an
    existing dict."""
    make_dict({"a": 7, LONG: 8}, key=str, value=int)
    head, *lines = run("export", "jobs", "-").lines

    assert json.loads(head)["schema"]["key"] == "str"
    assert {"key": LONG, "value": 8} in map(json.loads, lines)
    make_dict({}, "other", key=str, value=int, ttl=HOUR)
    run("import", "-", "other", stdin="\n".join(lines))
    assert entries_of("other") == {"a": 7, LONG: 8}
    with SharedDict.open("other") as d:
        assert HOUR - 60 < d.ttl("a") <= HOUR


def test_deadlines_are_kept_in_the_file(tmp_path):
    """Entries that expire before the import are left out; those without a deadline have none after
    the import."""
    make_dict({}, key=str, value=object, ttl=HOUR)
    with SharedDict.open("jobs", trust=True) as d:
        d.set("stays", 1, ttl=float("inf"))
        d["later"] = 2
        for doublings in itertools.count():  # until the exports end before the deadline
            d.set("soon", 3, ttl=0.4 * 2**doublings)
            for ending in ENDINGS:
                run("export", "jobs", tmp_path / f"jobs.{ending}")
            if "soon" in d:
                break
        while "soon" in d:
            time.sleep(0.01)  # a poll, not an assumption

    for ending in ENDINGS:
        done = run("-j", "import", tmp_path / f"jobs.{ending}", ending).json
        assert (done["entries"], done["expired"]) == (2, 1)
        with SharedDict.open(ending, trust=True) as d:
            assert dict(d) == {"stays": 1, "later": 2}
            assert d.ttl("stays") is None
            assert HOUR - 60 < d.ttl("later") <= HOUR


def make_fields(name="typed"):
    fields = [Kptr(0), Timer(8), Refcount(16), Kptr(24)]
    shared_map = RHashMap.create(
        name, key_size=8, value_size=40, max_entries=10, fields=fields, max_bytes=1 << 20
    )
    for number in range(1, 4):
        key = b"k%07d" % number
        shared_map[key] = bytes(32) + b"value %2d" % number
        shared_map.add(key, number, offset=16)
    shared_map.kptr_xchg(b"k0000001", b"an object", 24)
    shared_map.kptr_xchg(b"k0000002", b"", 0)
    shared_map.timer_set(b"k0000002", time.monotonic_ns() + HOUR * 10**9)
    return shared_map


def parts_of(name):
    with RHashMap.open(name, read_only=True) as shared_map:
        return {key: shared_map._parts(key) for key in shared_map}


def test_special_fields_come_back_unchanged(tmp_path):
    """Objects, counts and deadlines come back unchanged, also with repair --into, which once copied
    none of them."""
    make_fields().close()
    wanted = parts_of("typed")
    assert wanted[b"k0000001"][2] == (None, b"an object")
    for ending in ENDINGS:
        run("export", "typed", tmp_path / f"typed.{ending}")
        for _ in range(2):
            run("import", tmp_path / f"typed.{ending}", ending)
    run("repair", "typed", "--into", "repaired")

    for name in (*ENDINGS, "repaired"):
        found = parts_of(name)
        assert found.keys() == wanted.keys()
        for key, (value, deadline_ns, objects, _) in wanted.items():
            assert found[key][0] == value
            assert abs(found[key][1] - deadline_ns) < 10**9
            assert found[key][2] == objects
        run("check", name)


def test_repair_into_copies_a_dict(tmp_path):
    make_dict({"a": [1], LONG: {"b": 2}}, key=str, value=object, ttl=float("inf"))

    run("repair", "jobs", "--into", "copy")

    assert entries_of("copy") == {"a": [1], LONG: {"b": 2}}
    with SharedDict.open("copy", trust=True) as d:
        assert d.ttl("a") is None


def test_keep_does_not_overwrite_entries_of_a_dict(tmp_path):
    make_dict({"a": "old", "b": "old"}, key=str, value=str)
    for ending in ENDINGS:
        path = tmp_path / f"jobs.{ending}"
        run("export", "jobs", path)
        with SharedDict.open("jobs") as d:
            d["a"] = "new"
            del d["b"]

        run("import", path, "jobs", "--keep")
        assert entries_of("jobs") == {"a": "new", "b": "old"}
        run("import", path, "jobs")
        assert entries_of("jobs") == {"a": "old", "b": "old"}


@pytest.mark.thorough
def test_files_and_maps_that_cannot_hold_a_dict_are_refused(make, tmp_path):
    make().close()
    run("export", "hits", tmp_path / "hits.snap")
    run("export", "hits", tmp_path / "hits.csv")
    make_dict({"a": 1}, key=str, value=int)
    make_dict({1: 1}, "numbers", key=int, value=int)
    run("export", "jobs", tmp_path / "jobs.snap")
    run("export", "jobs", tmp_path / "jobs.ndjson")
    make_fields().close()
    for words, message in (
        (["export", "jobs", tmp_path / "jobs.csv"], "a SharedDict (str to int); .snap and .ndjson"),
        (["export", "typed", tmp_path / "jobs.npz"], "special fields of this map; .snap and .ndj"),
        (["import", tmp_path / "jobs.snap", "numbers"], 'of "str" to "int", but map \'numbers\''),
        (["import", tmp_path / "jobs.ndjson", "numbers"], 'of "str" to "int", but map \'numbers\''),
        (["import", tmp_path / "jobs.snap", "hits"], "map 'hits' has bytes to bytes"),
        (["import", tmp_path / "jobs.snap", "typed"], "with other special fields"),
        (["import", tmp_path / "hits.snap", "numbers"], "no SharedDict), but map 'numbers' has"),
        (["import", tmp_path / "hits.csv", "numbers", "--str", "--value-u64"], "no SharedDict"),
        (["import", tmp_path / "hits.snap", "typed"], "with other special fields"),
    ):
        assert message in run(*words, status=2).err, words
    assert entries_of("numbers") == {1: 1}


def test_max_bytes_of_an_imported_dict_can_be_given(tmp_path):
    make_dict({"a": "x" * 100_000}, key=str, value=str, max_bytes=1 << 20)
    run("export", "jobs", tmp_path / "jobs.snap")

    refused = run("import", tmp_path / "jobs.snap", "small", "--max-bytes", 65536, status=6)
    assert "0 entries were imported" in refused.err
    run("import", tmp_path / "jobs.snap", "large", "--max-bytes", 1 << 22)
    with SharedDict.open("large") as d:
        assert d.handle.max_bytes == 1 << 22


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.thorough
def test_interrupted_import_of_a_dict_can_be_repeated(tmp_path, ending):
    """C1: an import is killed in the middle, and the same command, run again, completes it."""
    entries = {f"{number} {LONG}": f"value {number} " * 9 for number in range(70_000)}
    make_dict(entries, key=str, value=str)
    path = tmp_path / f"jobs.{ending}"
    run("export", "jobs", path)
    whole = path.read_bytes()
    kind = {"snap": "snapshot"}.get(ending, ending)
    words = ("import", "-", "copy", "-f", kind)

    importing = start(*words, stdin=subprocess.PIPE)
    importing.stdin.write(whole[: len(whole) - 1000])
    importing.stdin.flush()
    while importing.poll() is None and not entries_so_far("copy"):
        time.sleep(0.001)  # a poll, not an assumption
    importing.send_signal(signal.SIGKILL)
    importing.communicate()

    assert 0 < entries_so_far("copy") < 70_000
    run(*words, stdin=whole)
    assert entries_of("copy") == entries
    run("repair", "copy")


def entries_so_far(name):
    if not Path(os.environ["SHMRHASH_DIR"], name).exists():
        return 0
    with RHashMap.open(name, read_only=True) as shared_map:
        return len(shared_map)


@pytest.mark.thorough
def test_export_of_a_dict_under_writers_has_whole_entries(users, tmp_path):
    """R2, I1: a writer changes the dict during the export. The exported key, value and deadline of
    an entry belong together, and entries that stay are exported once."""
    texts = [letter * size for letter in "abc" for size in (1, 5000, 20_000)]
    make_dict({f"{n} {LONG}": texts[0] for n in range(30)}, key=str, value=str, ttl=HOUR)

    def churn():
        if not churn.dicts:
            churn.dicts.append(SharedDict.open("jobs"))
        (own,) = churn.dicts
        for text in texts:
            for number in range(30):
                own[f"{number} {LONG}"] = text
                own[f"come {number}"] = text
            for number in range(30):
                own.pop(f"come {number}", None)

    churn.dicts = []
    users.start_working(churn)
    users.start_working(churn)
    for ending in ENDINGS:
        run("export", "jobs", tmp_path / f"jobs.{ending}")
        run("import", tmp_path / f"jobs.{ending}", "copy")

        copy = entries_of("copy")
        assert {f"{number} {LONG}" for number in range(30)} <= copy.keys()
        assert set(copy.values()) <= set(texts)
        run("unlink", "copy")


# ---- files ----


def old_snapshot(entries):
    """Return a snapshot in the format of the library's first version."""
    head = HEAD.pack(b"SHMRSNP1", 8, 8, 1, 0, 100, 1, len(entries), b"old", 0)[:-4]
    keys, values = b"".join(entries), b"".join(entries.values())
    return b"".join(
        [
            head,
            struct.pack("<I", zlib.crc32(head)),
            struct.pack("<4sIQ", b"CHNK", zlib.crc32(keys + values), len(entries)),
            keys,
            values,
            struct.pack("<4sIQ", b"DONE", 0, len(entries)),
        ]
    )


def test_snapshots_of_plain_maps_keep_the_first_format(tmp_path):
    """Old snapshots of plain maps are read, and new ones are written in the same format."""
    entries = {b"key %4d" % number: bytes([number] * 8) for number in range(9)}
    (tmp_path / "old.snap").write_bytes(old_snapshot(entries))

    run("import", tmp_path / "old.snap")

    with RHashMap.open("old") as shared_map:
        assert dict(shared_map.items()) == entries
    run("export", "old", tmp_path / "new.snap")
    data = (tmp_path / "new.snap").read_bytes()
    assert data.startswith(b"SHMRSNP1")
    assert len(data) == len(old_snapshot(entries))


NOTE_AT = HEAD.size


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: NOTE_AT + 3], "head of the snapshot is damaged"),
        (lambda data: data[:NOTE_AT] + b"\xff" * 8 + data[NOTE_AT + 8 :], "head of the snapshot"),
        (lambda data: data[: NOTE_AT + 20] + b"#" + data[NOTE_AT + 21 :], "head of the snapshot"),
        (lambda data: data[:-16], "after 40 good entries"),
        (lambda data: data[:-60], "after 0 good entries"),
        (lambda data: data[:-100] + b"\xff" + data[-99:], "after 0 good entries"),
        (lambda data: data.replace(b"BTCH", b"CHNK"), "after 0 good entries"),
        (
            lambda data: (
                data[: data.index(b"BTCH") + 16] + b"\xff" * 8 + data[data.index(b"BTCH") + 24 :]
            ),
            "after 0 good entries",
        ),
    ],
)
@pytest.mark.thorough
def test_damaged_snapshot_of_a_dict_is_refused(tmp_path, damage, message):
    make_dict({f"key {number}": "x" * number for number in range(40)}, key=str, value=str)
    path = tmp_path / "jobs.snap"
    run("export", "jobs", path)
    path.write_bytes(damage(path.read_bytes()))

    assert message in run("import", path, "copy", status=5).err


LINE = '{"shmrhash":"map","name":"x","key_size":16,"value_size":24,"max_entries":5,' \
    '"map_flags":1,"map_extra":0,"max_bytes":1048576,"fields":[[3,0],[2,8],[3,16]],' \
    '"schema":{"v":1,"kind":"SharedDict","key":"str","value":"object","ttl":60}}\n'  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"shmrhash":"map"}', "line 1 does not describe the map"),
        ('{"shmrhash":7}', "line 1 does not describe the map"),
        (LINE.replace("[2,8]", '[2,"x"]'), "line 1 does not describe the map"),
        (LINE.replace("[2,8],", ""), "entries have another layout"),
        (LINE.replace('"str"', '"strange"'), "cannot read its key type"),
        (LINE + '{"key":"a","value":1}', "line 2: value should be"),
        (LINE + '{"key":"a","value":{"base64":"!"}}', "line 2: value is not valid base64"),
        (LINE + '{"key":1,"value":{"base64":""}}', "line 2: key should be"),
        (LINE + '{"key":"a","value":{"base64":""},"expires":"x"}', "line 2: expires should be"),
        (LINE + "[" * 100_000, "line 2 is not a JSON object"),
        ("[" * 100_000, "line 1 is not a JSON object"),
    ],
)
@pytest.mark.thorough
def test_the_error_for_a_damaged_line_of_a_dict_has_its_number(tmp_path, content, message):
    (tmp_path / "jobs.ndjson").write_text(content)
    if "line 1 is no" in message:
        make_dict({}, "x", key=str, value=int)

    assert message in run("import", tmp_path / "jobs.ndjson", "x", status=5).err
