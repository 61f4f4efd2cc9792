"""Commands that root runs on maps of users whom root does not trust."""

import importlib.util
import os
import signal

import pytest
from support.commandline import run

import shmrhash
from shmrhash import SharedDict
from shmrhash._trust import user_name

if importlib.util.find_spec("click"):
    from shmrhash.cli import strangers
    from shmrhash.cli.maps import DAMAGED, all_states, state_of
    from shmrhash.cli.session import Session
    from shmrhash.cli.words import MapName

STRANGER = 65534
DENIED = 4

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def theirs(make, own_directory):
    """A map and a dict of pickles that belong to another user."""
    os.chmod(own_directory, 0o755)
    make("hits").close()
    with SharedDict.create("settings") as d:
        d["color"] = "red"
    for name in ("hits", "settings"):
        os.chown(f"{own_directory}/{name}", STRANGER, STRANGER)
    return MapName("hits", f"{own_directory}/hits")


def test_root_sees_maps_of_strangers_with_their_owners(theirs):
    listed = {seen["name"]: seen for seen in run("-j", "ls").json}
    assert listed["hits"]["owner"] == user_name(STRANGER)
    assert (listed["hits"]["health"], listed["hits"]["entries"]) == ("ok", 3)
    head, line, *_ = run("ls").lines
    assert head.split()[:2] == ["NAME", "OWNER"]
    assert line.split()[:2] == ["hits", user_name(STRANGER)]
    assert f"owner {user_name(STRANGER)}" in run("info", "hits").out
    assert run("-j", "check", "hits").json["sound"]
    assert run("-j", "stat", "hits").json["entries"] == 3
    assert run("-j", "show", "hits").json["name"] == "hits"
    assert 'map="hits"' in run("metrics").out
    assert "hits" in run("top", "-n", "1").out


def test_ls_has_no_owner_column_for_own_maps(make):
    make("hits").close()
    assert "OWNER" not in run("ls").out


@pytest.mark.parametrize(
    "words",
    [
        ["dump", "settings", "--unpickle"],
        ["dump", "hits"],
        ["export", "hits", "-"],
        ["repair", "hits"],
        ["delete", "hits", "key", *"12345678"],
        ["freeze", "hits"],
        ["update", "hits", "key", *"12345678", "value", *"12345678"],
    ],
    ids=lambda words: words[0],
)
def test_root_is_refused_the_contents_of_a_strangers_map(theirs, words):
    """Root is refused the contents of another user's map, and the message names the option that
    trusts the owner."""
    refused = run(*words, status=DENIED)
    assert f"pass --owner {STRANGER} to trust that user" in refused.err


def test_owner_option_gives_access(theirs):
    assert "red" in run("--owner", STRANGER, "dump", "settings", "--unpickle").out
    run("--owner", STRANGER, "repair", "hits")
    run("--owner", STRANGER, "gc")


def test_gc_of_root_lists_and_removes_abandoned_maps_of_strangers(theirs):
    assert run("-j", "gc", "--dry-run").json["abandoned"] == ["hits", "settings"]
    assert run("-j", "gc", "--names", "--yes").json["removed"] == ["hits", "settings"]


def test_signal_kills_the_reading_child_and_not_the_command(theirs, monkeypatch):
    """A child of the command reads the map; if a signal kills the child, the command reports damage
    of the map."""

    def die(name, shared_map):
        signal.signal(signal.SIGBUS, signal.SIG_DFL)  # pytest's handler prints a long report
        os.kill(os.getpid(), signal.SIGBUS)

    monkeypatch.setattr("shmrhash.cli.maps._read_state", die)
    with pytest.raises(shmrhash.SegmentCorrupt, match=r"'hits' of user .* died \(Bus error"):
        state_of(theirs, Session())
    assert {state.health for state in all_states(Session())} == {DAMAGED}


def test_child_that_takes_too_long_is_killed(theirs):
    """A child that takes too long to read a map is killed, and the map is reported as damaged."""
    with pytest.raises(shmrhash.SegmentCorrupt, match=r"more than 0\.1 s"):
        strangers.read_map(theirs, Session(), lambda shared_map: signal.pause(), 0.1)


def test_error_found_by_the_child_is_raised_in_the_command(theirs):
    with pytest.raises(shmrhash.MapFull, match="no room"):
        strangers.read_map(theirs, Session(), refuse)


def refuse(shared_map):
    raise shmrhash.MapFull("no room")
