# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Waiting for a lock that another context holds, and finding out whether its owner lives.
#
# An operation that returned BUSY holds nothing. The waiter watches the word that stood in the way:
# if it has changed, the operation is tried again; if its owner is dead, the owner is recovered; if
# the owner lives, perhaps stopped, the waiter sleeps, 50 us at first and up to 1 ms, until the
# handle's timeout. A waiter that has waited 4 ms for an element is let in before others
# (element.pxd). _core.pyx calls wait_step without the GIL and handles signals between steps.
from libc.stdint cimport int64_t, uint64_t
from machine.atomics cimport load_acquire_u64
from machine.system cimport timespec, nanosleep
from segment.status cimport Status, OK, ABSENT, BUSY, RETRY
from segment.layout cimport REGION_BUCKETS
from segment.geometry cimport Map, region_usable
from memory.operation cimport Op, context_begin, context_end
from memory.pool cimport object_memory_ready
from map.element cimport STARVING_NS, starving_say
from processes.recover cimport owner_recover

cdef enum:
    SLEEP_NS_MIN = 50000
    SLEEP_NS_MAX = 1000000

cdef extern from "<sched.h>" nogil:
    int sched_yield() noexcept

cdef inline void sleep_ns(int64_t wanted_ns) noexcept nogil:
    cdef timespec wanted
    wanted.tv_sec = wanted_ns // 1000000000
    wanted.tv_nsec = wanted_ns % 1000000000
    nanosleep(&wanted, NULL)

cdef inline bint is_element_word(Map *map, const uint64_t *word) noexcept nogil:
    """Whether a word lies in an element. Behind the elements lie the objects, and their words."""
    return <uint64_t> map.elements <= <uint64_t> word < (
        <uint64_t> map.elements + map.element_pool.block_count * map.element_pool.block_bytes)

cdef inline uint64_t element_of_word(Map *map, const uint64_t *word) noexcept nogil:
    """The element in which a word lies (is_element_word)."""
    return (<uint64_t> word - <uint64_t> map.elements) // map.stride

cdef inline bint word_stands(Op *op) noexcept nogil:
    """Whether the word in the way is unchanged. The memory of an element or a bucket may have been
    given back since: that is checked first, inside an operation, so that the memory stays until the
    word is loaded. If an element's block is held, the block's word is in the way from here on."""
    cdef Map *map = op.map
    cdef uint64_t at = <uint64_t> op.wait_word
    cdef uint64_t seen = op.wait_seen
    cdef uint64_t *word = op.wait_word
    cdef Status there = OK
    if op.wait_word == NULL:
        return False
    if op.context != NULL:
        context_begin(op.context)
    if is_element_word(map, op.wait_word):
        there = object_memory_ready(op, &map.element_pool, element_of_word(map, word))
    elif at >= <uint64_t> map.buckets and at < <uint64_t> map.lines:
        if at - <uint64_t> map.buckets >= region_usable(map, REGION_BUCKETS):
            there = ABSENT
    if there == OK and load_acquire_u64(word) != seen:
        there = ABSENT
    if op.context != NULL:
        context_end(op.context)
    return there != ABSENT

cdef inline Status wait_step(Op *op, uint64_t turn, int64_t waited_ns) noexcept nogil:
    """Look once at the word in the way and its owner, and sleep briefly. RETRY: there is nothing to
    wait for any more, or this was an early turn, which only yields."""
    cdef Map *map = op.map
    cdef int64_t sleep = SLEEP_NS_MIN
    if turn < 4 or not word_stands(op):
        sched_yield()
        return RETRY
    if owner_recover(op):
        return RETRY
    # A read-only handle may not store to header.starving.
    if not map.read_only and waited_ns >= STARVING_NS and is_element_word(map, op.wait_word):
        starving_say(op, element_of_word(map, op.wait_word))
    sleep <<= turn - 4 if turn < 9 else 5
    if op.starving != 0:
        sleep = SLEEP_NS_MIN
    sleep_ns(sleep if sleep < SLEEP_NS_MAX else SLEEP_NS_MAX)
    return BUSY
