"""This is added to Flask-Caching's tests: the tests that every backend has to pass, for
ShmCache."""

import os

import pytest
from test_backend_cache import GenericCacheTests

from shmrhash.cachelib import ShmCache


class TestShmCache(GenericCacheTests):
    @pytest.fixture
    def make_cache(self):
        def make(*args, **kwargs):
            cache = ShmCache(os.environ["SUITE_CACHE"], *args, **kwargs)
            cache.clear()
            return cache

        return make
