"""CPython's own tests of locks pass with the types of shmrhash (support/conformance says how)."""

import pytest
from support.conformance.running import run_tests

pytest.importorskip("test.lock_tests", reason="this Python comes without its package test")

# How many tests the oldest Python has in each class: a harness that finds fewer finds too few.
THREADS = {
    "LockTests": 17,
    "RLockTests": 18,
    "EventTests": 5,
    "ConditionTests": 7,
    "SemaphoreTests": 11,
    "BoundedSemaphoreTests": 11,
    "BarrierTests": 10,
}
PROCESSES = {
    "LockTests": 3,
    "SemaphoreTests": 3,
    "ConditionTests": 7,
    "EventTests": 1,
    "BarrierTests": 11,
}


def expect_all(outcome, counts, exceptions):
    """Every test has passed, but the exceptions; and there are as many as there should be."""
    assert not outcome.failed, "\n".join(outcome.failed.values())
    assert not outcome.skipped
    assert set(outcome.excepted) <= exceptions
    for name, count in counts.items():
        found = [test for test in outcome.passed + outcome.excepted if test.startswith(f"{name}.")]
        assert len(found) >= count, f"{name}: {len(found)} tests, not {count}"


@pytest.mark.parametrize("name", THREADS)
def test_types_pass_the_tests_of_threading(name):
    outcome = run_tests("threads", [name], types="shmrhash")

    expect_all(
        outcome,
        {name: THREADS[name]},
        {"LockTests.test_at_fork_reinit", "EventTests.test_at_fork_reinit"},
    )


@pytest.mark.parametrize(
    "start_method",
    [
        "fork",
        pytest.param("forkserver", marks=pytest.mark.thorough),
        pytest.param("spawn", marks=pytest.mark.thorough),
    ],
)
def test_types_pass_the_tests_of_multiprocessing(start_method):
    outcome = run_tests("processes", list(PROCESSES), types="shmrhash", start_method=start_method)

    expect_all(outcome, PROCESSES, {"SemaphoreTests.test_timeout", "EventTests.test_repr"})


def test_harness_tells_what_multiprocessing_fails():
    """multiprocessing.Lock has another repr, and takes a negative timeout."""
    outcome = run_tests("threads", ["LockTests"], types="multiprocessing")

    assert "LockTests.test_acquire_release" in outcome.passed
    assert {"LockTests.test_locked_repr", "LockTests.test_timeout"} <= set(outcome.failed)
