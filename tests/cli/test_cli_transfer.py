"""The commands export and import: every format in both directions, under writers, interrupted, with
damaged files and full maps."""

import gzip
import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.commandline import Terminal, run, start

from shmrhash import BPF_F_NO_PREALLOC, BPF_F_RDONLY, BPF_F_WRONLY, RHashMap

STR = ("--str", "--value-u64")
ENDINGS = ["snap", "npz", "ndjson", "csv"]
NEW = ("--entries", 1000, "--key-size", 8, "--value-size", 8)
HEAD_BYTES = 256


def entries_of(name):
    with RHashMap.open(name, read_only=True) as shared_map:
        return dict(shared_map.items())


@pytest.fixture(params=ENDINGS)
def ending(request):
    if request.param == "npz":
        pytest.importorskip("numpy", reason="an .npz needs NumPy")
    return request.param


@pytest.mark.parametrize("options", [(), STR], ids=["bytes", "text"])
@pytest.mark.thorough
def test_entries_come_back_unchanged(make, tmp_path, ending, options):
    """Exported entries come back unchanged in a new map and in an existing one; an import into a
    pipe prints nothing."""
    make(entries=500).close()
    path = tmp_path / f"hits.{ending}"
    lines = ending in ("ndjson", "csv")
    new = NEW if lines else ()

    assert run("export", "hits", path, *options) == run("export", "hits", path, *options)
    made = run("import", path, "copy", *new, *options)
    again = run("-j", "import", path, "copy", *options)

    assert made.out == made.err == ""
    assert again.json["entries"] == 500
    assert entries_of("hits") == entries_of("copy")
    run("check", "copy")


def test_snapshot_and_npz_keep_the_geometry_of_the_map(make, tmp_path):
    pytest.importorskip("numpy", reason="an .npz needs NumPy")
    make("odd", key_size=5, value_size=13, max_entries=77, map_extra=9, entries=4).close()
    wanted = entries_of("odd")
    for ending in ("snap", "npz"):
        path = tmp_path / f"odd.{ending}"
        run("export", "odd", path)
        run("unlink", "odd")
        run("import", path)

        with RHashMap.open("odd") as shared_map:
            assert (shared_map.max_entries, shared_map.map_extra) == (77, 9)
        assert wanted == entries_of("odd")


def test_empty_map_comes_back_empty(make, tmp_path, ending):
    make(entries=0).close()
    path = tmp_path / f"hits.{ending}"

    run("export", "hits", path)
    run("import", path, "copy", *NEW)

    assert entries_of("copy") == {}


def test_structs_and_text_come_back_from_lines(make, tmp_path):
    """Values of several fields come back from lines, and so do keys that are texts with quotes,
    commas, line ends and letters of all kinds."""
    shared_map = make(key_size=16, value_size=12, entries=0)
    texts = ['a,b"c', "two\nlines", "naïve 東京"[:9], "", " x ", "key"]
    for number, text in enumerate(texts):
        key = text.encode().ljust(16, b"\0")
        shared_map[key] = struct.pack("<IQ", number, number << 40)
    shared_map.close()
    options = ("--str", "--value-struct", "<IQ")
    for ending in ("csv", "ndjson"):
        path = tmp_path / f"hits.{ending}"
        run("export", "hits", path, *options)
        sizes = ("--entries", 9, "--key-size", 16, "--value-size", 12)
        run("import", path, ending, *sizes, *options)

        assert entries_of("hits") == entries_of(ending)


def test_lines_can_be_read_by_other_programs(hits):
    entries = [json.loads(line) for line in run("export", hits, "-", *STR).lines]
    assert {entry["key"]: entry["value"] for entry in entries} == {"k1": 10, "k2": 20, "k3": 30}
    raw = [json.loads(line) for line in run("export", hits, "-").lines]
    assert {"key": "6b31000000000000", "value": "0a00000000000000"} in raw
    lines = run("export", hits, "-", "-f", "csv", *STR).lines
    assert lines[0] == "key,value"
    assert sorted(lines[1:]) == ["k1,10", "k2,20", "k3,30"]


def test_map_is_exported_and_imported_through_a_pipe(hits):
    """A map goes through export | gzip | import, as it would over ssh."""
    data = run("export", hits, "-", "-f", "snapshot").raw
    assert gzip.decompress(gzip.compress(data)) == data

    run("import", "-", "copy", "-f", "snapshot", stdin=data)

    assert entries_of(hits) == entries_of("copy")


def test_output_of_dump_can_be_imported(hits):
    """What dump prints in JSON can be imported, one entry per line, as `bpftool -j map dump | jq -c
    '.[]'` writes it."""
    lines = "".join(json.dumps(entry) + "\n" for entry in run("-j", "dump", hits).json)

    run("import", "-", "copy", *NEW, stdin=lines)

    assert entries_of(hits) == entries_of("copy")


def test_npz_is_exchanged_with_numpy(make, tmp_path):
    numpy = pytest.importorskip("numpy", reason="an .npz needs NumPy")
    make().close()
    run("export", "hits", tmp_path / "hits.npz")

    with numpy.load(tmp_path / "hits.npz") as arrays:
        found = dict(zip(arrays["keys"].view("S8"), arrays["values"].view("<u8"), strict=True))
    assert found == {b"k1": 10, b"k2": 20, b"k3": 30}

    numpy.savez(
        tmp_path / "own.npz", keys=numpy.arange(9, dtype="<u8"), values=numpy.ones((9, 2), "<f4")
    )
    run("import", tmp_path / "own.npz", "own", "--entries", 9)
    assert len(entries_of("own")) == 9


@pytest.mark.thorough
def test_export_under_writers_has_each_entry_once(make, users, tmp_path):
    """R2: during writes, no exported value is torn (each is eight equal words), and entries that
    stay are exported once."""
    shared_map = make(value_size=64, entries=0, max_entries=3000)
    for number in range(1000):
        shared_map[b"stay%04d" % number] = bytes(64)
    shared_map.close()

    def churn():
        nonlocal own
        own = own or RHashMap.open("hits")
        for number in range(1000):
            own[b"stay%04d" % number] = struct.pack("<Q", number) * 8
            own[b"come%04d" % number] = struct.pack("<Q", number) * 8
        for number in range(1000):
            del own[b"come%04d" % number]

    own = None
    users.start_working(churn)

    for _ in range(2):
        run("export", "hits", tmp_path / "hits.snap")
        run("import", tmp_path / "hits.snap", "copy")
        copy = entries_of("copy")
        assert {b"stay%04d" % number for number in range(1000)} <= copy.keys()
        assert all(value == value[:8] * 8 for value in copy.values())
        assert run("-j", "import", tmp_path / "hits.snap", "copy").json["entries"] == len(copy)
        run("unlink", "copy")


@pytest.mark.thorough
def test_keep_does_not_overwrite_entries(hits, tmp_path, ending):
    """An import with --keep does not undo the changes made since the export."""
    path = tmp_path / f"hits.{ending}"
    run("export", hits, path)
    run("update", hits, "key", "k1", "value", 77, *STR)
    run("delete", hits, "key", "k2", "--str")

    run("import", path, hits, "--keep")
    assert {int.from_bytes(value, "little") for value in entries_of(hits).values()} == {77, 20, 30}
    run("import", path, hits)
    assert {int.from_bytes(value, "little") for value in entries_of(hits).values()} == {10, 20, 30}


def make_big_snapshot(path, entries):
    with RHashMap.create("big", key_size=8, value_size=8, max_entries=entries) as shared_map:
        keys = b"".join(number.to_bytes(8, "little") for number in range(entries))
        shared_map.update_batch(keys, keys)
    run("export", "big", path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.thorough
def test_interrupted_import_can_be_repeated(own_directory, tmp_path, number):
    """C1: an import is stopped in the middle by Ctrl-C or SIGKILL, and the same command, run again,
    completes it."""
    path = tmp_path / "big.snap"
    make_big_snapshot(path, 200_000)
    whole = path.read_bytes()
    words = ("import", "-", "copy", "-f", "snapshot")

    importing = start(*words, stdin=subprocess.PIPE)
    importing.stdin.write(whole[: len(whole) * 2 // 3])
    importing.stdin.flush()
    while not importing.poll() and entries_so_far("copy") < 65_536:
        time.sleep(0.001)  # a poll, not an assumption
    importing.send_signal(number)
    _, err = importing.communicate()

    assert importing.returncode == (130 if number == signal.SIGINT else -number)
    assert b"Traceback" not in err
    assert (b"repeat the command" in err) == (number == signal.SIGINT)
    assert 65_536 <= entries_so_far("copy") < 200_000
    run(*words, stdin=whole)
    assert entries_of("big") == entries_of("copy")
    run("repair", "copy")


def entries_so_far(name):
    if not Path(os.environ["SHMRHASH_DIR"], name).exists():
        return 0
    with RHashMap.open(name, read_only=True) as shared_map:
        return len(shared_map)


def test_interrupted_export_leaves_no_file(own_directory, tmp_path):
    """An exported file appears only when it is complete; an older file stays until then."""
    make_big_snapshot(tmp_path / "big.snap", 300_000)
    path = tmp_path / "big.ndjson"

    for _ in range(20):  # again if the export was complete before the signal was sent
        path.write_text("old")
        exporting = start("export", "big", path)
        while len(list(tmp_path.iterdir())) < 3 and exporting.poll() is None:
            time.sleep(0.001)  # a poll, not an assumption
        exporting.send_signal(signal.SIGINT)
        exporting.communicate()
        if exporting.returncode:
            break

    assert exporting.returncode == 130
    assert path.read_text() == "old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["big.ndjson", "big.snap"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1], "ends early, after 300 good entries"),
        (lambda data: data[:-2000], "ends early, after 0 good entries"),
        (lambda data: data[: HEAD_BYTES - 1], "not a snapshot"),
        (lambda data: b"", "not a snapshot"),
        (lambda data: b"PK" + data[2:], "not a snapshot"),
        (lambda data: data[:20] + b"\x07" + data[21:], "head of the snapshot is damaged"),
        (lambda data: data[:1000] + b"\xff\xfe" + data[1002:], "after 0 good entries"),
        (lambda data: data[:HEAD_BYTES] + b"\xff" * 16 + data[HEAD_BYTES + 16 :], "after 0"),
    ],
)
@pytest.mark.thorough
def test_damaged_snapshot_is_refused(make, tmp_path, damage, message):
    """An import refuses a snapshot with a damaged chunk, and imports no entry of that chunk."""
    make(entries=300).close()
    path = tmp_path / "hits.snap"
    run("export", "hits", path)
    path.write_bytes(damage(path.read_bytes()))

    result = run("import", path, "copy", status=5)

    assert message in result.err
    known = entries_of("hits")
    if Path(os.environ["SHMRHASH_DIR"], "copy").exists():
        assert entries_of("copy").items() <= known.items()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.ndjson", '{"key":"00"}\n', "line 1 is not a JSON object"),
        ("a.ndjson", '\n{"key":"0102030405060708","value":"01"}', "line 2: value expected 8"),
        ("a.ndjson", '{"key":7,"value":8}', "line 1: key should be a string of hex digits"),
        ("a.ndjson", "[]", "line 1 is not a JSON object"),
        ("a.csv", "key,value\n1,2,3\n", "line 2 does not have two cells"),
        ("a.csv", "key,value\nxyz,00\n", "line 2: key should be a string of hex digits"),
        pytest.param("a.csv", "x" * 200_000, "line 1 is not CSV", id="a huge cell"),
        ("a.ndjson", '{"key":[1.5,0,0,0,0,0,0,0],"value":"00"}', "line 1: key should be"),
        pytest.param("a.ndjson", "[" * 100_000, "line 1 is not a JSON object", id="too deep"),
        ("a.npz", "nothing of the kind", "not an .npz"),
        ("a.npz", "PK\3\4 and so on", "not an .npz"),
    ],
)
@pytest.mark.thorough
def test_the_error_for_a_damaged_line_has_its_number(hits, tmp_path, name, content, message):
    if name.endswith("npz"):
        pytest.importorskip("numpy", reason="an .npz needs NumPy")
    path = tmp_path / name
    path.write_text(content)

    assert message in run("import", path, hits, status=5).err


def test_errors_of_import_and_export_name_the_cause(make, tmp_path):
    make(entries=5).close()
    run("export", "hits", tmp_path / "hits.snap")
    run("export", "hits", tmp_path / "hits.csv")
    make("wide", value_size=16).close()

    for words, status, message in (
        (
            ["import", tmp_path / "hits.snap", "wide"],
            2,
            "have 8 + 8 bytes, but those of map 'wide'",
        ),
        (["import", tmp_path / "hits.csv"], 2, "the file names no map"),
        (["import", tmp_path / "hits.csv", "new"], 3, "give --entries"),
        (["import", tmp_path / "hits.snap", "small", "--entries", 2], 6, "is full, after 2"),
        (["import", tmp_path / "none.snap"], 3, "No such file"),
        (["import", tmp_path], 2, "none of the endings"),
        (["import"], 2, "expected a FILE"),
        (["export", "hits"], 2, "expected a FILE"),
        (["export", "hits", tmp_path / "hits.xls"], 2, "--format"),
        (["export", "hits", "-", "-f", "npz"], 2, "cannot be written to a pipe"),
        (["export", "hits", tmp_path / "no" / "hits.snap"], 3, "No such file"),
        (["export", "hits", tmp_path / "a.csv", "more"], 2, "unexpected argument: 'more'"),
    ):
        assert message in run(*words, status=status).err, words


def test_entries_of_a_full_map_can_be_imported_into_a_larger_one(make, tmp_path):
    make(entries=20, max_entries=20).close()
    run("export", "hits", tmp_path / "hits.snap")

    run("import", tmp_path / "hits.snap", "larger", "--entries", 500)

    assert entries_of("hits") == entries_of("larger")
    run("update", "larger", "key", "one more", "value", 1, *STR)


def test_map_created_with_a_restricted_handle_is_exported_and_imported(make, tmp_path):
    """A map created with BPF_F_RDONLY or BPF_F_WRONLY, which restrict only the creator's handle, is
    exported and imported like any other."""
    for name, flag in (("read", BPF_F_RDONLY), ("write", BPF_F_WRONLY)):
        make(name, entries=0, map_flags=BPF_F_NO_PREALLOC | flag).close()
        run("update", name, "key", "a", "value", 1, *STR)
        run("export", name, tmp_path / f"{name}.snap")

        run("import", tmp_path / f"{name}.snap", f"{name}-copy")

        assert entries_of(name) == entries_of(f"{name}-copy") != {}


def test_progress_is_shown_on_a_terminal_only(make, tmp_path):
    make(entries=300).close()
    words = ("export", "hits", tmp_path / "hits.snap")

    with Terminal(*words) as terminal:
        assert terminal.finish() == 0
        assert "exported 300 entries" in terminal.text
    assert run(*words).err == ""


@pytest.mark.long
def test_snapshot_of_a_million_entries_takes_half_a_second(own_directory, tmp_path):
    """A snapshot is written, and read, at 2 million entries a second: the best of five runs, as
    measured by the command."""
    path = tmp_path / "big.snap"
    make_big_snapshot(path, 1_000_000)

    exports, imports = [], []
    for _ in range(5):
        exports.append(run("-j", "export", "big", path).json["seconds"])
        imports.append(run("-j", "import", path, "copy").json["seconds"])
        run("unlink", "copy")

    assert min(exports) < 0.5
    assert min(imports) < 0.5


def test_python_without_numpy_exports_and_imports(make, tmp_path):
    """A Python without NumPy exports and imports every format but .npz."""
    make(entries=300).close()
    script = (
        "import sys; sys.modules['numpy'] = None; from shmrhash.cli import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", script]

    run("export", "hits", tmp_path / "hits.snap", command=command)
    run("import", tmp_path / "hits.snap", "copy", command=command)
    refused = run("export", "hits", tmp_path / "hits.npz", status=8, command=command)

    assert entries_of("hits") == entries_of("copy")
    assert "shmrhash[numpy]" in refused.err
