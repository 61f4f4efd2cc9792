"""The commands create, update, delete and freeze, with plain output and JSON."""

import os

from support.commandline import STR, run, say

from shmrhash import RHashMap


def test_map_from_create_to_delete():
    """A map is created, changed and deleted by the words that users of bpftool write."""
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


def test_create_of_an_existing_map_is_refused(hits):
    refused = run("-j", "create", hits, "key", 8, "value", 8, "entries", 5, status=1)
    assert refused.json["error"].startswith("map create failed: File exists")
    assert run("-j", "dump", hits).json


def test_created_map_has_the_requested_mode():
    say("create shared key 8 value 8 entries 10 mode 640 extra 5")

    path = os.path.join(os.environ["SHMRHASH_DIR"], "shared")
    assert os.stat(path).st_mode & 0o777 == 0o640
    with RHashMap.open("shared") as shared_map:
        assert shared_map.map_extra == 5


def test_update_obeys_its_flags(hits):
    """The command update obeys exist and noexist, in any order with key and value."""
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


def test_update_of_a_full_map_has_its_own_exit_status(make):
    make(max_entries=2, entries=2).close()

    refused = run("update", "hits", "key", "k9", "value", 1, *STR, status=6)
    assert "update failed: Argument list too long" in refused.err
    assert "max_entries" in refused.err


def test_freezing_again_is_refused(make):
    make().close()
    assert run("-j", "freeze", "hits").out == "null\n"

    assert "is frozen" in run("-j", "freeze", "hits", status=4).json["error"]


def test_frozen_map_is_shown_and_refuses_changes(hits):
    """Every process may read a frozen map, and no process may change it."""
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
