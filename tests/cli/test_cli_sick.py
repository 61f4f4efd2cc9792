"""Unusable maps: every command explains the problem in a sentence, and each problem has its own
exit status."""

import os
import subprocess

import pytest
from support.commandline import COMMAND, FOLDER, overwrite, path_of, run, say

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
each_command = pytest.mark.parametrize("words", ONE_MAP, ids=lambda words: words[0])


def of(name, words):
    return [name if word == "MAP" else word for word in words]


# ---- commands of one map ----


@each_command
def test_missing_map(words):
    result = run(*of("nowhere", words), status=MISSING)
    assert result.err == f"Error: no segment 'nowhere' in {os.environ['SHMRHASH_DIR']}\n"
    assert not result.out


@each_command
def test_damaged_header(hits, words):
    overwrite(hits, 16, b"\xff" * 8)
    result = run("-j", *of(hits, words), status=DAMAGED)

    assert "damaged header" in result.json["error"]


@pytest.mark.parametrize("content", [b"", b"just a text\n", b"x" * 8192], ids=len)
@pytest.mark.thorough
def test_file_that_is_no_map(content):
    """Every command explains a file that is no map: a text, an empty file, and a file larger than a
    map's header."""
    path_of("notes").write_bytes(content)

    for words in (ONE_MAP[0], ONE_MAP[5], ONE_MAP[7]):
        result = run(*of("notes", words), status=DAMAGED)
        assert "not a shmrhash segment" in result.err
    assert run("-j", "ls").json == []
    (found,) = run("-j", "ls", "--all").json
    assert (found["name"], found["health"]) == ("notes", "not a map")
    refused = run("unlink", "notes", status=DAMAGED)
    assert "--force" in refused.err
    assert path_of("notes").read_bytes() == content


def test_map_of_another_version(hits):
    overwrite(hits, 8, (99).to_bytes(4, "little"))
    result = run("info", hits, status=DAMAGED)

    assert "layout version 99" in result.err
    assert "other version" in run("ls").out
    assert "layout version 99" in run("show").err
    run("unlink", hits)
    assert not path_of(hits).exists()


def test_directory_is_no_map(own_directory):
    path_of("folder").mkdir()

    assert "not a regular file" in run("info", "folder", status=DENIED).err
    assert run("-j", "ls", "--all").json == []


def test_directory_of_segments_that_does_not_exist(own_directory):
    result = run("--dir", f"{own_directory}/nowhere", "ls", status=MISSING)
    assert f"{own_directory}/nowhere, cannot be read: No such file or directory" in result.err
    run("show", "pinned", f"{own_directory}/nowhere/hits", status=MISSING)


def setpriv(*options):
    """Return the command with fewer privileges than root has; skip the test where root cannot give
    them up."""
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
    """Return the command line of a user who may not open the map called secret."""
    make("secret").close()
    if os.geteuid() != 0:
        os.chmod(path_of("secret"), 0)
        return COMMAND
    os.chown(path_of("secret"), 1, 1)
    return setpriv("--bounding-set", "-dac_override,-dac_read_search")


def test_map_that_may_not_be_opened(denied):
    """Each command names the map that may not be opened; ls counts it, and shows it with --all."""
    for words in (ONE_MAP[0], ONE_MAP[5], ONE_MAP[7]):
        result = run(*of("secret", words), status=DENIED, command=denied)
        assert result.err.startswith("Error: segment 'secret'")
    listed = run("ls", command=denied)
    assert "secret" not in listed.out
    assert "--all" in listed.err
    assert "no permission" in run("ls", "--all", command=denied).out


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, which can become another user")
def test_readable_map_of_another_user_must_be_trusted(make):
    """A readable map of another user is refused unless --owner names that user."""
    make("open").close()
    os.chown(path_of("open"), 1, 1)
    user = ("--reuid", NOBODY, "--regid", NOBODY, "--clear-groups")
    capability = ("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search")
    somebody = setpriv(*map(str, user), *capability)

    refused = run("info", "open", status=DENIED, command=somebody)
    assert "belongs to user 1" in refused.err
    assert "entries    3 of 1,000" in run("--owner", "1", "info", "open", command=somebody).out
    say("--owner 1 delete open key 1 0 0 0 0 0 0 0", status=DENIED, command=somebody)
