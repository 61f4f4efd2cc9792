# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Waiting in an event loop: a thread listens for all loops of the process that wait in a map.
#
# An event loop sleeps on descriptors. So a thread of its process sleeps on BELL_ANY, which every
# change rings that rings the bell of its key (bell.pxd), and makes an eventfd readable when a bell
# has moved that the loop armed. A writer's side is the same as for any waiter: it rings the bell of
# the key, then BELL_ANY.
#
#   loop                                         thread
#   1 says that it waits (bell.pxd: 1, 2)        a  arms BELL_ANY
#   2 arms the bell of the key, and notes        b  looks at the bells that were armed; if one has
#     its number in the ear, under the mutex        moved, writes to the eventfd; under the mutex
#   3 looks at the key                           c  sleeps, if BELL_ANY is as it was in a
#   4 sleeps until the eventfd is readable,
#     empties it, looks at the bells; for each
#     that has moved, again from 2 on
#
# A loop that waits for the end of a section arms the bell of the section's element instead, tries
# to enter the section in step 3, and also looks by itself after some milliseconds: threads that
# sleep on that bell are woken first, and the owner may be dead.
#
# No wake-up is lost: a change after 3 finds the bell of the key armed and moves it, and then rings
# BELL_ANY. If that is not armed, the thread is awake, and a and b come after the ring of the key's
# bell: so b sees it. If the bell of the key is no longer armed, another writer has rung it since,
# and rings BELL_ANY. tests/protocol plays this (listening.py). A ring that a death leaves out is
# made up for by a look after each slice, as for any waiter.
#
# A task that waits at a cell of a space (cell.pxd) does the same with the futex word on which a
# thread would sleep there: in step 2 it marks in the cell that there is a sleeper, as that thread
# would, then notes the word's value in the ear; in step 3 it looks at the cell. A process that
# changes such a word and wakes its sleepers then rings BELL_ANY (listeners_ring), as a writer does.
# The word and the note need no common section: the look, after both, finds a change between them.
# tests/protocol plays this (telling.py).
#
# The thread begins with the first wait and ends after a slice without any, and when its attachment
# ends. It is stopped before a fork, so that it never runs while the process forks; each loop is
# told after it, and begins the thread again when it looks. It runs no Python. A read-only handle
# cannot arm a bell: for its loops the thread naps instead of sleeping, and tells after each nap.
#
# The ears and counts are changed by threads that have the GIL, or the state lock (gil.h), under the
# mutex; the thread reads them under the mutex.
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.limits cimport INT_MAX
from libc.string cimport memset
from machine.atomics cimport load_acquire_u32, store_release_u32
from machine.system cimport CLOCK_MONOTONIC, clock_ns, close, futex_sleep, futex_wake
from segment.layout cimport BELL_COUNT, Header
from segment.geometry cimport Map
from map.bell cimport BELL_ANY, bell_arm, bell_value, bell_word
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

# A futex word for whose change a task of a loop waits.
cdef struct EarWord:
    EarWord *behind            # the next one of the ear
    EarWord **before           # what points to this one; NULL: it is in no ear
    const uint32_t *word       # NULL: not noted yet
    uint32_t seen              # its value when the task looked

# What one loop waits for in one map.
cdef struct Ear:
    Ear *behind                # the next one of the listener
    Listener *listener         # NULL: the attachment has ended
    int fd                     # an eventfd
    bint look_at_all           # a slice is over: a bell may have been left unrung
    uint64_t waits             # how many keys and words the loop waits for
    EarWord *words
    uint32_t counts[BELL_COUNT]        # and by bell
    uint64_t tags[BELL_COUNT]          # of the keys of each bell, and of some of earlier waits
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
    Header *header
    Ear *ears
    uint64_t waits             # of all ears
    uint64_t words             # how many of these are for words


cdef inline uint32_t ear_bell_arm(
        const Listener *listener, uint32_t at, uint64_t tags) noexcept nogil:
    """Arm a bell, and return its value; a read-only handle cannot arm it."""
    if listener.naps:
        return bell_value(listener.header, at)
    return bell_arm(listener.header, at, tags)


cdef inline bint ear_word_moved(const EarWord *each) noexcept nogil:
    """Whether a word has changed since its value was noted."""
    # After the arming of BELL_ANY, whose fence orders it; pairs with listeners_ring.
    return each.word != NULL and load_acquire_u32(<uint32_t *> each.word) != each.seen


# ---- the thread ----

cdef inline bint ear_is_wanted(const Ear *ear, bint all_of_them) noexcept nogil:
    """Whether a loop has something to look at."""
    cdef EarWord *each = ear.words
    cdef uint32_t at
    if ear.waits == 0 or all_of_them:
        return ear.waits != 0
    for at in range(BELL_COUNT):
        if ear.counts[at] != 0 and bell_value(ear.listener.header, at) != ear.seen[at]:
            return True
    while each != NULL:                        # each word once
        if ear_word_moved(each):
            return True
        each = each.behind
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
    cdef const uint32_t *bell = bell_word(listener.header, BELL_ANY)
    cdef int64_t nap = NAP_NS_MIN if listener.naps else listener.slice_ns
    cdef int64_t until = clock_ns(CLOCK_MONOTONIC) + nap
    cdef uint32_t seen
    cdef bint over
    listener.thread_id = thread_id()
    while True:                                # ends after a slice without a wait
        seen = ear_bell_arm(listener, BELL_ANY, 0)
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


# ---- loops: the caller has the GIL, or the state lock ----

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
    listener.header = map.header

cdef inline void listener_stop(Listener *listener, uint64_t generation) noexcept nogil:
    """End the thread, if there is one, and see it gone."""
    if listener.generation != generation or not listener.has_thread:
        return
    pthread_mutex_lock(&listener.mutex)
    listener.stopping = True
    pthread_mutex_unlock(&listener.mutex)
    while not listener_has_ended(listener):    # it waits for nothing else
        futex_wake(bell_word(listener.header, BELL_ANY), INT_MAX)
        sleep_ns(STOP_LOOK_NS)
    thread_end(listener.thread, listener.thread_id)
    listener.has_thread = listener.stopping = False

cdef inline int listener_go_on(Listener *listener, int64_t slice_ns) noexcept nogil:
    """See that there is a thread, if a loop waits. Returns 0, or the error of pthread_create."""
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
    cdef EarWord *word = ear.words
    pthread_mutex_lock(&ear.listener.mutex)
    while at[0] != ear and at[0] != NULL:      # each ear once
        at = &at[0].behind
    if at[0] == ear:
        at[0] = ear.behind
    ear.listener.waits -= ear.waits
    while word != NULL:                        # each word once
        ear.listener.words -= 1
        word = word.behind
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

cdef inline void ear_arm(Ear *ear, uint32_t at, uint64_t tag) noexcept nogil:
    """Before each look at a key of this bell, with this tag. If the bell has moved since its number
    was noted, the loop will be told."""
    ear_bell_arm(ear.listener, at, tag)

cdef inline void ear_add(Ear *ear, uint32_t at, uint64_t tag) noexcept nogil:
    """The loop waits for one more key of this bell."""
    pthread_mutex_lock(&ear.listener.mutex)
    if ear.counts[at] == 0:
        ear.tags[at] = tag
        ear.seen[at] = ear_bell_arm(ear.listener, at, tag)
    ear.tags[at] |= tag
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

cdef inline void ear_word_add(Ear *ear, EarWord *each) noexcept nogil:
    """A task of the loop waits for a word, which it notes later."""
    pthread_mutex_lock(&ear.listener.mutex)
    each.word = NULL
    each.before = &ear.words
    each.behind = ear.words
    if each.behind != NULL:
        each.behind.before = &each.behind
    ear.words = each
    ear.waits += 1
    ear.listener.waits += 1
    ear.listener.words += 1
    pthread_mutex_unlock(&ear.listener.mutex)

cdef inline void ear_word_note(
        Ear *ear, EarWord *each, const uint32_t *word, uint32_t seen) noexcept nogil:
    """Before each look at a cell: if the word gets another value than this, the loop is told."""
    pthread_mutex_lock(&ear.listener.mutex)
    each.word = word
    each.seen = seen
    pthread_mutex_unlock(&ear.listener.mutex)

cdef inline void ear_word_drop(Ear *ear, EarWord *each) noexcept nogil:
    """The end of ear_word_add; also if the ear has been closed since."""
    cdef Listener *listener = ear.listener
    if listener != NULL:
        pthread_mutex_lock(&listener.mutex)
        ear.waits -= 1
        listener.waits -= 1
        listener.words -= 1
    each.before[0] = each.behind
    if each.behind != NULL:
        each.behind.before = each.before
    each.before = NULL
    if listener != NULL:
        pthread_mutex_unlock(&listener.mutex)

cdef inline bint ear_moved(Ear *ear, uint32_t at, bint all_of_them) noexcept nogil:
    """Whether keys of this bell are to be looked at; then the bell is armed again."""
    if ear.counts[at] == 0 or not (
            all_of_them or bell_value(ear.listener.header, at) != ear.seen[at]):
        return False
    ear.seen[at] = ear_bell_arm(ear.listener, at, ear.tags[at])
    return True
