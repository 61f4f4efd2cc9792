"""Dicts and counters for the tests; each is checked at the end, and no anonymous one remains."""

import contextlib
import os

import pytest

import shmrhash
from shmrhash import _segment
from shmrhash._gc import ANONYMOUS_PREFIX


@pytest.fixture
def make_dict(map_name):
    """A function that creates dicts; the test ends with check(), close() and unlink() on each."""
    dicts = []

    def make(cls=shmrhash.SharedDict, *, name=None, **options):
        if name is None:
            name = f"{map_name}-{len(dicts)}" if dicts else map_name
        dicts.append(cls.create(name, **options))
        return dicts[-1]

    yield make
    try:
        for shared in dicts:
            if not shared.closed:
                shared.check()
    finally:
        for shared in dicts:
            shared.close()
            with contextlib.suppress(shmrhash.SegmentMissing):
                shmrhash.unlink(shared.name)


@pytest.fixture
def anonymous_left():
    """A function that lists the anonymous dicts created since the test began."""

    def anonymous():
        names = os.listdir(_segment.directory())
        return {name for name in names if name.startswith(ANONYMOUS_PREFIX)}

    before = anonymous()
    return lambda: sorted(anonymous() - before)
