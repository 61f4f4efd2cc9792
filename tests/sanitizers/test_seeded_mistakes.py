"""Mistakes that AddressSanitizer and UndefinedBehaviorSanitizer must notice inside the core.

The mistakes run as the whole suite does under `tox -e asan`. The sanitizers cannot notice an access
beyond an element that stays inside the segment: to them a mapping is one piece of memory.
"""

import subprocess
import sys

import pytest
from support.sanitizers import sanitizing

SCRIPT = ["-m", "support.sanitizers.seeding"]


@pytest.fixture(scope="session")
def seeded_module(built):
    return built("address", "_seeded")


def run(module, *call):
    return subprocess.run(
        [sys.executable, *SCRIPT, module, *map(str, call)],
        env=sanitizing.environment("address"),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize("call", [("hash_of", 8), ("copy_of", 24, 0), ("range_last", 31)])
def test_correct_calls_are_not_reported(seeded_module, call):
    """H1: the calls of the test below, with correct arguments, give no report."""
    done = run(seeded_module, *call)

    assert done.returncode == 0, done.stderr
    assert not done.stderr


@pytest.mark.parametrize(
    ("call", "report"),
    [
        (("hash_of", 7), "heap-buffer-overflow"),
        (("copy_of", 23, 0), "heap-buffer-overflow"),
        (("copy_of", 24, 1), "heap-use-after-free"),
        (("range_last", 64), "runtime error: shift exponent 64"),
    ],
)
def test_seeded_mistake_is_noticed(seeded_module, call, report):
    """H1: accesses beyond the end and to freed memory, and an undefined shift, are reported."""
    done = run(seeded_module, *call)

    assert done.returncode != 0
    assert report in done.stderr
