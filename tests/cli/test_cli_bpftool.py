"""Our output beside that of the real bpftool, for a kernel map and one of ours of equal content."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from shmrhash import RHashMap
from shmrhash.cli import app

BPFTOOL = shutil.which("bpftool", path=os.environ["PATH"] + ":/usr/sbin:/sbin")
ENTRIES = 3

# (key_size, value_size): one line, two lines, names alone, gaps and breaks of long ones.
SIZES = [(1, 1), (4, 8), (8, 16), (9, 16), (16, 16), (17, 4), (8, 40)]


def bpftool(*words, check=True):
    done = subprocess.run(
        [BPFTOOL, *map(str, words)], capture_output=True, text=True, timeout=60, check=False
    )
    assert not check or done.returncode == 0, done
    return done.stdout


@pytest.fixture(scope="module")
def bpf_folder(tmp_path_factory):
    """A mounted bpffs, where this machine lets us have one."""
    if BPFTOOL is None:
        pytest.skip("no bpftool (Debian package bpftool)")
    folder = tmp_path_factory.mktemp("bpffs")
    done = subprocess.run(
        ["mount", "-t", "bpf", "bpf", folder], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"mounting a bpffs is refused: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture
def ours(capfd):
    """A function that runs our command in this process; its output."""

    def run(*words):
        capfd.readouterr()
        app.run([str(word) for word in words])
        return capfd.readouterr().out

    return run


class Twins:
    """A kernel map and one of ours, with the same entries."""

    def __init__(self, key_size, value_size, pin):
        self.pin = ("pinned", pin)
        self.entries = {}
        geometry = ["key", key_size, "value", value_size, "entries", 100, "name", "jobs"]
        try:
            bpftool("map", "create", pin, "type", "hash", *geometry, "flags", 1)
        except AssertionError as error:
            pytest.skip(f"bpf(2) is refused: {error}")
        with RHashMap.create(
            "jobs", key_size=key_size, value_size=value_size, max_entries=100
        ) as shared_map:
            for number in range(ENTRIES):
                key = bytes((number * 31 + place * 7) % 256 for place in range(key_size))
                value = bytes((number + place * 11) % 256 for place in range(value_size))
                self.entries[key] = shared_map[key] = value
                words = ["key", *key, "value", *value]
                bpftool("map", "update", *self.pin, *words)


@pytest.fixture(params=SIZES, ids=lambda sizes: f"{sizes[0]}-{sizes[1]}")
def twins(request, bpf_folder):
    pin = Path(bpf_folder) / "jobs"
    yield Twins(*request.param, pin)
    pin.unlink(missing_ok=True)


def same_show(text):
    """show with what differs between any two maps made equal."""
    text = re.sub(r"^\d+: r?hash", "ID: TYPE", text, flags=re.MULTILINE)
    text = re.sub(r"memlock \d+B", "memlock NB", text)
    text = re.sub(r'"id": ?\d+', '"id": ID', text)
    text = re.sub(r'"bytes_memlock": ?\d+', '"bytes_memlock": N', text)
    return text.replace('"rhash"', '"hash"')


@pytest.mark.parametrize("layout", [[], ["-j"], ["-p"]], ids=["plain", "json", "pretty"])
def test_show_looks_as_bpftools(twins, ours, layout):
    """One map, and the list of all; ids, sizes in memory and the type's name are our own."""
    theirs = bpftool(*layout, "map", "show", *twins.pin)

    assert same_show(theirs) == same_show(ours(*layout, "map", "show", "name", "jobs"))
    assert same_show(theirs) == same_show(ours(*layout, "show", "pinned", map_path()))
    if layout == ["-j"]:
        (listed,) = json.loads(ours("-j", "list"))
        assert json.loads(theirs).keys() == listed.keys()


@pytest.mark.parametrize("layout", [[], ["-j"], ["-p"]], ids=["plain", "json", "pretty"])
def test_frozen_map_looks_as_bpftools(twins, ours, layout):
    assert bpftool(*layout, "map", "freeze", *twins.pin) == ours(*layout, "freeze", "jobs")
    theirs = bpftool(*layout, "map", "show", *twins.pin)
    assert same_show(theirs) == same_show(ours(*layout, "show", "name", "jobs"))


def map_path():
    return os.path.join(os.environ["SHMRHASH_DIR"], "jobs")


def in_order(dump):
    """The entries of a dump in an order of their own, and what stands behind the last."""
    pieces = re.split(r"(?=^key:)|(?=^Found)", dump, flags=re.MULTILINE)
    return sorted(pieces)


def test_dump_looks_as_bpftools(twins, ours):
    """The order is each map's own; the text of each entry, and the last line, are equal."""
    theirs = bpftool("map", "dump", *twins.pin)

    assert in_order(theirs) == in_order(ours("dump", "jobs"))

    theirs, own = bpftool("-j", "map", "dump", *twins.pin), ours("-j", "dump", "jobs")
    assert sorted(json.loads(theirs), key=str) == sorted(json.loads(own), key=str)
    assert len(theirs) == len(own)
    theirs, own = bpftool("-p", "map", "dump", *twins.pin), ours("-p", "dump", "jobs")
    assert re.sub("0x[0-9a-f]{2}", "0x", theirs) == re.sub("0x[0-9a-f]{2}", "0x", own)


@pytest.mark.parametrize("layout", [[], ["-j"], ["-p"]], ids=["plain", "json", "pretty"])
def test_dump_of_one_and_of_none_looks_as_bpftools(twins, ours, layout):
    for key in list(twins.entries)[1:]:
        bpftool("map", "delete", *twins.pin, "key", *key)
        assert ours("delete", "jobs", "key", *key) == ""
    assert bpftool(*layout, "map", "dump", *twins.pin) == ours(*layout, "dump", "jobs")

    (last, *_) = twins.entries
    theirs = bpftool(
        *layout, "map", "delete", *twins.pin, "key", "hex", *map("{:02x}".format, last)
    )
    assert theirs == ours(*layout, "delete", "jobs", "key", "hex", last.hex())
    assert bpftool(*layout, "map", "dump", *twins.pin) == ours(*layout, "dump", "jobs")


@pytest.mark.parametrize("layout", [[], ["-j"], ["-p"]], ids=["plain", "json", "pretty"])
def test_lookup_looks_as_bpftools(twins, ours, layout):
    """Every key, and one that is not there."""
    absent = bytes(255 for _ in next(iter(twins.entries)))
    for key in [*twins.entries, absent]:
        theirs = bpftool(*layout, "map", "lookup", *twins.pin, "key", *key, check=False)
        assert theirs == ours(*layout, "lookup", "jobs", "key", *key)


@pytest.mark.parametrize("layout", [[], ["-j"], ["-p"]], ids=["plain", "json", "pretty"])
def test_getnext_looks_as_bpftools(twins, ours, layout):
    """A map of one key says the same first key, and that there is none behind it."""
    (only, *others) = twins.entries
    for key in others:
        bpftool("map", "delete", *twins.pin, "key", *key)
        ours("delete", "jobs", "key", *key)

    theirs = bpftool(*layout, "map", "getnext", *twins.pin)
    assert theirs == ours(*layout, "getnext", "jobs")
    theirs = bpftool(*layout, "map", "getnext", *twins.pin, "key", *only, check=False)
    assert theirs == ours(*layout, "getnext", "jobs", "key", *only)


def test_getnext_with_a_key_looks_as_bpftools(twins, ours):
    """From each key to the next, in our order; bpftool is asked the same in its own."""
    ways = {}
    for name, ask in (
        ("ours", lambda *key: ours("getnext", "jobs", *key)),
        ("theirs", lambda *key: bpftool("map", "getnext", *twins.pin, *key)),
    ):
        key, answers = [], []
        for _ in range(ENTRIES):
            answer = ask(*key)
            following = bytes.fromhex(answer.partition("next key:")[2])
            answers.append((answer.partition("next key:")[0] if key else "", following))
            assert answer.endswith("\n")
            key = ["key", *following]
        ways[name] = answers

    assert {key for _, key in ways["ours"]} == set(twins.entries)
    assert {key for _, key in ways["theirs"]} == set(twins.entries)
    headings = {name: {head.partition("\n")[0] for head, _ in ways[name]} for name in ways}
    assert headings["ours"] == headings["theirs"]


@pytest.mark.parametrize(
    "words",
    [
        ["update", "key", 1, 0, 0, 0, "value", 1, 0, 0, 0, 0, 0, 0, 0, "exist"],
        ["delete", "key", 9, 9, 9, 9],
        ["lookup", "key", 1, 0, 0],
        ["lookup", "key", 1, 0, 0, "x"],
        ["lookup"],
        ["update", "value", 1, 0, 0, 0, 0, 0, 0, 0],
        ["lookup", "key", 1, 0, 0, 0, 7],
        ["update", "key", 1, 0, 0, 0, "value", 1, 0, 0, 0, 0, 0, 0, 0, "any", "exist"],
    ],
    ids=lambda words: "-".join(map(str, words)),
)
def test_errors_read_as_bpftools(bpf_folder, ours, words):
    """What bpftool says stands at the beginning of what we say."""
    pin = Path(bpf_folder) / "errors"
    twins = Twins(4, 8, pin)
    verb, *rest = words
    try:
        theirs = json.loads(bpftool("-j", "map", verb, *twins.pin, *rest, check=False))
    finally:
        pin.unlink()

    own = json.loads(ours("-j", verb, "jobs", *rest))

    assert own["error"].startswith(theirs["error"])
