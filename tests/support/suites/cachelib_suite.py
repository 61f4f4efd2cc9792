"""This is added to cachelib's tests: the tests that every cache has to pass, for ShmCache."""

import os

import pytest
from clear import ClearTests
from common import CommonTests
from delete_many_with_prefix import DeleteManyWithPrefixTests
from has import HasTests
from serializer import SerializerTests

from shmrhash.cachelib import ShmCache


@pytest.fixture(autouse=True)
def cache_factory(request):
    def factory(self, *args, **kwargs):
        cache = ShmCache(os.environ["SUITE_CACHE"], *args, **kwargs)
        cache.clear()
        return cache

    request.cls.cache_factory = factory


class TestShmCache(CommonTests, HasTests, ClearTests, SerializerTests, DeleteManyWithPrefixTests):
    pass
