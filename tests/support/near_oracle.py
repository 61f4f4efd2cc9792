"""The oracle of near caches: the versions of keys, when each was acknowledged, and what reads
found."""

import time


class Oracle:
    """Versions of keys, written as "key=version" and counted from 1, and the reads of them that
    were wrong. Threads may share it."""

    def __init__(self, keys, max_stale):
        self.keys = tuple(keys)
        self.max_stale = max_stale
        self.versions = dict.fromkeys(self.keys, 0)
        self.acknowledged = {key: {} for key in self.keys}
        self.reads = 0
        self.wrong = []

    def next_value(self, key):
        """Return the value to write next; acknowledge() is to be called when it was written."""
        self.versions[key] += 1
        return f"{key}={self.versions[key]}"

    def acknowledge(self, key):
        """Note that the server has just acknowledged the last value of this key."""
        self.acknowledged[key][self.versions[key]] = time.monotonic()

    def judge(self, key, found, began):
        """Note a read that began at this moment and found this value, or None. N1: it is wrong if a
        newer version was acknowledged longer than max_stale before the read."""
        self.reads += 1
        owner, _, version = (found or f"{key}=0").rpartition("=")
        if owner != key:
            self.wrong.append((key, found, "is another key's"))
            return
        later = [
            moment
            for number, moment in list(self.acknowledged[key].items())
            if number > int(version)
        ]
        late = began - min(later, default=began)
        if late > self.max_stale:
            self.wrong.append((key, found, f"replaced {late:.3f} s before it was read"))
