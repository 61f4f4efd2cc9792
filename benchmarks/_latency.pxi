# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Histograms of the time of each single operation, for bench_latency.py. Part of _bench.pyx.
#
# A bucket of a histogram is a sixteenth of an octave, so a percentile read from it is at most 6 %
# too large. The last word of each histogram is the largest time seen.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef extern from "<time.h>" nogil:
    int CLOCK_THREAD_CPUTIME_ID

cdef enum:
    SUB_BUCKETS = 16
    HISTOGRAM_WORDS = 1024         # 64 octaves; the last one is never reached and holds the maximum

LATENCY_CLOCKS = {"wall": CLOCK_MONOTONIC, "cpu": CLOCK_THREAD_CPUTIME_ID}
LATENCY_WORDS = HISTOGRAM_WORDS


def bucket_limit(uint64_t bucket):
    """The largest time, in ns, that is counted in a bucket."""
    if bucket < SUB_BUCKETS:
        return bucket
    octave = bucket // SUB_BUCKETS + 3
    return ((bucket % SUB_BUCKETS + SUB_BUCKETS + 1) << (octave - 4)) - 1


cdef inline void histogram_add(uint64_t *histogram, uint64_t ns) noexcept nogil:
    cdef uint64_t octave = 3
    cdef uint64_t rest = ns
    cdef uint64_t bucket = ns
    if ns >= SUB_BUCKETS:
        while rest >= 2 * SUB_BUCKETS:         # at most 59 turns
            rest >>= 1
            octave += 1
        bucket = (octave - 2) * SUB_BUCKETS + rest - SUB_BUCKETS
    histogram[bucket] += 1
    if ns > histogram[HISTOGRAM_WORDS - 1]:
        histogram[HISTOGRAM_WORDS - 1] = ns


cdef inline uint64_t random_below(uint64_t *state, uint64_t limit) noexcept nogil:
    state[0] ^= state[0] << 13
    state[0] ^= state[0] >> 7
    state[0] ^= state[0] << 17
    return <uint64_t> ((state[0] >> 32) * limit >> 32)


cdef inline Status one_operation(Op *op, Workload *work, uint64_t *done) noexcept nogil:
    if work.task == NOTHING:
        return OK
    if work.task == LOOKUP:
        return map_read(op, work, work.value, done)
    return map_run(op, work, done)


def time_operations(BenchHandle handle not None, list tasks not None, list choices not None,
                    str clock not None, uint64_t begin, uint64_t end, uint64_t total,
                    uint32_t first, uint64_t seed, uint64_t[:, ::1] histograms not None):
    """Time one operation of each task for each number from begin to end: how many ended in OK.

    choices: the number from which a task makes its key: "this" number; "before", a random number up
    to this; "after", a random one above it and below total; "none", one that is never in the map.
    """
    cdef Op op
    cdef Workload *work = &handle.work
    cdef uint32_t kinds[8]
    cdef uint32_t places[8]
    cdef uint64_t count = len(tasks)
    cdef uint64_t number, index, got
    cdef uint64_t done = 0
    cdef uint64_t state = seed | 1
    cdef int64_t before
    cdef int clock_id = LATENCY_CLOCKS[clock]
    cdef Status status = OK
    if count > 8 or <uint64_t> histograms.shape[0] < count or (
            histograms.shape[1] != HISTOGRAM_WORDS):
        raise ValueError("histograms of another shape")
    for index in range(count):
        kinds[index] = TASKS[tasks[index]]
        places[index] = ["this", "before", "after", "none"].index(choices[index])
    workload_init(work, "update", first, 1, 1, None)
    enter(handle, &op)
    with nogil:
        for number in range(begin, end):
            for index in range(count):
                work.task = kinds[index]
                work.first = first + <uint32_t> number
                if places[index] == 1:
                    work.first = first + <uint32_t> random_below(&state, number + 1)
                elif places[index] == 2:
                    if number + 1 >= total:
                        continue
                    work.first = first + <uint32_t> (
                        number + 1 + random_below(&state, total - number - 1))
                elif places[index] == 3:
                    work.first = 0x80000000U + <uint32_t> number
                got = 0
                before = clock_ns(clock_id)
                status = one_operation(&op, work, &got)
                histogram_add(&histograms[index, 0], <uint64_t> (clock_ns(clock_id) - before))
                done += got
                if status != OK:
                    break
            if status != OK:
                break
    leave(handle, &op)
    if status != OK:
        raise RuntimeError(f"ended with status {<int> status}")
    return done
