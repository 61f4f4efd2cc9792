"""CPython's own tests of locks pass with the types of shmrhash (support/conformance says how)."""

import sys

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

TASKS = {
    "LockTests": 12,
    "EventTests": 6,
    "ConditionTests": 16,
    "SemaphoreTests": 14,
    "BarrierTests": 22,
}
TASKS_EXCEPTED = {
    *("LockTests.test_lock_doesnt_accept_loop_parameter", "EventTests.test_repr"),
    *("ConditionTests.test_repr", "ConditionTests.test_ambiguous_loops"),
    *("SemaphoreTests.test_repr", "SemaphoreTests.test_acquire"),
    *("BarrierTests.test_repr", "BarrierTests.test_draining_state"),
    "BarrierTests.test_filling_tasks_cancel_one",
    "BarrierTests.test_reset_barrier_when_tasks_half_draining",
    "BarrierTests.test_reset_barrier_when_tasks_half_draining_half_blocking",
    "BarrierTests.test_reset_barrier_while_tasks_draining",
    "BarrierTests.test_abort_barrier_when_tasks_half_draining_half_blocking",
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


@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="the tests of 3.10 are of a loop that each type is made for"
)
def test_types_pass_the_tests_of_asyncio():
    """The forms for coroutines. The tests count turns of the loop, and cancel tasks in each."""
    outcome = run_tests("tasks", list(TASKS), types="shmrhash")

    expect_all(outcome, TASKS, TASKS_EXCEPTED)


def test_harness_tells_what_multiprocessing_fails():
    """multiprocessing.Lock has another repr, and takes a negative timeout."""
    outcome = run_tests("threads", ["LockTests"], types="multiprocessing")

    assert "LockTests.test_acquire_release" in outcome.passed
    assert {"LockTests.test_locked_repr", "LockTests.test_timeout"} <= set(outcome.failed)
