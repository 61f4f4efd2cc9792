"""This is added to Django's package of tests `cache`: its backend tests, for ShmCache."""

import os

from cache.tests import BaseCacheTests, caches_setting_for_tests
from django.test import TestCase, override_settings

# Both expect MAX_ENTRIES to delete a third of the entries, or all, at once. "cull" and "zero_cull"
# are left out, as for Redis and memcached, so their tests skip themselves.
CACHES = caches_setting_for_tests(
    BACKEND="shmrhash.django.ShmCache",
    LOCATION=os.environ["SUITE_CACHE"],
    exclude={"cull", "zero_cull"},
)


@override_settings(CACHES=CACHES)
class ShmCacheTests(BaseCacheTests, TestCase):
    pass
