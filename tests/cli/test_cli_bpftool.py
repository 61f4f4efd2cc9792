"""Our output compared with that of the real bpftool, for a kernel map and for a map of ours with
the same entries.

bpftool.json holds the output of bpftool and its version, so the tests run on every machine. Where
bpftool is installed and bpf(2) is allowed, a second run of each test asks bpftool again; `pytest
tests/cli/test_cli_bpftool.py --record-bpftool` writes the file anew.
"""

import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from shmrhash import RHashMap
from shmrhash.cli import app

BPFTOOL = shutil.which("bpftool", path=os.environ["PATH"] + ":/usr/sbin:/sbin")
RECORD = Path(__file__).with_name("bpftool.json")
PIN = "/sys/fs/bpf/jobs"  # in the record, for the path at which the map was pinned
ENTRIES = 3

# Sizes of keys and values that bpftool shows on one line, on two, and with gaps and line breaks.
SIZES = [(1, 1), (4, 8), (8, 16), (9, 16), (16, 16), (17, 4), (8, 40)]


def mounted_bpffs(folder):
    """Mount a bpffs and return whether bpftool can make a map of the kernel there."""
    if BPFTOOL is None:
        return False
    done = subprocess.run(
        ["mount", "-t", "bpf", "bpf", folder], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        return False
    words = ["type", "hash", "key", "4", "value", "8", "entries", "9", "name", "try"]
    done = subprocess.run(
        [BPFTOOL, "map", "create", f"{folder}/try", *words], capture_output=True, check=False
    )
    if done.returncode == 0:
        os.unlink(f"{folder}/try")
        return True
    subprocess.run(["umount", folder], check=True)
    return False


def kernel_can_be_asked():
    """Return whether bpftool and a bpffs can be used on this machine, by mounting one."""
    with tempfile.TemporaryDirectory() as folder:
        if not mounted_bpffs(folder):
            return False
        subprocess.run(["umount", folder], check=True)
        return True


class AskedBpftool:
    """The real bpftool, on maps of the kernel; it records its arguments and its output."""

    def __init__(self, folder):
        self.pin = f"{folder}/jobs"
        self.said = []

    def __call__(self, *words, check=True):
        asked = [str(word) for word in words]
        done = subprocess.run(
            [BPFTOOL, *asked], capture_output=True, text=True, timeout=60, check=False
        )
        assert not check or done.returncode == 0, done
        out = done.stdout.replace(self.pin, PIN)
        self.said.append([[word.replace(self.pin, PIN) for word in asked], out])
        return out

    def end(self):
        """Remove the kernel map."""
        Path(self.pin).unlink(missing_ok=True)


class RecordedBpftool:
    """The recorded output of bpftool. Its calls must have the recorded arguments, in the recorded
    order."""

    def __init__(self, said):
        self.pin = PIN
        self.said = iter(said)

    def __call__(self, *words, check=True):
        asked, out = next(self.said, (None, None))
        assert [str(word) for word in words] == asked, "record anew with --record-bpftool"
        return out

    def end(self):
        """Check that all recorded calls were made."""
        assert next(self.said, None) is None, "record anew with --record-bpftool"


@pytest.fixture(scope="module")
def recording(pytestconfig):
    """The calls of bpftool by test: as recorded, or with --record-bpftool as made in this run."""
    if not pytestconfig.option.record_bpftool:
        yield json.loads(RECORD.read_text())["tests"]
        return
    tests = {}
    yield tests
    version = subprocess.run([BPFTOOL, "version"], capture_output=True, text=True, check=True)
    kernel = ".".join(os.uname().release.split(".")[:2])
    origin = {"bpftool": version.stdout.split()[1], "kernel": kernel}
    lines = [f"{json.dumps(name)}: {json.dumps(said)}" for name, said in sorted(tests.items())]
    RECORD.write_text(f'{json.dumps(origin)[:-1]}, "tests": {{\n' + ",\n".join(lines) + "\n}}\n")


@pytest.fixture(scope="module")
def bpf_folder(tmp_path_factory):
    """The folder at which a bpffs is mounted for the tests."""
    folder = tmp_path_factory.mktemp("bpffs")
    assert mounted_bpffs(folder), "it could be mounted when the tests were collected"
    yield folder
    subprocess.run(["umount", folder], check=True)


def pytest_generate_tests(metafunc):
    if "source" in metafunc.fixturenames:
        sources = ["recorded"]
        if metafunc.config.option.record_bpftool:
            sources = ["asked"]
        elif kernel_can_be_asked():
            sources.append("asked")
        metafunc.parametrize("source", sources, scope="module")


@pytest.fixture
def bpftool(request, source, recording):
    """A function that returns bpftool's output for its arguments, from the record or from a real
    call."""
    test = request.node.name.replace("recorded", "S").replace("asked", "S")
    if source == "asked":
        tool = AskedBpftool(request.getfixturevalue("bpf_folder"))
    else:
        tool = RecordedBpftool(recording[test])
    yield tool
    tool.end()
    if request.config.option.record_bpftool:
        recording[test] = tool.said


@pytest.fixture
def ours(capfd):
    """A function that runs our command in this process and returns its output."""

    def run(*words):
        capfd.readouterr()
        app.run([str(word) for word in words])
        return capfd.readouterr().out

    return run


class Twins:
    """A kernel map and one of ours, with the same entries."""

    def __init__(self, key_size, value_size, bpftool):
        self.pin = ("pinned", bpftool.pin)
        self.entries = {}
        geometry = ["key", key_size, "value", value_size, "entries", 100, "name", "jobs"]
        bpftool("map", "create", bpftool.pin, "type", "hash", *geometry, "flags", 1)
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
def twins(request, bpftool):
    return Twins(*request.param, bpftool)


def same_show(text):
    """Return the output of show, with placeholders for what differs between any two maps."""
    text = re.sub(r"^\d+: r?hash", "ID: TYPE", text, flags=re.MULTILINE)
    text = re.sub(r"memlock \d+B", "memlock NB", text)
    text = re.sub(r'"id": ?\d+', '"id": ID', text)
    text = re.sub(r'"bytes_memlock": ?\d+', '"bytes_memlock": N', text)
    return text.replace('"rhash"', '"hash"')


@pytest.mark.parametrize("layout", [[], ["-j"], ["-p"]], ids=["plain", "json", "pretty"])
def test_show_looks_as_bpftools(twins, bpftool, ours, layout):
    """The output of show, for one map and for all, equals bpftool's, except for ids, sizes in
    memory and the name of the type."""
    theirs = bpftool(*layout, "map", "show", *twins.pin)

    assert same_show(theirs) == same_show(ours(*layout, "map", "show", "name", "jobs"))
    assert same_show(theirs) == same_show(ours(*layout, "show", "pinned", map_path()))
    if layout == ["-j"]:
        (listed,) = json.loads(ours("-j", "list"))
        assert json.loads(theirs).keys() == listed.keys()


@pytest.mark.parametrize("layout", [[], ["-j"], ["-p"]], ids=["plain", "json", "pretty"])
def test_frozen_map_looks_as_bpftools(twins, bpftool, ours, layout):
    assert bpftool(*layout, "map", "freeze", *twins.pin) == ours(*layout, "freeze", "jobs")
    theirs = bpftool(*layout, "map", "show", *twins.pin)
    assert same_show(theirs) == same_show(ours(*layout, "show", "name", "jobs"))


def map_path():
    return os.path.join(os.environ["SHMRHASH_DIR"], "jobs")


def in_order(dump):
    """Return the sorted entries of a dump, and the text after the last."""
    pieces = re.split(r"(?=^key:)|(?=^Found)", dump, flags=re.MULTILINE)
    return sorted(pieces)


def test_dump_looks_as_bpftools(twins, bpftool, ours):
    """The output of dump equals bpftool's, except for the order of the entries, which is each map's
    own."""
    theirs = bpftool("map", "dump", *twins.pin)

    assert in_order(theirs) == in_order(ours("dump", "jobs"))

    theirs, own = bpftool("-j", "map", "dump", *twins.pin), ours("-j", "dump", "jobs")
    assert sorted(json.loads(theirs), key=str) == sorted(json.loads(own), key=str)
    assert len(theirs) == len(own)
    theirs, own = bpftool("-p", "map", "dump", *twins.pin), ours("-p", "dump", "jobs")
    assert re.sub("0x[0-9a-f]{2}", "0x", theirs) == re.sub("0x[0-9a-f]{2}", "0x", own)


@pytest.mark.parametrize("layout", [[], ["-j"], ["-p"]], ids=["plain", "json", "pretty"])
def test_dump_of_one_and_of_none_looks_as_bpftools(twins, bpftool, ours, layout):
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
def test_lookup_looks_as_bpftools(twins, bpftool, ours, layout):
    """The output of lookup equals bpftool's for every key of the map, and for an absent key."""
    absent = bytes(255 for _ in next(iter(twins.entries)))
    for key in [*twins.entries, absent]:
        theirs = bpftool(*layout, "map", "lookup", *twins.pin, "key", *key, check=False)
        assert theirs == ours(*layout, "lookup", "jobs", "key", *key)


@pytest.mark.parametrize("layout", [[], ["-j"], ["-p"]], ids=["plain", "json", "pretty"])
def test_getnext_looks_as_bpftools(twins, bpftool, ours, layout):
    """The output of getnext equals bpftool's in a map of one key: the first key, and the error that
    no key follows it."""
    (only, *others) = twins.entries
    for key in others:
        bpftool("map", "delete", *twins.pin, "key", *key)
        ours("delete", "jobs", "key", *key)

    theirs = bpftool(*layout, "map", "getnext", *twins.pin)
    assert theirs == ours(*layout, "getnext", "jobs")
    theirs = bpftool(*layout, "map", "getnext", *twins.pin, "key", *only, check=False)
    assert theirs == ours(*layout, "getnext", "jobs", "key", *only)


def test_getnext_with_a_key_looks_as_bpftools(twins, bpftool, ours):
    """The output of getnext for each key equals bpftool's; each of the two maps is asked in its own
    order."""
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
def test_errors_read_as_bpftools(bpftool, ours, words):
    """Each of our error messages begins with bpftool's message."""
    twins = Twins(4, 8, bpftool)
    verb, *rest = words
    theirs = json.loads(bpftool("-j", "map", verb, *twins.pin, *rest, check=False))

    own = json.loads(ours("-j", verb, "jobs", *rest))

    assert own["error"].startswith(theirs["error"])
