"""SharedDicts and maps with special fields, used through the real command."""

import importlib.util
import json
import math
import os
import pickle
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.commandline import TIMEOUT_SECONDS, run, start

from shmrhash import Array, Kptr, Refcount, RHashMap, SharedDict, SpinLock, Timer, _core

HOUR = 3600
LONG = "long key " * 10

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


class Trap:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path):
        self._path = str(path)

    def __reduce__(self):
        return os.mkdir, (self._path,)


def make_dict(entries, name="jobs", **options):
    """Make a dict with these entries, to which no process is attached."""
    with SharedDict.create(name, **options) as d:
        for key, value in entries.items():
            d[key] = value
    return name


def lines_of(name, *options):
    return sorted(run("dump", name, *options).lines[:-1])


def formatted(name, *options):
    return [entry["formatted"] for entry in run("-j", "dump", name, *options).json]


# ---- showing entries ----


SHOWN = {
    "str to int": (
        str, int, {"a b": 7, LONG: -1}, ["key: a b  value: 7", f"key: {LONG}  value: -1"]
    ),
    "int to float": (
        int, float, {-3: 1.5, 4: math.inf}, ["key: -3  value: 1.5", "key: 4  value: inf"]
    ),
    "bool to str": (bool, str, {True: "yes\x1b"}, ["key: True  value: yes\\x1b"]),
    "struct to struct": ("<HI", "<3sd", {(1, 2): (b"ab", 0.5)}, ["key: 1 2  value: ab 0.5"]),
    "bytes to bytes": (bytes, bytes, {b"k\0": b"v"}, ["key: b'k\\x00'  value: b'v'"]),
    "object to str": (
        object,
        str,
        {None: "n", 7: "i", "7": "s", (1, "a"): "t", 1.5: "f"},
        ['key: "7"  value: s', "key: (1, 'a')  value: t", "key: 1.5  value: f",
         "key: 7  value: i", "key: None  value: n"],
    ),
    "str to object": (str, object, {"a": [1, 2]}, ["key: a  value: <pickle, 20 bytes>"]),
}  # fmt: skip


@pytest.mark.parametrize(("key", "value", "entries", "text"), SHOWN.values(), ids=SHOWN)
def test_entries_are_shown_by_their_types(key, value, entries, text):
    """Entries are shown by their types in plain text and in JSON, which also has the encoded bytes
    in bpftool's form."""
    make_dict(entries, key=key, value=value)

    assert lines_of("jobs") == text
    found = run("-j", "dump", "jobs").json
    assert len(found) == len(entries)
    assert json.loads(run("-p", "dump", "jobs").out) == found
    for entry in found:
        assert set(entry) == {"key", "value", "formatted"}
        assert all(byte.startswith("0x") for byte in entry["key"] + entry["value"])


def test_json_shows_values_by_their_type():
    make_dict({"a": 7, LONG: -8}, "numbers", key=str, value=int)
    make_dict({(1, 2): (0.5, True)}, "structs", key="<HI", value="<d?")
    make_dict({"x": {"y": 1}}, "objects", key=object, value=object)

    assert {"key": LONG, "value": -8} in formatted("numbers")
    assert formatted("structs") == [{"key": [1, 2], "value": [0.5, True]}]
    (found,) = formatted("objects")
    assert found["key"] == "x"
    assert found["value"]["type"] == "pickle"
    assert formatted("objects", "--unpickle") == [{"key": "x", "value": {"y": 1}}]


@need_msgspec
def test_msgspec_values_are_shown_with_their_fields():
    make_dict({1: Job("clean", 2.5)}, key=int, value=Job)

    assert lines_of("jobs") == ['key: 1  value: {"name": "clean", "at": 2.5}']
    assert formatted("jobs") == [{"key": 1, "value": {"name": "clean", "at": 2.5}}]


@need_numpy
def test_arrays_are_shown_with_their_shapes():
    import numpy as np

    make_dict({"a": np.arange(3.0), "b": np.zeros((99, 99))}, key=str, value=Array("<f8"))

    small, large = lines_of("jobs")
    assert small == "key: a  value: float64 (3,): [0.0, 1.0, 2.0]"
    assert "(99, 99), 78,408 bytes>" in large
    values = {entry["key"]: entry["value"] for entry in formatted("jobs")}
    assert (values["a"]["shape"], values["a"]["values"]) == ([3], [0.0, 1.0, 2.0])
    assert (values["b"]["shape"], values["b"]["bytes"]) == ([99, 99], 78_408)


@pytest.mark.thorough
def test_values_and_keys_are_unpickled_only_if_asked_for(tmp_path):
    """Commands that show or copy entries unpickle none of them, except with --unpickle."""
    trap = tmp_path / "sprung"
    make_dict({"a": Trap(trap)}, key=str, value=object)
    make_dict({}, "keys", key=object, value=int)
    with SharedDict.open("keys", trust=True) as d:  # a key as another program could have encoded it
        core = _core.DictCore(d.handle, (_core.KEY_ENCODED, bytes, bytes), d._schema.value.triple)
        key = b"p" + pickle.dumps(Trap(trap))
        core[key] = 1
        core[b"t" + b"\5sdeep" + bytes([len(key)]) + key] = 2

    for name in ("jobs", "keys"):
        for command in ("dump", "getnext", "info", "check", "stat"):
            run(command, name)
            run("-j", command, name)
        for ending in ("ndjson", "snap"):
            run("export", name, tmp_path / f"{name}.{ending}")
            run("import", tmp_path / f"{name}.{ending}", f"{name}-{ending}")
        run("repair", name, "--into", f"{name}-repaired")
        run("watch", name, "key", "a", "--str", "--for", 0)
    run("lookup", "jobs", "key", "a")
    assert not trap.exists()

    run("lookup", "jobs", "key", "a", "--unpickle")
    assert trap.exists()


def test_a_value_that_cannot_be_unpickled_is_shown_with_the_problem():
    """A value whose class the command cannot import is shown together with the error."""
    make_dict({"a": Job("x", 1.0)}, key=str, value=object)

    assert "ModuleNotFoundError" in lines_of("jobs", "--unpickle")[0]
    (found,) = formatted("jobs", "--unpickle")
    assert "ModuleNotFoundError" in found["value"]["problem"]


@pytest.mark.thorough
def test_keys_are_written_by_their_type():
    """The commands lookup and delete take a key as a text, a number, the fields of a struct, or
    JSON, depending on the dict's type of key."""
    make_dict({"alice": 7, LONG: 8}, "texts", key=str, value=int)
    make_dict({-5: "five"}, "numbers", key=int, value=str)
    make_dict({(1, 2): 3}, "structs", key="<HI", value=int)
    make_dict({b"\x01k": 4}, "octets", key=bytes, value=int)
    things = {"7": 1, 7: 2, None: 3, ("a", 1): 4, "word": 5}
    make_dict(things, "things", key=object, value=int)
    for name, words, value in (
        ("texts", ["alice"], 7),
        ("texts", ["alice", "--str"], 7),
        ("texts", [LONG], 8),
        ("numbers", ["-5"], "five"),
        ("structs", ["1", "2"], 3),
        ("structs", ["1", "2", "--struct", "<HI"], 3),
        ("octets", ["1", "0x6b"], 4),
        ("octets", ["hex", "016b"], 4),
        ("octets", ["hex", "01", "6b"], 4),
        ("things", ["7"], 2),
        ("things", ["7", "--str"], 1),
        ("things", ['"7"'], 1),
        ("things", ["0x7", "--u64"], 2),
        ("things", ["null"], 3),
        ("things", ['["a", 1]'], 4),
        ("things", ["word"], 5),
    ):
        found = run("-j", "lookup", name, "key", *words).json
        assert found["formatted"]["value"] == value, (name, words)

    run("delete", "texts", "key", LONG)
    run("delete", "things", "key", "null")
    gone = run("delete", "things", "key", "null", status=1)
    assert gone.err == "Error: delete failed: No such file or directory\n"
    assert run("lookup", "texts", "key", LONG, status=1).out.endswith("Not found\n")
    with SharedDict.open("things", trust=True) as d:
        assert dict(d) == {key: value for key, value in things.items() if key is not None}


def test_getnext_meets_every_key_of_a_dict():
    make_dict(
        {f"{number} {LONG * (number % 2)}": number for number in range(9)}, key=str, value=int
    )

    keys, words = [], []
    for _ in range(9):
        keys.append(run("-j", "getnext", "jobs", *words).json["formatted"]["next_key"])
        words = ["key", keys[-1]]

    assert len(set(keys)) == 9
    run("getnext", "jobs", *words, status=1)


def test_update_stores_through_the_dict():
    """The command update stores values of the dict's types with the dict's ttl, and obeys its
    flags; check() finds the map sound."""
    make_dict({"a": 1}, key=str, value=int, ttl=HOUR)

    run("update", "jobs", "key", LONG, "value", "-9")
    run("update", "jobs", "key", "a", "value", "2", "exist")
    refused = run("update", "jobs", "key", "a", "value", "3", "noexist", status=1)
    assert refused.err == "Error: update failed: File exists\n"
    run("update", "jobs", "key", "b", "value", "3", "exist", status=1)
    make_dict({}, "texts", key=int, value=str)
    run("update", "texts", "key", "5", "value", "five")

    with SharedDict.open("jobs") as d, SharedDict.open("texts") as texts:
        assert dict(d) == {"a": 2, LONG: -9}
        assert HOUR - 60 < d.ttl(LONG) <= HOUR
        assert dict(texts) == {5: "five"}
    run("check", "jobs")


@pytest.mark.parametrize(
    ("key", "value", "words", "message"),
    [
        (str, object, "key a value 1", "the type pickle, which only a program can make"),
        (str, int, "key a value x", "does not fit"),
        (str, int, "key a value 9999999999999999999", "does not fit"),
        (int, int, "key a value 1", "does not fit"),
        (str, int, "key 1 --u64 value 1", "have the type str, not u64"),
        (str, int, "key a --struct <q value 1", "have the type str, not struct"),
        (bytes, int, "key value 1", "expected bytes"),
        (bytes, int, "key zz value 1", "error parsing byte"),
        (object, int, "key {} value 1", "key cannot be {}"),
        (object, int, "key x --u64 value 1", "is not a number"),
    ],
)
@pytest.mark.thorough
def test_keys_and_values_that_do_not_fit_a_dict_are_refused(key, value, words, message):
    make_dict({}, key=key, value=value)

    assert message in run("update", "jobs", *words.split(), status=2).err
    run("check", "jobs")


def test_expired_entries_are_not_shown(tmp_path):
    make_dict({"stays": 1}, key=str, value=int, ttl=math.inf)
    with SharedDict.open("jobs") as d:
        d.set("goes", 2, ttl=0.001)
        d.set("later", 3, ttl=HOUR)
        while "goes" in d:
            pass

        later, stays = lines_of("jobs")
        assert later.startswith("key: later  value: 3  expires in ")
        assert stays == "key: stays  value: 1  never expires"
        run("lookup", "jobs", "key", "goes", status=1)
        left = {
            entry["formatted"]["key"]: entry["expires_in"]
            for entry in run("-j", "dump", "jobs").json
        }
        assert left["stays"] is None
        assert HOUR - 60 < left["later"] <= HOUR
        assert set(left) == {"stays", "later"}


def test_every_view_separates_live_and_expired_entries():
    """X1: every command shows how many expired entries take room, and does not count them as
    entries of the map."""
    make_dict({"stays": 1}, key=str, value=int, ttl=math.inf, max_entries=4)
    with SharedDict.open("jobs") as d:
        d.set("one", 2, ttl=HOUR)
        d.set("two", 3, ttl=HOUR)
        for key in ("one", "two"):
            d.touch(key, 1e-6)  # after this no insertion removes them
        while "two" in d:
            pass

        assert run("dump", "jobs").out.splitlines()[-1] == "Found 1 element; 2 more have expired"
        assert "3 of 4, 2 of them expired (25.0%)" in run("info", "jobs").out
        for words in (("ls",), ("top", "-n", "1")):
            assert "3 (2 expired)  25.0%" in run(*words).out
        (seen,) = run("-j", "ls").json
        assert (seen["entries"], seen["expired"], seen["fill"]) == (3, 2, 0.25)
        (seen,) = run("-j", "top", "-n", "1").json["maps"]
        assert (seen["entries"], seen["expired"]) == (3, 2)
        metrics = run("metrics").out
        assert 'shmrhash_entries{map="jobs"} 3.0' in metrics
        assert 'shmrhash_expired_entries{map="jobs"} 2.0' in metrics


def test_watch_follows_a_dict(users):
    make_dict({"a": 10}, key=str, value=int)
    watching = start("watch", "jobs", "key", "a", "-d", 0.002, "-n", 2)

    assert watching.stdout.readline().endswith(b"  10\n")

    def change():
        with SharedDict.open("jobs") as d:
            d.add("a", 5)

    users.start(change)
    assert watching.stdout.readline().endswith(b"  15  (+5)\n")
    with SharedDict.open("jobs") as d:
        del d["a"]
    assert watching.stdout.readline().endswith(b"  no such key\n")
    assert watching.wait(TIMEOUT_SECONDS) == 0
    watching.communicate()
    missing = run("-j", "watch", "jobs", "key", "a", "--for", 0).json
    assert (missing["key"], missing["value"]) == ("a", None)


def test_raw_option_shows_the_bytes():
    make_dict({"ab": "x"}, key=str, value=str)

    assert run("dump", "jobs", "--raw").lines[0] == "key: 61 62  value: 78"
    assert run("lookup", "jobs", "key", "0x61", "0x62", "--raw").lines[0].endswith("value: 78")
    assert "--raw" in run("dump", "jobs", "--raw", "--str", status=2).err


# ---- special fields ----


def make_fields(name="typed"):
    fields = [Kptr(0), Timer(8), Refcount(16), SpinLock(24)]
    shared_map = RHashMap.create(
        name, key_size=8, value_size=40, max_entries=10, fields=fields, max_bytes=1 << 20
    )
    for number in range(1, 4):
        key = b"k%07d" % number
        shared_map[key] = bytes(32) + b"value %2d" % number
        shared_map.add(key, number, offset=16)
    shared_map.kptr_xchg(b"k0000001", b"an object", 0)
    shared_map.timer_set(b"k0000002", time.monotonic_ns() + HOUR * 10**9)
    return shared_map


def test_special_fields_are_shown(users):
    """Each special field is shown beside the bytes of the value; an entry that another process
    locks is shown as locked."""
    make_fields().close()

    def hold():
        held = RHashMap.open("typed")
        section = held.locked(b"k0000003")
        section.__enter__()
        return held, section

    users.start(hold)

    text = run("lookup", "typed", "key", "k0000001", "--str").out
    assert "Kptr at 0: 9 bytes  61 6e 20 6f" in text
    assert "Timer at 8: never expires" in text
    assert "Refcount at 16: 2\n" in text
    assert "SpinLock at 24: free" in text
    assert "SpinLock at 24: locked" in run("lookup", "typed", "key", "k0000003", "--str").out
    found = run("-j", "lookup", "typed", "key", "k0000002", "--str").json
    kptr, timer, count, lock = found["fields"]
    assert kptr == {"kind": "Kptr", "offset": 0, "bytes": None}
    assert HOUR - 60 < timer["expires_in"] <= HOUR
    assert count == {"kind": "Refcount", "offset": 16, "count": 3}
    assert lock["locked"] is False
    assert len(run("-j", "dump", "typed").json) == 3


# ---- schemas that cannot be read ----


def rewrite_schema(name, change):
    """Change the schema in a segment's file, without changing its length."""
    path = Path(os.environ["SHMRHASH_DIR"], name)
    with open(path, "r+b") as file:
        head = file.read(4096)
        at = head.index(b'{"v":1')
        end = head.index(b"}\0", at) + 1
        file.seek(at)
        file.write(change(head[at:end]).ljust(end - at)[: end - at])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: b"nothing of the kind", "a schema that is not a SharedDict's"),
        (lambda text: b"[" * len(text), "a schema that is not a SharedDict's"),
        (lambda text: text.replace(b'"v":1', b'"v":9'), "of version 9"),
        (lambda text: text.replace(b'"str"', b'"st9"'), "cannot read its key type"),
        (lambda text: text.replace(b'"str"', b'"int"'), "entries have another layout"),
        (lambda text: text.replace(b'"str"', b"12345"), "cannot read its key type"),
        (lambda text: text.replace(b'"ttl":null', b'"ttl":-700'), "ttl"),
    ],
)
@pytest.mark.thorough
def test_damaged_schema_is_reported_and_bytes_are_shown(change, message):
    """H1: entries of a dict whose schema is damaged are shown in hex; nothing can be stored into
    it."""
    make_dict({"a": "one", LONG: "two"}, key=str, value=str)
    rewrite_schema("jobs", change)

    result = run("dump", "jobs")
    assert message in result.err
    assert "its bytes are shown instead" in result.err
    assert "6f 6e 65" in result.out
    assert len(run("-j", "dump", "jobs").json) == 2
    refused = run("update", "jobs", "key", "a", "value", "b", status=5)
    assert message in refused.err
    run("import", "-", "jobs", stdin='{"key":"a","value":"b"}\n', status=5)
    assert "cannot be read" in run("info", "jobs").out
    run("check", "jobs")


def replace_everywhere(name, old, new):
    """Replace bytes in a segment's file, except in its holes."""
    with open(Path(os.environ["SHMRHASH_DIR"], name), "r+b", buffering=0) as file:
        at, size = 0, file.seek(0, os.SEEK_END)
        while at < size:
            try:
                at = file.seek(at, os.SEEK_DATA)
            except OSError:  # from here on, the file is one hole
                return
            end = file.seek(at, os.SEEK_HOLE)
            file.seek(at)
            data = file.read(end - at)
            file.seek(at)
            file.write(data.replace(old, new))
            at = end


ODD = 0x4D3C2B1A5F6E7D8C  # a deadline in the far future, whose bytes occur once in the segment


def test_damaged_deadline_counts_as_expired():
    """H1: an entry with a damaged deadline counts as expired, as in the dict itself; a number
    beyond the clock's range causes no traceback."""
    make_dict({"stays": 1}, key=str, value=int, ttl=HOUR, max_entries=10, max_bytes=1 << 16)
    with SharedDict.open("jobs") as d:
        d._put("goes", 2, 0, ODD)
    replace_everywhere("jobs", ODD.to_bytes(8, "little"), b"\xff" * 8)

    assert [entry["key"] for entry in formatted("jobs")] == ["stays"]
    run("repair", "jobs", "--into", "copy")
    with SharedDict.open("copy") as d:
        assert dict(d) == {"stays": 1}


# ---- maintenance ----


def test_memory_of_objects_is_shown(users):
    """The commands info, ls, check, stat, top and metrics show the memory of objects; an object
    that a process views counts as pinned."""
    make_dict({"a": b"x" * 5000}, key=str, value=bytes, max_bytes=1 << 20)
    users.start(look := Look())

    for command in ("info", "check", "stat"):
        text = run(command, "jobs").out
        assert "KiB committed of 1.0 MiB, 1 pinned" in text
        objects = run("-j", command, "jobs").json["objects"]
        assert (objects["count"], objects["pinned"]) == (1, 1)
        assert 5000 <= objects["bytes_in_use"] <= objects["bytes_committed"] <= 1 << 20
        assert objects["max_bytes"] == 1 << 20
    assert "types      str to bytes" in run("info", "jobs").out
    assert run("-j", "info", "jobs").json["types"] == "str to bytes"
    for found in (run("-j", "ls").json, run("-j", "top", "-n", 1).json["maps"]):
        assert found[0]["objects"]["bytes_in_use"] >= 5000
    assert "OBJECTS" in run("ls").out
    assert "OBJECTS" in run("top", "-n", 1).out
    assert look.view is None  # only the child has a view
    if importlib.util.find_spec("prometheus_client") is not None:
        figures = run("metrics").lines
        assert 'shmrhash_objects_max_bytes{map="jobs"} 1.048576e+06' in figures
        assert 'shmrhash_objects_pinned{map="jobs"} 1.0' in figures


class Look:
    """A call of it opens the dict, and keeps a view of an entry's value."""

    view = None

    def __call__(self):
        self.dict = SharedDict.open("jobs")
        self.view = self.dict.view("a")
        return self


def test_maps_without_objects_show_none(make):
    make().close()

    assert run("-j", "ls").json[0]["objects"] is None
    assert run("-j", "check", "hits").json["objects"] is None
    assert "objects" not in run("info", "hits").out + run("stat", "hits").out


def test_dict_of_a_killed_process_is_shown_and_repaired(users):
    """C2: a process is killed while it stores objects; the values are whole, before and after the
    repair."""
    make_dict({}, key=str, value=str, max_bytes=1 << 24)

    opened = []

    def store():
        if not opened:  # at its first call, in the child
            opened.append(SharedDict.open("jobs"))
        for number in range(20):
            opened[0][f"key {number}"] = f"{number} " * 5000

    users.kill(users.start_working(store))

    for attempt in range(2):
        entries = formatted("jobs")
        assert len(entries) == 20
        for entry in entries:
            number = entry["key"].split()[1]
            assert entry["value"] == f"{number} " * 5000
        run("check", "jobs", status=0 if attempt else 1)
        run("repair", "jobs")
