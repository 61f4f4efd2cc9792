# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# What keeps the threads of a process apart with and without a GIL; gil.h says how.
from libc.stdint cimport uint64_t

cdef extern from "machine/gil.h" nogil:
    const bint FREE_THREADED "SHM_FREE_THREADED"       # this build has no GIL: a constant
    void state_lock "shm_state_lock" () noexcept
    void state_unlock "shm_state_unlock" () noexcept
    int state_install "shm_state_install" () noexcept
    uint64_t count_add "shm_count_add" (uint64_t *count, uint64_t more) noexcept
    uint64_t count_of "shm_count_of" (const uint64_t *count) noexcept
    bint flag_load "shm_flag_load" (const bint *flag) noexcept
    void flag_store "shm_flag_store" (bint *flag, bint value) noexcept

cdef enum:
    ONE_LESS = 0xFFFFFFFFFFFFFFFFULL           # for count_add
