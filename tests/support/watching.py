"""A copy of a map that is kept up to date by watching every key."""

import time

PATIENCE_S = 0.015  # longer than a watcher waits for an entry in mid-change


class Copy:
    """An empty dict to which the changes of a map are applied. lost: the counts of lost changes of
    which the watch told."""

    def __init__(self, shared, **options):
        self.shared = shared
        self.entries = {}
        self.lost = []
        self.watch = shared.watch(initial=True, **options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.watch.close()

    def take(self, change):
        if change.kind == "lost":
            self.lost.append(change.value)
            self.entries.clear()
        elif change.kind == "set":
            self.entries[change.key] = change.value
        else:
            self.entries.pop(change.key, None)

    def catch_up(self):
        """Apply all changes that have been made; return the entries."""
        quiet = 0
        while quiet < 2:  # ends when no process changes the map
            changes = self.watch.poll()
            for change in changes:
                self.take(change)
            quiet = 0 if changes else quiet + 1
            if quiet == 1:
                time.sleep(PATIENCE_S)
        return self.entries

    def expect_equal(self):
        assert dict(self.shared.items()) == self.catch_up()
