"""What writers and readers of a cluster saw, and which reads were too old.

A value names its key and its version; versions of a key rise, and each is written once, by one
writer. Each write returns the value that it replaces (SET ... GET, GETDEL), so that the writer
finds out what the servers themselves have lost: a failover may lose writes that were acknowledged.
A lost version does not make a read too old, all others do. A deletion is a version, too: a reader
that finds a key absent has seen the newest deletion that had begun.

A write that ended in an error may be executed, even later than the next one, so reading it is never
wrong.
"""

import bisect
import itertools
import math
import threading
import time


class Version:
    """One write of a key."""

    def __init__(self, number, is_deletion):
        self.number = number
        self.is_deletion = is_deletion
        self.began = time.monotonic()
        self.acknowledged = None  # when, once it was acknowledged
        self.is_loose = False  # whether it ended in an error
        self.is_lost = False


def newest(past, fits, end=None):
    """Return the number of the last of these versions, or of those before end, that fits. The first
    version, an absence, always fits."""
    last = (len(past) if end is None else end) - 1
    return next(at for at in range(last, -1, -1) if fits(past[at]))


class Ledger:
    """The versions of all keys. Each key has one writer; there may be several readers."""

    def __init__(self, keys, max_stale):
        self.max_stale = max_stale
        self.versions = {key: [Version(0, True)] for key in keys}
        for (first,) in self.versions.values():
            first.acknowledged = 0.0
        self.seen = {}  # by (key, version): when the last read that returned it began
        self.reads = 0
        self.strange = []
        self.lock = threading.Lock()

    def write(self, client, key, is_deletion):
        """Write the next version of the key by this client."""
        past = self.versions[key]
        new = Version(past[-1].number + 1, is_deletion)
        past.append(new)
        new.is_loose = True
        if is_deletion:
            old = client.getdel(key)
        else:
            old = client.set(key, f"{key}={new.number}", get=True)
        new.acknowledged = time.monotonic()
        new.is_loose = False
        self.find_lost(key, past[:-1], old)

    def begin_flush(self):
        """Note that a flush is about to be executed, while nobody writes, as a deletion of each
        key; return these deletions for end_flush(). Until then, and after an error, they may or may
        not have been executed."""
        made = []
        for past in self.versions.values():
            made.append(Version(past[-1].number + 1, True))
            made[-1].is_loose = True
            past.append(made[-1])
        return made

    def end_flush(self, made):
        for each in made:
            each.acknowledged = time.monotonic()
            each.is_loose = False

    def find_lost(self, key, past, old):
        """Compare what a write replaced with what should have been there."""
        last = newest(past, lambda each: each.acknowledged is not None)
        if old is None:
            if any(each.is_deletion for each in past[last:]):
                return
            found = newest(past, lambda each: each.is_deletion and not each.is_lost)
        else:
            found = int(old.decode().removeprefix(f"{key}="))
        for each in past[found + 1 :]:
            each.is_lost = each.is_lost or (each.acknowledged is not None)

    def read(self, key, found, began, ended=math.inf):
        """Note that a read of the key, which began and ended at these moments, returned what was
        found."""
        past = self.versions[key]
        if found is None:
            begun = bisect.bisect_right(past, ended, key=lambda each: each.began)
            number = newest(past, lambda each: each.is_deletion, begun)
        else:
            owner, _, number = found.decode().rpartition("=")
            if owner != key or int(number) > past[-1].number:
                self.strange.append((key, found))
                return
        place = key, int(number)
        with self.lock:
            self.reads += 1
            self.seen[place] = max(began, self.seen.get(place, 0.0))

    def wrong(self):
        """Return the reads that were too old: (key, version, newer version, seconds beyond
        max_stale)."""
        found = list(self.strange)
        for (key, number), began in self.seen.items():
            past = self.versions[key]
            if past[number].is_loose:
                continue
            for newer in itertools.islice(past, number + 1, None):
                if newer.acknowledged is None or newer.is_lost:
                    continue
                late = began - self.max_stale - newer.acknowledged
                if late > 0:
                    found.append((key, number, newer.number, late))
                    break
        return found

    def writes(self):
        return sum(len(past) - 1 for past in self.versions.values())

    def lost(self):
        return sum(each.is_lost for past in self.versions.values() for each in past)
