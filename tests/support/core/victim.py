"""A small live map, which tests damage through its file, and mend."""

import os

from support.core import picture


def victim_of(shared_map, unit):
    """A Victim for a map."""
    facts = shared_map.info()
    fd = os.open(facts["path"], os.O_RDWR)
    try:
        geometry = unit.geometry(
            facts["key_size"], facts["value_size"], facts["max_entries"], facts["depots"]
        )
        return Victim(shared_map, picture.Picture(fd, geometry))
    finally:
        os.close(fd)


class Victim:
    """The picture of a map, in which all changes by set() can be undone."""

    def __init__(self, shared_map, picture):
        self.map = shared_map
        self.picture = picture
        self.header = picture.header
        self.buckets = picture.buckets
        self.bucket_count = picture.header.table >> 16
        self.undo = []

    def set(self, thing, name, value):
        """Store thing.name = value, or thing[name] = value, and remember the old value."""
        if isinstance(name, str):
            self.undo.append((setattr, thing, name, getattr(thing, name)))
            setattr(thing, name, value)
        else:
            self.undo.append((type(thing).__setitem__, thing, name, thing[name]))
            thing[name] = value

    def mend(self):
        """Undo all changes."""
        for function, thing, name, value in reversed(self.undo):
            function(thing, name, value)
        self.undo.clear()

    def lines(self):
        """The lines of bucket 0's chain."""
        return [self.picture.lines[at] for at in self.picture.chain(0)[1]]

    def live(self):
        """The elements of bucket 0's chain."""
        return [index for _, index in self.picture.chain(0)[0]]

    def set_state(self, element, state):
        words = self.picture.element(element)
        self.set(words, 0, words[0] & ~(7 << 16) | state << 16)

    def some_depot(self):
        """The index of a depot that lists at least two elements."""
        depots = self.picture.depots
        return next(at for at in range(len(depots)) if depots[at].count >= 2)

    def set_depot(self, at, *, head=0, count=0, credit=0):
        """Add to the parts of a depot's word."""
        depot = self.picture.depots[at]
        word = picture.depot_word(depot.head + head, depot.count + count, depot.credit + credit)
        self.set(depot, "word", word)

    def set_block(self, words, at, **parts):
        """Replace parts of a block's word."""
        names = ["state", "fresh", "free", "head"]
        old = dict(zip(names, picture.block_parts(words[at]), strict=True))
        self.set(words, at, picture.block_word(**old | parts))

    def foreign_context(self):
        """A context that the map's own handle does not use, owned by its process."""
        context = self.picture.context(3)
        self.set(context, "owner", 1)
        return context
