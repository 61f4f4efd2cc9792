"""The conftest.py of cashews' tests, which its archive does not have: they use ShmBackend."""

import os
from unittest.mock import Mock

import pytest
from cashews import Cache

import shmrhash.cashews


@pytest.fixture
async def raw_backend():
    backend = shmrhash.cashews.ShmBackend(os.environ["SUITE_CACHE"])
    await backend.init()
    await backend.clear()
    yield backend, None
    await backend.close()


@pytest.fixture
async def cache():
    cache = Cache()
    cache.setup("shmrhash://", name=os.environ["SUITE_CACHE"])
    await cache.init()
    await cache.clear()
    yield cache
    await cache.close()


@pytest.fixture
def target(cache):
    backend = cache._backends[""]
    watched = Mock(wraps=backend)
    watched._id = backend._id
    cache._backends[""] = watched
    return watched
