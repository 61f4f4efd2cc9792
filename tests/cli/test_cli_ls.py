"""ls: names by pattern, and many anonymous dicts in a line."""

import os

import pytest
from commandline import run

from shmrhash import RHashMap, SharedDict


def names_of(*words):
    return [seen["name"] for seen in run("-j", "ls", *words).json]


def test_patterns_choose_maps(make):
    for name in ("cache-a", "cache-b", "hits"):
        make(name).close()
    assert names_of() == ["cache-a", "cache-b", "hits"]
    assert names_of("cache-*") == ["cache-a", "cache-b"]
    assert names_of("cache-[b]", "hits") == ["cache-b", "hits"]
    assert names_of("/hits") == ["hits"]
    assert names_of("none") == []
    assert [line.split()[0] for line in run("ls", "cache-?").lines[1:]] == ["cache-a", "cache-b"]


def test_anonymous_dicts_of_a_process_stand_in_one_line(make):
    make("hits").close()
    made = [SharedDict(key=str, value=bytes) for _ in range(5)]
    for number, d in enumerate(made):
        d["k"] = bytes(number)
    prefix = f"shmrhash-anonymous-{os.getpid()}-"
    listed = run("ls").lines
    assert len(listed) == 3
    (line,) = [line for line in listed if line.startswith(prefix)]
    assert line.startswith(f"{prefix}*  (5 dicts)")
    assert f"({os.getpid()})" in line
    assert line.split("dicts)")[1].split()[0] == "5"  # entries
    assert len(names_of()) == 6
    assert len(run("ls", "--all").lines) == 7
    assert len(run("ls", f"{prefix}*").lines) == 6
    for d in made:
        d.check()
        d.close()


def test_one_anonymous_dict_has_its_name():
    with SharedDict(key=str, value=int) as d:
        assert run("ls").lines[1].split()[0] == d.name


@pytest.mark.parametrize("verb", ["stat", "ls", "info", "show", "check", "top", "dump", "watch"])
def test_no_verb_prints_what_a_terminal_obeys(make, verb):
    """A map's name may be any bytes."""
    name = "evil\x1b[31m\n\x07\u202e"
    make(name).close()
    words = {
        "top": ["top", "-n", "1"],
        "ls": ["ls"],
        "watch": ["watch", name, "key", *"12345678", "--for", "0"],
    }
    out = run(*words.get(verb, [verb, name])).raw
    assert b"\x1b" not in out
    assert b"\x07" not in out
    assert "\u202e".encode() not in out
    with RHashMap.open(name) as shared_map:
        shared_map.check()
