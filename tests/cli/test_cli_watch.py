"""watch: the value of a key after each change, as text and as JSON."""

import json

from support.commandline import STR, TIMEOUT_SECONDS, run, start


def test_watch_prints_each_change(make):
    """The value now, changed, removed, and back again; numbers with their difference."""
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
