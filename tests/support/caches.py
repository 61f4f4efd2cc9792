"""How many bytes caches need, for tests of small ones."""

import shmrhash
from shmrhash import _core


def least_bytes(**options):
    """The least max_bytes of a cache with these options, on a machine with as many CPUs."""
    with shmrhash.Cache(**options) as cache:
        handle = cache.handle
        shape = handle.key_size, handle.value_size, cache.max_entries, cache.info()["depots"]
    return _core.cache_bytes(*shape, 4096, bool(options.get("tags")))[0]


def cache_options(room, **options):
    """These options, and a max_bytes of so many bytes more than the least."""
    return options | {"max_bytes": least_bytes(**options) + room}
