"""Tests with sanitizers run in environments of their own: tox -e tsan, tox -e asan."""

import os

import pytest
from support.sanitizers import sanitizing

KINDS = {"test_races.py": "thread", "test_seeded_mistakes.py": "address"}
VARIABLE = "SHMRHASH_SANITIZER"

collect_ignore = [name for name, kind in KINDS.items() if os.environ.get(VARIABLE) != kind]


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """A function that compiles an extension of this folder with a sanitizer; returns its path."""

    def make(kind, name):
        if not sanitizing.libraries(kind):
            pytest.skip(f"{sanitizing.compiler()} has no {sanitizing.LIBRARIES[kind][0]}")
        # With -n each worker compiles an extension of its own.
        return sanitizing.build(kind, name, tmp_path_factory.mktemp(name))

    return make
