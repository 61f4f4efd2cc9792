"""The commands check, repair, gc and unlink, on maps with dead owners, with damaged contents, or
without processes."""

import os
import signal
import time

import pytest
from support.commandline import overwrite, path_of, run

import shmrhash
from shmrhash import RHashMap

MISSING, DAMAGED = 3, 5


def test_dead_owner_is_seen_and_recovered(make, users):
    """C2: a process is killed while it is attached; ls, info and check show it, and repair recovers
    it."""
    make().close()
    pid = users.start(RHashMap.open, "hits")
    users.kill(pid)

    (seen,) = run("-j", "ls").json
    assert seen["health"] == "dead owners"
    assert [user["pid"] for user in seen["processes"] if not user["alive"]] == [pid]
    assert seen["advice"] == "shmrhash repair hits"
    assert "1 dead" in run("ls").out
    assert f"({pid})  dead" in run("info", "hits").out
    checked = run("-j", "check", "hits", status=1).json
    assert checked["sound"]
    assert checked["dead"] == 1

    repaired = run("-j", "repair", "hits").json

    assert repaired["recovered"] == 1
    assert repaired["exact"]
    assert run("-j", "check", "hits").json["dead"] == 0
    assert run("-j", "ls").json[0]["health"] == "ok"


def test_writer_killed_inside_an_operation_is_recovered(make, users):
    """C1: a process is killed while it stores large values; after repair each value in the map is
    one that it stored."""
    make(value_size=1 << 20, entries=0, max_entries=8).close()

    def write():
        for number in range(8):
            own.update(b"k%07d" % number, bytes([write.turn]) * (1 << 20))
        write.turn = write.turn % 250 + 1

    def first():
        nonlocal own
        own = own or RHashMap.open("hits")
        write()

    own, write.turn = None, 1
    users.kill(users.start_working(first))

    run("check", "hits", status=1)
    repaired = run("repair", "hits").out
    assert repaired.startswith("recovered 1 dead owners: ")
    assert "state            sound\n" in repaired
    with RHashMap.open("hits") as shared_map:
        assert all(value == value[:1] * (1 << 20) for value in shared_map.values())


def test_ephemeral_map_of_killed_processes_is_listed_and_removed(users, own_directory):
    """C2: an ephemeral map whose processes were all killed has the health "left behind" in ls, and
    gc removes it."""

    def create():
        return RHashMap.create("brief", key_size=8, value_size=8, max_entries=8, ephemeral=True)

    users.kill(users.start(create))

    (seen,) = run("-j", "ls").json
    assert (seen["health"], seen["advice"]) == ("left behind", "shmrhash gc")
    assert run("-j", "gc").json["removed"] == ["brief"]
    assert os.listdir(own_directory) == []


def test_stopped_owner_counts_as_alive_and_makes_a_writer_wait(make, users):
    """While a process is stopped inside an update, its map is in good health; a lookup succeeds,
    and a deletion fails at its timeout."""
    make(value_size=1 << 20, entries=0, max_entries=2).close()

    def write():
        nonlocal own
        own = own or RHashMap.open("hits")
        own.update(bytes(8), bytes(1 << 20))

    own = None
    pid = users.start_working(write)
    for _ in range(500):  # until the writer is stopped inside an update, where it is mostly
        os.kill(pid, signal.SIGSTOP)
        os.waitid(os.P_PID, pid, os.WSTOPPED)
        with RHashMap.open("hits", timeout=0.05) as shared_map:
            try:
                shared_map.update(bytes(8), bytes(1 << 20))
            except shmrhash.LockTimeout:
                break
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.001)  # let the writer get to another place
    else:
        pytest.fail("the writer was never stopped inside an operation")

    assert run("-j", "ls").json[0]["health"] == "ok"
    run("lookup", "hits", "key", "hex", "00" * 8)
    refused = run("--timeout", "0.1", "delete", "hits", "key", "hex", "00" * 8, status=7)
    assert "delete failed: Device or resource busy" in refused.err


def test_damage_is_found_and_readable_entries_are_saved(make):
    """H1: check says what is wrong with a damaged map; repair --into copies the entries that can be
    read."""
    make(entries=200).close()
    size = path_of("hits").stat().st_size
    data = path_of("hits").read_bytes()
    key = data.index(b"k100\0\0\0\0")
    overwrite("hits", key, b"changed!")
    found = run("-j", "check", "hits", status=DAMAGED).json

    assert path_of("hits").stat().st_size == size
    assert not found["sound"]
    assert "tag of element" in found["problem"]
    assert "--into" in found["advice"]
    assert "tag of element" in run("check", "hits", status=DAMAGED).out
    assert "--into" in run("repair", "hits", status=DAMAGED).out
    assert run("-j", "repair", "hits", "--into", "saved", status=DAMAGED).json["copied"] >= 199
    saved = {entry["formatted"]["key"] for entry in run("-j", "dump", "saved", "--str").json}
    assert {f"k{number}" for number in range(1, 201) if number != 100} <= saved
    assert run("-j", "check", "saved").json["sound"]


def test_gc_asks_before_it_removes_maps_that_no_process_uses(make, users, own_directory):
    """gc --dry-run only lists the maps that no process uses; without a terminal to ask on, gc
    removes them only with --yes."""
    make("unused").close()
    make("used").close()
    users.start(RHashMap.open, "used")
    make("read").close()
    users.start(lambda: RHashMap.open("read", read_only=True))

    assert run("gc", "--dry-run").out == "unused\n"
    assert run("-j", "gc", "--dry-run").json == {"abandoned": ["unused"]}
    assert "--yes" in run("gc", "--names", status=2).err
    assert sorted(os.listdir(own_directory)) == ["read", "unused", "used"]
    assert run("gc", "--names", "--yes").lines[-1] == "removed unused"
    assert sorted(os.listdir(own_directory)) == ["read", "used"]


def test_processes_go_on_using_an_unlinked_map(make, users):
    shared_map = make()
    users.start(RHashMap.open, "hits")

    assert run("-j", "unlink", "hits").out == "null\n"

    assert not path_of("hits").exists()
    shared_map[b"still in"] = bytes(8)
    run("unlink", "hits", status=MISSING)
