"""The commands show, dump, lookup and getnext, plain and in JSON, on maps that other processes
use."""

import pytest
from support.commandline import STR, run

from shmrhash import RHashMap


def test_show_names_the_attached_processes(hits, users):
    """The command show names the attached processes, but neither itself nor processes that only
    read."""
    pids = [users.start(RHashMap.open, hits) for _ in range(2)]
    users.start(lambda: RHashMap.open(hits, read_only=True))

    (shown,) = run("-j", "show").json
    assert {user["pid"] for user in shown["pids"]} == set(pids)
    line = run("show", "name", hits).lines[-1]
    assert line.startswith("\tpids ")
    assert all(f"({pid})" in line for pid in pids)


def test_dump_under_a_writer_has_each_stable_entry_once(make, users):
    """While another process inserts and deletes other entries, dump shows each entry that stays
    once."""
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
def test_lookup_finds_a_key_in_every_notation(hits, options, key):
    found = run("lookup", hits, "key", *key, "--value-u64", *options)

    assert found.out.endswith("value: 10\n")


def test_lookup_of_an_absent_key(hits):
    plain = run("lookup", hits, "key", "none", "--str", status=1)
    assert plain.out == "key:\nnone\n\nNot found\n"
    assert run("-j", "lookup", hits, "key", "none", "--str", status=1).json is None


def test_getnext_walks_over_every_key(hits):
    """The command getnext walks over every key, in plain text and JSON; its exit status after the
    last key is 1."""
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
