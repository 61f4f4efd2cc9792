"""A directory of segments for each test of the command, and processes that use maps."""

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from support.commandline import SCRIPT, Users

import shmrhash

if not all(importlib.util.find_spec(module) for module in ("click", "rich")):
    collect_ignore_glob = ["test_*.py"]  # the command needs them: pip install 'shmrhash[cli]'


@pytest.fixture(autouse=True)
def own_directory(monkeypatch):
    """A directory of segments for this test only, because the commands look at all maps."""
    base = os.environ.get("SHMRHASH_DIR", "/dev/shm")
    folder = tempfile.mkdtemp(prefix="shmrhash-cli-", dir=base)
    with monkeypatch.context() as patch:
        patch.setenv("SHMRHASH_DIR", folder)
        if not SCRIPT.exists():  # a working tree whose package is not installed
            patch.setenv("PYTHONPATH", str(Path(shmrhash.__file__).parents[1]))
        for variable in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
            patch.delenv(variable, raising=False)
        yield folder
    shutil.rmtree(folder)


@pytest.fixture
def make(own_directory):
    """A function that makes a map with some entries: entry i has the key "k<i>" and the value 10 *
    i."""
    made = []

    def make_one(name="hits", entries=3, **geometry):
        sizes = {"key_size": 8, "value_size": 8, "max_entries": 1000} | geometry
        shared_map = shmrhash.RHashMap.create(name, **sizes)
        made.append(shared_map)
        for number in range(1, entries + 1):
            shared_map[key_of(number, shared_map)] = value_of(number, shared_map)
        return shared_map

    yield make_one
    for shared_map in made:
        shared_map.close()


def key_of(number, shared_map):
    return f"k{number}".encode().ljust(shared_map.key_size, b"\0")


def value_of(number, shared_map):
    return (10 * number).to_bytes(shared_map.value_size, "little")


@pytest.fixture
def hits(make):
    """A map with the entries k1: 10, k2: 20 and k3: 30, to which no process is attached."""
    make().close()
    return "hits"


@pytest.fixture
def users():
    """Processes that use maps; those still running are killed when the test ends."""
    with Users() as group:
        yield group
