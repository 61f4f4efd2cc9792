# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# The journal: several sections of one process end in one step, all of them or none (C1, L1).
#
# Each section is a member and keeps its own context, with its own redo buffer. The contexts are the
# journal: in the word `target` a member's context names its element, as in any section, and the
# lead, which is the context of the last member.
#
#   find     each member's element is still the section's; its redo buffer gets the new value
#   hold     each member: target names the lead; LOCKED -> ULOCK by a CAS. A deletion cuts a LOCKED
#            element off, and waits for one that is ULOCK. If a CAS fails, the members before it
#            become LOCKED again, and nothing has happened.
#   commit   JOURNAL_COMMITTED is stored in the lead's target. From here on all new values count.
#   apply    each member, the lead last: ULOCK -> UPD -> LIVE, as element_commit; or, if the key is
#            to be deleted, ULOCK -> DEAD under the bucket's lock. Then target names no lead.
#
# Readers never wait: they find the old value of a member until it is UPD or DEAD, so they may see
# the new value of one key and then the old one of another. A process that locks the keys sees all
# old values or all new ones, because the elements are held from before the commit until each has
# its new value.
#
# From find to commit nothing waits, so no other process delays a journal that is not committed.
# Objects are made before it. Values are applied without waiting; a deletion needs its bucket, and
# waits for it. So deletions come last, and journal_bucket_is_free finds out before the commit
# whether a stopped process holds a bucket.
#
# If the process is killed, recovery asks for each ULOCK element of its contexts whether their lead
# is committed: if so, the member is applied, else it becomes LIVE with the old value. The lead is
# recovered after all its members (recover.pxd). It holds locks only when they are applied, because
# it is applied last, so no recovery waits for itself.
#
# One member may wait for its bucket while the journal's others are held: that cannot close a
# circle, since no operation waits for an element while it holds a bucket (operation.pxd).
from libc.stdint cimport uint64_t, uint8_t
from machine.atomics cimport (
    load_relaxed_u64, store_relaxed_u64, store_release_u64, cas_acq_rel_u64, fence_release,
    compiler_fence, copy_in,
)
from segment.status cimport Status, OK, ABSENT
from segment.layout cimport (
    ELEMENT_LOCKED, ELEMENT_UPD, ELEMENT_ULOCK, JOURNAL_COMMITTED, JOURNAL_REMOVES,
    OPERATION_DELETE, Bucket, Context, Element,
)
from segment.words cimport (
    element_state, element_header, lock_bits, target_lead, target_in_journal,
)
from segment.geometry cimport Map, context_at, context_redo, contexts_usable
from memory.operation cimport Op, lock_release
from memory.object cimport owned_refs_free
from map.bell cimport element_changed
from map.chain cimport Found
from map.element cimport element_redo
from map.reference cimport references_fill, references_apply, refs_unprepare
from map.hold cimport bucket_hold
from map.remove cimport map_delete_held
from map.section cimport Section, section_find

# One section of a journal, in its owner's memory.
cdef struct Member:
    Op *op
    Section *section
    Element *element           # set by journal_find
    const uint8_t *value       # NULL: the key is deleted


cdef inline bint context_leads(Map *map, uint64_t index) noexcept nogil:
    """Whether a context is the lead of a committed journal."""
    cdef uint64_t word = load_relaxed_u64(&context_at(map, index).target)
    return word & JOURNAL_COMMITTED and target_lead(word) == index + 1

cdef inline bint journal_is_committed(Map *map, const Context *member) noexcept nogil:
    """Whether a context is a member of a committed journal: its lead says so, and has the same
    owner. In a damaged segment the answer may be wrong, but no index goes out of bounds."""
    cdef uint64_t lead = target_lead(load_relaxed_u64(&member.target))
    if lead == 0 or lead > contexts_usable(map):
        return False
    return context_leads(map, lead - 1) and (
        load_relaxed_u64(&context_at(map, lead - 1).owner) == load_relaxed_u64(&member.owner))

cdef inline Status journal_find(Member *members, uint64_t count) noexcept nogil:
    """Find every element, and fill the redo buffers. ABSENT: a key was deleted. RETRY."""
    cdef Found found
    cdef Member *member
    cdef Status status
    cdef uint64_t at
    for at in range(count):
        member = members + at
        status = section_find(member.op, member.section, &found)
        if status != OK:
            return status
        member.element = found.element
        if member.value != NULL and member.op.map.field_count != 0:
            references_fill(member.op, found.element, member.value, True)
        elif member.value != NULL:
            copy_in(context_redo(member.op.context), member.value, member.op.map.value_size)
    return OK

cdef inline Status journal_hold(Member *members, uint64_t count) noexcept nogil:
    """LOCKED -> ULOCK of every element. ABSENT: one was cut off; some are ULOCK."""
    cdef Member *member
    cdef uint64_t lead = members[count - 1].op.self_index
    cdef uint64_t at, held
    for at in range(count):
        member = members + at
        # The note before the commit; recovery reads it only of an element that is ULOCK.
        store_relaxed_u64(&member.op.context.target, target_in_journal(
            member.section.index, lead, JOURNAL_REMOVES if member.value == NULL else 0))
        compiler_fence()
        held = element_header(member.section.held, ELEMENT_ULOCK, lock_bits(member.op.self_index))
        # Release and acquire as in element_hold. The redo buffer is carried by UPD.
        if not cas_acq_rel_u64(&member.element.header, member.section.held, held):
            return ABSENT
        member.section.held = held
    return OK

cdef inline void journal_retreat(Member *members, uint64_t count) noexcept nogil:
    """Before the commit: the sections are open again, as if their end had not begun."""
    cdef Member *member
    cdef uint64_t at
    for at in range(count):
        member = members + at
        if element_state(member.section.held) == ELEMENT_ULOCK:
            member.section.held = element_header(
                member.section.held, ELEMENT_LOCKED, lock_bits(member.op.self_index))
            # Release: nothing was written; the order is that of element_release.
            store_release_u64(&member.element.header, member.section.held)
        if member.value != NULL and member.op.map.field_count != 0:
            refs_unprepare(member.op)
        compiler_fence()
        store_relaxed_u64(&member.op.context.target, member.section.index)

cdef inline Status journal_commit(Member *members, uint64_t count) noexcept nogil:
    """Commit the sections, at least two, of which those that delete come last; each has an
    operation begun. OK: every value will be stored, every deletion made. ABSENT: a key was deleted
    during its section; RETRY, CORRUPT: in these cases all sections are open as before."""
    cdef Context *lead = members[count - 1].op.context
    cdef Status status = journal_find(members, count)
    if status == OK:
        status = journal_hold(members, count)
    if status != OK:
        journal_retreat(members, count)
        return status
    # The commit. Release: the notes and redo buffers of all members come before it, in the order
    # in which recovery finds the stores of a dead process; other processes do not load the word.
    store_release_u64(&lead.target, load_relaxed_u64(&lead.target) | JOURNAL_COMMITTED)
    compiler_fence()
    return OK

cdef inline void member_leave(Member *member) noexcept nogil:
    """The member is applied: its context names no lead, and the section has ended."""
    compiler_fence()
    store_relaxed_u64(&member.op.context.target, member.section.index)
    compiler_fence()
    member.section.held = 0

cdef inline void member_store(Member *member) noexcept nogil:
    """After the commit: bring a new value into its element. ULOCK -> UPD -> LIVE."""
    cdef Op *op = member.op
    cdef uint64_t held = element_header(
        member.section.held, ELEMENT_UPD, lock_bits(op.self_index))
    # Release: the redo buffer, for readers that meet UPD; pairs with the acquire of the header in
    # chain_find.
    store_release_u64(&member.element.header, held)
    if op.map.field_count != 0:
        fence_release()                        # as in element_redo
        references_apply(op, member.element, held)
    else:
        element_redo(op, member.element, held)
    member_leave(member)
    element_changed(op, op.key, member.section.index)
    if op.map.field_count != 0:
        owned_refs_free(op)                    # an object that is BUSY stays named

cdef inline void journal_store(Member *members, uint64_t count) noexcept nogil:
    """After the commit: store the new values, those of the first members. Nothing waits."""
    cdef uint64_t at
    for at in range(count):
        if members[at].value == NULL:
            break
        member_store(members + at)

cdef inline Status member_remove(Member *member) noexcept nogil:
    """After the commit: delete the key of a member. OK; BUSY or RETRY: call again. ABSENT, CORRUPT:
    only in a damaged segment."""
    cdef Status status = map_delete_held(member.op, member.section.held, NULL)
    if status == OK:
        member_leave(member)
    return status

cdef inline Status journal_bucket_is_free(Op *op) noexcept nogil:
    """Before the commit of a deletion: OK if its bucket can be locked. BUSY, RETRY: call again."""
    cdef Bucket *bucket = NULL
    cdef uint64_t held = 0
    cdef Status status = bucket_hold(op, OPERATION_DELETE, &bucket, &held)
    if status == OK:
        lock_release(&bucket.header, held)
    return status
