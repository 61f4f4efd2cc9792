# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: the exceptions of operations that fail.


cdef int expect_membarrier(MapHandle handle) except -1:
    """Raise if membarrier(2) is refused, without which it cannot be known what is under way."""
    if not membarrier_all(&handle.map):
        raise _errors.Unsupported(_errors.missing_message(
            handle.name, "membarrier(2) (Linux 4.16), which freeze() needs", 0))
    return 0


cdef str who_is(MapHandle handle, uint64_t index):
    """Words for the process of a slot: its pid and command."""
    cdef ProcessSlot *slot = handle.map.processes + index
    command = (<bytes> slot.command[:15]).split(b"\0")[0].decode(errors="replace")
    return f"process {slot.pid} ({command})" if command else f"process {slot.pid}"


cdef raise_timeout(MapHandle handle, Op *op, int64_t waited_ns):
    """Raise LockTimeout, which names the owner of the lock that was waited for."""
    cdef uint64_t owner = word_owner(op.wait_seen)
    cdef uint64_t index = PROCESS_MAX
    if word_locked(op.wait_seen) and owner < contexts_usable(&handle.map):
        index = load_acquire_u64(&context_at(&handle.map, owner).owner) - 1
    about = f"map {handle.name!r}: waited {waited_ns / 1e9:.1f} s for a lock "
    if index >= processes_usable(&handle.map):
        raise _errors.LockTimeout(f"{about}that was held at each attempt; try again")
    name = who_is(handle, index)
    if process_is_dead(&handle.map, index):
        why = ("a read-only handle cannot recover it; gc() or any writer can"
               if handle.map.read_only else
               "its recovery needs a lock that another process holds; try again")
        raise _errors.LockTimeout(f"{about}of {name}, which is dead: {why}")
    if not process_can_be_judged(&handle.map, index):
        raise _errors.LockTimeout(
            f"{about}of {name}; this process cannot tell whether that one is alive (it has no "
            f"descriptor of the file left, or the two are in different PID namespaces); if it is "
            f"dead, gc() by a process that can open the map recovers it")
    raise _errors.LockTimeout(
        f"{about}of {name}, which is alive but does not release it (in a locked section, stopped, "
        f"or swapped out?); continue or kill it")


cdef list waiting_pids(MapHandle handle):
    """The pids of the processes that keep empty blocks of objects from going back: they are inside
    operations, or idle and rely on a membarrier that this process may not call. The caller is
    inside no operation itself."""
    cdef uint64_t index, process
    pids = []
    for index in range(contexts_usable(&handle.map)):      # at most CONTEXT_MAX
        process = load_acquire_u64(&context_at(&handle.map, index).owner) - 1
        if process < processes_usable(&handle.map) and context_keeps_any(
                &handle.map, NULL, index):
            pids.append((handle.map.processes + process).pid)
    return sorted(set(pids))


cdef str waiting_text(MapHandle handle):
    """How much empty memory of objects cannot be given back, and because of which processes; '' if
    none."""
    cdef ObjectFacts facts
    cdef Op op
    enter_to_look(handle, &op)
    with nogil:
        objects_count(&op, &facts)
    leave_reading(handle, &op)
    if facts.pages_waiting == 0:
        return ""
    pids = waiting_pids(handle)
    if not handle.map.use_membarrier:
        return (f"; {facts.pages_waiting * PAGE_BYTES} of them are empty, but membarrier(2) is "
                f"refused to this process, so it cannot know whether processes {pids} still read "
                f"them")
    return (f"; {facts.pages_waiting * PAGE_BYTES} of them are empty, and wait for operations of "
            f"processes {pids} that do not end (are they stopped?)")


cdef int expect_room_in_space(MapHandle handle, Status status) except -1:
    """Of raise_status: what is full in a space are not entries that could be deleted."""
    if status == FULL:
        raise _errors.MapFull(
            f"space {handle.name!r} has all of its {handle.map.max_entries} primitives, and each "
            f"stays as long as the space; create the space with a larger max_entries")
    if status == NO_CONTEXT:
        raise _errors.TooManyProcesses(
            f"space {handle.name!r}: all of its {CONTEXT_MAX} contexts are in use, by locks and "
            f"permits that are held and by threads that wait, or {PROCESS_MAX} processes use it; "
            f"release some locks, or use several spaces")
    return 0


cdef uint64_t bytes_taken(Map *map) noexcept:
    """Bytes that max_bytes limits, and that are taken now. The map has objects."""
    cdef uint64_t pages = budget_word(&map.objects.budget) + regions_pages(map)
    if map.counts_all:                         # with the fixed part
        pages += map.max_bytes // PAGE_BYTES - map.pages_most
    return pages * PAGE_BYTES


cdef raise_status(MapHandle handle, Status status, Op *op):
    """Raise the exception that a final status stands for. No other function does so."""
    if handle.map.is_space:
        expect_room_in_space(handle, status)
    if status == FULL:
        raise _errors.MapFull(
            f"map {handle.name!r} has all of its {handle.map.max_entries} entries; delete some or "
            f"create it with a larger max_entries")
    cdef int number = errno if op == NULL else op.error_number
    if status == NO_MEMORY and number in _errors.REFUSALS:
        raise _errors.Unsupported(_errors.missing_message(
            handle.name,
            "madvise(MADV_POPULATE_WRITE) (Linux 5.14), and fallocate(2) as a substitute", number))
    if status == NO_MEMORY:
        raise _errors.SegmentFull(_errors.no_space_message(
            handle.name, 0 if op == NULL else op.bytes_wanted, handle.map.path))
    if status == OUT_OF_BYTES:
        raise _errors.OutOfMemory(
            f"map {handle.name!r} may {'take' if handle.map.counts_all else 'hold'} "
            f"max_bytes={handle.map.max_bytes} bytes"
            f"{'' if handle.map.counts_all else ' of objects'}; "
            f"{bytes_taken(&handle.map)} are taken, {op.bytes_wanted} more are needed"
            f"{waiting_text(handle)}; delete some or create it with a larger max_bytes")
    if status == PRESENT:
        raise _errors.KeyExists(f"map {handle.name!r} has this key already (BPF_NOEXIST)")
    if status == ABSENT:
        raise _errors.KeyNotFound(f"map {handle.name!r} has no such key")
    if status == NO_CONTEXT:
        raise _errors.TooManyProcesses(
            f"map {handle.name!r}: all {PROCESS_MAX} process slots or all {handle.map.context_max} "
            f"operation contexts are in use; close handles, end sections, or use fewer processes")
    if status == SYSTEM_ERROR:
        raise _errors.Error(
            f"map {handle.name!r}: this process cannot register: the file cannot be opened again "
            f"({os_error()}), and /proc does not tell the PID namespace; mount /proc, or use the "
            f"map once before closing descriptors, changing the user or the root")
    raise _errors.SegmentCorrupt(
        f"map {handle.name!r}: the segment is damaged: no operation leaves such contents "
        f"(status {<int> status}); run check(), then unlink and recreate it")


cdef refuse_buffer(
        MapHandle handle, str what, object thing, Py_ssize_t size, uint64_t wanted):
    if size < 0:
        raise TypeError(
            f"{what} must be bytes or another buffer of {wanted} bytes, not "
            f"{type(thing).__name__}")
    raise _errors.InvalidArgument(
        f"{what} has {size} bytes, but map {handle.name!r} has {what}s of {wanted} bytes")


cdef bad_flags(MapHandle handle, flags, str wanted, bint writing=False):
    if writing and handle.map.read_only:     # the kernel's order: EPERM, EINVAL
        expect_open(handle)
        expect_writable(handle)
    raise _errors.InvalidArgument(f"flags {as_index(flags)} are not valid: {wanted}")
