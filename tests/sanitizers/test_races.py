"""ThreadSanitizer over threads without the GIL that share one mapping (racing.py has the scenes).

ThreadSanitizer knows acquire and release, and the kernel's locks by kernel_locks.h, but no fences:
it finds unordered plain accesses, not atomic accesses whose order is too weak.
"""

import json
import subprocess
import sys

import pytest
from support.sanitizers import racing, sanitizing

SCRIPT = ["-m", "support.sanitizers.racing"]


@pytest.fixture(scope="session")
def race_module(built):
    return built("thread", "_race")


def run_race(module, scenario, seconds, seed):
    """The finished process, with its output."""
    return subprocess.run(
        [sys.executable, *SCRIPT, module, scenario, str(seconds), str(seed)],
        env=sanitizing.environment("thread"),
        preexec_fn=sanitizing.fix_addresses,
        capture_output=True,
        text=True,
        check=False,
        timeout=300 + 10 * seconds,
    )


@pytest.mark.parametrize("scenario", [name for name in racing.SCENARIOS if name != "seeded"])
def test_threads_have_no_data_race(race_module, scenario, duration, seed):
    """W1, R2, G1, C2: no unordered plain access; each value is its key's; the map is sound."""
    done = run_race(race_module, scenario, duration, seed)

    assert done.returncode == 0, done.stderr[:20_000]
    said = json.loads(done.stdout)
    assert [thread["problem"] for thread in said["threads"]] == [0] * len(said["threads"]), said
    assert said["check"]["problem"] == 0, said
    assert all(thread["done"] > 100 for thread in said["threads"]), said
    if scenario.startswith("deaths"):
        assert said["check"]["statistics"]["recoveries"] > len(said["threads"]), said


def test_seeded_race_is_noticed(race_module, duration, seed):
    """R2: a value changed by a plain store without owning the element is reported."""
    done = run_race(race_module, "seeded", duration, seed)

    assert done.returncode == sanitizing.EXIT_CODES["thread"], done.stderr[:2_000]
    assert "WARNING: ThreadSanitizer: data race" in done.stderr
    assert "_race_seeded" in done.stderr
