"""More litmus tests: chains, locks, splits and merges, memory. orders.py explains them."""

from support.protocol.litmus import (
    ACQUIRE,
    FULL,
    Litmus,
    cas,
    fence,
    load,
    lock,
    membarrier,
    store,
    unlock,
)
from support.protocol.orders import BUCKET, LEVEL, LEVEL_FENCE, LOCK, MISS, UNLOCK, litmus

# ---- chains ----


@litmus
def an_entry_that_moves_is_found_or_the_version_differs(o):
    """W1: slot_move and chain_bump, against a reader that misses."""
    writer = [
        *store("new index", 1, o.release("chain_remove: the index", spare=True)),
        *store("new tag", 1, o.release("chain_remove: the tag", spare=True)),
        *fence(o.release("chain_bump: the fence before")),
        *store("bucket", 1),
        *fence(o.release("chain_bump: the fence after")),
        *store("old index", 0),
    ]
    reader = [
        *load("bucket", "b1", o.acquire(BUCKET)),
        *load("new tag", "tag"),
        *load("new index", "new"),
        *load("old index", "old"),
        *fence(o.acquire(MISS)),
        *load("bucket", "b2"),
    ]
    return Litmus(
        [writer, reader],
        lambda r: 0 in (r["tag"], r["new"]) and r["old"] == 0 and r["b1"] == r["b2"],
        (("old index", 1),),
    )


@litmus
def a_linked_line_is_complete(o):
    """W1: the reference that stood in the link's slot is found behind the link."""
    writer = store("line", 1) + store("slot", "link", o.release("chain_append: the link"))
    reader = load("slot", "s", o.acquire("chain_next")) + load("line", "l")
    return Litmus([writer, reader], lambda r: r["s"] == "link" and r["l"] == 0, (("slot", 1),))


@litmus
def a_slot_under_lock_is_seen_by_the_next_holder(o):
    """W1, C1: the next holder of a lock word, of any kind, sees all that the last one stored."""
    before = lock("lock") + store("slot", 1) + store("lock", 2, o.release(UNLOCK))
    after = cas("lock", 2, 3, acquire=o.acquire(LOCK)) + load("slot", "s") + unlock("lock")
    return Litmus([before, after], lambda r: r["s"] == 0)


# ---- rests ----


@litmus
def a_turn_sees_a_held_entry_or_its_writer_sees_the_claim(o):
    """X1: rest_shorten, and a turn that may end in a rest; each stores, then loads."""
    writer = [
        *cas("entry", 0, "held"),
        *fence(o.full("rest_shorten: the fence")),
        *load("rest", "r"),
    ]
    turn = [
        *store("rest", "claimed"),
        *fence(o.full("rest_claim: the fence")),
        *load("entry", "e"),
    ]
    return Litmus([writer, turn], lambda r: r["r"] == r["e"] == 0)


# ---- waiting ----


@litmus
def a_waiter_sees_the_word_taken_or_its_writer_sees_that_it_waits(o):
    """Bells: a waiter stores `waited` and then loads a lock word; a writer releases the lock word
    and then loads `waited`.

    The writer has no fence between its release of the word and its load: on ARMv8 an acquire load
    (ldar) stays behind an earlier release store; on x86 the CAS that took the word is a fence."""
    writer = [
        *lock("word", o.acquire(LOCK, spare=True)),
        *store("word", 2, o.release(UNLOCK)),
        *load("waited", "w", o.acquire("key_changed: the load")),
    ]
    waiter = [
        *cas("waited", 0, 1),
        *fence(o.full("key_bell_arm: the fence")),
        *load("word", "seen", ACQUIRE),
    ]
    return Litmus([writer, waiter], lambda r: r["w"] == 0 and r["seen"] == 0)


# ---- splits and merges ----


@litmus
def a_bucket_with_a_level_is_full(o):
    """W1: the child of a split, or the parent of a merge, has all references before its level says
    so."""
    writer = [*store("slot", 1), *store("bucket", "level", o.release(LEVEL))]
    reader = [
        *load("bucket", "b1", o.acquire(BUCKET)),
        *load("slot", "s"),
        *fence(o.acquire(MISS, spare=True)),
        *load("bucket", "b2"),
    ]
    return Litmus([writer, reader], lambda r: r["b1"] == r["b2"] == "level" and r["s"] == 0)


@litmus
def a_bucket_is_cleared_after_its_level_changed(o):
    """W1: the parent of a split, or the child of a merge, is full until its level changes."""
    writer = [
        *store("bucket", "level", o.release(LEVEL, spare=True)),
        *fence(o.release(LEVEL_FENCE)),
        *store("slot", 0),
    ]
    reader = [
        *load("bucket", "b1", o.acquire(BUCKET, spare=True)),
        *load("slot", "s"),
        *fence(o.acquire(MISS)),
        *load("bucket", "b2"),
    ]
    return Litmus(
        [writer, reader], lambda r: r["b1"] == r["b2"] == 0 and r["s"] == 0, (("slot", 1),)
    )


@litmus
def a_split_that_is_counted_is_below_the_number(o):
    """W1: bucket_split, against clear_step, which would otherwise leave out the new bucket."""
    splitter = [
        *store("number", 1),
        *fence(o.release(LEVEL_FENCE)),
        *store("splits", 1),
    ]
    cleaner = [
        *load("splits", "splits", o.acquire("clear_step: the splits")),
        *load("number", "number"),
    ]
    return Litmus([splitter, cleaner], lambda r: r["splits"] == 1 and r["number"] == 0)


# ---- memory ----


@litmus
def memory_goes_when_no_operation_is_inside(o):
    """M1: the releaser sees an operation that may hold an index, or that operation has ended."""
    inside = [
        *store("activity", 1),
        *load("slot", "i"),
        *load("element", "e", needs=("i",)),
        *store("activity", 2, o.release("context_end")),
    ]
    releaser = [
        *store("slot", 0),
        *fence(o.full("contexts_are_quiet: the fence", spare=True)),
        *(membarrier() if o.full("contexts_are_quiet: membarrier") == FULL else []),
        *load("activity", "a", o.acquire("context_is_quiet")),
        *store("element", "gone"),
    ]
    return Litmus(
        [inside, releaser],
        lambda r: r["i"] == 1 and r["e"] == "gone" and r["a"] != 1,
        (("slot", 1),),
    )


@litmus
def usable_memory_is_there(o):
    """M1: the watermark usable rises after the memory is there."""
    writer = store("page", 1) + store("usable", 1, o.release("region_commit: usable"))
    reader = load("usable", "u", o.acquire("readers of usable")) + load("page", "p")
    return Litmus([writer, reader], lambda r: r["u"] == 1 and r["p"] == 0)


@litmus
def a_free_context_is_at_rest(o):
    """C1: the claimant of a context sees all stores of the recovery that freed it."""
    recovery = store("name", 0) + store("owner", 0, o.release("context_recover: owner"))
    claimer = [*cas("owner", 0, 2, acquire=o.acquire("context_claim")), *load("name", "n")]
    return Litmus([recovery, claimer], lambda r: r["n"] == 1, (("owner", 1), ("name", 1)))


# ---- freezing ----


def writing(o, *after_activity):
    """The beginning of a write: _enter_to_write."""
    return [*store("activity", 1), *after_activity, *load("frozen", "f")]


def freezing(o, *before_the_look):
    """freeze and contexts_are_quiet."""
    return [
        *cas("frozen", 0, 1),
        *fence(o.full("contexts_are_quiet: the fence", spare=True)),
        *before_the_look,
        *load("activity", "a", o.acquire("context_is_quiet", spare=True)),
    ]


def missed_each_other(registers):
    """Whether a write went on, and the map was frozen without waiting for it."""
    return registers["f"] == registers["a"] == 0


@litmus
def a_write_sees_the_freeze_or_is_waited_for(o):
    """freeze(): the freezing process's membarrier serves as the writer's fence."""
    called = o.full("contexts_are_quiet: membarrier") == FULL
    threads = [writing(o), freezing(o, *(membarrier() if called else fence(FULL)))]
    return Litmus(threads, missed_each_other)


@litmus
def a_write_without_membarrier_sees_the_freeze_or_is_waited_for(o):
    """freeze(): a process to which membarrier is refused makes the fence itself."""
    threads = [writing(o, *fence(o.full("enter_oddly: the fence"))), freezing(o, *fence(FULL))]
    return Litmus(threads, missed_each_other)
