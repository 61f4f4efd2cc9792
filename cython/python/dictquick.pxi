# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: the short ways of a dict's most frequent operations: keys that are whole in the
# entry, values of one word, one attempt. Each does what the general operation would do, or nothing,
# and then the caller takes the general way.
#
# The functions that do not call enter() run no Python and do not wait: see context_lent.

cdef inline bint key_quickly(DictHandle owner, object key, uint64_t *words) noexcept:
    """The bytes of a short ASCII str, or of an int, as a key of this dict. False: it is another."""
    if owner.key_kind == KEY_STR:
        return likely(PyUnicode_CheckExact(key)) and text_digest(key, words)
    return likely(PyLong_CheckExact(key)) and int_word(key, words)


cdef inline bint number_quickly(DictHandle owner, object thing, uint64_t *number) noexcept:
    """An int or a float as the word that the dict stores. False: it is something else."""
    cdef double wide
    if owner.value_kind == VALUE_INT:
        return likely(PyLong_CheckExact(thing)) and int_word(thing, number)
    if unlikely(not PyFloat_CheckExact(thing)):
        return False
    wide = PyFloat_AS_DOUBLE(thing)
    memcpy(number, &wide, 8)
    return True


cdef inline Context *read_begin(DictHandle owner, uint64_t *idle) noexcept:
    """Begin a lookup in the idle context, which read_end() gives back. NULL: there is none."""
    cdef Context *context
    if FREE_THREADED:                          # else what context_lent would say, in fewer steps
        idle[0] = context_lent(owner.handle)
    else:
        idle[0] = owner.handle.map.local.idle_context
    if unlikely(idle[0] == 0):
        return NULL
    context = context_at(&owner.handle.map, idle[0] - 1)
    context_begin(context)
    return context


cdef inline void read_end(DictHandle owner, Context *context, uint64_t idle) noexcept:
    context_end(context)
    if FREE_THREADED:
        context_returned(owner.handle, idle)


cdef bint get_quickly(DictHandle owner, object key, uint64_t *number) noexcept:
    """Find a number by the path that nearly every lookup takes. False: it was not found.

    The two kinds of keys are written out, so that their bytes stay in registers. What is rarely
    needed is a method, because a C compiler would inline a function, and keep registers for it."""
    cdef Map *map = &owner.handle.map
    cdef Context *context
    cdef uint64_t words[2]
    cdef uint64_t deadline = 0
    cdef uint64_t idle = 0
    cdef uint32_t hash
    cdef bint found
    if unlikely(owner.handle.reads == READS_NONE):
        return False
    if owner.key_kind == KEY_STR:
        if unlikely(not PyUnicode_CheckExact(key) or not text_digest(key, words)):
            return False
        context = read_begin(owner, &idle)
        if unlikely(context == NULL):
            return False
        hash = hash_key(map.seeds, <const uint8_t *> words, 16)
        found = entry_read_first(
            map, hash, <const uint8_t *> words, 16, owner.value_word, number, &deadline)
    else:
        words[1] = 0
        if unlikely(not PyLong_CheckExact(key) or not int_word(key, words)):
            return False
        context = read_begin(owner, &idle)
        if unlikely(context == NULL):
            return False
        hash = hash_key(map.seeds, <const uint8_t *> words, 8)
        found = entry_read_first(
            map, hash, <const uint8_t *> words, 8, owner.value_word, number, &deadline)
    if unlikely(not found):
        found = owner._read_further(hash, words[0], words[1], number, &deadline)
    read_end(owner, context, idle)
    return likely(found) and not deadline_passed(deadline)


cdef bint change_quickly(
        DictHandle owner, object key, uint64_t number, const NumberField *field,
        uint64_t *after) noexcept:
    """Store a number under a present key, by the path that nearly every such change takes. If after
    is not NULL, change the number that is there instead: by field's operation or, if field is NULL,
    by adding number; after receives the result. False: nothing was done.

    store_word and this write the steps out: with functions for the common ones d[key] = int
    executes 26 instructions more, 5 %, and m[key] = value 15, 3 %. A variable for the handle would
    cost 8, because Cython counts its reference."""
    cdef Map *map = &owner.handle.map
    cdef uint64_t words[2]
    cdef uint64_t idle
    cdef Op op
    cdef bint done = False
    if unlikely(not key_quickly(owner, key, words)):
        return False
    if FREE_THREADED:
        if owner.handle.writes_oddly or owner.handle.reads == READS_NONE:
            return False
        idle = context_lent(owner.handle)
    else:
        idle = map.local.idle_context
    if unlikely(idle == 0 or owner.handle.writes_oddly or owner.handle.reads == READS_NONE):
        if FREE_THREADED and idle != 0:        # closed just now
            context_returned(owner.handle, idle)
        return False
    op.map = map
    op.self_index = <uint32_t> (idle - 1)
    op.context = context_at(map, idle - 1)
    op.key = <const uint8_t *> words
    op.starving = 0
    context_begin(op.context)
    # freeze() waits for every operation that began before it.
    if likely(load_relaxed_u64(&map.header.frozen) == 0):
        if owner.key_kind == KEY_STR:
            op.hash = hash_key(map.seeds, <const uint8_t *> words, 16)
            done = word_change_first(&op, 16, owner.value_word, number, field, after)
        else:
            op.hash = hash_key(map.seeds, <const uint8_t *> words, 8)
            done = word_change_first(&op, 8, owner.value_word, number, field, after)
        if unlikely(not done):
            done = owner._change_further(&op, number, field, after)
    if unlikely(not done):
        context_cancel(op.context)
        if FREE_THREADED:
            context_returned(owner.handle, idle)
        return False
    context_end(op.context)
    count_add(&owner.handle.writes, 1)
    if unlikely(op.context.activity & NOTICE_MASK == 0):
        note_lent(owner.handle, &op)
    if FREE_THREADED:
        context_returned(owner.handle, idle)
    return True


cdef inline bint count_quickly(
        DictHandle owner, object key, object delta, uint64_t *after) noexcept:
    """Add an int to an int, as change_quickly does. after receives the sum. False: these are other
    numbers, or nothing was done."""
    cdef uint64_t number
    if unlikely(not owner.changes_quickly or owner.value_kind != VALUE_INT
                or not PyLong_CheckExact(delta) or not int_word(delta, &number)):
        return False
    return change_quickly(owner, key, number, NULL, after)


cdef inline bint begin_quickly(
        DictHandle owner, object key, uint64_t *words, Op *op) except -1:
    """Begin a write of a key that is whole in the entry. False: it is another, or the context has
    to give something back first."""
    if unlikely(not key_quickly(owner, key, words)):
        return False
    op.key = <const uint8_t *> words
    if owner.key_kind == KEY_STR:
        op.hash = hash_key(owner.handle.map.seeds, op.key, 16)
    else:
        op.hash = hash_key(owner.handle.map.seeds, op.key, 8)
    enter_to_modify(owner.handle, op)
    op.options = OP_RAW_FIELDS
    if unlikely(op.context.element != 0 or op.context.debt != 0):
        leave(owner.handle, op)
        return False
    return True


cdef bint store_quickly(DictHandle owner, object key, object thing) except -1:
    """Store a number under a key that is probably absent, in one attempt. False: it failed, and
    nothing was stored."""
    cdef uint64_t key_words[2]
    cdef uint64_t words[2]                     # of a dict that changes_quickly
    cdef Op op
    cdef Status status
    words[0] = 0
    if unlikely(not number_quickly(owner, thing, words + owner.value_word)):
        return False
    if unlikely(not begin_quickly(owner, key, key_words, &op)):
        return False
    op.options |= OP_PLAIN                     # both are here, and the key has no object
    if owner.key_slot != NO_SLOT:
        op.options |= 1 << (OP_KEEP_SHIFT + owner.key_slot)
    status = map_update(&op, <const uint8_t *> words, UPDATE_ANY)
    leave(owner.handle, &op)
    if unlikely(status != OK):
        return False
    note_overwriting(owner.handle, not op.element_filled)
    return True


cdef Status remove_quickly(DictHandle owner, object key) except? RETRY:
    """Delete a key in one attempt: OK, ABSENT. Another status: it failed, and nothing was deleted.
    """
    cdef uint64_t words[2]
    cdef Op op
    cdef Status status
    if unlikely(not begin_quickly(owner, key, words, &op)):
        return BUSY
    status = map_delete(&op, NULL)
    leave(owner.handle, &op)
    return status


cdef inline bint overwrite_quickly(DictHandle owner, object key, object thing) noexcept:
    """Store an int or a float under a present key, as change_quickly does, if the last store found
    its key, too. False: nothing was done."""
    cdef uint64_t number
    if unlikely(not owner.changes_quickly or not overwrites(owner.handle)
                or not number_quickly(owner, thing, &number)):
        return False
    return change_quickly(owner, key, number, NULL, NULL)
