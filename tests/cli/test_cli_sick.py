"""Maps that are not well: every verb says what is wrong, in a sentence and an exit status."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commandline import COMMAND, FOLDER, run, say

import shmrhash
from shmrhash import RHashMap

NOBODY = 65534
MISSING, DENIED, DAMAGED = 3, 4, 5

ONE_MAP = [
    ["show", "MAP"],
    ["info", "MAP"],
    ["dump", "MAP"],
    ["lookup", "MAP", "key", "1", "2", "3", "4", "5", "6", "7", "8"],
    ["getnext", "MAP"],
    ["update", "MAP", "key", "hex", "0102030405060708", "value", "hex", "0102030405060708"],
    ["delete", "MAP", "key", "1", "2", "3", "4", "5", "6", "7", "8"],
    ["check", "MAP"],
    ["repair", "MAP"],
    ["stat", "MAP"],
    ["watch", "MAP", "key", "1", "2", "3", "4", "5", "6", "7", "8"],
    ["export", "MAP", "-"],
]
each_verb = pytest.mark.parametrize("words", ONE_MAP, ids=lambda words: words[0])


def of(name, words):
    return [name if word == "MAP" else word for word in words]


def path_of(name):
    return Path(os.environ["SHMRHASH_DIR"], name)


@contextlib.contextmanager
def patched(name, offset, data):
    """Write data into a segment's file."""
    with open(path_of(name), "r+b") as file:
        file.seek(offset)
        file.write(data)
    yield


# ---- verbs of one map ----


@each_verb
def test_missing_map(words):
    result = run(*of("nowhere", words), status=MISSING)
    assert result.err == f"Error: no segment 'nowhere' in {os.environ['SHMRHASH_DIR']}\n"
    assert not result.out


@each_verb
def test_damaged_header(hits, words):
    with patched(hits, 16, b"\xff" * 8):
        result = run("-j", *of(hits, words), status=DAMAGED)

    assert "damaged header" in result.json["error"]


@pytest.mark.parametrize("content", [b"", b"just a text\n", b"x" * 8192], ids=len)
@pytest.mark.thorough
def test_file_that_is_no_map(content):
    """Some text, nothing, or as much as a map's header."""
    path_of("notes").write_bytes(content)

    for words in (ONE_MAP[0], ONE_MAP[5], ONE_MAP[7]):
        result = run(*of("notes", words), status=DAMAGED)
        assert "not a shmrhash segment" in result.err
    assert run("-j", "ls").json == []
    (found,) = run("-j", "ls", "--all").json
    assert (found["name"], found["health"]) == ("notes", "no map")
    refused = run("unlink", "notes", status=DAMAGED)
    assert "--force" in refused.err
    assert path_of("notes").read_bytes() == content


def test_map_of_another_version(hits):
    with patched(hits, 8, (99).to_bytes(4, "little")):
        result = run("info", hits, status=DAMAGED)

    assert "layout version 99" in result.err
    assert "other version" in run("ls").out
    assert "layout version 99" in run("show").err
    run("unlink", hits)
    assert not path_of(hits).exists()


def test_directory_and_socket_are_no_maps(own_directory):
    path_of("folder").mkdir()

    assert "not a regular file" in run("info", "folder", status=DENIED).err
    assert run("-j", "ls", "--all").json == []


def test_directory_that_does_not_exist(own_directory):
    result = run("--dir", f"{own_directory}/nowhere", "ls", status=MISSING)
    assert f"{own_directory}/nowhere, cannot be read: No such file or directory" in result.err
    run("show", "pinned", f"{own_directory}/nowhere/hits", status=MISSING)


def setpriv(*options):
    """The command with other privileges than root's; skip where root cannot do that."""
    try:
        command = ["setpriv", *options, *COMMAND]
        done = subprocess.run([*command, "--version"], cwd=FOLDER, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("no setpriv (util-linux)")
    if done.returncode != 0:
        pytest.skip(f"privileges cannot be dropped here: {done.stderr.decode()}")
    return command


@pytest.fixture
def denied(make):
    """The command for somebody who may not open the map called secret."""
    make("secret").close()
    if os.geteuid() != 0:
        os.chmod(path_of("secret"), 0)
        return COMMAND
    os.chown(path_of("secret"), 1, 1)
    return setpriv("--bounding-set", "-dac_override,-dac_read_search")


def test_map_of_somebody_else(denied):
    """Each verb says so; ls counts it, and shows it if asked for all."""
    for words in (ONE_MAP[0], ONE_MAP[5], ONE_MAP[7]):
        result = run(*of("secret", words), status=DENIED, command=denied)
        assert result.err.startswith("Error: segment 'secret'")
    listed = run("ls", command=denied)
    assert "secret" not in listed.out
    assert "--all" in listed.err
    assert "no permission" in run("ls", "--all", command=denied).out


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root, who may become somebody else")
def test_map_that_may_be_read_must_be_trusted_too(make):
    """--owner names whom to trust."""
    make("open").close()
    os.chown(path_of("open"), 1, 1)
    user = ("--reuid", NOBODY, "--regid", NOBODY, "--clear-groups")
    capability = ("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search")
    somebody = setpriv(*map(str, user), *capability)

    refused = run("info", "open", status=DENIED, command=somebody)
    assert "belongs to user 1" in refused.err
    assert "entries    3 of 1,000" in run("--owner", "1", "info", "open", command=somebody).out
    say("--owner 1 delete open key 1 0 0 0 0 0 0 0", status=DENIED, command=somebody)


# ---- the dead ----


def test_dead_owner_is_seen_and_recovered(make, users):
    """C2: a process killed while attached; looking changes nothing, repair recovers it."""
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


def test_owner_killed_in_the_middle_of_writing(make, users):
    """C1: a writer of large values dies inside an operation; every value is one it wrote."""
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


def test_ephemeral_map_whose_users_were_killed(users, own_directory):
    """C2: it counts as missing; ls still shows it, and gc removes it."""

    def create():
        return RHashMap.create("brief", key_size=8, value_size=8, max_entries=8, ephemeral=True)

    users.kill(users.start(create))

    (seen,) = run("-j", "ls").json
    assert (seen["health"], seen["advice"]) == ("left behind", "shmrhash gc")
    assert run("-j", "gc").json["removed"] == ["brief"]
    assert os.listdir(own_directory) == []


def test_stopped_owner_is_alive_and_makes_a_writer_wait(make, users):
    """A process stopped inside an update: readers go on, a writer gives up in time."""
    make(value_size=1 << 20, entries=0, max_entries=2).close()

    def write():
        nonlocal own
        own = own or RHashMap.open("hits")
        own.update(bytes(8), bytes(1 << 20))

    own = None
    pid = users.start_working(write)
    for _ in range(500):  # until it is stopped inside an operation, which it is most of the time
        os.kill(pid, signal.SIGSTOP)
        os.waitid(os.P_PID, pid, os.WSTOPPED)
        with RHashMap.open("hits", timeout=0.05) as shared_map:
            try:
                shared_map.update(bytes(8), bytes(1 << 20))
            except shmrhash.LockTimeout:
                break
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.001)  # lest it is stopped where it was
    else:
        pytest.fail("it was never stopped inside an operation")

    assert run("-j", "ls").json[0]["health"] == "ok"
    run("lookup", "hits", "key", "hex", "00" * 8)
    refused = run("--timeout", "0.1", "delete", "hits", "key", "hex", "00" * 8, status=7)
    assert "delete failed: Device or resource busy" in refused.err


# ---- damage inside ----


def test_damage_inside_is_found_and_what_is_left_is_saved(make):
    """H1: check says what is wrong; repair --into copies what can be read."""
    make(entries=200).close()
    size = path_of("hits").stat().st_size
    data = path_of("hits").read_bytes()
    key = data.index(b"k100\0\0\0\0")
    with patched("hits", key, b"changed!"):
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


def test_gc_asks_before_it_removes_maps_in_use_by_nobody(make, users, own_directory):
    """--dry-run looks; without a terminal only --yes removes."""
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


def test_unlink_leaves_users_alone(make, users):
    shared_map = make()
    users.start(RHashMap.open, "hits")

    assert run("-j", "unlink", "hits").out == "null\n"

    assert not path_of("hits").exists()
    shared_map[b"still in"] = bytes(8)
    run("unlink", "hits", status=MISSING)


def test_python_without_click_says_how_to_get_it():
    """The extra's name and the command, instead of a traceback; exit status 8."""
    for module, extra, words in (
        ("click", "cli", ["ls"]),
        ("rich", "cli", ["ls"]),
        ("prometheus_client", "metrics", ["metrics"]),
    ):
        script = (
            f"import sys; sys.modules['{module}'] = None; from shmrhash.cli import main; "
            f"sys.exit(main())"
        )
        result = run(*words, status=8, command=[sys.executable, "-c", script])
        assert f"pip install 'shmrhash[{extra}]'" in result.err


def test_plot_without_matplotlib_says_how_to_get_it(hits, tmp_path):
    script = (
        "import sys; sys.modules['matplotlib'] = None; from shmrhash.cli import main; "
        "sys.exit(main())"
    )
    words = ["stat", hits, "--plot", tmp_path / "hits.svg"]

    result = run(*words, status=8, command=[sys.executable, "-c", script])

    assert "pip install 'shmrhash[plot]'" in result.err
