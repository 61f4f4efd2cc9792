"""The commands ls and info: all maps with figures and processes; names by pattern; anonymous dicts
in one line."""

import os
import sys
import time
from pathlib import Path

import pytest
from support.commandline import run

from shmrhash import RHashMap, SharedDict

HAS_GIL = getattr(sys, "_is_gil_enabled", lambda: True)()


def test_ls_shows_every_map_and_its_processes(make, users):
    make("empty", entries=0).close()
    make("full", entries=2, max_entries=2).close()
    make("hits").close()
    pids = [users.start(RHashMap.open, "hits") for _ in range(2)]

    shown = {found["name"]: found for found in run("-j", "ls").json}
    lines = {line.split()[0]: line for line in run("ls").lines}

    assert list(shown) == ["empty", "full", "hits"]
    assert [found["health"] for found in shown.values()] == ["ok", "full", "ok"]
    assert [found["entries"] for found in shown.values()] == [0, 2, 3]
    assert shown["full"]["fill"] == 1
    assert {user["pid"] for user in shown["hits"]["processes"]} == set(pids)
    assert list(lines) == ["NAME", "empty", "full", "hits"]
    assert "100.0%" in lines["full"]
    assert all(f"({pid})" in lines["hits"] for pid in pids)
    assert lines["empty"].split()[-2:] == ["ok", "-"]


def test_ls_shows_when_a_map_was_last_used(make):
    """A map is used when a process attaches or leaves, and at every thousandth operation that
    writes; ls itself is no use."""
    shared_map = make("hits")
    (before,) = run("-j", "ls").json
    began = time.time_ns()
    for _ in range(1024):
        shared_map.update(bytes(shared_map.key_size), bytes(shared_map.value_size))

    (found,) = run("-j", "ls").json
    text = run("ls").lines[1]

    assert before["last_activity_ns"] <= began <= found["last_activity_ns"] <= time.time_ns()
    assert found["last_activity"] == "used"
    assert "used" in text
    assert "ago" in text
    assert run("-j", "info", "hits").json["last_activity_ns"] == found["last_activity_ns"]


def test_ls_shows_maps_in_use_whose_name_was_removed(make, users, own_directory):
    """The file of a map in use is removed by hand, and another map gets the name: ls shows both."""
    make("hits").close()
    old = users.start(RHashMap.open, "hits")
    os.unlink(Path(own_directory, "hits"))
    lost = Path(own_directory, "no-map")
    with lost.open("wb") as file:
        lost.unlink()
        file.write(bytes(8192))
        file.flush()
        make("hits", entries=1).close()
        new = users.start(RHashMap.open, "hits")

        shown = [
            found
            for found in run("-j", "ls").json
            if found["name"] in ("hits", "no-map") or found["health"] == "no name"
        ]

    assert [found["health"] for found in shown] == ["ok", "no name"]
    assert [user["pid"] for user in shown[0]["processes"]] == [new]
    assert f"({old})" in shown[1]["detail"]
    assert "restart" in shown[1]["advice"]
    (line,) = (line for line in run("ls").lines if "no name" in line)
    assert line.split()[0] == "hits"
    assert f"({old})" in line
    users.kill(old)
    assert "no name" not in run("ls", "hits").out


def test_ls_of_an_empty_directory(own_directory):
    assert run("ls").out.startswith("NAME")
    assert run("-j", "ls").json == []


def names_of(*words):
    return [seen["name"] for seen in run("-j", "ls", *words).json]


def test_ls_shows_only_maps_that_match_a_pattern(make):
    for name in ("cache-a", "cache-b", "hits"):
        make(name).close()
    assert names_of() == ["cache-a", "cache-b", "hits"]
    assert names_of("cache-*") == ["cache-a", "cache-b"]
    assert names_of("cache-[b]", "hits") == ["cache-b", "hits"]
    assert names_of("/hits") == ["hits"]
    assert names_of("none") == []
    assert [line.split()[0] for line in run("ls", "cache-?").lines[1:]] == ["cache-a", "cache-b"]


def test_anonymous_dicts_of_a_process_are_shown_in_one_line(make):
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
    assert line.split("dicts)")[1].split()[0] == "5"  # the number of entries
    assert len(names_of()) == 6
    assert len(run("ls", "--all").lines) == 7
    assert len(run("ls", f"{prefix}*").lines) == 6
    for d in made:
        d.check()
        d.close()


def test_a_single_anonymous_dict_is_shown_by_its_name():
    with SharedDict(key=str, value=int) as d:
        assert run("ls").lines[1].split()[0] == d.name


@pytest.mark.parametrize("command", ["stat", "ls", "info", "show", "check", "top", "dump", "watch"])
def test_no_command_prints_control_characters_of_a_name(make, command):
    """The name of a map may contain any bytes; no command prints control characters from it."""
    name = "evil\x1b[31m\n\x07\u202e"
    make(name).close()
    words = {
        "top": ["top", "-n", "1"],
        "ls": ["ls"],
        "watch": ["watch", name, "key", *"12345678", "--for", "0"],
    }
    out = run(*words.get(command, [command, name])).raw
    assert b"\x1b" not in out
    assert b"\x07" not in out
    assert "\u202e".encode() not in out
    with RHashMap.open(name) as shared_map:
        shared_map.check()


def test_info_shows_figures_writers_and_readers(make, users):
    """info shows the map's figures, and lists processes that only read apart from those that hold a
    process slot."""
    make(entries=500).close()
    writer = users.start(RHashMap.open, "hits")
    reader = users.start(lambda: RHashMap.open("hits", read_only=True))

    found = run("-j", "info", "hits").json
    text = run("info", "hits").out

    with RHashMap.open("hits") as shared_map:
        truth = shared_map.info()
    for fact in ("entries", "buckets", "bytes_committed", "grows", "key_size", "max_entries"):
        assert truth[fact] == found[fact]
    assert [user["pid"] for user in found["processes"]] == [writer]
    # Without the GIL this process maps the file as long as it has the closed handle.
    mine = [] if HAS_GIL else [os.getpid()]
    assert sorted(user["pid"] for user in found["readers"]) == sorted([*mine, reader])
    assert "entries    500 of 1,000 (50.0%)" in text
    assert f"({writer})  attached" in text
    assert f"({reader})  reads" in text


def test_commands_that_show_a_map_do_not_change_it(make):
    """Commands that show a map take no process slot, recover nothing, and change no byte of the
    file."""
    make(entries=100).close()
    path = Path(os.environ["SHMRHASH_DIR"], "hits")
    before = path.read_bytes()

    for words in (["ls"], ["info", "hits"], ["check", "hits"], ["stat", "hits"], ["dump", "hits"]):
        run(*words)

    assert before == path.read_bytes()


@pytest.mark.thorough
def test_unprintable_names_are_escaped(make, own_directory, users):
    """Names of maps and of processes that contain a terminal's control sequences are shown
    escaped."""
    make("straße").close()
    make("bad\x1b[2J\n").close()

    def use():
        Path("/proc/self/comm").write_text("\x1b[31m")
        return RHashMap.open("bad\x1b[2J\n")

    users.start(use)

    for environment in ({}, {"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}):
        for words in (["ls"], ["show"], ["top", "-n", "1"]):
            text = run(*words, env=os.environ | environment).out
            assert "bad\\x1b[2J\\n" in text
            assert "\x1b" not in text
    refused = run("lookup", "bad\x1b[2J\n", "key", "1", status=2)
    assert "\x1b" not in refused.err + run("info", "none\x1b[2J", status=3).err


def test_names_need_not_be_utf8(make, own_directory):
    make("good").close()
    os.rename(Path(own_directory, "good"), os.fsencode(own_directory) + b"/bad\xff")

    assert "bad\\udcff" in run("ls").out
    (found,) = run("-j", "ls").json
    assert found["name"] == "bad\udcff"
