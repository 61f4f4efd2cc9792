"""How many bytes caches need, for tests of small ones."""

import shmrhash
from shmrhash import _core

FEWEST_DEPOTS = 2


def least_bytes(**options):
    """The least max_bytes of a cache with these options, on any machine."""
    with shmrhash.Cache(**options) as cache:
        handle = cache.handle
        shape = handle.key_size, handle.value_size, cache.max_entries, FEWEST_DEPOTS
    return _core.cache_bytes(*shape, 4096, bool(options.get("tags")))[0]


def cache_options(room, **options):
    """These options, and a max_bytes of room bytes more than the least."""
    return options | {"max_bytes": least_bytes(**options) + room}
