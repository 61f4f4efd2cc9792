"""CPython's `test._test_multiprocessing`: its tests of locks, with the types under test.

A started process imports this module to find the functions that it runs.
"""

import unittest

from test import _test_multiprocessing as cpython

from support.conformance.tested import types_under_test

TYPES = types_under_test()


class Mixin(cpython.ProcessesMixin):
    Lock = TYPES.Lock
    RLock = TYPES.RLock
    Semaphore = TYPES.Semaphore
    BoundedSemaphore = TYPES.BoundedSemaphore
    Event = TYPES.Event
    Condition = TYPES.Condition
    Barrier = TYPES.Barrier


class LockTests(cpython._TestLock, Mixin, unittest.TestCase):
    pass


class SemaphoreTests(cpython._TestSemaphore, Mixin, unittest.TestCase):
    # This test expects acquire(False, timeout) to ignore the timeout, threading's a ValueError.
    test_timeout = None


class ConditionTests(cpython._TestCondition, Mixin, unittest.TestCase):
    def check_invariant(self, _condition):
        """Check nothing: CPython's looks at the counters inside multiprocessing.Condition."""


class EventTests(cpython._TestEvent, Mixin, unittest.TestCase):
    # This test expects "<Event at"; threading's expect the name of the module before it.
    test_repr = None


class BarrierTests(cpython._TestBarrier, Mixin, unittest.TestCase):
    pass
