"""Entries that stand in their buckets, each with a lock word of its own: an experiment.

The core keeps entries in elements, which never move. This model asks what it would take to keep an
entry of two words in its bucket instead, where splits have to move it (docs/performance/tried.md,
"One miss instead of two"). There are two buckets, a parent 0 and its child 1, of two slots each;
the lowest bit of a key is its hash. A slot has a word (state, owner, version), a key, and a value:

    FREE v -> LIVE v+1      an insertion, or the end of a move: key and value are complete
    LIVE v -> ULOCK v+1     by a CAS of a writer; the value changes by one store; then LIVE v+2
    LIVE v -> LOCKED v+1    by a CAS of a section; ULOCK follows, by a CAS
    LIVE v -> MOVING v+1    by a CAS of a context that holds the bucket and moves the entry
    LIVE, LOCKED -> FREE    by a CAS of a deletion, which holds the bucket

A word in ULOCK or LOCKED pins its entry: a context that wants to move it leaves it where it is. A
bucket's lock and its header (level, version) would be one word in the core, and are two here. The
memory is a tuple. Each program is a process with one context, and the program's number is the
context's.
"""

from support.protocol.automaton import awaits, cas, load, lock, store
from support.protocol.words import Words

FREE, LIVE, ULOCK, LOCKED, MOVING = range(5)
READABLE = (LIVE, ULOCK, LOCKED, MOVING)
SLOTS = 2
PARENT, CHILD = 0, 1
TRIES = 3  # attempts of one search; then a lookup says that it does not know
OK, NONE, THERE, BUSY, UNKNOWN = "ok", "absent", "present", "busy", "unknown"


class Table(Words):
    """The words of two buckets and of the contexts. without: the steps that a mutant leaves out."""

    def __init__(self, programs, without=()):
        super().__init__(without)
        self.count = self._word("number of buckets")
        self.lock = [self._word(f"lock of {at}") for at in (PARENT, CHILD)]
        self.header = [self._word(f"header of {at}") for at in (PARENT, CHILD)]
        self.word, self.key, self.value = (
            [[self._word(f"{kind} {at}.{slot}") for slot in range(SLOTS)] for at in (PARENT, CHILD)]
            for kind in ("word", "key", "value")
        )
        self.target = [self._word(f"target of {me}") for me in range(programs)]
        self.result = [self._word(f"result of {me}") for me in range(programs)]
        self.recovered = [self._word(f"recovery of {me}") for me in range(programs)]
        self.asleep = [self._word(f"sleep of {me}") for me in range(programs)]


def state_of(word):
    return word[0]


def follows(m, word, state, owner=0):
    """Return the next word of a slot, whose version survives a deletion."""
    if m.does("the version of a slot survives its reuse") or state != LIVE:
        return state, owner, word[2] + 1
    return state, owner, 1


def covers(level, at, key):
    """Return whether a bucket of this level holds this key. At level 0 the bucket does not exist,
    at level 1 it is not split yet."""
    return level == 1 or (level == 2 and key % 2 == at)


# ---- readers ----


def look_up(m, me, key):
    """Return what a lookup returns: the value, NONE, or UNKNOWN if the table changed in each of
    TRIES."""
    outcome = UNKNOWN
    for _ in range(TRIES):
        if outcome == UNKNOWN:
            outcome, _ = yield from search(m, key)
    yield store(m.result[me], outcome)


def search(m, key):
    """Return a value, NONE or UNKNOWN; and the slot with its word."""
    count = yield load(m.count)
    at = key % 2 if count == 2 else PARENT
    for _ in range(3):
        header = yield load(m.header[at])
        outcome, place = yield from search_bucket(m, at, key)
        if outcome != NONE:
            return outcome, place
        if not covers(header[0], at, key):
            at = CHILD if header[0] else PARENT
            continue
        if not m.does("a miss is validated by the bucket's version"):
            return NONE, None
        again = yield load(m.header[at])
        return (NONE if again == header else UNKNOWN), None
    return UNKNOWN, None


def search_bucket(m, at, key):
    for slot in range(SLOTS):
        seen = yield load(m.key[at][slot])
        if seen != key:
            continue
        word = yield load(m.word[at][slot])
        if state_of(word) not in READABLE:
            continue
        if m.does("the key is compared under the word"):
            seen = yield load(m.key[at][slot])
        value = yield load(m.value[at][slot])
        if m.does("the word is loaded again after the value"):
            again = yield load(m.word[at][slot])
            if again != word:
                return UNKNOWN, None
        if seen == key:
            return value, (at, slot, word)
    return NONE, None


# ---- writers of one entry ----


def update(m, me, key, value):
    """Take the entry's word, without the bucket's lock."""
    outcome, place = yield from search(m, key)
    if place is None:
        yield store(m.result[me], outcome)
        return
    at, slot, word = place
    if m.does("a context notes the entry before it takes it"):
        yield store(m.target[me], (at, slot))
    held = follows(m, word, ULOCK, me + 1)
    taken = state_of(word) == LIVE
    if taken:
        taken = yield cas(m.word[at][slot], word, held)
    if not taken:
        yield store(m.result[me], BUSY)
        return
    yield store(m.value[at][slot], value)
    yield store(m.word[at][slot], follows(m, held, LIVE))
    yield store(m.result[me], OK)


def section(m, me, key, value):
    """Hold the entry while other programs take any steps, then change it, unless it has been
    deleted."""
    outcome, place = yield from search(m, key)
    if place is None:
        yield store(m.result[me], outcome)
        return
    at, slot, word = place
    yield store(m.target[me], (at, slot))
    held = follows(m, word, LOCKED, me + 1)
    taken = state_of(word) == LIVE
    if taken:
        taken = yield cas(m.word[at][slot], word, held)
    if taken:
        last = follows(m, held, ULOCK, me + 1)
        taken = yield cas(m.word[at][slot], held, last)
    if not taken:
        yield store(m.result[me], BUSY)
        return
    yield store(m.value[at][slot], value)
    yield store(m.word[at][slot], follows(m, last, LIVE))
    yield store(m.result[me], OK)


def bucket_hold(m, me, key):
    """Lock the bucket that covers a key, and return the bucket."""
    at = PARENT
    for _ in range(2):
        yield lock(m.lock[at], me + 1)
        header = yield load(m.header[at])
        if covers(header[0], at, key):
            break
        yield store(m.lock[at], 0)
        at = CHILD
    return at


def insert(m, me, key, value):
    """Under the bucket's lock: fill a free slot; its word is the commit."""
    at = yield from bucket_hold(m, me, key)
    _, place = yield from search_bucket(m, at, key)
    if place is not None:
        yield store(m.lock[at], 0)
        yield store(m.result[me], THERE)
        return
    outcome = BUSY
    for slot in range(SLOTS):
        word = yield load(m.word[at][slot])
        if state_of(word) != FREE or outcome == OK:
            continue
        yield store(m.key[at][slot], key)
        yield store(m.value[at][slot], value)
        yield store(m.word[at][slot], follows(m, word, LIVE))
        outcome = OK
    yield store(m.lock[at], 0)
    yield store(m.result[me], outcome)


def delete(m, me, key):
    """Delete by a CAS under the bucket's lock. It does not wait for a section, but ends it."""
    at = yield from bucket_hold(m, me, key)
    outcome = yield from delete_held(m, at, key)
    yield store(m.lock[at], 0)
    yield store(m.result[me], outcome)


def delete_held(m, at, key):
    outcome, place = yield from search_bucket(m, at, key)
    if place is None:
        return outcome
    _, slot, word = place
    if state_of(word) not in (LIVE, LOCKED):
        return BUSY
    gone = yield cas(m.word[at][slot], word, follows(m, word, FREE))
    return OK if gone else BUSY


def replace(m, me, old, key, value):
    """Delete a key, and insert another one into the same slot."""
    at = yield from bucket_hold(m, me, old)
    outcome = yield from delete_held(m, at, old)
    yield store(m.lock[at], 0)
    if outcome == OK:
        yield from insert(m, me, key, value)
    else:
        yield store(m.result[me], outcome)


# ---- moves ----


def split(m, me):
    """Give the child its entries. A context that holds one of them prevents the split."""
    yield lock(m.lock[PARENT], me + 1)
    yield lock(m.lock[CHILD], me + 1)
    header = yield load(m.header[CHILD])
    outcome = THERE
    if header[0] == 0:
        outcome = yield from take_all(m, me)
        if outcome == OK:
            yield from copy_all(m, me)
            yield store(m.header[CHILD], (2, header[1] + 1))
            yield from split_finish(m, me)
        else:
            yield from give_back(m, me, PARENT)
    yield store(m.lock[CHILD], 0)
    yield store(m.lock[PARENT], 0)
    yield store(m.result[me], outcome)


def take_all(m, me):
    """Take the words of all entries that the child gets, LIVE -> MOVING."""
    for slot in range(SLOTS):
        word = yield load(m.word[PARENT][slot])
        key = yield load(m.key[PARENT][slot])
        if state_of(word) == FREE or key % 2 != CHILD:
            continue
        mine = follows(m, word, MOVING, me + 1)
        taken = state_of(word) == LIVE or not m.does("an entry that is held stays where it is")
        if taken and m.does("a move begins with a CAS on the entry's word"):
            taken = yield cas(m.word[PARENT][slot], word, mine)
        elif taken:
            yield store(m.word[PARENT][slot], mine)
        if not taken:
            return BUSY
    return OK


def copy_all(m, me):
    """Fill a slot of the child for each; no other context can hold slots of the child."""
    for slot in range(SLOTS):
        word = yield load(m.word[PARENT][slot])
        key = yield load(m.key[PARENT][slot])
        if state_of(word) == FREE or key % 2 != CHILD:
            continue
        value = yield load(m.value[PARENT][slot])
        free = yield load(m.word[CHILD][slot])
        early = not m.does("a place is filled before its word says so")
        held = m.does("the new place is held until the old one is cleared")
        if early:
            yield store(m.word[CHILD][slot], follows(m, free, MOVING, me + 1))
        yield store(m.key[CHILD][slot], key)
        yield store(m.value[CHILD][slot], value)
        if not early:
            state, owner = (MOVING, me + 1) if held else (LIVE, 0)
            yield store(m.word[CHILD][slot], follows(m, free, state, owner))
        del word, key, value, free, early, held, slot


def split_finish(m, me):
    """The child exists: send the readers there, clear the old places, then release the new ones."""
    levels_first = m.does("the levels change before an old place is cleared")
    if levels_first:
        yield from lead_to_child(m)
    for slot in range(SLOTS):
        word = yield load(m.word[PARENT][slot])
        if word[:2] == (MOVING, me + 1):
            yield store(m.word[PARENT][slot], follows(m, word, FREE))
        del word
    if not levels_first:
        yield from lead_to_child(m)
    yield from give_back(m, me, CHILD)


def lead_to_child(m):
    header = yield load(m.header[PARENT])
    if header[0] == 1:
        yield store(m.header[PARENT], (2, header[1] + 1))
    yield store(m.count, 2)


def give_back(m, me, at):
    """MOVING -> LIVE for the entries that this context moves; they are in this bucket only."""
    for slot in range(SLOTS):
        word = yield load(m.word[at][slot])
        if word[:2] == (MOVING, me + 1):
            yield store(m.word[at][slot], follows(m, word, LIVE))
        del word


def close_gap(m, me):
    """Move the entry of the parent's last slot into its first one, if that is free, as a deletion
    from a chain does."""
    yield lock(m.lock[PARENT], me + 1)
    free = yield load(m.word[PARENT][0])
    word = yield load(m.word[PARENT][1])
    outcome = BUSY
    if state_of(free) == FREE and state_of(word) == LIVE:
        taken = yield cas(m.word[PARENT][1], word, follows(m, word, MOVING, me + 1))
        if taken:
            key = yield load(m.key[PARENT][1])
            value = yield load(m.value[PARENT][1])
            yield store(m.key[PARENT][0], key)
            yield store(m.value[PARENT][0], value)
            yield store(m.word[PARENT][0], follows(m, free, MOVING, me + 1))
            yield from close_finish(m, me)
            outcome = OK
    yield store(m.lock[PARENT], 0)
    yield store(m.result[me], outcome)


def close_finish(m, me):
    """The entry is in both slots: clear the last one, after the version has said so."""
    if m.does("the version rises before an old place is cleared"):
        header = yield load(m.header[PARENT])
        yield store(m.header[PARENT], (header[0], header[1] + 1))
        del header
    word = yield load(m.word[PARENT][1])
    yield store(m.word[PARENT][1], follows(m, word, FREE))
    del word
    yield from give_back(m, me, PARENT)


# ---- recovery ----


def recover(m, me, dead, after=None):
    """Finish or undo the operation of a dead context, in its name; the memory decides which. after:
    an earlier recoverer, which has to be dead, too."""
    yield awaits("dead", dead)
    if after is not None:
        yield awaits("dead", after)
    yield from recover_entry(m, dead)
    held = yield load(m.lock[CHILD])
    if held == dead + 1:
        yield from recover_move(m, dead)
        yield store(m.lock[CHILD], 0)
    held = yield load(m.lock[PARENT])
    if held == dead + 1:
        yield from recover_gap(m, dead)
        yield store(m.lock[PARENT], 0)
    yield store(m.recovered[dead], 1)


def recover_entry(m, dead):
    """An entry that the dead context held: its value is the old one, or the new one."""
    target = yield load(m.target[dead])
    if not target:
        return
    at, slot = target
    word = yield load(m.word[at][slot])
    if word[:2] in ((ULOCK, dead + 1), (LOCKED, dead + 1)):
        yield store(m.word[at][slot], follows(m, word, LIVE))


def recover_move(m, dead):
    """A split: the child's level says whether it counts."""
    header = yield load(m.header[CHILD])
    if header[0] and m.does("a split that counts is finished"):
        yield from split_finish(m, dead)
        return
    if not m.does("an undone split clears the child first"):
        yield from give_back(m, dead, PARENT)
    for slot in range(SLOTS):
        word = yield load(m.word[CHILD][slot])
        if word[:2] == (MOVING, dead + 1):
            yield store(m.word[CHILD][slot], follows(m, word, FREE))
        del word
    yield from give_back(m, dead, PARENT)


def recover_gap(m, dead):
    """An entry that stands in both slots of the parent leaves the last one."""
    first = yield load(m.word[PARENT][0])
    last = yield load(m.word[PARENT][1])
    key = yield load(m.key[PARENT][0])
    other = yield load(m.key[PARENT][1])
    both = first[:2] == last[:2] == (MOVING, dead + 1) and key == other
    del first, last, key, other
    if both and m.does("recovery leaves an entry in one place"):
        yield from close_finish(m, dead)
    else:
        yield from give_back(m, dead, PARENT)
