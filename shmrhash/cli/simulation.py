"""What a Cache of another size would have found: its eviction, on keys alone.

The policy is that of cython/map/evict.pxd, step by step, but for chance: threads that evict at the
same time, and keys that take each other's ghosts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

NEW_SHARE = 10  # new entries are evicted while they are more than a tenth
USES_MAX = 3
HAND_CHOICE_MAX = 16  # entries among which the hand chooses
HAND_IDLE_MAX = 64  # entries that are none of its; then the ring is asked
GHOST_PRINTS = 7  # ghosts of a line
HIT, MISS, STORE, DELETE, CLEAR = range(5)  # what happened to a key in the traced cache


class Entry:
    """An entry of a simulated cache. slot: its place in the array, or -1 when it is gone."""

    __slots__ = ("kept", "key", "slot", "uses")

    def __init__(self, key: int, slot: int, kept: bool) -> None:
        self.key = key
        self.slot = slot
        self.kept = kept
        self.uses = 0


class SimulatedCache:
    """The keys of a cache of max_entries entries."""

    def __init__(self, max_entries: int) -> None:
        self._max = max_entries
        self.clear()

    def clear(self) -> None:
        self._entries: dict[int, Entry] = {}
        self._slots: list[Entry | None] = []
        self._free: list[int] = []
        self._ring: deque[Entry] = deque()  # of new entries, the oldest first
        self._hand = 0
        lines = self._max * 9 // 10 // GHOST_PRINTS + 1
        self._ghosts: list[deque[int]] = [deque(maxlen=GHOST_PRINTS) for _ in range(lines)]

    def find(self, key: int) -> bool:
        """Whether the key is there; then this is one more use of it."""
        entry = self._entries.get(key)
        if entry is None:
            return False
        if entry.uses < USES_MAX:
            entry.uses += 1
        return True

    def store(self, key: int) -> None:
        """Insert the key, unless it is there; if there is no room, another one goes."""
        if key in self._entries:
            return
        if len(self._entries) >= self._max:
            self._remove(self._choose())
        if self._free:
            slot = self._free.pop()
        else:
            slot = len(self._slots)
            self._slots.append(None)
        entry = Entry(key, slot, self._take_ghost(key))
        if not entry.kept:
            self._ring.append(entry)
        self._entries[key] = self._slots[slot] = entry

    def delete(self, key: int) -> None:
        if key in self._entries:
            self._remove(self._entries[key])

    def _remove(self, entry: Entry) -> None:
        del self._entries[entry.key]
        self._slots[entry.slot] = None
        self._free.append(entry.slot)
        entry.slot = -1

    def _choose(self) -> Entry:
        """The entry that is worth least."""
        least: Entry | None = None
        candidates = idle = 0
        while least is None or candidates < HAND_CHOICE_MAX:  # each turn, the ring is shorter or
            # the hand further on
            full = len(self._ring) * NEW_SHARE >= len(self._entries) or idle > HAND_IDLE_MAX
            if self._ring and candidates == 0 and full:
                entry = self._ring.popleft()
                if entry.slot < 0 or entry.kept:
                    continue
                if entry.uses == 0:
                    self._ghosts_of(entry.key).append(entry.key)
                    return entry
                entry.kept, entry.uses = True, 0
                continue
            found = self._slots[self._hand % len(self._slots)]
            self._hand += 1
            if found is None or not found.kept:
                idle += 1
                continue
            if found.uses == 0:
                return found
            if least is None or found.uses < least.uses:
                least = found
            found.uses -= 1
            candidates += 1
        return least

    def _ghosts_of(self, key: int) -> deque[int]:
        """The line that has the ghost of a key, if it left one. A full line drops its oldest."""
        spread = (key * 0x9E3779B97F4A7C15 >> 32) & 0xFFFFFFFF
        return self._ghosts[spread * len(self._ghosts) >> 32]

    def _take_ghost(self, key: int) -> bool:
        """Whether the key left a ghost, and not too many others have left one since."""
        line = self._ghosts_of(key)
        if key not in line:
            return False
        line[line.index(key)] = -1  # its place is used again in its turn
        return True


def hits(events: Sequence[tuple[int, int]], max_entries: int) -> int:
    """How many lookups a cache of this size would have answered. events: (what, key), in order.

    A caller that found a value which this cache does not have would have computed and stored it; a
    lookup that found none is followed by a STORE, if the value was stored.
    """
    cache = SimulatedCache(max_entries)
    found = 0
    for what, key in events:
        if what <= MISS and cache.find(key):
            found += 1
        elif what in (HIT, STORE):
            cache.store(key)
        elif what == DELETE:
            cache.delete(key)
        elif what == CLEAR:
            cache.clear()
    return found
