# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: the figures of info(), check() and the tools that look after segments.
from memory.hazard cimport hazard_any, hazard_none


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


@cython.auto_pickle(False)
cdef class ObservedHandle(MapHandle):
    """MapHandle with the figures of its segment and of the processes in it."""

    def _forget_lock_descriptor(self):
        """In a child of fork: close the descriptor that would keep the parent's lock."""
        if self.standing != NULL and self.standing.lock_fd >= 0:
            close_fd(self.standing.lock_fd)
            self.standing.lock_fd = -1

    def _processes(self):
        """{index, pid, command, attached_ns, alive, reads, operations, waits} of each used slot,
        except those of processes that ended by themselves, which recovery gives back."""
        cdef uint64_t index, at, claim
        cdef bint gone
        cdef uint64_t contexts = contexts_usable(&self.map)
        cdef ProcessSlot *slot
        cdef Context *context
        cdef dict operations = {}
        cdef dict waits = {}
        for at in range(contexts):             # at most CONTEXT_MAX
            context = context_at(&self.map, at)
            index = load_acquire_u64(&context.owner)
            waits[index] = waits.get(index, 0) + context.waits
            operations[index] = operations.get(index, 0) + context.batched + (
                (load_relaxed_u64(&context.activity) - context.activity_before) >> 1)
        found = []
        for index in range(processes_usable(&self.map)):
            slot = self.map.processes + index
            claim = load_acquire_u64(&slot.used)
            gone = process_is_dead(&self.map, index)
            if claim != 0 and not (gone and claim & CLAIM_LEAVING):
                found.append({
                    "index": index,
                    "pid": slot.pid,
                    "command": (<bytes> slot.command[:15]).split(b"\0")[0].decode(errors="replace"),
                    "attached_ns": slot.attached_ns,
                    "alive": not gone,
                    "reads": bool(claim & CLAIM_READS),
                    "operations": operations.get(index + 1, 0),
                    "waits": waits.get(index + 1, 0),
                })
        return found

    def _facts(self):
        """The figures that info() is made of."""
        cdef Statistics *statistics
        cdef uint64_t index, contexts, parked
        cdef uint64_t active_ns = 0
        self._expect_open()
        statistics = &self.map.header.statistics
        contexts = 0
        for index in range(contexts_usable(&self.map)):
            contexts += context_at(&self.map, index).owner != 0
            active_ns = max(active_ns, load_relaxed_u64(&context_at(&self.map, index).active_ns))
        parked = 0
        for index in range(self.map.depot_count):
            parked += depot_parked(load_relaxed_u64(&self.map.depots[index].word))
        return {
            "layout_version": LAYOUT_VERSION,
            "buckets": table_count(&self.map),
            "bytes_reserved": self.map.segment_bytes,
            "element_stride": self.map.stride,
            "depots": self.map.depot_count,
            "elements_parked": parked,
            "contexts": contexts,
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
            "created_ns": self.map.header.created_ns,
            "last_activity_ns": max(active_ns, self.map.header.created_ns),
            "frozen": self.map.header.frozen != 0,
            "membarrier": bool(self.map.use_membarrier),
            "liveness": ("none (read only)" if self.map.peeks else
                         "not attached yet" if not self.map.local.registered else
                         "kernel lock kept by a descriptor" if self.standing.lock_fd >= 0 else
                         "kernel lock kept by a mapping" if self.standing.lock_page != NULL else
                         "process id"),
        }

    def _descriptor(self):
        """The segment's descriptor, for fstat; the handle still owns it. Raises SystemFailure."""
        cdef int fd
        self._expect_open()
        fd = segment_fd(&self.map)
        if fd < 0:
            raise _errors.SystemFailure(
                f"map {self.name!r}: the program closed its descriptor, and the file cannot be "
                f"opened again by its name ({os_error()}); entries can still be used")
        return fd

    def _identity(self):
        """Device and inode of the segment's file, also after close()."""
        return self.map.device, self.map.inode

    def _leave_name(self):
        """Note that this process is ending by itself: from now on it does not keep the name of an
        ephemeral map, and once it is dead, it does not count as killed."""
        if self.map.base != NULL:
            mark_leaving(&self.map, True)

    def _path_bytes(self):
        return <bytes> self.map.path

    def _check(self):
        """Check all invariants in one walk; return (problem, where, exact, figures)."""
        cdef Report report
        cdef Op op
        memset(&report, 0, sizeof(report))
        self._enter_to_look(&op)
        with nogil:
            hazard_any(&op)
            check_map(&self.map, op.context, &report)
            hazard_none(&op)
        self._leave_reading(&op)
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

    def _recover(self):
        """Recover every dead process; return how many there were."""
        cdef Op op
        cdef uint64_t found
        if self.is_closed or self.map.read_only:
            return 0
        expect_registered(self)                # a child of fork may have no slot yet
        self._begin_use(&op)
        with nogil:
            found = recover_all(&self.map)
        self._end_use()
        return found
