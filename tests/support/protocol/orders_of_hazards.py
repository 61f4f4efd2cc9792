"""More litmus tests: a reader uses an object whose memory is to be released (hazard.pxd).

The reader names the object, then loads the reference to it again; the releaser of the memory loads
the names after the reference to the object is gone. The full fence between the reader's two steps
is the releaser's membarrier or, where a process may not call membarrier, a fence of the reader.
"""

from support.protocol.litmus import ACQUIRE, FULL, Litmus, cas, fence, load, lock, membarrier, store
from support.protocol.orders import (
    DEAD,
    HEADER,
    LIVE,
    LIVE_AGAIN,
    LOCK,
    PUBLISH,
    UNLOCK,
    litmus,
)

SET = "hazard_set"
NAMED = "context_names: what is named"
OWN = "object_own: the fence"
READER = "hazard_fence"
RELEASER = "looks_are_ordered: the fence"


def releasing(o, *before_it_looks):
    """block_release without its lock."""
    return [
        *store("element", "given up"),
        *before_it_looks,
        *load("hazard", "n", o.acquire(NAMED, spare=True)),
        *store("object", "gone"),
    ]


def went(registers):
    """Whether the memory went while a reader used an object that it had found in its element."""
    return registers["h"] == 0 and registers["x"] == "gone"


@litmus
def an_object_under_a_hazard_stays(o):
    """M1: the releaser's membarrier serves as the reader's fence."""
    reader = [*store("hazard", "ref"), *load("element", "h"), *load("object", "x")]
    called = o.full("looks_are_ordered: membarrier") == FULL
    releaser = releasing(
        o, *fence(o.full(RELEASER, spare=True)), *(membarrier() if called else fence(FULL))
    )
    return Litmus([reader, releaser], lambda r: went(r) and r["n"] == 0)


@litmus
def an_object_under_a_fenced_hazard_stays(o):
    """M1: where membarrier is refused, both execute a fence; the reader's context says so."""
    reader = [
        *store("hazard", "ref"),
        *fence(o.full(READER)),
        *load("element", "h"),
        *load("object", "x"),
    ]
    releaser = releasing(o, *fence(o.full(RELEASER)))
    return Litmus([reader, releaser], lambda r: went(r) and r["n"] == 0)


@litmus
def a_reader_that_announces_fences_has_named_its_last_object(o):
    """M1: the last use without a fence, by a reader that then sees header.fences and says so."""
    reader = [
        *store("hazard", "ref"),
        *load("element", "h"),
        *load("object", "x"),
        *store("fences", 1, o.release("context_fences")),
    ]
    releaser = [
        *store("element", "given up"),
        *fence(o.full(RELEASER, spare=True)),
        *load("fences", "f", o.acquire("context_relies: fences")),
        *load("hazard", "n", o.acquire(NAMED, spare=True)),
        *store("object", "gone"),
    ]
    return Litmus([reader, releaser], lambda r: went(r) and r["f"] == 1 and r["n"] == 0)


@litmus
def the_claimant_of_a_context_is_seen_or_sees_the_object_given_up(o):
    """M1: a releaser without membarrier skips contexts that have no owner."""
    claimant = [
        *cas("owner", 0, 1, acquire=ACQUIRE),
        *fence(o.full("context_claim_for: the fence")),
        *store("hazard", "ref"),
        *load("element", "h"),
        *load("object", "x"),
    ]
    releaser = [
        *store("element", "given up"),
        *fence(o.full(RELEASER)),
        *load("owner", "o", o.acquire("context_relies: owner", spare=True)),
        *store("object", "gone"),
    ]
    return Litmus([claimant, releaser], lambda r: went(r) and r["o"] == 0)


@litmus
def the_last_owner_of_a_free_context_has_finished_its_reads(o):
    """M1: the last owner of a context without owner has finished its reads."""
    reader = [*load("object", "x"), *store("owner", 0, o.release("context_recover: owner"))]
    releaser = [
        *load("owner", "o", o.acquire("context_relies: owner")),
        *store("object", "gone"),
    ]
    return Litmus([reader, releaser], lambda r: r["o"] == 0 and r["x"] == "gone", (("owner", 1),))


@litmus
def an_object_named_by_a_writer_stays(o):
    """M1: as for a reader, but the writer loads the word of the block, which the releaser holds."""
    writer = [
        *store("name", "ref"),
        *fence(o.full(OWN)),
        *load("block", "b", ACQUIRE),
        *load("object", "x"),
    ]
    releaser = [
        *lock("block", o.acquire(LOCK, spare=True)),
        *fence(o.full(RELEASER)),
        *load("name", "n", o.acquire(NAMED, spare=True)),
        *store("object", "gone"),
    ]
    return Litmus(
        [writer, releaser],
        lambda r: r["b"] == 0 and r["x"] == "gone" and r["n"] == 0,
    )


@litmus
def the_next_hazard_ends_the_last_look(o):
    """M1: a reader whose hazard names another object, or none, has finished reading the last."""
    reader = [*load("object", "x"), *store("hazard", "another", o.release(SET))]
    releaser = [
        *load("hazard", "n", o.acquire(NAMED)),
        *store("object", "gone"),
    ]
    return Litmus([reader, releaser], lambda r: r["n"] == "another" and r["x"] == "gone")


@litmus
def the_end_of_an_operation_ends_the_last_look(o):
    """M1: a reader whose operation has ended has finished reading the object."""
    reader = [*load("object", "x"), *store("activity", 2, o.release("context_end"))]
    releaser = [
        *load("activity", "a", o.acquire("context_names: the activity")),
        *store("object", "gone"),
    ]
    return Litmus([reader, releaser], lambda r: r["a"] == 2 and r["x"] == "gone")


# ---- values that are kept decoded ----


@litmus
def a_version_that_begins_again_has_its_count(o):
    """R2: a reader that finds an entry in memory that was given back and is used again sees the
    count of that release (keeping.pxi)."""
    releaser = store("releases", 1) + store("block", "hole", o.release(UNLOCK))
    taker = [
        *cas("block", "hole", "ready", acquire=o.acquire(LOCK, spare=True)),
        *store("header", LIVE_AGAIN, o.release(PUBLISH, spare=True)),
    ]
    reader = load("header", "h", o.acquire(HEADER)) + load("releases", "n")
    return Litmus(
        [releaser, taker, reader],
        lambda r: r["h"] == LIVE_AGAIN and r["n"] == 0,
        (("header", LIVE),),
    )


@litmus
def a_value_is_kept_under_a_count_from_before(o):
    """R2: a value from before a release of memory is not kept under the count from after it. The
    fence is that of the check that operations are quiet."""
    releaser = store("header", DEAD) + fence(FULL) + store("releases", 1)
    keeper = load("releases", "n", o.acquire("releases_of")) + load("header", "h", ACQUIRE)
    return Litmus([releaser, keeper], lambda r: r["n"] == 1 and r["h"] == LIVE, (("header", LIVE),))
