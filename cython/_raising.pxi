# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: what is raised when an operation ends otherwise than well.


cdef str os_error():
    return (<bytes> strerror(errno)).decode(errors="replace")


cdef int expect_membarrier(MapHandle handle) except -1:
    if not membarrier_all(&handle.map):
        raise _errors.Error(
            f"map {handle.name!r} cannot be frozen: the system refuses membarrier(2), so nobody "
            f"could tell that every writer has seen it; allow it in the container's seccomp "
            f"profile (Linux 4.16 or later has it)")
    return 0


cdef str waiting_text(MapHandle handle):
    """For whose sake memory that holds nothing cannot go back; empty if there is none."""
    cdef ObjectFacts facts
    objects_count(&handle.map, &facts)
    if facts.pages_waiting == 0:
        return ""
    pids = waiting_pids(handle)
    return (f"; {facts.pages_waiting * PAGE_BYTES} of them are empty, and wait for operations that "
            f"do not go on, of processes {pids} (stopped?)")


cdef raise_status(MapHandle handle, Status status, Op *op):
    """Turn a final status into the exception it stands for: the only place that does."""
    if status == FULL:
        raise _errors.MapFull(
            f"map {handle.name!r} has all of its {handle.map.max_entries} entries; delete some or "
            f"create it with a larger max_entries")
    if status == NO_MEMORY:
        raise _errors.SegmentFull(_errors.no_space_message(
            handle.name, 0 if op == NULL else op.bytes_wanted, handle.map.path))
    if status == OUT_OF_BYTES:
        raise _errors.OutOfMemory(
            f"map {handle.name!r} may hold max_bytes={handle.map.max_bytes} bytes of objects; "
            f"{budget_word(&handle.map.objects.budget) * PAGE_BYTES} are taken, "
            f"{op.bytes_wanted} more are wanted{waiting_text(handle)}; delete some or create it "
            f"with a larger max_bytes")
    if status == PRESENT:
        raise _errors.KeyExists(f"map {handle.name!r} has this key already (BPF_NOEXIST)")
    if status == ABSENT:
        raise _errors.KeyNotFound(f"map {handle.name!r} has no such key")
    if status == NO_CONTEXT:
        raise _errors.TooManyProcesses(
            f"map {handle.name!r}: all {PROCESS_MAX} process slots or operation contexts are in "
            f"use; close handles or use fewer processes")
    if status == BUSY:
        raise _errors.LockTimeout(f"map {handle.name!r}: somebody else is extending the segment")
    if status == SYSTEM_ERROR:
        raise _errors.Error(f"map {handle.name!r}: cannot reach its file again: {os_error()}")
    raise _errors.SegmentCorrupt(
        f"map {handle.name!r}: the segment holds what no operation leaves "
        f"(status {<int> status}); run check(), then unlink and recreate it")


cdef refuse_buffer(
        MapHandle handle, str what, object thing, Py_ssize_t size, uint64_t wanted):
    if size < 0:
        raise TypeError(
            f"{what} must be bytes or another buffer of {wanted} bytes, not "
            f"{type(thing).__name__}")
    raise _errors.InvalidArgument(
        f"{what} has {size} bytes, map {handle.name!r} has {what}s of {wanted} bytes")
