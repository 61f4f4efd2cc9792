"""This is added to requests-cache's tests/integration: its tests of storages, for ShmDict."""

import os

from tests.integration.base_storage_test import BaseStorageTest

from shmrhash.requests_cache import ShmDict


class ShmTable(ShmDict):
    def __init__(self, cache_name, table_name="responses", **options):
        options.pop("connection", None)
        super().__init__(os.environ["SUITE_CACHE"], f"{cache_name}:{table_name}", **options)


class TestShmDict(BaseStorageTest):
    storage_class = ShmTable
