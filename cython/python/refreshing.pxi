# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: computing a value again that is still served (stale= and early= of
# get_or_compute). Its claim is a shadow (claiming.pxi); here it is decided when one is taken.
#
# The ttl of such a value ends stale seconds before the deadline of its entry, so the entry needs no
# other word. How long the value took to compute stands in the mark of its element, as a hint: a
# wrong one lets early= begin sooner or later.


cdef bint value_is_due(
        DictHandle owner, KeyBytes *key, int64_t stale_ns, double early,
        uint64_t *header) except -1:
    """Whether a value is there, and to be computed again: its ttl is over, or nearly so. header:
    of its entry."""
    cdef MapHandle handle = owner.handle
    cdef uint64_t small[SPOT_WORDS]
    cdef uint64_t *value = NULL
    cdef Found found
    cdef Op op
    cdef uint64_t deadline = 0
    cdef uint64_t cost = 0
    cdef int64_t left
    room = owner._value_room(small, &value)
    owner._set_key(&op, key)
    enter_to_read(handle, &op)
    if owner._find(&op, &found, value) == OK and element_state(found.header) == ELEMENT_LIVE:
        deadline = entry_deadline(&handle.map, value)
        header[0] = found.header
        cost = cost_ns(load_relaxed_u16(&element_mark(&handle.map, found.element).cost))
    leave_reading(handle, &op)
    if deadline == 0 or deadline == <uint64_t> _arguments.NEVER_NS or deadline_passed(deadline):
        return False
    left = <int64_t> deadline - stale_ns - clock_ns(CLOCK_MONOTONIC)
    if left <= 0:
        return True
    return early > 0 and <double> cost * early * random.expovariate(1.0) >= left


cdef Claim begin_refresh(
        DictHandle owner, object key, double stale, double early, list others, object task,
        object tags):
    """A claim on the shadow of key, whose value the caller is to compute again; None: there is
    nothing to do, or another does it. others, task, tags: as for
    Claim."""
    cdef KeyBytes key_bytes
    cdef uint64_t header = 0
    cdef int64_t stale_ns = <int64_t> (stale * 1e9)
    cdef Claim shadow
    cdef bint due = False
    kept = key_encode(owner.handle, owner.key, key, &key_bytes)
    if owner.handle.map.read_only or (
            not value_is_due(owner, &key_bytes, stale_ns, early, &header)):
        return None
    shadow = Claim(owner, key, 0, others, task, ITS_SHADOW, tags)
    if not shadow.attempt():
        count_one(owner.handle, COUNT_STALE_HITS)
        return None
    try:
        due = value_is_due(owner, &key_bytes, stale_ns, early, &shadow.expected)
    finally:
        if not due:
            shadow.give_up()
    return shadow if due else None
