"""The near caches that adapters to frameworks open: one for each server and set of prefixes, for
all objects of the adapters in a process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shmrhash._errors import InvalidArgument
from shmrhash._near.cache import NearCache
from shmrhash._near.redis import RedisSource

# By the name of the source, with what was asked for. Threads may open one at the same time:
# setdefault() lets one of them win. No lock, which a fork could catch.
_open: dict[str, tuple[NearCache, dict[str, Any]]] = {}


def near_of(client: Any, prefixes: Sequence[str], options: dict[str, Any]) -> NearCache:
    """The near cache of a client's server, opened at the first call; values are its bytes.

    options: those of NearCache(), but the source, prefixes and value.

    Raises InvalidArgument (also: open in this process with other options), and what NearCache()
    raises.
    """
    source = RedisSource(client, prefixes)
    found = _open.get(source.name)
    if found is not None and found[0]._closed:
        del _open[source.name]
        found = None
    if found is None:
        try:
            made = NearCache(source, **options)
        except TypeError as error:
            raise InvalidArgument(f"an option of the near cache is wrong: {error}") from None
        found = _open.setdefault(source.name, (made, options))
        if found[0] is not made:
            made.close()
    if found[1] != options:
        raise InvalidArgument(
            f"the near cache of {source.name} is open in this process with {found[1]}, and now "
            f"asked for with {options}: give both the same options, or other prefixes"
        )
    return found[0]


def hit(near: NearCache, key: str, missing: Any) -> Any:
    """The value of a key if it is in memory, None if the key is known to be absent, or missing.
    Neither asks a server nor waits. Raises MapClosed."""
    near._enter()
    raw = key.encode()
    node = near._node_of(raw)
    return near._look(raw, node, missing) if node >= 0 else missing
