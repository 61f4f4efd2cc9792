# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: claims, by which one process computes a value for all (get_or_compute).
#
# A claim is a section on the key's own entry. An absent key gets an entry for this, a blank: its
# deadline lies in the past, so every reader finds it absent, and it refers to no value. An entry
# that has expired serves as well. The result is stored, with its deadline, by the end of the
# section. So the promises of sections hold (L1): if the claimant dies, its claim is free at once,
# and one of the waiters, which sleep on the section's bell, takes it over; a blank for which no
# thread computes any more is removed like any expired entry. A deletion takes the entry away, and
# so does a store by another caller: then the result is not stored. A claimed entry is not evicted.
#
# Invalidations (births.pxd). A claim has a birth from before its computation begins, which its
# blank and its result get. So a result from before an invalidation is outdated wherever it is
# stored; and a claim whose entry is outdated is void: a caller that finds it cuts it off. An
# outdated entry without a claim is deleted before the key is claimed, since the claim would be void
# at once.
#
# Waiting in circles. While a thread waits for a claim, the context of each claim that it has itself
# names, in its word child, the element for which the thread waits. Before it sleeps, it follows
# these words from owner to owner; if they lead to a claim of its own, it computes without a claim.
# If threads begin to wait at the same time, each first stores and then follows the words, so at
# least one thread of a circle sees the circle; the others look again after every slice of their
# sleep. The words are hints: a wrong one costs a computation. A circle through several caches is
# not seen; it ends by the time limit of the waits.
#
# Contexts. A claim keeps its context for as long as the computation lasts, and an event loop may
# have thousands. The last eighth of the contexts is for operations that keep none, so that entries
# are found and stored at any time: when all others are in use, keys are computed without a claim.

cdef enum:
    CLAIM_TRIES_MAX = 100      # values that were evicted before their waiters had read them
    CIRCLE_STEPS_MAX = 4096    # there are no more contexts that could own a claim
    ROOM_TRIES_MAX = 20        # each may evict twice as many entries: then all are claimed


cdef inline bint no_room(Status status) noexcept:
    return status == FULL or status == NO_MEMORY or status == OUT_OF_BYTES


@cython.final
@cython.auto_pickle(False)
@cython.no_gc_clear
cdef class Claim(LockedSection):
    """One thread's claim on a key, or its wait for the claim of another."""

    cdef DictHandle owner
    cdef KeyBytes key_bytes
    cdef object room
    cdef uint64_t small[SPOT_WORDS]
    cdef uint64_t *words
    cdef object current
    cdef object fresh              # keeps the bytes of the encoded value alive,
    cdef Py_buffer view            # or has to be released; span says where they are
    cdef Span span
    cdef list others               # the claims that this thread has already
    cdef uint64_t in_the_way       # header of the claimed element, when the wait was over
    cdef bint is_there             # the key has a value now
    cdef bint is_unclaimed         # waiting would be for this thread itself, or no claim is left
    cdef uint32_t refused          # attempts that found no room for a blank, or an outdated entry
    cdef bint has_waited
    cdef object thread             # or greenlet; None: a coroutine has it, or waits for it
    cdef readonly uint64_t element  # the one that it has, or that was in the way last
    cdef int64_t claimed_ns        # when it was claimed, CLOCK_MONOTONIC
    cdef object shadowed           # the key whose shadow or mutex is claimed; or MISSING
    cdef bint is_mutex
    cdef uint64_t expected         # the header that the key's entry must have; 0: any, or none
    cdef uint64_t birth            # of the result, and its tags
    cdef uint64_t tags

    def __cinit__(self, DictHandle owner not None, key, wait, list others=None, task=None,
                  int instead=0, tags=()):
        """others, task: for a coroutine, the claims that its computation has, and its task.
        instead: ITS_SHADOW or ITS_MUTEX, to claim that and not the key. tags: those of the result.
        """
        self.owner = owner
        self.handle = owner.handle
        self.timeout = wait
        self.kept = key_encode(owner.handle, owner.key, key, &self.key_bytes)
        self.room = owner._value_room(self.small, &self.words)
        self.others = others
        self.task = task
        self.tags = tags_word(owner.handle, tags)
        self.shadowed = MISSING
        if instead != 0:
            self.shadowed = key
            self.is_mutex = instead == ITS_MUTEX
            self.kept = instead_of_key(owner, &self.key_bytes, instead)
        if others is None:
            self.thread = caller_number()
            self.others = claims_open.get(self.thread, [])

    @cython.critical_section
    cdef bint take(self) except -1:
        """Claim the key: True. False: it has a value now, or, is_unclaimed, it has to be computed
        without a claim. Raises LockTimeout."""
        cdef Waiting waiting
        cdef Status status
        self._prepare(&waiting)
        try:
            self.owner._begin(&self.op, &self.key_bytes, &waiting)
        except _errors.TooManyProcesses:       # even the last are in use just now
            if self.is_mutex or self.expected != 0:
                raise
            self.is_unclaimed = True
            return False
        try:
            status = repeat(self.handle, &self.op, attempt_claim, <void *> self, &waiting)
            if no_room(status):
                self.is_unclaimed = True
            elif status != OK:
                raise_status(self.handle, status, &self.op)
            if not self.is_there and not self.is_unclaimed:
                self._locked()
                if self.thread is not None:
                    claims_open.setdefault(self.thread, []).append(self)
        except BaseException:                  # which may be that there is no memory
            self._wait_for(0)
            self._finish()
            raise
        self._wait_for(0)
        if self.is_there or self.is_unclaimed:
            self._finish()
            return False
        op_give_back(&self.op)
        op_end(&self.op)
        self.state = SECTION_OPEN
        self.claimed_ns = clock_ns(CLOCK_MONOTONIC)
        if self.has_waited and not self.is_mutex:
            count_one(self.handle, COUNT_TAKEN_OVER)
        return True

    cdef int _wait_for(self, uint64_t word) except -1:
        """Say in the claims that this thread has which element it waits for; 0: none."""
        cdef Claim other
        for other in self.others:
            if other.state == SECTION_OPEN and other.op.generation == process_generation and (
                    other.handle.map.inode == self.handle.map.inode):
                store_relaxed_u64(&other.op.context.child, word)
        return 0

    cdef bint _owns(self, uint32_t context) except -1:
        """Whether a context is that of a claim of this thread."""
        cdef Claim other
        for other in self.others:
            if other.state == SECTION_OPEN and other.op.self_index == context and (
                    other.op.generation == process_generation
                    and other.handle.map.inode == self.handle.map.inode):
                return True
        return False

    cdef bint _leads_here(self, Found *found) except -1:
        """Whether the owner of a claim waits for this thread, directly or by way of others."""
        cdef Map *map = &self.handle.map
        cdef uint64_t header = found.header
        cdef uint64_t at
        cdef int _
        if not self.others:
            return False
        self._wait_for(found.index)
        fence_seq_cst()                        # pairs with itself in another thread of a circle
        for _ in range(CIRCLE_STEPS_MAX):
            if element_state(header) != ELEMENT_LOCKED or word_owner(header) >= (
                    contexts_usable(map)):
                return False
            if self._owns(word_owner(header)):
                return True
            at = load_relaxed_u64(&context_at(map, word_owner(header)).child)
            if at == 0 or at >= map.element_max or (
                    object_memory_ready(&self.op, &map.element_pool, at) != OK):
                return False
            header = load_acquire_u64(&element_at(map, at).header)
        return False

    cdef Status _attempt(self) except? RETRY:
        cdef Map *map = &self.handle.map
        cdef Found found
        cdef Status status = map_find(map, self.op.hash, self.op.key, &found)
        cdef bint over, outdated
        if self.expected != 0 and (status == ABSENT or status == OK):
            return self._attempt_expected(status, &found)
        self.birth = birth_now(map)
        if status == ABSENT:
            if self._has_no_context():
                return OK
            status = self._attempt_blank()
            if no_room(status):
                # If all entries are claimed, perhaps by this thread, waiting for one is in vain.
                self.refused += 1
                if self.refused == ROOM_TRIES_MAX:
                    self.is_unclaimed = True
                    return OK
            return status
        if status != OK:
            return status
        over = element_expired(map, &found)
        outdated = value_is_outdated(map, element_value(map, found.element))
        if not element_unchanged(&found):
            return RETRY
        if element_state(found.header) == ELEMENT_UPD:     # the deadline is not the new one
            return element_spin(&self.op, &found)
        if outdated:
            self.refused += 1
            if self.refused == ROOM_TRIES_MAX:         # others invalidate all the time
                self.is_unclaimed = True
                return OK
            self.op.element_filled = False
            status = map_delete_held(&self.op, found.header, NULL)
            return RETRY if status == OK or status == ABSENT else status
        if not over:
            self.is_there = True
            return OK
        self.element = found.index
        if element_state(found.header) == ELEMENT_LOCKED:
            self.has_waited = True
            self.in_the_way = found.header
            if self._leads_here(&found):
                self.is_unclaimed = True
                return OK
            return lock_busy(&self.op, &found.element.header, found.header)
        if self._has_no_context():
            return OK
        store_relaxed_u64(&self.op.context.child, 0)   # before the claim can be followed
        status = element_hold(&self.op, &found, ELEMENT_LOCKED, &self.section.held)
        if status == OK:
            self.section.index = found.index
        return status

    cdef bint _has_no_context(self) noexcept:
        """Whether the computation has to do without a claim, for lack of a context to keep. A mutex
        takes even the last one: it excludes others, or raises."""
        self.is_unclaimed = not self.is_mutex and not context_may_stay(&self.op)
        return self.is_unclaimed

    cdef Status _attempt_expected(self, Status status, Found *found) noexcept:
        """Claim an entry that must not have changed; is_there: it has."""
        if status == ABSENT or found.header != self.expected:
            self.is_there = True
            return OK
        store_relaxed_u64(&self.op.context.child, 0)   # before the claim can be followed
        status = element_hold(&self.op, found, ELEMENT_LOCKED, &self.section.held)
        if status == OK:
            self.section.index = found.index
        return status

    cdef Status _attempt_blank(self) except? RETRY:
        """Insert an entry to claim. RETRY: the key has one."""
        cdef Status status
        if self.op.context.element == 0:       # an earlier blank was inserted, and is gone already
            self.op.element_filled = False
        status = room_reserve(&self.op)
        if status == OK:
            status = leftovers_free(&self.op)
        if status != OK:
            return status
        memset(self.words, 0, self.handle.map.value_words * 8)
        self.words[self.handle.map.timer_word - 1] = BLANK_DEADLINE
        value_bear(&self.handle.map, self.words, self.birth, self.tags)
        self.op.options = OP_RAW_FIELDS | OP_NO_SWEEP
        if self.key_bytes.is_long:
            status = object_make(
                &self.op, self.owner.key_slot, self.key_bytes.whole, self.key_bytes.length)
            if status != OK:
                return status
        status = map_update(&self.op, <const uint8_t *> self.words, UPDATE_NOEXIST)
        return RETRY if status == OK or status == PRESENT else status

    cdef void _end_claim(self) noexcept:
        claims = claims_open.get(self.thread)
        if claims is not None and self in claims:
            claims.remove(self)
            if not claims:
                del claims_open[self.thread]

    cdef int give_up(self) except -1:
        """End the claim, and store nothing: the next waiter may compute."""
        self._end_claim()
        if self.state != SECTION_OPEN:
            return 0
        if self.shadowed is MISSING or not self._mine():
            self._abandon()
            return 0
        self.removing = True                   # the blank; if it stays, it has expired
        try:
            LockedSection._commit(self)
        except _errors.Error:
            pass
        return 0

    cdef int steal(self) except -1:
        """After LockTimeout: cut off the claim that was waited for, so that it can be claimed."""
        cdef Op op
        cdef Found found
        cdef Status status
        cdef Waiting waiting = new_waiting(self.handle)
        found.header = self.in_the_way
        self.owner._begin(&op, &self.key_bytes, &waiting)
        try:
            status = repeat(self.handle, &op, attempt_remove_found, &found, &waiting)
        finally:
            leave(self.handle, &op)
        if status != OK and status != ABSENT:
            raise_status(self.handle, status, &op)
        count_one(self.handle, COUNT_STOLEN)
        return 0

    cdef int store(self, object value, int64_t deadline_ns) except -1:
        """Store the result and end the claim. Raises KeyGone if the claim was cut off, has ended or
        is the parent's, or the result is outdated, and what storing raises. Encoding may run the
        program's code, which may ask for the key itself."""
        if self.state != SECTION_OPEN or not self._mine():
            if self.state == SECTION_OPEN:
                self._abandon()
            raise _errors.KeyGone(f"map {self.handle.name!r}: this process has no claim any more")
        self.current = value
        memset(self.words, 0, self.handle.map.value_words * 8)
        self.words[self.handle.map.timer_word - 1] = <uint64_t> deadline_ns
        value_bear(&self.handle.map, self.words, self.birth, self.tags)
        if value_is_outdated(&self.handle.map, self.words):
            self.give_up()
            raise _errors.KeyGone(
                f"map {self.handle.name!r}: the value was invalidated while it was computed")
        try:
            return LockedSection._commit(self)
        finally:
            self._end_claim()
            if self.view.buf != NULL:
                PyBuffer_Release(&self.view)

    cdef int _encode(self) except -1:
        self.fresh = self.owner._value_of(self.words, self.current, &self.view, &self.span)
        return 0

    cdef Status _attempt_store(self) noexcept:
        cdef Status status = self.owner._make_new_value(&self.op, &self.span)
        if status != OK:
            return status
        # A hint: the element may have another entry by now, if the claim was cut off.
        store_relaxed_u16(
            &element_mark(&self.handle.map, element_at(&self.handle.map, self.section.index)).cost,
            cost_of(<uint64_t> (clock_ns(CLOCK_MONOTONIC) - self.claimed_ns)))
        return section_commit(&self.op, &self.section, <const uint8_t *> self.words)

    cdef int _store_shadowed(self, object value, int64_t deadline_ns) except -1:
        """Store the result under the key itself, if its entry has not changed, and end the claim.
        Raises KeyGone if it has."""
        cdef Claim itself = Claim(self.owner, self.shadowed, None, [])
        itself.expected = self.expected
        itself.birth = self.birth
        itself.tags = self.tags
        try:
            if self.state != SECTION_OPEN or not self._mine() or not itself.take():
                raise _errors.KeyGone(f"map {self.handle.name!r}: the entry has changed")
            itself.claimed_ns = self.claimed_ns
            itself.store(value, deadline_ns)
        finally:
            self.give_up()
        return 0

    def keep(self, value, ttl, double stale=0):
        """Store the result, with ttl and stale as for get_or_compute(), and end the claim. False:
        the claim was cut off, the entry of a shadow's key has changed, the value does not fit, or
        ttl forbids it. Raises what encoding and ttl raise, and InvalidArgument (ttl)."""
        with cython.critical_section(self):
            return self._keep(value, ttl, stale)

    cdef bint _keep(self, value, ttl, double stale) except -1:
        cdef int64_t deadline_ns
        cdef bint stored = True
        count_one(self.handle, COUNT_COMPUTED)
        count_more(self.handle, COUNT_COMPUTING_NS,
                   <uint64_t> (clock_ns(CLOCK_MONOTONIC) - self.claimed_ns))
        try:
            if callable(ttl):
                ttl = ttl(value)
            if ttl is False:
                self.give_up()
                return False
            deadline_ns = self.owner._deadline_after(ttl)
            if deadline_ns == 0:
                deadline_ns = deadline_in(self.owner.default_ttl_ns)
            if deadline_ns != 0 and deadline_ns != _arguments.NEVER_NS:
                # The last deadline that an entry can have, if the sum is beyond it.
                deadline_ns += min(<int64_t> (stale * 1e9), _arguments.NEVER_NS - 1 - deadline_ns)
            if self.shadowed is MISSING:
                self.store(value, deadline_ns)
            else:
                self._store_shadowed(value, deadline_ns)
        except (_errors.KeyGone, _errors.TooLarge, _errors.OutOfMemory, _errors.SegmentFull):
            count_one(self.handle, COUNT_NOT_STORED)
            stored = False
        except BaseException:
            self.give_up()
            raise
        return stored

    def wait(self):
        """Claim the key, or wait until it has a value. True: it is claimed; False: it has a value,
        or, has_to_compute, cannot be waited for. Raises LockTimeout."""
        try:
            return self.take()
        except _errors.DeadlockError:          # a coroutine of this thread computes it
            self.is_unclaimed = True
            return False

    @cython.critical_section
    def drop(self):
        """End the claim, and store nothing: the next waiter may compute."""
        self.give_up()

    # For an event loop (shmrhash/_computing.py), where a coroutine waits between attempts.

    def attempt(self):
        """Try to claim the key, without waiting. True: it is claimed; False: it has a value now,
        or, has_to_compute, cannot be waited for; None: another has the claim."""
        self.state = SECTION_NEW
        self.began = clock_ns(CLOCK_MONOTONIC)
        try:
            return self.take()
        except _errors.LockTimeout:
            return None
        except _errors.DeadlockError:          # a get_or_compute() below this loop computes it
            self.is_unclaimed = True
            return False

    @property
    def has_to_compute(self):
        return self.is_unclaimed

    def waits_for(self, uint64_t element):
        """Say, for searches of circles, for which element the computation waits; 0: none."""
        if self.state == SECTION_OPEN and self._mine():
            store_relaxed_u64(&self.op.context.child, element)

    def cut_off(self):
        """After attempt() returned None: take the claim away from its holder."""
        if self.in_the_way != 0:
            self.steal()


cdef Status attempt_claim(Op *op, void *arguments) except? RETRY:
    return (<Claim> arguments)._attempt()
