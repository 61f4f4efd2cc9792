# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: freethreading_compatible=True
"""The extension module: Python objects, the GIL and errors on top of the core's .pxd files.

It consists of the parts in python/, in the order below: a part uses names of those before it. First
come a handle's state and its attachment to a segment (handle, attachment), what all operations do
(entering, raising, waiting, sweeping, attempts), and the operations by topic. MapCore (map.pxi) and
DictCore (dict.pxi) offer them to Python; shmrhash.RHashMap and shmrhash.SharedDict are their public
subclasses. Every operation that has to wait releases the GIL while it does.
"""
cimport cython
from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo,
    PyBuffer_Release, PyObject_CheckBuffer, PyObject_GetBuffer,
)
from cpython.bytes cimport (
    PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE,
)
from cpython.exc cimport PyErr_CheckSignals
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF
from libc.errno cimport ETIMEDOUT, errno
from libc.stdint cimport INT64_MIN, uint8_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memchr, memcmp, memcpy, memmove, memset, strdup, strerror, strlen

from machine.atomics cimport (
    add_relaxed_u64, cas_acq_rel_u64, store_relaxed_u64, store_release_u64, likely, unlikely,
    load_relaxed_u64, load_acquire_u32, load_acquire_u64, load_relaxed_u32,
    fence_seq_cst, local_put_u64, local_take_u64, read_u32, read_u64, reverse_bits_u32,
    load_relaxed_u16, store_relaxed_u16,
)
from machine.gil cimport (
    FREE_THREADED, ONE_LESS, count_add, count_of, flag_load, flag_store, state_install, state_lock,
    state_unlock,
)
from machine.system cimport (
    close as close_fd, fstat, geteuid, lstat, stat_t, clock_ns, mmap, munmap, F_OFD_GETLK, F_WRLCK,
    MAP_FAILED, MAP_SHARED, PROT_READ, F_OFD_SETLK, F_RDLCK, CLOCK_MONOTONIC, PROT_WRITE,
    futex_sleep,
)
from machine.hashing cimport hash_key, hash_word, KEY_INLINE_MAX, KEY_IS_LONG, key_digest
from machine.number cimport (
    NumberField, FIELD_ADD, FIELD_AND, FIELD_FLOAT, FIELD_MAX, FIELD_MIN, FIELD_OR, FIELD_SIGNED,
    FIELD_UNSIGNED, bits_of, field_compute, field_mask, float_of, sign_extended,
)
from segment.status cimport (
    Status, OK, ABSENT, PRESENT, FULL, NO_MEMORY, CORRUPT, BUSY, NO_CONTEXT, SYSTEM_ERROR,
    OUT_OF_BYTES, RETRY,
)
from segment.layout cimport (
    Header, Context, ProcessSlot, Statistics, HEADER_BYTES, PAGE_BYTES, LINE_BYTES, PROCESS_MAX,
    LAYOUT_VERSION, MAGIC, PAYLOAD_SHIFT, REGION_PROCESSES, REGION_COUNT, REGION_PINS, SCHEMA_MAX,
    SCHEMA_OFFSET, SLOT_COUNT, ELEMENT_LIVE, ELEMENT_LOCKED, ELEMENT_UPD, BELL_COUNT, CELL_BYTES,
    CELL_KEY_BYTES, CONTEXT_MAX, ENTRY_TAGS_MAX, FEATURE_CACHE, FEATURE_CELLS, FEATURE_TAGS,
    FEATURE_WHOLE,
    LOCK_MASK, REGION_CONTEXTS,
)
from segment.words cimport (
    element_state, depot_credit, depot_count as depot_parked, word_locked, word_owner,
)
from segment.classes cimport round_up, LENGTH_MAX, ref_length
from segment.geometry cimport (
    Map, element_at, element_value, geometry_add_cache, geometry_add_objects, geometry_compute_for,
    geometry_bytes_least, geometry_limit_all,
    geometry_bind, context_at, contexts_usable, processes_usable, region_usable,
)
from segment.births cimport birth_now, invalidate, tag_slot, value_bear, value_is_outdated
from segment.fields cimport deadline_passed, field_meets, fields_blank
from segment.header cimport segment_examine, segment_fill, buckets_for, first_bytes
from segment.file cimport (
    segment_open, segment_fd, is_segment, byte_lock, READER_BYTE, REMOVAL_BYTE, byte_is_shared,
)
from memory.operation cimport (
    Op, OP_KEEP_ELEMENT, OP_KEEP_SHIFT, OP_NO_SWEEP, OP_PLAIN, OP_RAW_FIELDS, context_begin,
    context_cancel, context_end, lock_busy, lock_release, lock_try, op_begin, op_end, op_holds,
)
from memory.budget cimport budget_word, regions_pages
from memory.region cimport (
    contexts_are_quiet, fences_demand, membarrier_all, membarrier_register,
)
from memory.pool cimport object_memory_ready
from memory.pins cimport pin_claim, pin_clear, pin_set
from memory.object cimport leftovers_free, object_make, objects_reclaim
from map.ring cimport ring_lose, ring_losses, ring_next, ring_open, ring_read
from map.bell cimport (
    BELL_ANY, OWNER_SLICE_LATE_NS, bell_arm, bell_of_key, bell_of_section, bell_value, bell_word,
    bells_ring_all, bells_section_ring, lock_bell_arm, owner_slice_ns, sooner_ns, tag_of,
    waiting_begin, waiting_end, waiting_say, waiting_say_all, WAIT_CLASSES,
)
from map.chain cimport Found
from map.element cimport (
    STARVING_NS, element_expired, element_hold, element_spin, element_unchanged, starving_say,
)
from map.reference cimport element_replace, ref_protect
from map.table cimport BucketFacts, bucket_figures, table_count, table_guess
from map.read cimport (
    Sight, key_settled,
    read_word_fast, map_find, read_fast, map_lookup, map_contains, entry_bytes, entry_deadline,
    cached_find_fast, cached_find_first, entry_expired, entry_find, entry_read_fast,
    entry_read_first,
)
from map.hold cimport op_give_back
from map.remove cimport map_delete, map_delete_held, Clearing, clear_step, entry_expire
from map.write cimport (
    update_word_fast, word_change_fast, word_change_first, map_update, UPDATE_ANY, UPDATE_EXIST,
    UPDATE_NOEXIST, map_apply, map_lookup_unlocked, map_swap, entry_touch,
)
from map.section cimport Section, section_abandon, section_commit, section_open, section_remove
from map.journal cimport (
    Member, journal_bucket_is_free, journal_commit, journal_store, member_remove,
)
from map.walk cimport Position, EntryBuffer, ORDER_END, walk_on
from map.batch cimport (
    Batch, BATCH_LOOKUP, BATCH_CONTAINS, BATCH_UPDATE, BATCH_DELETE, BATCH_ADD, batch_go_on,
)
from cells.barrier cimport (
    BROKEN, COME_LIMIT, barrier_come, barrier_end_generation, barrier_enter, barrier_generation,
    barrier_give_up, barrier_look, barrier_pass, barrier_sleep,
)
from cells.cell cimport (
    CELL_BARRIER, CELL_CONDITION, CELL_COUNTER, CELL_EVENT, CELL_LOCK, CELL_RLOCK, CELL_RWLOCK,
    CELL_SEMAPHORE, CELL_SPARE, HELD_DEPTH, HELD_SHARES, HELD_SHARES_NEXT, HELD_SINCE, HELD_THREAD,
    Cell, cell_at, held_name, held_set, held_word,
)
from cells.circle cimport (
    CIRCLE_PATIENCE_NS, CIRCLE_REST_TIMES, SPACES_MAX, Circle, Link, Spaces, WAIT_ENDLESS,
    WAIT_LINK, WAIT_WRITES, circle_find, link_say, process_name,
)
from cells.condition cimport (
    TOLD, WAITING, WAIT_STATE, WAIT_WORD, condition_enter, condition_leave, condition_notify,
    condition_pass_on, condition_sleep, dead_waiters_recover, wait_end, wait_say, wait_turn_of,
    wait_word, waits_for,
)
from cells.flag cimport flag_came, flag_clear, flag_generation, flag_is_set, flag_set, flag_sleep
from cells.mutex cimport (
    ORPHAN, MutexWait, mutex_give_up, mutex_intend, mutex_look, mutex_release, mutex_take_free,
    mutex_wait,
)
from cells.rwlock cimport (
    READERS_MASK, WRITER, rwlock_arm, rwlock_give, rwlock_give_up, rwlock_has, rwlock_sleep,
    rwlock_take,
)
from cells.shares cimport (
    COUNT_MAX, count_give, count_give_up, count_sleep, count_take, shares_give, shares_take,
    word_count,
)
from cells.takeaway cimport mutex_take_away
from processes.claim cimport CLAIM_LEAVING, CLAIM_READS, claim_is_dead
from processes.liveness cimport Standing, context_note_time, process_can_be_judged, process_is_dead
from processes.recover cimport owner_recover, process_recover, recover_all, recover_those_inside
from processes.forking cimport Unborn, unborn_adopt, unborn_claim, unborn_release
from processes.wait cimport (
    element_of_word, is_element_word, sched_yield, sleep_ns, wait_step, word_stands,
)
from processes.listener cimport (
    EFD_CLOEXEC, EFD_NONBLOCK, Ear, EarWord, Listener, ear_add, ear_arm, ear_close, ear_drop,
    ear_moved, ear_open, ear_word_add, ear_word_drop, ear_word_moved, ear_word_note, ears_forget,
    ears_tell, eventfd, eventfd_read, listener_go_on, listener_prepare, listener_stop,
    pthread_mutex_lock, pthread_mutex_unlock,
)
from processes.attach cimport (
    map_aligned, attach_map, attach_register, attach_claim, attach_rest, attach_end, attach_leave,
    context_may_stay,
)
from processes.check_objects cimport ObjectFacts, context_keeps_any, objects_count
from processes.check cimport Report, check_map

import random
import struct
import sys
from operator import index as as_index
from types import GenericAlias

from shmrhash import _errors, _trust

cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident()
    bint PyLong_CheckExact(object thing)
    unsigned long long PyLong_AsUnsignedLongLongMask(object number) except? -1
    char *PyByteArray_AS_STRING(object buffer)
    PyObject *new_bytes "PyBytes_FromStringAndSize"(const void *content, Py_ssize_t size) noexcept
    PyObject *new_int "PyLong_FromLongLong"(long long number) noexcept

cdef extern from "machine/recycle.h":
    ctypedef struct Recycler:
        uint64_t made
    void recycler_begin(Recycler *recycler)
    void recycler_end(Recycler *recycler)
    object recycled_bytes(Recycler *recycler, const void *content, Py_ssize_t size)
    PyObject *new_recycled_bytes "recycled_bytes"(
        Recycler *recycler, const void *content, Py_ssize_t size) noexcept
    object recycled_int(Recycler *recycler, int64_t number)
    PyObject *new_recycled_int "recycled_int"(Recycler *recycler, int64_t number) noexcept
    PyObject *new_recycled_text "recycled_text"(
        Recycler *recycler, const void *content, Py_ssize_t size) noexcept
    PyObject *text_new(const void *content, Py_ssize_t size) noexcept
    object object_taken(PyObject *reference)
    object recycled_pair(PyObject **kept, PyObject *key, PyObject *value)

cdef extern from "machine/exact.h":
    bint text_digest "shm_text_digest" (object text, uint64_t *out) noexcept
    bint int_word "shm_int_word" (object number, uint64_t *out) noexcept

cdef extern from "machine/generation.h":
    uint64_t process_generation
    int generation_install()
cdef extern from "<unistd.h>" nogil:
    ssize_t pread(int fd, void *buffer, size_t size, long offset) noexcept


include "python/segments.pxi"
include "python/handle.pxi"
include "python/greenlets.pxi"
include "python/attachment.pxi"
include "python/rejoining.pxi"
include "python/entering.pxi"
include "python/raising.pxi"
include "python/waiting.pxi"
include "python/sweeping.pxi"
include "python/evicting.pxi"
include "python/attempts.pxi"
include "python/reading.pxi"
include "python/writing.pxi"
include "python/changing.pxi"
include "python/clearing.pxi"
include "python/views.pxi"
include "python/forking.pxi"
include "python/objects.pxi"
include "python/figures.pxi"
include "python/bulk.pxi"
include "python/entries.pxi"
include "python/iterator.pxi"
include "python/sections.pxi"
include "python/mapsection.pxi"
include "python/several.pxi"
include "python/notifying.pxi"
include "python/watching.pxi"
include "python/ringing.pxi"
include "python/privates.pxi"
include "python/cells.pxi"
include "python/showing.pxi"
include "python/circles.pxi"
include "python/cellwaits.pxi"
include "python/locks.pxi"
include "python/rlocks.pxi"
include "python/semaphores.pxi"
include "python/rwlocks.pxi"
include "python/conditions.pxi"
include "python/lockusers.pxi"
include "python/map.pxi"
include "python/plainkeys.pxi"
include "python/codec.pxi"
include "python/storing.pxi"
include "python/dicthandle.pxi"
include "python/dictquick.pxi"
include "python/dictsection.pxi"
include "python/dictkeys.pxi"
include "python/dictwalk.pxi"
include "python/dict.pxi"
include "python/invalidating.pxi"
include "python/shadows.pxi"
include "python/claiming.pxi"
include "python/refreshing.pxi"
include "python/keeping.pxi"
include "python/cachequick.pxi"
include "python/cache.pxi"
include "python/memoizing.pxi"
include "python/near.pxi"
