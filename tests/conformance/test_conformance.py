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


def test_harness_tells_what_multiprocessing_fails():
    """multiprocessing's Lock has no weak references and waits in no method of threading's name."""
    outcome = run_tests("threads", ["LockTests"], types="multiprocessing")

    assert "LockTests.test_acquire_release" in outcome.passed
    assert "LockTests.test_locked_repr" in outcome.failed
    assert len(outcome.passed) + len(outcome.failed) >= THREADS["LockTests"]
