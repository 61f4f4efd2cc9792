# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: the short ways of a dict's most frequent operations: keys that are whole in the
# entry, values of one word, one attempt. Each does what the general operation would do, or nothing,
# and then the caller takes the general way.
#
# The first three run no Python and do not wait: see context_lent.

cdef inline bint key_quickly(DictHandle owner, object key, uint64_t *words) noexcept:
    """The bytes of a short ASCII str, or of an int, as a key of this dict. False: it is another."""
    cdef int overflow = 0
    if owner.key.kind == KEY_STR:
        if unlikely(not PyUnicode_CheckExact(key) or not PyUnicode_IS_COMPACT_ASCII(key)
                    or PyUnicode_GET_LENGTH(key) > KEY_INLINE_MAX):
            return False
        key_digest(owner.handle.map.seeds, <const uint8_t *> PyUnicode_DATA(key),
                   <uint64_t> PyUnicode_GET_LENGTH(key), words)
        return True
    if unlikely(not PyLong_CheckExact(key)):
        return False
    words[0] = <uint64_t> PyLong_AsLongLongAndOverflow(key, &overflow)
    return likely(overflow == 0)


cdef inline bint number_quickly(DictHandle owner, object thing, uint64_t *number) noexcept:
    """An int or a float as the word that the dict stores. False: it is something else."""
    cdef double wide
    cdef int overflow = 0
    if owner.value.kind == VALUE_INT:
        if unlikely(not PyLong_CheckExact(thing)):
            return False
        number[0] = <uint64_t> PyLong_AsLongLongAndOverflow(thing, &overflow)
        return likely(overflow == 0)
    if unlikely(not PyFloat_CheckExact(thing)):
        return False
    wide = PyFloat_AS_DOUBLE(thing)
    memcpy(number, &wide, 8)
    return True


cdef inline bint get_quickly(DictHandle owner, object key, uint64_t *number) noexcept:
    """Find a number by the path that nearly every lookup takes. False: it was not found."""
    cdef Map *map = &owner.handle.map
    cdef Context *context
    cdef uint64_t words[2]
    cdef uint64_t deadline = 0
    cdef uint64_t idle
    cdef bint found
    if unlikely(owner.handle.reads == READS_NONE or map.local.idle_context == 0):
        return False
    if unlikely(not key_quickly(owner, key, words)):
        return False
    idle = map.local.idle_context
    if FREE_THREADED:                          # else what context_lent would say, in fewer steps
        idle = context_lent(owner.handle)
        if idle == 0:
            return False
    context = context_at(map, idle - 1)
    context_begin(context)
    if owner.key.kind == KEY_STR:
        found = entry_read_fast(
            map, hash_key(map.seeds, <const uint8_t *> words, 16), <const uint8_t *> words, 16,
            owner.value_word, number, &deadline)
    else:
        found = entry_read_fast(
            map, hash_key(map.seeds, <const uint8_t *> words, 8), <const uint8_t *> words, 8,
            owner.value_word, number, &deadline)
    context_end(context)
    if FREE_THREADED:
        context_returned(owner.handle, idle)
    return found and not deadline_passed(deadline)


cdef inline bint change_quickly(
        DictHandle owner, object key, uint64_t number, const NumberField *field,
        uint64_t *after) noexcept:
    """Store a number under a present key, or change the one there (field not NULL; after receives
    the result), by the path that nearly every such change takes. store_word and this write the
    steps out: with functions for the common ones d[key] = int executes 26 instructions more, 5 %,
    and m[key] = value 15, 3 %."""
    cdef MapHandle handle = owner.handle
    cdef uint64_t words[2]
    cdef uint64_t idle
    cdef uint64_t key_size = 16 if owner.key.kind == KEY_STR else 8
    cdef Op op
    cdef bint done
    if unlikely(not key_quickly(owner, key, words)):
        return False
    if FREE_THREADED and (handle.writes_oddly or handle.reads == READS_NONE):
        return False
    idle = context_lent(handle)
    if unlikely(idle == 0 or handle.writes_oddly or handle.reads == READS_NONE):
        if idle != 0:                          # closed just now
            context_returned(handle, idle)
        return False
    op.map = &handle.map
    op.self_index = <uint32_t> (idle - 1)
    op.context = context_at(op.map, idle - 1)
    op.key = <const uint8_t *> words
    op.starving = 0
    context_begin(op.context)
    # freeze() waits for every operation that began before it.
    if unlikely(load_relaxed_u64(&op.map.header.frozen) != 0):
        done = False
    elif key_size == 16:
        op.hash = hash_key(op.map.seeds, op.key, 16)
        done = word_change_fast(&op, 16, owner.value_word, number, field, after)
    else:
        op.hash = hash_key(op.map.seeds, op.key, 8)
        done = word_change_fast(&op, 8, owner.value_word, number, field, after)
    if unlikely(not done):
        context_cancel(op.context)
        context_returned(handle, idle)
        return False
    context_end(op.context)
    note_write(handle, &op, idle)
    return True


cdef inline bint begin_quickly(
        DictHandle owner, object key, uint64_t *words, Op *op) except -1:
    """Begin a write of a key that is whole in the entry. False: it is another, or the context has
    to give something back first."""
    cdef uint64_t key_size = 16 if owner.key.kind == KEY_STR else 8
    if unlikely(not key_quickly(owner, key, words)):
        return False
    op.key = <const uint8_t *> words
    if key_size == 16:
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


cdef inline bint set_quickly(DictHandle owner, object key, object thing) except -1:
    """Store an int or a float. False: the caller has to take the general path."""
    cdef uint64_t number
    if owner.handle.overwrites:
        if unlikely(not number_quickly(owner, thing, &number)):
            return False
        if likely(change_quickly(owner, key, number, NULL, NULL)):
            return True
    return store_quickly(owner, key, thing)
