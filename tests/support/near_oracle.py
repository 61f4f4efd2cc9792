"""The oracle of near caches: versions of keys, when each was acknowledged, and values of reads."""

import time


class Oracle:
    """A value is "key=version"; versions of a key count up. Threads may share it."""

    def __init__(self, keys, max_stale):
        self.keys = tuple(keys)
        self.max_stale = max_stale
        self.versions = dict.fromkeys(self.keys, 0)
        self.acknowledged = {key: {} for key in self.keys}
        self.reads = 0
        self.wrong = []

    def next_value(self, key):
        """The value to write next; acknowledge() says that it was."""
        self.versions[key] += 1
        return f"{key}={self.versions[key]}"

    def acknowledge(self, key):
        """The server has just acknowledged the last value of this key."""
        self.acknowledged[key][self.versions[key]] = time.monotonic()

    def judge(self, key, found, began):
        """A read that began at this moment found this value, or None. N1: a newer version that was
        acknowledged max_stale before the read makes it wrong."""
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
