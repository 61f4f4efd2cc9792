"""The counts of a cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class CacheStats(NamedTuple):
    """What all processes counted since the cache was made.

    hits and misses: of get() and get_many(). evicted_new: entries that were evicted before anything
    read them a second time; evicted_kept: others that were evicted; evicted_expired: entries that
    had expired when room was needed; evicted_block: entries that were evicted so that the memory of
    a block could serve values of another size. unreadable: values that could not be decoded.
    computed: values that get_or_compute() computed, in seconds_computing together. waited: calls of
    it that waited for a value which another caller computed. sets: values stored by set(),
    set_many(), add() and replace(). rejected: values that did not fit. taken_over: computations
    that a waiter began because the process that computed had died or failed. stolen: claims that
    were taken from a caller which computed for longer than wait seconds. not_stored: computed
    values that did not fit, or were invalidated during their computation. stale_hits: values that
    were returned while another caller computed them again. entries: those in the cache now, with
    expired ones that no operation has removed yet.
    """

    hits: int
    misses: int
    evicted_new: int
    evicted_kept: int
    evicted_expired: int
    unreadable: int
    computed: int
    waited: int
    sets: int
    rejected: int
    taken_over: int
    stolen: int
    not_stored: int
    seconds_computing: float
    stale_hits: int
    evicted_block: int
    entries: int

    @property
    def hit_ratio(self) -> float:
        """Hits as a share of all lookups; 0.0 if there were none."""
        return self.hits / (self.hits + self.misses) if self.hits else 0.0


def cache_stats(counts: Sequence[int], entries: int) -> CacheStats:
    """The statistics that the core's counts are, in the order in which it has them."""
    ns = CacheStats._fields.index("seconds_computing")
    return CacheStats._make([*counts[:ns], counts[ns] / 1e9, *counts[ns + 1 :], entries])
