"""The ordered accesses of the core as litmus tests: the purpose of each pair.

A test lists the accesses of a writer and of a reader in the order of the code, and the forbidden
outcome. Each order is named after the function that asks for it; test_weak_memory.py relaxes them
one by one. An order marked spare is not needed against this outcome: another one prevents it, too.
README.md has the table of all orders. The tests here are about elements; orders_of_buckets.py and
orders_of_hazards.py have the rest.
"""

from support.protocol.litmus import (
    ACQUIRE,
    FULL,
    RELAXED,
    RELEASE,
    Litmus,
    cas,
    fence,
    load,
    lock,
    store,
)

FREE, ALLOC, LIVE, UPD, ULOCK, DEAD = "FREE", "ALLOC", "LIVE", "UPD", "ULOCK", "DEAD"
LIVE_AGAIN = "LIVE again"
TESTS = {}

HEADER = "chain_find: the header"
LOCK = "lock_try"
UNLOCK = "lock_release"
PUBLISH = "element_publish"
READ = "element_read: the fence"
BUCKET = "bucket_find: the header"
MISS = "bucket_find: the fence"
LEVEL = "bucket_set_level: the level"
LEVEL_FENCE = "bucket_set_level: the fence"


class Orders:
    """Returns orders by name, RELAXED for one of them; remembers the names that were asked for."""

    def __init__(self, relaxed=None):
        self.relaxed = relaxed
        self.needed = {}

    def acquire(self, name, spare=False):
        return self._order(ACQUIRE, name, spare)

    def release(self, name, spare=False):
        return self._order(RELEASE, name, spare)

    def full(self, name, spare=False):
        return self._order(FULL, name, spare)

    def _order(self, order, name, spare):
        self.needed[name] = not spare
        return RELAXED if name == self.relaxed else order


def litmus(build):
    """Register a test: a function of Orders that returns a Litmus."""
    TESTS[build.__name__] = build
    return build


def torn(registers, header, whole):
    """Whether a reader saw this header twice, and a word that does not belong to it."""
    words = {value for name, value in registers.items() if name.startswith("word")}
    return registers["h1"] == registers["h2"] == header and words != {whole}


# ---- elements ----


@litmus
def a_live_element_is_complete(o):
    """R2: key and value are stored before the header says LIVE."""
    writer = store("key", 1) + store("value", 1) + store("header", LIVE, o.release(PUBLISH))
    reader = load("header", "h", o.acquire(HEADER)) + load("key", "k") + load("value", "v")
    return Litmus([writer, reader], lambda r: r["h"] == LIVE and 0 in (r["k"], r["v"]))


def updating(o, *spare, commit="element_hold: the CAS"):
    """element_update of a value of two words, or section_commit; and the buffer's next use."""
    return [
        *store("redo 0", 1),
        *store("redo 1", 1),
        *cas("header", LIVE, UPD, release=o.release(commit, "cas" in spare)),
        *fence(o.release("element_redo: the fence", "redo" in spare)),
        *store("word 0", 1),
        *store("word 1", 1),
        *store("header", LIVE_AGAIN, o.release("element_release: LIVE", "live" in spare)),
        *fence(o.release("element_release: the fence", "settle" in spare)),
        *store("redo 0", 2),
        *store("redo 1", 2),
    ]


def copying(o, source, *spare):
    """chain_find and element_read: the header, two words, the header again."""
    return [
        *load("header", "h1", o.acquire(HEADER, "header" in spare)),
        *load(f"{source} 0", "word 0"),
        *load(f"{source} 1", "word 1"),
        *fence(o.acquire(READ, "read" in spare)),
        *load("header", "h2"),
    ]


@litmus
def words_change_after_the_header(o):
    """R2: a reader that sees a new word sees a new header afterwards."""
    writer = updating(o, "cas", "live", "settle")
    reader = copying(o, "word", "header")
    return Litmus([writer, reader], lambda r: torn(r, LIVE, 0), (("header", LIVE),))


@litmus
def words_are_new_when_live_again(o):
    """R2: a reader that sees the header LIVE again sees both new words."""
    writer = updating(o, "cas", "redo", "settle")
    reader = copying(o, "word", "read")
    return Litmus([writer, reader], lambda r: torn(r, LIVE_AGAIN, 1), (("header", LIVE),))


@litmus
def the_redo_buffer_is_full_in_upd(o):
    """R1, R2: a reader that sees UPD sees the redo buffer of this update, not that of the next."""
    writer = updating(o, "redo", "live")
    reader = copying(o, "redo")
    return Litmus([writer, reader], lambda r: torn(r, UPD, 1), (("header", LIVE),))


@litmus
def the_redo_buffer_of_a_section_is_full_in_upd(o):
    """R1, R2: as for an update; here the CAS to UPD is that of section_commit, from LOCKED."""
    writer = updating(o, "redo", "live", commit="section_commit: the CAS")
    reader = copying(o, "redo")
    return Litmus([writer, reader], lambda r: torn(r, UPD, 1), (("header", LIVE),))


def changing(o, *spare):
    """element_apply of a field that crosses words: ULOCK, redo, UPD by a store, words, LIVE."""
    return [
        *cas("header", LIVE, ULOCK, acquire=ACQUIRE, release=RELEASE),
        *fence(o.release("element_hold: the fence", spare=True)),
        *store("redo 0", 1),
        *store("redo 1", 1),
        *store("header", UPD, o.release("element_commit: UPD", "upd" in spare)),
        *fence(o.release("element_redo: the fence", "redo" in spare)),
        *store("word 0", 1),
        *store("word 1", 1),
        *store("header", LIVE_AGAIN, o.release("element_release: LIVE", spare=True)),
    ]


@litmus
def the_redo_buffer_of_a_change_is_full_in_upd(o):
    """R1, R2: as for an update; here a plain release store sets UPD."""
    threads = [changing(o, "redo"), copying(o, "redo", "read")]
    return Litmus(threads, lambda r: torn(r, UPD, 1), (("header", LIVE),))


@litmus
def words_of_a_change_come_after_upd(o):
    """R2: a reader that sees ULOCK sees the old words."""
    threads = [changing(o, "upd"), copying(o, "word", "header")]
    return Litmus(threads, lambda r: torn(r, ULOCK, 0), (("header", LIVE),))


@litmus
def an_owner_sees_the_last_value(o):
    """W1: element_apply adds to the value that the last owner stored. Either acquire suffices."""
    before = store("word", 1) + store("header", LIVE_AGAIN, o.release("element_release: LIVE"))
    after = [
        *load("header", "h", o.acquire(HEADER, spare=True)),
        *cas("header", LIVE_AGAIN, ULOCK, acquire=o.acquire("element_hold: the CAS", spare=True)),
        *load("word", "w"),
    ]
    return Litmus(
        [before, after], lambda r: r["h"] == LIVE_AGAIN and r["w"] == 0, (("header", LIVE),)
    )


# ---- an element's next life ----


def deleting(o, *spare, after_dead=RELAXED):
    """delete_found and element_give: an entry is deleted, and its element is given back."""
    return [
        *cas("header", LIVE, DEAD, acquire=ACQUIRE, release=RELEASE),
        *fence(after_dead),
        *store("slot", 0),
        *store("bucket", 1, o.release(UNLOCK, "unlock" in spare)),
        *lock("depot", o.acquire(LOCK, "lock" in spare)),
        *store("key", "next"),
        *store("header", FREE),
        *store("depot", 2, o.release(UNLOCK, "unlock" in spare)),
    ]


def taking(o, *spare):
    """depot_take and insert_try: another context takes the element; no slot names it yet."""
    return [
        *cas("depot", 2, 3, acquire=o.acquire(LOCK, "lock" in spare)),
        *store("header", ALLOC),
        *store("value", 2),
        *store("header", LIVE_AGAIN, o.release(PUBLISH, "publish" in spare)),
    ]


def hitting(o, *spare):
    """A lookup that found the element by its slot: its loads, as chain_find and element_read do."""
    return [
        *load("slot", "i1", o.acquire("chain_find: the index", spare=True)),
        *load("header", "h1", o.acquire(HEADER, "header" in spare), needs=("i1",)),
        *load("slot", "i2", o.acquire("chain_find: the index again", spare=True)),
        *load("value", "word", needs=("i1",)),
        *fence(o.acquire(READ, "read" in spare)),
        *load("header", "h2", needs=("i1",)),
    ]


BEFORE = (("header", LIVE), ("slot", 1), ("value", 1), ("key", "mine"))


@litmus
def a_stale_slot_does_not_vouch_for_the_next_life(o):
    """W1: a reader that meets the next life before a slot names it sees the old slot cleared."""
    threads = [deleting(o, "lock"), taking(o, "lock", "publish"), hitting(o, "read")]
    return Litmus(
        threads, lambda r: r["i1"] == r["i2"] == 1 and r["h1"] == r["h2"] == LIVE_AGAIN, BEFORE
    )


@litmus
def a_next_life_is_not_taken_for_the_first(o):
    """R2: a reader that copies a value of the next life does not see the old header afterwards."""
    threads = [deleting(o, "unlock"), taking(o, "publish"), hitting(o, "header")]
    return Litmus(threads, lambda r: r["h1"] == r["h2"] == LIVE and r["word"] == 2, BEFORE)


@litmus
def a_key_is_overwritten_after_dead(o, after_dead=RELAXED):
    """W1: a reader that misses a deleted key, because the free list's link has overwritten it, does
    not see the element's header LIVE afterwards.

    Only the depot's lock orders the link after DEAD. That suffices where an acquire stays behind an
    earlier release, as on ARMv8 (ldar, casa); C11 does not promise it. The release fence after DEAD
    in delete_found does; this test leaves it out.
    """
    reader = [
        *load("bucket", "b1", o.acquire(BUCKET, spare=True)),
        *load("header", "h1", o.acquire(HEADER, spare=True)),
        *load("key", "k"),
        *fence(o.acquire(MISS)),
        *load("bucket", "b2"),
        *load("header", "h2", ACQUIRE),
    ]
    return Litmus(
        [deleting(o, "unlock", after_dead=after_dead), reader],
        lambda r: r["k"] == "next" and r["b1"] == r["b2"] and r["h2"] == LIVE,
        BEFORE,
    )
