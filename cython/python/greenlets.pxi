# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: greenlets of gevent, of which one thread runs many in turn.
#
# The map treats a greenlet as a thread: the owner of a section, a claim or a lock is known by a
# number, and in a program that uses gevent each greenlet has its own. So two greenlets of one
# thread exclude each other.
#
# A greenlet that waited in the kernel would stop the others of its thread, perhaps the one that it
# waits for. So where a thread would sleep, a greenlet lets the others run, and looks again: at once
# at first, and after some time every few milliseconds. It is not woken. It looks at the same words
# as a thread after its sleep, so the pauses decide only how long a wait takes.
#
# Whether the program uses gevent is looked up whenever a map is opened, and before each sleep. What
# a greenlet took before that has the thread's number: then its RLock is one of all the thread's
# greenlets until it is released.

cdef enum:
    GREENLET_PAUSE_NS = 100000         # the first pause in which the thread may sleep
    GREENLET_PAUSES_DOUBLED = 5        # up to 3.2 ms,
    GREENLET_PAUSES_SHORT = 40         # some 0.1 s;
    GREENLET_PAUSE_NS_MAX = 16000000   # then this long
    GREENLET_TURNS = 3                 # before the first such pause
    GREENLET_DEAD_TURNS = 16           # how often it looks whether the owner in its way is dead

cdef bint greenlets_used = False
cdef object running_greenlet = None    # the functions of shmrhash/_greenlets.py
cdef object may_switch = None
cdef object switch_for = None


def set_greenlets(running, may, switch):
    """running(): the greenlet that runs. may(): whether this thread has others that can run
    meanwhile. switch(seconds): let them."""
    global running_greenlet, may_switch, switch_for, greenlets_used
    running_greenlet, may_switch, switch_for = running, may, switch
    greenlets_used = True


cdef int look_for_greenlets() except -1:
    """Begin to count greenlets, not threads, if the program has some."""
    if greenlets_used or "gevent" not in sys.modules:
        return 0
    from shmrhash import _greenlets
    _greenlets.look()
    return 0


cdef uint64_t greenlet_number() noexcept:
    running = running_greenlet()
    return <uint64_t> <PyObject *> running


cdef inline uint64_t caller_number() noexcept:
    """The number of the thread that calls, or of its greenlet. Another one may get it later."""
    return greenlet_number() if unlikely(greenlets_used) else PyThread_get_thread_ident()


cdef int greenlet_switch(uint64_t turn, int64_t end_ns) except -1:
    """Let the others run. turn: how often this wait has done that; end_ns: its end by
    CLOCK_MONOTONIC, negative: none. Raises what gevent throws into the greenlet."""
    cdef int64_t pause = 0
    cdef int64_t left
    if turn >= GREENLET_TURNS:
        pause = GREENLET_PAUSE_NS << min(turn - GREENLET_TURNS, <uint64_t> GREENLET_PAUSES_DOUBLED)
    if turn >= GREENLET_PAUSES_SHORT:
        pause = GREENLET_PAUSE_NS_MAX
    if end_ns >= 0:
        left = end_ns - clock_ns(CLOCK_MONOTONIC)
        pause = min(pause, left if left > 0 else 0)
    switch_for(pause / 1e9)
    return 0


cdef bint others_can_run() except -1:
    """Before a sleep: whether there are other greenlets in this thread."""
    look_for_greenlets()
    return greenlets_used and may_switch()


cdef bint others_ran(uint64_t *turn, int64_t end_ns) except -1:
    """In the place of a thread's sleep. False: there are no other greenlets, so sleep."""
    if not others_can_run():
        return False
    greenlet_switch(turn[0], end_ns)
    turn[0] += 1
    return True


cdef bint others_ran_for(Op *op, uint64_t turn, int64_t waited_ns, int64_t limit_ns) except -1:
    """In the place of wait_step, in the middle of which no other greenlet may run: a waiter for the
    lock at op.wait_word, outside any operation. turn: of these pauses."""
    cdef Map *map = op.map
    cdef uint64_t pauses = turn
    if not others_can_run():
        return False
    with nogil:
        if not word_stands(op) or owner_recover(op):
            return True
        if not map.read_only and waited_ns >= STARVING_NS and is_element_word(map, op.wait_word):
            starving_say(op, element_of_word(map, op.wait_word))
    return others_ran(
        &pauses, -1 if limit_ns < 0 else clock_ns(CLOCK_MONOTONIC) + limit_ns - waited_ns)
