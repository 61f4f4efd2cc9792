"""CPython's `test.lock_tests`, with the types under test."""

from test import lock_tests

from support.conformance.tested import types_under_test

TYPES = types_under_test()


class LockTests(lock_tests.LockTests):
    locktype = TYPES.WaitingLock

    # This test calls a private method for forked children; a child holds none of our locks.
    test_at_fork_reinit = None


class RLockTests(lock_tests.RLockTests):
    locktype = TYPES.RLock


class EventTests(lock_tests.EventTests):
    eventtype = TYPES.Event

    # This test looks at the condition inside threading.Event.
    test_at_fork_reinit = None


class ConditionTests(lock_tests.ConditionTests):
    condtype = TYPES.Condition


class SemaphoreTests(lock_tests.SemaphoreTests):
    semtype = TYPES.Semaphore


class BoundedSemaphoreTests(lock_tests.BoundedSemaphoreTests):
    semtype = TYPES.BoundedSemaphore


class BarrierTests(lock_tests.BarrierTests):
    barriertype = TYPES.Barrier
