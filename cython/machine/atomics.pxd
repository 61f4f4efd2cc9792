# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# The names of atomics.h for the core. The orders are explained there.
#
# In the core, a comment at each ordered access names the access that it pairs with.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "machine/atomics.h" nogil:
    uint64_t load_relaxed_u64 "shm_load_relaxed_u64" (const uint64_t *word) noexcept
    uint64_t load_acquire_u64 "shm_load_acquire_u64" (const uint64_t *word) noexcept
    void store_relaxed_u64 "shm_store_relaxed_u64" (uint64_t *word, uint64_t value) noexcept
    void store_release_u64 "shm_store_release_u64" (uint64_t *word, uint64_t value) noexcept
    uint8_t load_relaxed_u8 "shm_load_relaxed_u8" (const uint8_t *byte) noexcept
    void store_relaxed_u8 "shm_store_relaxed_u8" (uint8_t *byte, uint8_t value) noexcept
    uint16_t load_relaxed_u16 "shm_load_relaxed_u16" (const uint16_t *word) noexcept
    void store_relaxed_u16 "shm_store_relaxed_u16" (uint16_t *word, uint16_t value) noexcept
    uint32_t load_relaxed_u32 "shm_load_relaxed_u32" (const uint32_t *word) noexcept
    uint32_t load_acquire_u32 "shm_load_acquire_u32" (const uint32_t *word) noexcept
    void store_relaxed_u32 "shm_store_relaxed_u32" (uint32_t *word, uint32_t value) noexcept
    void store_release_u32 "shm_store_release_u32" (uint32_t *word, uint32_t value) noexcept
    uint64_t add_relaxed_u64 "shm_add_relaxed_u64" (uint64_t *word, uint64_t value) noexcept
    uint64_t add_seq_cst_u64 "shm_add_seq_cst_u64" (uint64_t *word, uint64_t value) noexcept
    uint64_t load_seq_cst_u64 "shm_load_seq_cst_u64" (const uint64_t *word) noexcept
    uint32_t load_seq_cst_u32 "shm_load_seq_cst_u32" (const uint32_t *word) noexcept
    uint64_t or_seq_cst_u64 "shm_or_seq_cst_u64" (uint64_t *word, uint64_t bits) noexcept
    uint32_t or_seq_cst_u32 "shm_or_seq_cst_u32" (uint32_t *word, uint32_t bits) noexcept
    uint64_t and_seq_cst_u64 "shm_and_seq_cst_u64" (uint64_t *word, uint64_t bits) noexcept
    bint cas_acquire_u64 "shm_cas_acquire_u64" (
        uint64_t *word, uint64_t expected, uint64_t desired) noexcept
    bint cas_acq_rel_u64 "shm_cas_acq_rel_u64" (
        uint64_t *word, uint64_t expected, uint64_t desired) noexcept
    bint cas_seq_cst_u64 "shm_cas_seq_cst_u64" (
        uint64_t *word, uint64_t expected, uint64_t desired) noexcept
    bint cas_seq_cst_u32 "shm_cas_seq_cst_u32" (
        uint32_t *word, uint32_t expected, uint32_t desired) noexcept

    void fence_acquire "shm_fence_acquire" () noexcept
    void fence_release "shm_fence_release" () noexcept
    void fence_seq_cst "shm_fence_seq_cst" () noexcept
    void fence_after_cas "shm_fence_after_cas" () noexcept
    void compiler_fence "shm_compiler_fence" () noexcept

    uint64_t local_take_u64 "shm_local_take_u64" (uint64_t *slot) noexcept
    bint local_put_u64 "shm_local_put_u64" (uint64_t *slot, uint64_t value) noexcept

    void pause "shm_pause" () noexcept
    void prefetch "shm_prefetch" (const void *address) noexcept
    void prefetch_write "shm_prefetch_write" (const void *address) noexcept
    bint likely "shm_likely" (bint condition) noexcept
    bint unlikely "shm_unlikely" (bint condition) noexcept
    uint32_t count_trailing_zeros "shm_count_trailing_zeros" (uint64_t word) noexcept
    uint32_t count_leading_zeros "shm_count_leading_zeros" (uint64_t word) noexcept
    uint64_t multiply_high "shm_multiply_high" (uint64_t a, uint64_t b) noexcept
    uint32_t reverse_bits_u32 "shm_reverse_bits_u32" (uint32_t word) noexcept

    uint64_t multiply_fold "shm_multiply_fold" (uint64_t a, uint64_t b) noexcept
    uint32_t match7 "shm_match7" (const uint32_t *tags, uint32_t tag) noexcept

    uint64_t read_u64 "shm_read_u64" (const void *address) noexcept
    uint32_t read_u32 "shm_read_u32" (const void *address) noexcept
    uint64_t read_tail "shm_read_tail" (const void *address, uint64_t size) noexcept
    void copy_out "shm_copy_out" (
        void *private_bytes, const uint64_t *shared_words, uint64_t size) noexcept
    void copy_out_words "shm_copy_out_words" (
        void *private_bytes, const uint64_t *shared_words, uint64_t size) noexcept
    void copy_in "shm_copy_in" (
        uint64_t *shared_words, const void *private_bytes, uint64_t size) noexcept
    void copy_words "shm_copy_words" (
        uint64_t *to_words, const uint64_t *from_words, uint64_t word_count) noexcept
    bint words_equal "shm_equal" (
        const uint64_t *shared_words, const void *private_bytes, uint64_t size) noexcept

    void static_assert "SHM_STATIC_ASSERT" (bint condition) noexcept
    void shm_assert "SHM_ASSERT" (bint condition) noexcept
