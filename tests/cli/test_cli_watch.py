"""The command watch prints the value of a key, or of every key, after each change; the command wait
ends when a key has the value that it waits for."""

import json
import os
import signal
import time

from support.commandline import STR, TIMEOUT_SECONDS, run, start
from support.waiting import until, words_of

from shmrhash import RHashMap, SharedDict


def test_watch_prints_each_change(make):
    """watch prints the present value, then each change, the deletion and the return of the key; for
    a number also the difference."""
    shared_map = make()
    key = b"k1".ljust(8, b"\0")
    watching = start("watch", "hits", "key", "k1", *STR, "-d", 0.002, "-n", 3)

    assert watching.stdout.readline().endswith(b"  10\n")
    shared_map.add(key, 5)
    assert watching.stdout.readline().endswith(b"  15  (+5)\n")
    del shared_map[key]
    assert watching.stdout.readline().endswith(b"  no such key\n")
    shared_map[key] = bytes(8)
    assert watching.stdout.readline().endswith(b"  0\n")
    assert watching.wait(TIMEOUT_SECONDS) == 0
    watching.communicate()


def test_watch_ends_after_its_time_and_prints_json(make):
    make().close()

    ended = run("-j", "watch", "hits", "key", "k1", *STR, "--for", 0.05, "-n", 1, status=1)
    (line,) = map(json.loads, ended.lines)
    assert line["value"] == 10
    assert line["key"] == b"k1".ljust(8, b"\0").hex()
    assert run("watch", "hits", "key", "none", "--str", "--for", 0).out.endswith("no such key\n")


def test_watch_ends_when_the_map_is_removed(make):
    make()
    watching = start("watch", "hits", "key", "k1", "--str", "-d", 0.002)
    watching.stdout.readline()

    run("unlink", "hits")

    assert watching.wait(TIMEOUT_SECONDS) == 3
    assert b"no segment 'hits'" in watching.communicate()[1]


def until_attached(shared_map, processes=2):
    """Return when the command has the map open for writing, that is, when it waits."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while shared_map.info()["processes"] < processes:
        assert time.monotonic() < deadline, "the command does not wait"
        time.sleep(0.005)


def test_watch_is_woken_by_a_change_and_does_not_poll(make):
    """Here the command looks by itself only once an hour, so only a store can wake it in time."""
    shared_map = make()
    watching = start("watch", "hits", "key", "k1", *STR, "-d", 3600, "-n", 2)
    assert watching.stdout.readline().endswith(b"  10\n")
    until_attached(shared_map)

    for text in (b"  15  (+5)\n", b"  20  (+5)\n"):
        shared_map.add(b"k1".ljust(8, b"\0"), 5)
        assert watching.stdout.readline().endswith(text)

    assert watching.wait(TIMEOUT_SECONDS) == 0
    watching.communicate()
    assert shared_map.check()["exact"]


def test_watch_of_a_map_that_is_replaced_follows_the_new_one(make):
    old = make()
    watching = start("watch", "hits", "key", "k1", *STR, "-n", 1)
    watching.stdout.readline()
    until_attached(old)

    new = RHashMap.create("other", key_size=8, value_size=8, max_entries=10)
    new[b"k1".ljust(8, b"\0")] = (7).to_bytes(8, "little")
    folder = os.environ["SHMRHASH_DIR"]
    os.rename(f"{folder}/other", f"{folder}/hits")

    assert watching.stdout.readline().endswith(b"  7  (-3)\n")
    assert watching.wait(TIMEOUT_SECONDS) == 0
    watching.communicate()
    new.close()


def test_watch_of_a_frozen_map_goes_on_by_looking(make):
    make().freeze()
    assert run("watch", "hits", "key", "k1", *STR, "--for", 0.3).out.endswith("  10\n")


def test_wait_ends_when_the_key_has_the_value():
    with SharedDict("jobs", key=str, value=str) as jobs:
        waiting = start("wait", "jobs", "key", "report", "value", "done", "--timeout", 3600)
        until_attached(jobs.handle)
        jobs["report"] = "begun"
        jobs["report"] = "done"

        assert waiting.wait(TIMEOUT_SECONDS) == 0
        assert waiting.communicate()[0] == b"key: report  value: done\n"
        assert run("-j", "wait", "jobs", "key", "report").json["formatted"]["value"] == "done"


def test_wait_says_when_the_time_is_over(hits):
    assert run("wait", hits, "key", "k9", *STR, "--timeout", 0.05, status=1).out == ""
    assert run("wait", hits, "key", "k1", "value", 11, *STR, "--timeout", 0, status=1).out == ""
    assert run("wait", hits, "key", "k1", "value", 10, *STR).out == "key: k1  value: 10\n"
    assert "did not find key" in run("wait", hits, status=2).err


def test_wait_for_several_keys_ends_with_the_first_that_is_as_wanted():
    with SharedDict("jobs", key=str, value=str) as jobs:
        jobs["report"] = "begun"
        done, failed = (["key", "report", "value", state] for state in ("done", "failed"))
        waiting = start("wait", "jobs", *done, *failed, "key", "other", "--timeout", 3600)
        until_attached(jobs.handle)
        jobs["report"] = "paused"
        jobs["report"] = "failed"

        assert waiting.wait(TIMEOUT_SECONDS) == 0
        assert waiting.communicate()[0] == b"key: report  value: failed\n"
        both = ["key", "report", "value", "x", "value", "y"]
        assert "duplicate value" in run("wait", "jobs", *both, status=2).err
        assert "expected key" in run("wait", "jobs", "value", "x", status=2).err


def test_watch_without_a_key_prints_every_change_of_a_map(make):
    shared_map = make()
    watching = start("watch", "hits", *STR, "-n", 3)
    until_watched(shared_map)

    shared_map.add(b"k1".ljust(8, b"\0"), 5)
    assert watching.stdout.readline().endswith(b"  k1  15\n")
    shared_map[b"new".ljust(8, b"\0")] = (7).to_bytes(8, "little")
    assert watching.stdout.readline().endswith(b"  new  7\n")
    del shared_map[b"k1".ljust(8, b"\0")]
    assert watching.stdout.readline().endswith(b"  k1  deleted\n")

    assert watching.wait(TIMEOUT_SECONDS) == 0
    watching.communicate()


def until_watched(shared_map):
    """Return when a process watches every key, that is, waits for all classes."""
    until(lambda: words_of(shared_map)[0] == 2**64 - 1)


LONG = "long " * 50


def test_watch_without_a_key_knows_the_long_keys_of_a_dict():
    with SharedDict("jobs", key=str, value=str) as jobs:
        jobs[LONG] = "old"
        watching = start("-j", "watch", "jobs", "-n", 4)
        until_watched(jobs.handle)
        told = []
        for change in (
            lambda: jobs.set(LONG, "new"),
            lambda: jobs.__delitem__(LONG),
            lambda: jobs.set(LONG + "er", "1"),
            lambda: jobs.__delitem__(LONG + "er"),
        ):
            change()
            told.append(json.loads(watching.stdout.readline()))

        assert watching.wait(TIMEOUT_SECONDS) == 0
        watching.communicate()
    assert [(one["kind"], one["key"], one["value"]) for one in told] == [
        ("set", LONG, "new"),
        ("deleted", LONG, None),
        ("set", LONG + "er", "1"),
        ("deleted", LONG + "er", None),
    ]


def test_watch_without_a_key_tells_losses(make):
    """watch tells of lost changes if it is stopped while more keys change than the ring holds, and
    if another map gets the map's name."""
    shared_map = make()
    key = b"k1".ljust(8, b"\0")
    watching = start("-j", "watch", "hits", *STR)
    until_watched(shared_map)
    os.kill(watching.pid, signal.SIGSTOP)
    for _ in range(10_000):
        shared_map.add(key, 1)
    os.kill(watching.pid, signal.SIGCONT)

    lost = json.loads(watching.stdout.readline())
    assert lost["kind"] == "lost"
    assert lost["lost"] > 1_000
    RHashMap.create("other", key_size=8, value_size=8, max_entries=10).close()
    folder = os.environ["SHMRHASH_DIR"]
    os.rename(f"{folder}/other", f"{folder}/hits")
    while (told := json.loads(watching.stdout.readline()))["kind"] == "set":
        assert told["value"] > 10
    assert told["kind"] == "lost"

    watching.kill()
    watching.wait(TIMEOUT_SECONDS)
    watching.communicate()


def test_watch_without_a_key_ends_after_its_time_or_with_its_map(make):
    make()
    assert run("watch", "hits", "--for", 0.05).out == ""
    assert run("watch", "hits", "--for", 0.05, "-n", 1, status=1).out == ""
    watching = start("watch", "hits")
    run("unlink", "hits")
    assert watching.wait(TIMEOUT_SECONDS) == 3
    watching.communicate()


def test_a_wait_that_is_interrupted_leaves_nothing_behind(make):
    shared_map = make()
    waiting = start("wait", "hits", "key", "k9", *STR)
    until_attached(shared_map)
    waiting.kill()
    assert waiting.wait(TIMEOUT_SECONDS) == -9
    waiting.communicate()
    with RHashMap.open("hits") as another:
        assert another.recovered_at_open == 1
        assert another.check()["exact"]
