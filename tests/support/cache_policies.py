"""Eviction policies with which a cache is compared, written from their descriptions, and streams of
keys."""

import random
from bisect import bisect
from collections import OrderedDict, deque
from itertools import accumulate


class LeastRecentlyUsed:
    """LRU: the entry whose last use was longest ago is evicted."""

    def __init__(self, capacity):
        self.capacity = capacity
        self.entries = OrderedDict()

    def ask(self, key):
        """Look a key up, and insert it if it is absent; return whether it was there."""
        if key in self.entries:
            self.entries.move_to_end(key)
            return True
        if len(self.entries) == self.capacity:
            self.entries.popitem(last=False)
        self.entries[key] = None
        return False


class S3Fifo:
    """S3-FIFO as published: a small queue of a tenth of the entries, a main queue, and ghosts of
    the keys that left the small queue unread. A ghost counts until as many other keys have left as
    the main queue holds."""

    def __init__(self, capacity):
        self.capacity = capacity
        self.small_most = max(1, capacity // 10)
        self.small, self.main, self.uses = deque(), deque(), {}
        self.ghosts = OrderedDict()

    def ask(self, key):
        """Look a key up, and insert it if it is absent; return whether it was there."""
        if key in self.uses:
            self.uses[key] = min(3, self.uses[key] + 1)
            return True
        while len(self.uses) >= self.capacity:
            self.evict()
        queue = self.small
        if key in self.ghosts:
            del self.ghosts[key]
            queue = self.main
        queue.append(key)
        self.uses[key] = 0
        return False

    def evict(self):
        if len(self.small) >= self.small_most or not self.main:
            key = self.small.popleft()
            if self.uses[key] > 0:
                self.uses[key] = 0
                self.main.append(key)
                return
            self.ghosts[key] = None
            if len(self.ghosts) > self.capacity - self.small_most:
                self.ghosts.popitem(last=False)
        else:
            key = self.main.popleft()
            if self.uses[key] > 0:
                self.uses[key] -= 1
                self.main.append(key)
                return
        del self.uses[key]


def zipf(rng, keys, exponent, count):
    """Return `count` keys from 0 to keys - 1; the n-th most frequent one occurs 1 / n ** exponent
    times as often as the first."""
    weights = list(accumulate(1 / number**exponent for number in range(1, keys + 1)))
    names = rng.sample(range(keys), keys)
    return [names[bisect(weights, rng.random() * weights[-1])] for _ in range(count)]


def streams(seed, keys, count):
    """Return streams of keys by name, each of about `count` keys."""
    rng = random.Random(seed)
    usual = zipf(rng, keys, 0.9, count)
    piece = count // 10
    scanned, looped = [], []
    for number in range(10):
        part = usual[number * piece : (number + 1) * piece]
        first = keys * (10 + number)
        scanned += [*part, *range(first, first + keys // 5)]
        looped += [*part, *range(keys * 10, keys * 10 + keys // 5)]
    once = [keys * 10 + at if rng.random() < 0.4 else key for at, key in enumerate(usual)]
    drifting = [
        (key + piece * (at // piece)) % keys if key % 5 == 0 else key
        for at, key in enumerate(usual)
    ]
    return {
        "zipf 0.7": zipf(rng, keys, 0.7, count),
        "zipf 0.9": usual,
        "scans of keys that never come again": scanned,
        "the same scan again and again": looped,
        "40 % of the keys come once": once,
        "a fifth of the keys change their frequency": drifting,
    }
