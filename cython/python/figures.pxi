# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: the figures of info(), check() and the tools that look after segments.
from memory.hazard cimport hazard_any, hazard_none
from segment.geometry cimport geometry_bytes_most
from segment.words cimport target_index, word_held_by


cdef object processes_in(MapHandle handle):
    """{index, pid, command, attached_ns, alive, here, reads, operations, waits} of each used slot,
    except those of processes that ended by themselves, which recovery gives back. here: the slot is
    that of this handle; a child of fork has one once it has written."""
    cdef Op op
    begin_looking(handle, &op)
    try:
        return processes_found(handle)
    finally:
        end_use(handle)


cdef list processes_found(MapHandle handle):
    cdef uint64_t index, at, claim
    cdef bint gone
    cdef uint64_t contexts = contexts_usable(&handle.map)
    cdef ProcessSlot *slot
    cdef Context *context
    cdef dict operations = {}
    cdef dict waits = {}
    for at in range(contexts):                 # at most CONTEXT_MAX
        context = context_at(&handle.map, at)
        index = load_acquire_u64(&context.owner)
        waits[index] = waits.get(index, 0) + context.waits
        operations[index] = operations.get(index, 0) + context.batched + (
            (load_relaxed_u64(&context.activity) - context.activity_before) >> 1)
    found = []
    for index in range(processes_usable(&handle.map)):
        slot = handle.map.processes + index
        claim = load_acquire_u64(&slot.used)
        gone = process_is_dead(&handle.map, index)
        if claim != 0 and not (gone and claim & CLAIM_LEAVING):
            found.append({
                "index": index,
                "pid": slot.pid,
                "command": (<bytes> slot.command[:15]).split(b"\0")[0].decode(errors="replace"),
                "attached_ns": slot.attached_ns,
                "alive": not gone,
                "here": index == handle.map.local.process_index,
                "reads": bool(claim & CLAIM_READS),
                "operations": operations.get(index + 1, 0),
                "waits": waits.get(index + 1, 0),
            })
    return found


cdef object map_facts(MapHandle handle):
    """The figures that info() is made of."""
    cdef Statistics *statistics
    cdef uint64_t index, contexts, parked
    cdef uint64_t active_ns = 0
    expect_open(handle)
    statistics = &handle.map.header.statistics
    contexts = 0
    for index in range(contexts_usable(&handle.map)):
        contexts += context_at(&handle.map, index).owner != 0
        active_ns = max(active_ns, load_relaxed_u64(&context_at(&handle.map, index).active_ns))
    parked = 0
    for index in range(handle.map.depot_count):
        parked += depot_parked(load_relaxed_u64(&handle.map.depots[index].word))
    return {
        "layout_version": LAYOUT_VERSION,
        "buckets": table_count(&handle.map),
        "bytes_reserved": handle.map.segment_bytes,
        "bytes_most": geometry_bytes_most(&handle.map),
        "element_stride": handle.map.stride,
        "depots": handle.map.depot_count,
        "elements_parked": parked,
        "contexts": contexts,
        "contexts_max": handle.map.context_max,
        "grows": statistics.grows,
        "shrinks": statistics.shrinks,
        "growth_stopped": statistics.growth_stopped,
        "blocks_released": statistics.blocks_released,
        "releases_postponed": statistics.releases_postponed,
        "recoveries": statistics.recoveries,
        "owners_found_dead": statistics.owners_found_dead,
        "operations_finished": statistics.operations_finished,
        "operations_undone": statistics.operations_undone,
        "recovery_ns_max": statistics.recovery_ns_max,
        "created_ns": handle.map.header.created_ns,
        "last_activity_ns": max(active_ns, handle.map.header.created_ns),
        "frozen": handle.map.header.frozen != 0,
        "membarrier": bool(handle.map.use_membarrier),
        "liveness": ("none (read only)" if handle.map.peeks else
                     "not attached yet" if not handle.map.local.registered else
                     "kernel lock kept by a descriptor" if handle.standing.lock_fd >= 0 else
                     "kernel lock kept by a mapping" if handle.standing.lock_page != NULL else
                     "process id"),
    }


cdef object object_facts(MapHandle handle):
    """The figures of info() about objects; None if the map has none. Exact at rest."""
    cdef ObjectFacts facts
    cdef Op op
    expect_open(handle)
    if handle.map.objects == NULL:
        return None
    enter_to_look(handle, &op)
    with nogil:
        objects_count(&op, &facts)
    leave_reading(handle, &op)
    return {
        "count": facts.count, "bytes_in_use": facts.bytes_in_use,
        "bytes_committed": facts.pages * PAGE_BYTES,
        "bytes_waiting": facts.pages_waiting * PAGE_BYTES,
        "waiting_for": waiting_pids(handle) if facts.pages_waiting else [],
        "pinned": facts.pinned, "views_copied": handle.views_copied,
        "max_bytes": handle.map.max_bytes,
    }


cdef uint64_t claims_held(Op *op) noexcept nogil:
    """How many expired or blank entries sections hold, as claims do (claiming.pxi). A count of
    words that other processes may change during the call; exact at rest."""
    cdef Map *map = op.map
    cdef uint64_t at, index
    cdef uint64_t held = 0
    cdef Found found
    for at in range(contexts_usable(map)):     # at most CONTEXT_MAX
        index = target_index(load_relaxed_u64(&context_at(map, at).target))
        if index == 0 or index >= map.element_max or (
                object_memory_ready(op, &map.element_pool, index) != OK):   # target may be old
            continue
        found.element = element_at(map, index)
        # Acquire: pairs with the CAS of element_hold; a blank's deadline was stored before it.
        found.header = load_acquire_u64(&found.element.header)
        if element_state(found.header) == ELEMENT_LOCKED and word_held_by(found.header, at):
            held += element_expired(map, &found)
    return held


cdef tuple cache_counts(MapHandle handle):
    """What all processes counted of a cache, in the order of CacheCounts; None if it is none."""
    cdef uint64_t at
    cdef int what
    cdef uint64_t sums[COUNT_ALL]
    expect_open(handle)
    if handle.map.cache == NULL:
        return None
    memset(sums, 0, sizeof(sums))
    for at in range(PROCESS_MAX):
        for what in range(COUNT_ALL):
            sums[what] += load_relaxed_u64(<uint64_t *> (handle.map.cache_counts + at) + what)
    return tuple(sums)


cdef object claims_now(MapHandle handle):
    """How many keys of a cache are claimed. Exact at rest."""
    cdef Op op
    cdef uint64_t held
    enter_to_look(handle, &op)
    with nogil:
        held = claims_held(&op)
    leave_reading(handle, &op)
    return held


cdef object check_all(MapHandle handle):
    """Check all invariants in one walk; return (problem, where, exact, figures)."""
    cdef Report report
    cdef Op op
    memset(&report, 0, sizeof(report))
    enter_to_look(handle, &op)
    with nogil:
        hazard_any(&op)
        check_map(&handle.map, op.context, &report)
        hazard_none(&op)
    leave_reading(handle, &op)
    return <int> report.problem, report.where, bool(report.exact), {
        "entries": report.entries,
        "buckets": report.buckets,
        "lines": report.lines,
        "chain_longest": report.chain_longest,
        "elements_parked": report.parked,
        "elements_free": report.free_in_blocks,
        "elements_in_flight": report.owned_by_contexts,
        "credits": report.credits,
    }


cdef object recover_dead(MapHandle handle):
    """Recover every dead process; return how many there were."""
    cdef Op op
    cdef uint64_t found
    if handle.map.read_only:
        return 0
    begin_use(handle, &op)                     # first, so that close() sees it
    try:
        if is_closed(handle):
            return 0
        expect_registered(handle)              # a child of fork may have no slot yet
        with nogil:
            found = recover_all(&handle.map)
    finally:
        end_use(handle)
    return found


cdef object descriptor_of(MapHandle handle):
    """The segment's descriptor, for fstat; the handle still owns it. Raises SystemFailure."""
    cdef int fd
    cdef Op op
    begin_looking(handle, &op)
    fd = segment_fd(&handle.map)
    end_use(handle)
    if fd < 0:
        raise _errors.SystemFailure(
            f"map {handle.name!r}: the program closed its descriptor, and the file cannot be "
            f"opened again by its name ({os_error()}); entries can still be used")
    return fd


def count_expired(MapHandle handle not None):
    """Return about how many expired entries still take room: exact in a map of up to 4,096 buckets
    at rest, else extrapolated from as many buckets. 0 in a map without deadlines.

    Raises MapClosed."""
    cdef Op op
    cdef uint64_t seen = SWEEP_TURN
    cdef uint64_t expired
    expect_open(handle)
    if handle.map.timer_word == 0:
        return 0
    enter_to_look(handle, &op)
    with nogil:
        expired = sweep_count(&handle.map, COUNT_PLACES, &seen)
    leave_reading(handle, &op)
    return expired if seen >= SWEEP_TURN or seen == 0 else expired * SWEEP_TURN // seen


def bucket_facts(MapHandle handle not None, uint64_t first, uint64_t count):
    """(index, level, entries, lines, locked) of the buckets from first on, at most count."""
    cdef BucketFacts facts
    cdef Op op
    cdef uint64_t index
    found = []
    enter_to_look(handle, &op)
    try:
        for index in range(first, first + count):
            if not bucket_figures(&handle.map, index, &facts):
                break
            found.append((index, facts.level, facts.entries, facts.lines, bool(facts.locked)))
    finally:
        leave_reading(handle, &op)
    return found
