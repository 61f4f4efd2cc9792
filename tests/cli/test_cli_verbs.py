"""bpftool's verbs through the real command, plain and JSON, on maps that others use."""

import os
import subprocess
import sys

import pytest
from commandline import FOLDER, run, say

import shmrhash
from shmrhash import RHashMap

STR = ("--str", "--value-u64")


def test_map_from_create_to_delete():
    """What bpftool's users do, in its words."""
    folder = os.environ["SHMRHASH_DIR"]
    assert say("create jobs key 4 value 8 entries 100").out == ""
    say(f"create {folder}/other type rhash key 4 value 8 entries 10 name other flags 1")
    say("update jobs key 1 0 0 0 value hex 01 02 03 04 05 06 07 08")
    changed = say("-j map update name jobs key hex 02000000 value 9 0 0 0 0 0 0 0")
    assert changed.out == "null\n"

    found = run("lookup", "pinned", f"{folder}/jobs", "key", 1, 0, 0, 0)
    assert found.out == "key: 01 00 00 00  value: 01 02 03 04 05 06 07 08\n"
    shown = {entry["name"]: entry for entry in run("-j", "show").json}
    assert shown["jobs"] == {
        "id": os.stat(f"{folder}/jobs").st_ino,
        "type": "rhash",
        "name": "jobs",
        "flags": 1,
        "bytes_key": 4,
        "bytes_value": 8,
        "max_entries": 100,
        "bytes_memlock": shown["jobs"]["bytes_memlock"],
        "frozen": 0,
    }
    assert run("delete", "id", shown["jobs"]["id"], "key", 1, 0, 0, 0).out == ""
    assert run("dump", "jobs").lines[-1] == "Found 1 element"
    assert run("-j", "delete", "jobs", "key", 2, 0, 0, 0).out == "null\n"
    assert run("dump", "jobs").out == "Found 0 elements\n"
    assert run("-j", "dump", "jobs").json == []


def test_update_obeys_its_flags(hits):
    """exist and noexist, in any order with key and value."""
    words = ("value", 5, "key", "k1")
    refused = run("update", hits, *words, "noexist", *STR, status=1)
    assert refused.err == "Error: update failed: File exists\n"
    run("update", hits, "exist", *words, *STR)
    refused = run("-j", "update", hits, "key", "new", "value", 1, "exist", *STR, status=1)
    assert refused.json == {"error": "update failed: No such file or directory"}
    run("update", hits, "key", "new", "noexist", "value", 1, *STR)

    entries = [entry["formatted"] for entry in run("-j", "dump", hits, *STR).json]

    assert {entry["key"]: entry["value"] for entry in entries} == {
        "k1": 5,
        "k2": 20,
        "k3": 30,
        "new": 1,
    }


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ([], ["107", "0x31", "0", "0", "0", "0", "0", "0"]),
        ([], ["hex", "6b31000000000000"]),
        (["--str"], ["k1"]),
        (["--u64"], ["0x316b"]),
        (["--u64"], [str(0x316B)]),
        (["--struct", "<HHI"], ["0x316b", "0", "0"]),
        (["--struct", "2s6x"], ["k1"]),
    ],
    ids=lambda words: " ".join(words),
)
def test_same_key_in_every_notation(hits, options, key):
    found = run("lookup", hits, "key", *key, "--value-u64", *options)

    assert found.out.endswith("value: 10\n")


def test_walk_by_getnext_meets_every_key(hits):
    """Plain and JSON; after the last, exit status 1."""
    keys, words = [], []
    for _ in range(3):
        answer = run("-j", "getnext", hits, *words, "--str").json["formatted"]
        assert answer["key"] == (keys[-1] if keys else None)
        keys.append(answer["next_key"])
        words = ["key", keys[-1]]

    assert sorted(keys) == ["k1", "k2", "k3"]
    assert run("getnext", hits, "--str").out == f"key: None\nnext key:\n{keys[0]}\n"
    end = run("getnext", hits, *words, "--str", status=1)
    assert end.err == "Error: can't get next key: No such file or directory\n"


def test_lookup_of_what_is_not_there(hits):
    plain = run("lookup", hits, "key", "none", "--str", status=1)
    assert plain.out == "key:\nnone\n\nNot found\n"
    assert run("-j", "lookup", hits, "key", "none", "--str", status=1).json is None


def test_dump_of_a_map_that_others_write(make, users):
    """The entries that stay are printed exactly once each, while others come and go."""
    shared_map = make(entries=300, max_entries=2000)
    shared_map.close()

    def churn():
        with RHashMap.open("hits") as own:
            for number in range(1000):
                own[b"x%07d" % number] = bytes(8)
            for number in range(1000):
                del own[b"x%07d" % number]

    users.start_working(churn)

    keys = [entry["formatted"]["key"] for entry in run("-j", "dump", "hits", *STR).json]

    stayed = [key for key in keys if key.startswith("k")]
    assert sorted(stayed) == sorted(f"k{number}" for number in range(1, 301))
    assert len(keys) == len(set(keys))


def test_show_names_the_processes(hits, users):
    """Who is attached; neither this command, nor who only reads."""
    pids = [users.start(RHashMap.open, hits) for _ in range(2)]
    users.start(lambda: RHashMap.open(hits, read_only=True))

    (shown,) = run("-j", "show").json
    assert {user["pid"] for user in shown["pids"]} == set(pids)
    line = run("show", "name", hits).lines[-1]
    assert line.startswith("\tpids ")
    assert all(f"({pid})" in line for pid in pids)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("frobnicate", "no command 'frobnicate'"),
        ("loookup hits", "Did you mean 'lookup'?"),
        ("i hits", "'i' may be info or import"),
        ("lookup", "which map?"),
        ("show id x", "can't parse x as id"),
        ("lookup hits key 1 2", "key expected 8 bytes got 2"),
        ("lookup hits key 1 value 2", "key expected 8 bytes got 1"),
        ("update hits key k1 --str", "did not find value"),
        ("update hits key k1 key k2 value 1 --str", "duplicate key"),
        ("lookup hits key k1 --str --u64", "keys cannot be both str and u64"),
        ("lookup hits key k1 --struct <Y", "no format of Python's struct"),
        ("lookup hits key k1 --struct ä", "no format of Python's struct"),
        ("lookup hits key k1 --struct 99999999999999999s", "key has 8 bytes"),
        ("lookup hits key k1 --struct", "requires an argument"),
        ("dump hits --no-such-option", "did not expect '--no-such-option'"),
        ("ls --no-such-option", "No such option"),
        ("create jobs key 8 value 8", "max entries not specified"),
        ("create jobs key 8 key 8 value 8 entries 1", "key size already specified"),
        ("create jobs key x value 8 entries 1", "can't parse x as key size"),
        ("create jobs key 8 value 8 entries 1 type array", "type is rhash"),
        ("create jobs key 8 value 8 entries 1 name other", "a map has one name"),
        ("create jobs key 8 value 8 entries 1 flags 0", "map create failed: Invalid argument"),
        ("create jobs key 8 value 8 entries 1 mode 9", "can't parse 0o9 as mode"),
        ("create jobs key 8 value 8 entries 1 colour red", "unknown arg colour"),
        ("create .. key 8 value 8 entries 1", "a map's name has"),
        ("--owner nobody-of-this-name ls", "no user"),
        ("--timeout -1 ls", "not in the range"),
    ],
)
@pytest.mark.thorough
def test_mistake_is_explained(hits, words, message):
    """Exit status 2, a message that says what is wrong, and no traceback."""
    result = say(words, status=2)

    assert message in result.err
    assert result.err.startswith("Error: ")
    assert not result.out


def test_create_of_what_exists_says_so(hits):
    refused = run("-j", "create", hits, "key", 8, "value", 8, "entries", 5, status=1)
    assert refused.json["error"].startswith("map create failed: File exists")
    assert run("-j", "dump", hits).json


def test_created_map_has_the_mode_asked_for():
    say("create shared key 8 value 8 entries 10 mode 640 extra 5")

    path = os.path.join(os.environ["SHMRHASH_DIR"], "shared")
    assert os.stat(path).st_mode & 0o777 == 0o640
    with RHashMap.open("shared") as shared_map:
        assert shared_map.map_extra == 5


def test_full_map_has_a_status_of_its_own(make):
    make(max_entries=2, entries=2).close()

    refused = run("update", "hits", "key", "k9", "value", 1, *STR, status=6)
    assert "update failed: Argument list too long" in refused.err
    assert "max_entries" in refused.err


def test_negative_numbers_are_no_options(make):
    make("points", value_size=16).close()
    run("update", "points", "key", -7, "value", -1.5, 2, "--struct", "<q", "--value-struct", "<dd")

    found = run("-j", "lookup", "points", "key", -7, "--struct", "<q", "--value-struct", "<dd")
    assert found.json["formatted"] == {"key": -7, "value": [-1.5, 2.0]}


def test_layout_options_stand_anywhere(hits):
    """-j and -p before or behind the verb; -p is JSON too."""
    wanted = run("-p", "dump", hits).out

    assert wanted.startswith("[{\n        ")
    for words in (["dump", hits, "-p"], ["dump", "-jp", hits], ["-j", "dump", hits, "--pretty"]):
        assert wanted == run(*words).out


def test_module_runs_as_the_command(hits):
    module = [sys.executable, "-m", "shmrhash"]

    assert run("show").out == run("show", command=module).out
    assert shmrhash.__version__ == run("--version", command=module).out.strip()


def test_reader_of_a_pipe_may_go_away(make):
    """No traceback, no message: `shmrhash dump | head`."""
    make(entries=1000, max_entries=1000).close()
    script = f'"{sys.executable}" -m shmrhash dump hits | head -1'

    done = subprocess.run(
        script, shell=True, cwd=FOLDER, capture_output=True, text=True, check=True
    )

    assert done.stdout.startswith("key: ")
    assert done.stderr == ""


def test_freezing_again_is_refused(make):
    make().close()
    assert run("-j", "freeze", "hits").out == "null\n"

    assert "is frozen" in run("-j", "freeze", "hits", status=4).json["error"]


def test_frozen_map_is_shown_and_refuses_changes(hits):
    """Every process may read it, none change it."""
    assert run("freeze", hits).out == ""

    assert "\n\tfrozen\n" in run("show", "name", hits).out
    assert run("-j", "show").json[0]["frozen"] == 1
    assert run("-j", "ls").json[0]["health"] == "frozen"
    for words in (
        ["update", hits, "key", "k1", "value", "1"],
        ["update", hits, "key", "x", "value", "1"],
    ):
        refused = run(*words, *STR, status=4)
        assert refused.err.startswith("Error: update failed: Operation not permitted")
    refused = run("-j", "delete", hits, "key", "k1", "--str", status=4)
    assert refused.json["error"].startswith("delete failed: Operation not permitted")
    assert len(run("-j", "dump", hits).json) == 3
    run("check", hits)
