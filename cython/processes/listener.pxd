# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Waiting in an event loop: a thread listens for all loops of the process that wait in a map.
#
# An event loop sleeps on descriptors. So a thread of its process sleeps on BELL_ANY, which every
# change of a class in waited rings (bell.pxd), and makes an eventfd readable when a bell has moved
# that the loop armed. A writer's side is the same as for any waiter: it rings the bell of the key,
# then BELL_ANY.
#
#   loop                                         thread
#   1 says that it waits (bell.pxd: 1, 2)        a  arms BELL_ANY
#   2 arms the bell of the key, and notes        b  looks at the bells that were armed; if one has
#     its number in the ear                         moved, writes to the eventfd
#   3 looks at the key                           c  sleeps, if BELL_ANY is as it was in a
#   4 sleeps until the eventfd is readable,
#     empties it, looks at the bells; for each
#     that has moved, again from 2 on
#
# A loop that waits for the end of a section arms the bell of the section's element instead, tries
# to enter the section in step 3, and also looks by itself after some milliseconds: threads that
# sleep on that bell are woken first, and the owner may be dead.
#
# No wake-up is lost: a change behind 3 finds the bell of the key armed and moves it, and then rings
# BELL_ANY. If that is not armed, the thread is awake, and a and b come after the ring of the key's
# bell: so b sees it. tests/protocol plays this (listening.py). A ring that a death leaves out is
# made up for by a look after each slice, as for any waiter.
#
# The thread begins with the first wait and ends after a slice without any, and when its attachment
# ends. It is stopped before a fork, so that the process has no thread that it did not ask for; each
# loop is told after it, and begins the thread again when it looks. It runs no Python. A read-only
# handle cannot arm a bell: for its loops the thread naps instead of sleeping, and tells after each
# nap.
#
# The ears and counts are changed by threads that have the GIL, under the mutex; the thread reads
# them under the mutex.
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset
from machine.atomics cimport load_acquire_u32, store_release_u32
from machine.system cimport CLOCK_MONOTONIC, clock_ns, close, futex_sleep, futex_wake
from segment.layout cimport BELL_COUNT
from segment.geometry cimport Map
from map.bell cimport BELL_ANY, bell_arm, bell_value
from processes.wait cimport sleep_ns

cdef enum:
    NAP_NS_MIN = 1000000       # the thread of a read-only handle: ever longer naps
    NAP_NS_MAX = 16000000
    STOP_LOOK_NS = 20000       # how often a thread that is to end is woken, until it has ended

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_t:
        pass
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *mutex, void *attributes) noexcept
    int pthread_mutex_lock(pthread_mutex_t *mutex) noexcept
    int pthread_mutex_unlock(pthread_mutex_t *mutex) noexcept

cdef extern from "machine/threads.h" nogil:
    int eventfd(unsigned int count, int flags) noexcept
    int eventfd_write(int fd, uint64_t count) noexcept
    int eventfd_read(int fd, uint64_t *count) noexcept
    enum: EFD_CLOEXEC
    enum: EFD_NONBLOCK
    int thread_begin "shm_thread_begin" (
        pthread_t *thread, void *(*run)(void *) noexcept nogil, void *arguments) noexcept
    int thread_id "shm_thread_id" () noexcept
    void thread_end "shm_thread_end" (pthread_t thread, int id) noexcept

# What one loop waits for in one map.
cdef struct Ear:
    Ear *behind                # the next one of the listener
    Listener *listener         # NULL: the attachment has ended
    int fd                     # an eventfd
    bint look_at_all           # a slice is over: a bell may have been left unrung
    uint64_t waits             # how many keys the loop waits for
    uint32_t counts[BELL_COUNT]        # and by bell
    uint32_t seen[BELL_COUNT]          # the bells as they were armed

cdef struct Listener:
    uint64_t generation        # in which it began; 0: not yet
    pthread_mutex_t mutex
    pthread_t thread
    bint has_thread            # it has to be joined
    uint32_t ended             # the thread ends, and touches nothing any more
    bint stopping
    int thread_id
    bint naps                  # a read-only handle
    int64_t slice_ns
    uint32_t *bells
    Ear *ears
    uint64_t waits             # of all ears


# ---- the thread ----

cdef inline bint ear_is_wanted(const Ear *ear, bint all_of_them) noexcept nogil:
    """Whether a loop has something to look at."""
    cdef uint32_t at
    if ear.waits == 0 or all_of_them:
        return ear.waits != 0
    for at in range(BELL_COUNT):
        if ear.counts[at] != 0 and bell_value(ear.listener.bells + at) != ear.seen[at]:
            return True
    return False

cdef inline void ears_tell(Listener *listener, bint all_of_them) noexcept nogil:
    """Wake the loops that have something to look at."""
    cdef Ear *ear = listener.ears
    while ear != NULL:                         # each ear once
        if ear_is_wanted(ear, all_of_them):
            ear.look_at_all = ear.look_at_all or all_of_them
            eventfd_write(ear.fd, 1)
        ear = ear.behind

cdef inline void *listener_run(void *arguments) noexcept nogil:
    cdef Listener *listener = <Listener *> arguments
    cdef uint32_t *bell = listener.bells + BELL_ANY
    cdef int64_t nap = NAP_NS_MIN if listener.naps else listener.slice_ns
    cdef int64_t until = clock_ns(CLOCK_MONOTONIC) + nap
    cdef uint32_t seen
    cdef bint over
    listener.thread_id = thread_id()
    while True:                                # ends after a slice in which nobody waits
        seen = bell_value(bell) if listener.naps else bell_arm(bell)
        over = clock_ns(CLOCK_MONOTONIC) >= until
        if over:
            nap = nap * 2 if listener.naps and nap < NAP_NS_MAX else nap
            until = clock_ns(CLOCK_MONOTONIC) + nap
        pthread_mutex_lock(&listener.mutex)
        if listener.stopping or (over and listener.waits == 0):
            # Release: its last accesses; pairs with listener_has_ended.
            store_release_u32(&listener.ended, 1)
            pthread_mutex_unlock(&listener.mutex)
            return NULL
        ears_tell(listener, over)
        pthread_mutex_unlock(&listener.mutex)
        futex_sleep(bell, seen, until)


# ---- loops: the caller has the GIL ----

cdef inline bint listener_has_ended(const Listener *listener) noexcept nogil:
    # Acquire: pairs with listener_run.
    return load_acquire_u32(&listener.ended) != 0

cdef inline void listener_prepare(
        Listener *listener, Map *map, uint64_t generation) noexcept nogil:
    """Before its first use in this process: a child of fork has neither its parent's thread nor its
    loops, and the mutex may be locked for ever."""
    if listener.generation == generation:
        return
    memset(listener, 0, sizeof(Listener))
    pthread_mutex_init(&listener.mutex, NULL)
    listener.generation = generation
    listener.naps = map.read_only
    listener.bells = map.header.bells

cdef inline void listener_stop(Listener *listener, uint64_t generation) noexcept nogil:
    """End the thread, if there is one, and see it gone."""
    if listener.generation != generation or not listener.has_thread:
        return
    pthread_mutex_lock(&listener.mutex)
    listener.stopping = True
    pthread_mutex_unlock(&listener.mutex)
    while not listener_has_ended(listener):    # it waits for nothing else
        futex_wake(listener.bells + BELL_ANY)
        sleep_ns(STOP_LOOK_NS)
    thread_end(listener.thread, listener.thread_id)
    listener.has_thread = listener.stopping = False

cdef inline int listener_go_on(Listener *listener, int64_t slice_ns) noexcept nogil:
    """See that there is a thread, if anybody waits. Returns 0, or the error of pthread_create."""
    cdef bint runs
    cdef int error
    pthread_mutex_lock(&listener.mutex)
    runs = listener.waits == 0 or (listener.has_thread and not listener_has_ended(listener))
    pthread_mutex_unlock(&listener.mutex)
    if runs:
        return 0
    if listener.has_thread:
        thread_end(listener.thread, listener.thread_id)
    listener.ended = 0
    listener.slice_ns = slice_ns
    error = thread_begin(&listener.thread, &listener_run, <void *> listener)
    listener.has_thread = error == 0
    return error

cdef inline void ear_open(Ear *ear, Listener *listener) noexcept nogil:
    pthread_mutex_lock(&listener.mutex)
    ear.listener = listener
    ear.behind = listener.ears
    listener.ears = ear
    pthread_mutex_unlock(&listener.mutex)

cdef inline void ear_close(Ear *ear) noexcept nogil:
    """The loop waits no more, whatever it waited for."""
    cdef Ear **at = &ear.listener.ears
    pthread_mutex_lock(&ear.listener.mutex)
    while at[0] != ear and at[0] != NULL:      # each ear once
        at = &at[0].behind
    if at[0] == ear:
        at[0] = ear.behind
    ear.listener.waits -= ear.waits
    pthread_mutex_unlock(&ear.listener.mutex)
    ear.listener = NULL

cdef inline void ears_forget(Listener *listener, uint64_t generation) noexcept nogil:
    """The attachment ends, and with it the bells; the thread has been stopped."""
    cdef Ear *ear = listener.ears
    if listener.generation != generation:
        return
    while ear != NULL:                         # each ear once
        ear.listener = NULL
        ear = ear.behind
    listener.ears = NULL

cdef inline void ear_arm(Ear *ear, uint32_t at) noexcept nogil:
    """Before each look at a key of this bell. If the bell has moved since its number was noted, the
    loop will be told."""
    if not ear.listener.naps:
        bell_arm(ear.listener.bells + at)

cdef inline void ear_add(Ear *ear, uint32_t at) noexcept nogil:
    """The loop waits for one more key of this bell."""
    pthread_mutex_lock(&ear.listener.mutex)
    if ear.counts[at] == 0:
        ear.seen[at] = (bell_value if ear.listener.naps else bell_arm)(ear.listener.bells + at)
    ear.counts[at] += 1
    ear.waits += 1
    ear.listener.waits += 1
    pthread_mutex_unlock(&ear.listener.mutex)

cdef inline void ear_drop(Ear *ear, uint32_t at) noexcept nogil:
    """The end of ear_add."""
    if ear.listener == NULL:
        return
    pthread_mutex_lock(&ear.listener.mutex)
    ear.counts[at] -= 1
    ear.waits -= 1
    ear.listener.waits -= 1
    pthread_mutex_unlock(&ear.listener.mutex)

cdef inline bint ear_moved(Ear *ear, uint32_t at, bint all_of_them) noexcept nogil:
    """Whether keys of this bell are to be looked at; then the bell is armed again."""
    cdef uint32_t *bell = ear.listener.bells + at
    if ear.counts[at] == 0 or not (all_of_them or bell_value(bell) != ear.seen[at]):
        return False
    ear.seen[at] = bell_value(bell) if ear.listener.naps else bell_arm(bell)
    return True
