# This is added to the end of aiocache's tests/acceptance/conftest.py; its memory cache is ShmCache.
import os

import pytest

from shmrhash.aiocache import ShmCache


@pytest.fixture(name="memory_cache")
async def shm_cache():
    async with ShmCache(os.environ["SUITE_CACHE"], namespace="test") as cache:
        await cache.clear()
        yield cache
        await cache.clear()
