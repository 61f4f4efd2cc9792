"""An object whose memory cannot grow, and what a context still names (object.pxd, pool.pxd).

A store makes two objects: its value, then a long key, a run. Of two runs one cannot grow: there are
no more pages. It is given back, for which the word of its block has to be held; if another context
holds that just now, the run stays named in its slot of owned_refs, and is given back before the
slot names another object. The word of a block says whether its object is in its list of free
objects, and who holds the word; the store that changes the one releases the other. The header of an
object says which context owns it. Contexts are counted from 1 here.
"""

from support.protocol.automaton import awaits, cas, load, store
from support.protocol.words import Words

VALUE, POOR, RICH = range(3)  # the objects; POOR is the run that cannot grow
FREE, LIVE = 0, 9  # headers; others are the owner's number
LISTED = 10  # the part of a block's word that says that its object is free
OK, BUSY, FULL = range(3)
SLOTS = 2


class Objects(Words):
    """The words of the objects and the contexts. without: the steps that a mutant leaves out."""

    def __init__(self, programs, without=()):
        super().__init__(without)
        contexts = range(programs)
        self.word = [self._word(f"word of the block of {thing}") for thing in range(3)]
        self.header = [self._word(f"header of {thing}") for thing in range(3)]
        self.named = [
            [self._word(f"name {slot} of {me}") for slot in range(SLOTS)] for me in contexts
        ]
        self.asleep = [self._word(f"sleep of {me}") for me in contexts]
        self.ended = [self._word(f"end of {me}") for me in contexts]


def holder_of(word):
    return word % LISTED


def take(m, me, slot, thing):
    """Play pool_take. FULL: the object is not free."""
    word = yield load(m.word[thing])
    if word != LISTED:
        return BUSY if holder_of(word) else FULL
    held = yield cas(m.word[thing], word, word + me + 1)
    if not held:
        return BUSY
    named_first = m.does("an object is named before it is this context's")
    if named_first:
        yield store(m.named[me][slot], thing + 1)
    yield store(m.header[thing], me + 1)
    yield store(m.word[thing], 0)
    if not named_first:
        yield store(m.named[me][slot], thing + 1)
    return OK


def object_free(m, me, slot):
    """Play object_free: give back what the slot names, if this context owns it; clear the slot."""
    thing = yield load(m.named[me][slot])
    if not thing:
        return OK
    owner = yield load(m.header[thing - 1])
    if owner != me + 1:
        yield store(m.named[me][slot], 0)
        return OK
    held = yield cas(m.word[thing - 1], 0, me + 1)
    if not held:
        return BUSY
    late = m.does("the name of an object goes after the object")
    if not late:
        yield store(m.named[me][slot], 0)
    yield store(m.header[thing - 1], FREE)
    yield store(m.word[thing - 1], LISTED)
    if late:
        yield store(m.named[me][slot], 0)
    return OK


def run_take(m, me, slot):
    """Play object_take for a run: of POOR if it is free, else of RICH."""
    status = yield from take(m, me, slot, POOR)
    if status == OK:  # it cannot grow
        freed = yield from object_free(m, me, slot)
        if freed != OK and m.does("a run that is still named makes the attempt wait"):
            return BUSY
        return FULL
    if status == FULL:
        status = yield from take(m, me, slot, RICH)
    return status


def object_make(m, me, slot):
    """Play object_make for a run: if there is no memory, others are evicted; then once more."""
    named = yield load(m.named[me][slot])
    if named and m.does("what a slot still names is given back before it names another"):
        status = yield from object_free(m, me, slot)
        if status != OK:
            return status
    status = yield from run_take(m, me, slot)
    if status == FULL:
        status = yield from run_take(m, me, slot)
    return status


# ---- the programs ----


def ends(m, me):
    yield store(m.ended[me], 1)


def insert(m, me):
    """Make a value and a long key, and let an entry own both."""
    yield from take(m, me, 0, VALUE)
    while True:
        status = yield from object_make(m, me, 1)
        if status != BUSY:
            break
        word = yield load(m.word[POOR])
        if holder_of(word):
            yield awaits("changed", (m.word[POOR], word))
        del word
    for slot in range(SLOTS):
        if status == OK:
            thing = yield load(m.named[me][slot])
            yield store(m.header[thing - 1], LIVE)
            yield store(m.named[me][slot], 0)
            del thing
        else:
            yield from object_free(m, me, slot)  # if that is BUSY, the context still names it
    yield from ends(m, me)


def look(m, me):
    """Hold the word of the block that cannot grow, and release it: as one that looks whether the
    block is empty."""
    word = yield load(m.word[POOR])
    if not holder_of(word):
        held = yield cas(m.word[POOR], word, word + me + 1)
        if held:
            yield store(m.word[POOR], word)
        del held
    del word
    yield from ends(m, me)


def recover(m, me, dead):
    """Play context_recover: settle the words that it held, then give back what it names."""
    yield awaits("dead", dead)
    for thing in range(3):
        word = yield load(m.word[thing])
        if holder_of(word) == dead + 1:
            yield from settle(m, dead, thing, word)
        del word
    for slot in range(SLOTS):
        while True:
            status = yield from object_free(m, dead, slot)
            if status == OK:
                break
            thing = yield load(m.named[dead][slot])
            word = yield load(m.word[thing - 1])
            if holder_of(word):
                yield awaits("changed", (m.word[thing - 1], word))
            del thing, word
        del status
    yield from ends(m, me)


def settle(m, dead, thing, word):
    """Play recover_block_object for each name, and release the word."""
    for slot in range(SLOTS):
        named = yield load(m.named[dead][slot])
        if named == thing + 1:
            header = yield load(m.header[thing])
            if word >= LISTED:  # the block has it still
                yield store(m.header[thing], FREE)
                yield store(m.named[dead][slot], 0)
            elif header == FREE:  # it is not in the block yet
                yield store(m.header[thing], dead + 1)
            del header
        del named
    yield store(m.word[thing], word - dead - 1)
