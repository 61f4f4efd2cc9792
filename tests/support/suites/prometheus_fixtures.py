"""The conftest.py of prometheus_client's tests of processes: the values and the collector are ours.

It is read before the tests are, which import these names.
"""

import os

import pytest
from prometheus_client import multiprocess, values

import shmrhash.prometheus as ours

NAME = os.environ["SUITE_CACHE"] + ".metrics"


def value_class(process_identifier=os.getpid):
    return ours.value_class(NAME, process_identifier=process_identifier)


class Collector(ours.ShmCollector):
    def __init__(self, registry, path=None):
        super().__init__(NAME, registry)


def mark_process_dead(pid, path=None):
    ours.mark_process_dead(pid, NAME)


values.MultiProcessValue = values.get_value_class = value_class
multiprocess.MultiProcessCollector = Collector
multiprocess.mark_process_dead = mark_process_dead


@pytest.fixture(autouse=True)
def empty():
    ours.store_of(NAME).shm.clear()
    yield
    ours.store_of(NAME).shm.check()
