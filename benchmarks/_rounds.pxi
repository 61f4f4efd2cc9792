# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# The loops of the kernel's MEMORY benchmark, for our map and for a program in the kernel. Part of
# _bench.pyx. A round performs some tasks over one batch of keys, one task after the other.
#
# Producers that work in pairs take turns: a word in shared memory counts their rounds; the adder
# works when the word is even and the deleter when it is odd. The deleter ends the pair's work, so
# that no key is left.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from machine.atomics cimport cas_acq_rel_u64, load_acquire_u64, pause, store_release_u64
from segment.layout cimport PAYLOAD_SHIFT

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...)

cdef enum:
    PAUSES_BEFORE_YIELD = 200
    BPF_PROG_TEST_RUN = 10
    STOP_TURN = 0xFFFFFFFFFFFFFFFFULL


cdef bint turn_await(uint64_t *turn, uint64_t parity, uint64_t *seen) noexcept nogil:
    """Wait for the turn of this parity; False if the partner has ended."""
    cdef uint32_t waited = 0
    while True:                                # ends: the partner goes on, or stores STOP_TURN
        seen[0] = load_acquire_u64(turn)
        if seen[0] == <uint64_t> STOP_TURN:
            return False
        if seen[0] & 1 == parity:
            return True
        waited += 1
        if waited < PAUSES_BEFORE_YIELD:
            pause()
        else:
            sched_yield()


cdef inline void turn_give(uint64_t *turn, uint64_t seen) noexcept nogil:
    # Not a store, which could overwrite STOP_TURN of a partner that has ended since.
    cas_acq_rel_u64(turn, seen, seen + 1)


cdef uint64_t *turn_word(uint8_t[::1] shared, uint64_t index) except? NULL:
    if <uint64_t> shared.shape[0] < index * 64 + 8:
        raise ValueError("no such turn word")
    return <uint64_t *> &shared[index * 64]


def rounds_of_map(BenchHandle handle not None, list tasks not None,
                  const uint32_t[::1] order not None, uint64_t seconds_ns,
                  uint8_t[::1] shared=None, uint64_t pair=0, uint64_t parity=0):
    """Run rounds for so long: (nanoseconds, rounds, operations that ended in OK).

    With shared, each round waits for its turn at word `pair`.
    """
    cdef Op op
    cdef Workload *work = &handle.work
    cdef uint32_t kinds[4]
    cdef uint32_t kind_count = len(tasks)
    cdef uint32_t index
    cdef int64_t began, ended
    cdef uint64_t *turn = NULL if shared is None else turn_word(shared, pair)
    cdef uint64_t rounds = 0
    cdef uint64_t seen = 0
    cdef bint adds = turn != NULL and parity == 0
    cdef uint64_t got
    cdef uint64_t done = 0
    cdef Status status = OK
    if kind_count > 4:
        raise ValueError("too many tasks")
    for index in range(kind_count):
        kinds[index] = TASKS[tasks[index]]
    workload_init(work, "update", 0, order.shape[0], 1, order)
    enter(handle, &op)
    began = ended = clock_ns(CLOCK_MONOTONIC)
    with nogil:
        while status == OK and (adds or <uint64_t> (ended - began) < seconds_ns):
            if turn != NULL:
                op_end(&op)                    # memory may be given back during the wait
                if not turn_await(turn, parity, &seen):
                    op_begin(&op)
                    break
                op_begin(&op)
            for index in range(kind_count):
                work.task = kinds[index]
                got = 0
                if work.task == LOOKUP:
                    status = map_read(&op, work, work.value, &got)
                else:
                    status = map_run(&op, work, &got)
                done += got
            rounds += 1
            ended = clock_ns(CLOCK_MONOTONIC)
            if turn != NULL and (adds or <uint64_t> (ended - began) < seconds_ns):
                turn_give(turn, seen)
        if turn != NULL:
            store_release_u64(turn, <uint64_t> STOP_TURN)
    leave(handle, &op)
    if status != OK:
        raise RuntimeError(f"ended with status {<int> status}")
    return ended - began, rounds, done


def rounds_of_kernel(uint64_t attributes, uint64_t attribute_bytes, long system_call,
                     uint64_t seconds_ns, uint8_t[::1] shared=None, uint64_t pair=0,
                     uint64_t parity=0):
    """Start a program again and again for so long: (nanoseconds, starts)."""
    cdef uint64_t *turn = NULL if shared is None else turn_word(shared, pair)
    cdef int64_t began, ended
    cdef uint64_t rounds = 0
    cdef uint64_t seen = 0
    cdef bint adds = turn != NULL and parity == 0
    cdef long result = 0
    began = ended = clock_ns(CLOCK_MONOTONIC)
    with nogil:
        while result >= 0 and (adds or <uint64_t> (ended - began) < seconds_ns):
            if turn != NULL and not turn_await(turn, parity, &seen):
                break
            result = syscall(system_call, <long> BPF_PROG_TEST_RUN, <void *> attributes,
                             attribute_bytes)
            rounds += 1
            ended = clock_ns(CLOCK_MONOTONIC)
            if turn != NULL and (adds or <uint64_t> (ended - began) < seconds_ns):
                turn_give(turn, seen)
        if turn != NULL:
            store_release_u64(turn, <uint64_t> STOP_TURN)
    if result < 0:
        raise OSError("bpf(BPF_PROG_TEST_RUN) failed")
    return ended - began, rounds


def hand_over(uint8_t[::1] shared not None, uint64_t parity, uint64_t rounds):
    """Nanoseconds of passing one line to another core, which calls this with the other parity."""
    cdef uint64_t *turn = turn_word(shared, 0)
    cdef uint64_t seen = 0
    cdef uint64_t _round
    cdef int64_t began = clock_ns(CLOCK_MONOTONIC)
    with nogil:
        for _round in range(rounds):
            if not turn_await(turn, parity, &seen):
                break
            turn_give(turn, seen)
    return (clock_ns(CLOCK_MONOTONIC) - began) / <double> (2 * rounds)


def two_lines(BenchHandle handle not None, const uint32_t[::1] buckets not None,
              const uint32_t[::1] elements not None):
    """Read a bucket's header and an element's header for each pair: (nanoseconds, a sum).

    Both places are known beforehand and no read waits for another: the most that memory can give.
    """
    cdef Map *map = &handle.map
    cdef uint64_t index, found = 0
    cdef uint64_t count = min(buckets.shape[0], elements.shape[0])
    cdef uint64_t bucket_count
    cdef Op op
    cdef int64_t began, ended
    enter(handle, &op)
    bucket_count = load_acquire_u64(&map.header.table) >> PAYLOAD_SHIFT
    for index in range(count):
        if buckets[index] >= bucket_count or elements[index] >= map.element_max:
            leave(handle, &op)
            raise ValueError("beyond what is there")
    began = clock_ns(CLOCK_MONOTONIC)
    with nogil:
        for index in range(count):
            found += bucket_at(map, buckets[index]).header
            found += element_at(map, elements[index]).header
    ended = clock_ns(CLOCK_MONOTONIC)
    leave(handle, &op)
    return ended - began, found
