"""Caches for the tests; check() is called on each at the end."""

import contextlib

import pytest

import shmrhash


@pytest.fixture
def make_cache(map_name):
    """A function that makes caches; the test ends with check(), close() and unlink() on each."""
    caches = []

    def make(*, name=None, **options):
        if name is None:
            name = f"{map_name}-{len(caches)}" if caches else map_name
        caches.append(shmrhash.Cache(name, **options))
        return caches[-1]

    yield make
    try:
        for cache in caches:
            if not cache.closed:
                cache.check()
    finally:
        for cache in caches:
            cache.close()
            with contextlib.suppress(shmrhash.SegmentMissing):
                shmrhash.unlink(cache.name)
