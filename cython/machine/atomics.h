/* What Cython cannot express: atomic accesses, fences, the 128-bit product, the vector match of a
 * bucket's tags, static assertions. No state and no policy live here.
 *
 * Orders. A _relaxed access is atomic and unordered; _acquire and _release pair up as in C11; all
 * _seq_cst accesses have one order. The fences are C11 fences: fence_acquire() keeps earlier loads
 * before later accesses, fence_release() keeps earlier accesses before later stores.
 * compiler_fence() orders one thread against its own death only: after SIGKILL every retired store
 * is visible and no later one has happened, so what a process records for its recovery needs
 * program order, kept by the compiler, and nothing more.
 */
#ifndef SHM_ATOMICS_H
#define SHM_ATOMICS_H

#ifndef __linux__
#error "shmrhash needs Linux: maps use its futexes, open-file-description locks and tmpfs"
#endif
#if __SIZEOF_POINTER__ != 8
#error "shmrhash needs a 64-bit machine: maps are mapped whole, into more address space than 32 bits have"
#endif
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "shmrhash stores little-endian words; this machine is big-endian"
#endif

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <stdio.h>

#if defined(__SSE2__) && !defined(__SANITIZE_THREAD__)
#include <emmintrin.h>
#elif defined(__ARM_NEON) && !defined(__SANITIZE_THREAD__)
#include <arm_neon.h>
#endif

#define shm_load_relaxed_u64(p) __atomic_load_n((const uint64_t *)(p), __ATOMIC_RELAXED)
#define shm_load_acquire_u64(p) __atomic_load_n((const uint64_t *)(p), __ATOMIC_ACQUIRE)
#define shm_store_relaxed_u64(p, v) __atomic_store_n((uint64_t *)(p), (uint64_t)(v), __ATOMIC_RELAXED)
#define shm_store_release_u64(p, v) __atomic_store_n((uint64_t *)(p), (uint64_t)(v), __ATOMIC_RELEASE)
#define shm_load_relaxed_u8(p) __atomic_load_n((const uint8_t *)(p), __ATOMIC_RELAXED)
#define shm_store_relaxed_u8(p, v) __atomic_store_n((uint8_t *)(p), (uint8_t)(v), __ATOMIC_RELAXED)
#define shm_load_relaxed_u16(p) __atomic_load_n((const uint16_t *)(p), __ATOMIC_RELAXED)
#define shm_store_relaxed_u16(p, v) __atomic_store_n((uint16_t *)(p), (uint16_t)(v), __ATOMIC_RELAXED)
#define shm_load_relaxed_u32(p) __atomic_load_n((const uint32_t *)(p), __ATOMIC_RELAXED)
#define shm_load_acquire_u32(p) __atomic_load_n((const uint32_t *)(p), __ATOMIC_ACQUIRE)
#define shm_store_relaxed_u32(p, v) __atomic_store_n((uint32_t *)(p), (uint32_t)(v), __ATOMIC_RELAXED)
#define shm_store_release_u32(p, v) __atomic_store_n((uint32_t *)(p), (uint32_t)(v), __ATOMIC_RELEASE)
#define shm_load_seq_cst_u64(p) __atomic_load_n((const uint64_t *)(p), __ATOMIC_SEQ_CST)
#define shm_load_seq_cst_u32(p) __atomic_load_n((const uint32_t *)(p), __ATOMIC_SEQ_CST)
#define shm_or_seq_cst_u64(p, v) __atomic_fetch_or((uint64_t *)(p), (uint64_t)(v), __ATOMIC_SEQ_CST)
#define shm_or_seq_cst_u32(p, v) __atomic_fetch_or((uint32_t *)(p), (uint32_t)(v), __ATOMIC_SEQ_CST)
#define shm_and_seq_cst_u64(p, v) __atomic_fetch_and((uint64_t *)(p), (uint64_t)(v), __ATOMIC_SEQ_CST)
#define shm_add_seq_cst_u64(p, v) __atomic_fetch_add((uint64_t *)(p), (uint64_t)(v), __ATOMIC_SEQ_CST)
#define shm_add_relaxed_u64(p, v) __atomic_fetch_add((uint64_t *)(p), (uint64_t)(v), __ATOMIC_RELAXED)

static inline int shm_cas_acquire_u64(uint64_t *p, uint64_t expected, uint64_t desired)
{
    return __atomic_compare_exchange_n(p, &expected, desired, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
}

static inline int shm_cas_acq_rel_u64(uint64_t *p, uint64_t expected, uint64_t desired)
{
    return __atomic_compare_exchange_n(p, &expected, desired, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
}

static inline int shm_cas_seq_cst_u64(uint64_t *p, uint64_t expected, uint64_t desired)
{
    return __atomic_compare_exchange_n(p, &expected, desired, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}

static inline int shm_cas_seq_cst_u32(uint32_t *p, uint32_t expected, uint32_t desired)
{
    return __atomic_compare_exchange_n(p, &expected, desired, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}

#define shm_fence_acquire() __atomic_thread_fence(__ATOMIC_ACQUIRE)
#define shm_fence_release() __atomic_thread_fence(__ATOMIC_RELEASE)
#define shm_fence_seq_cst() __atomic_thread_fence(__ATOMIC_SEQ_CST)
/* A full fence after a CAS. On x86 the CAS itself is one, so only the compiler needs a fence. */
#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__)
#define shm_fence_after_cas() __atomic_signal_fence(__ATOMIC_SEQ_CST)
#else
#define shm_fence_after_cas() __atomic_thread_fence(__ATOMIC_SEQ_CST)
#endif
#define shm_compiler_fence() __atomic_signal_fence(__ATOMIC_SEQ_CST)

/* Empties a process-local cache slot and returns its value; of several threads one gets it. The GIL
 * already serialises the threads; in a build without a GIL the slot is exchanged atomically. */
static inline uint64_t shm_local_take_u64(uint64_t *slot)
{
#ifdef Py_GIL_DISABLED
    return __atomic_exchange_n(slot, 0, __ATOMIC_ACQUIRE);
#else
    uint64_t value = *slot;
    *slot = 0;
    return value;
#endif
}

/* Puts value back if the slot is empty; returns whether it did. */
static inline int shm_local_put_u64(uint64_t *slot, uint64_t value)
{
#ifdef Py_GIL_DISABLED
    uint64_t expected = 0;
    return __atomic_compare_exchange_n(slot, &expected, value, 0, __ATOMIC_RELEASE, __ATOMIC_RELAXED);
#else
    if (*slot != 0)
        return 0;
    *slot = value;
    return 1;
#endif
}

static inline void shm_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("isb" ::: "memory");
#else
    shm_compiler_fence();
#endif
}

#define shm_prefetch(p) __builtin_prefetch((const void *)(p), 0, 3)
#define shm_prefetch_write(p) __builtin_prefetch((const void *)(p), 1, 3)
#define shm_likely(c) __builtin_expect(!!(c), 1)
#define shm_unlikely(c) __builtin_expect(!!(c), 0)
#define shm_count_trailing_zeros(v) __builtin_ctzll(v)
#define shm_count_leading_zeros(v) __builtin_clzll(v)
#define shm_multiply_high(a, b) ((uint64_t)((unsigned __int128)(a) * (b) >> 64))

static inline uint32_t shm_reverse_bits_u32(uint32_t v)
{
    v = __builtin_bswap32(v);
    v = (v >> 4 & 0x0F0F0F0F) | (v & 0x0F0F0F0F) << 4;
    v = (v >> 2 & 0x33333333) | (v & 0x33333333) << 2;
    return (v >> 1 & 0x55555555) | (v & 0x55555555) << 1;
}

static inline uint64_t shm_multiply_fold(uint64_t a, uint64_t b)
{
    __extension__ typedef unsigned __int128 shm_u128;
    shm_u128 product = (shm_u128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* Bit i is set if tags[i] == tag, for the seven tags of a bucket or line. Only the tag words are
 * loaded: a vector load that covers a header just stored by a CAS would wait for that store. */
static inline uint32_t shm_match7(const uint32_t *tags, uint32_t tag)
{
#if defined(__SSE2__) && !defined(__SANITIZE_THREAD__)
    __m128i wanted = _mm_set1_epi32((int)tag);
    __m128i low = _mm_loadu_si128((const __m128i *)(const void *)tags);
    __m128i high = _mm_loadu_si128((const __m128i *)(const void *)(tags + 3));
    uint32_t low_mask = (uint32_t)_mm_movemask_ps(_mm_castsi128_ps(_mm_cmpeq_epi32(low, wanted)));
    uint32_t high_mask = (uint32_t)_mm_movemask_ps(_mm_castsi128_ps(_mm_cmpeq_epi32(high, wanted)));
    return low_mask | high_mask << 3;
#elif defined(__ARM_NEON) && !defined(__SANITIZE_THREAD__)
    const uint32x4_t bits = {1, 2, 4, 8};
    uint32x4_t wanted = vdupq_n_u32(tag);
    uint32x4_t low = vandq_u32(vceqq_u32(vld1q_u32(tags), wanted), bits);
    uint32x4_t high = vandq_u32(vceqq_u32(vld1q_u32(tags + 3), wanted), bits);
    return vaddvq_u32(low) | vaddvq_u32(high) << 3;
#else
    uint32_t mask = 0;
    for (int i = 0; i < 7; i++)
        mask |= (uint32_t)(shm_load_relaxed_u32(tags + i) == tag) << i;
    return mask;
#endif
}

static inline uint64_t shm_read_u64(const void *p)
{
    uint64_t word;
    memcpy(&word, p, sizeof word);
    return word;
}

static inline uint32_t shm_read_u32(const void *p)
{
    uint32_t word;
    memcpy(&word, p, sizeof word);
    return word;
}

static inline uint32_t shm_read_u16(const void *p)
{
    uint16_t word;
    memcpy(&word, p, sizeof word);
    return word;
}

/* size bytes, at most 8, as the low bytes of a word. There is no call and no loop, but two loads
 * that overlap. */
static inline uint64_t shm_read_tail(const void *p, uint64_t size)
{
    const unsigned char *in = (const unsigned char *)p;
    if (size == 8)
        return shm_read_u64(in);
    if (size >= 4)
        return shm_read_u32(in) | (uint64_t)shm_read_u32(in + size - 4) << (8 * (size - 4));
    if (size >= 2)
        return shm_read_u16(in) | shm_read_u16(in + size - 2) << (8 * (size - 2));
    return size ? *in : 0;
}

/* Copies of several shared words, in the widest moves that the machine has. Such a copy may be torn
 * anywhere: it counts only if a header that is read afterwards says that nothing changed, or if no
 * other thread may touch the words. ThreadSanitizer has to see that the words are shared, so under
 * it they are copied one by one, as on machines without wide moves. */
#if (defined(__SSE2__) || defined(__ARM_NEON)) && !defined(__SANITIZE_THREAD__)
#define SHM_WIDE 1
#else
#define SHM_WIDE 0
#endif
#define SHM_MEMCPY_BYTES 128 /* from this size on a call is faster than a loop */

/* Out of line, so that the code for keys and values of 8 bytes around it stays small enough to be
 * inlined and keeps its registers. */
#define SHM_APART static __attribute__((noinline, unused))

/* Copies all whole groups of 16 bytes; returns how many bytes that was. */
static inline uint64_t shm_copy_wide(void *to, const void *from, uint64_t size)
{
#if SHM_WIDE
    uint64_t done = size & ~(uint64_t)15;
    if (size >= SHM_MEMCPY_BYTES) {
        memcpy(to, from, done);
        return done;
    }
    for (uint64_t i = 0; i < done; i += 16) {
#ifdef __SSE2__
        __m128i both = _mm_loadu_si128((const __m128i *)(const void *)((const char *)from + i));
        _mm_storeu_si128((__m128i *)(void *)((char *)to + i), both);
#else
        vst1q_u8((uint8_t *)to + i, vld1q_u8((const uint8_t *)from + i));
#endif
    }
    return done;
#else
    (void)to, (void)from, (void)size;
    return 0;
#endif
}

/* Copies shared words to private bytes. The source is padded to whole words. */
SHM_APART void shm_copy_out(void *private_bytes, const uint64_t *shared_words, uint64_t size)
{
    unsigned char *out = (unsigned char *)private_bytes;
    uint64_t at = shm_copy_wide(out, shared_words, size);
    for (; at + 8 <= size; at += 8) {
        uint64_t word = shm_load_relaxed_u64(shared_words + at / 8);
        memcpy(out + at, &word, 8);
    }
    if (at < size) {
        uint64_t word = shm_load_relaxed_u64(shared_words + at / 8);
        memcpy(out + at, &word, size - at);
    }
}

/* The same, but word by word: a word that changes during the copy is not torn. */
SHM_APART void shm_copy_out_words(void *private_bytes, const uint64_t *shared_words, uint64_t size)
{
    unsigned char *out = (unsigned char *)private_bytes;
    for (uint64_t at = 0; at < size; at += 8) {
        uint64_t word = shm_load_relaxed_u64(shared_words + at / 8);
        memcpy(out + at, &word, size - at < 8 ? size - at : 8);
    }
}

/* Copies private bytes to shared words; the padding of the last word is written as zeros. */
SHM_APART void shm_copy_in_run(uint64_t *shared_words, const void *private_bytes, uint64_t size)
{
    const unsigned char *in = (const unsigned char *)private_bytes;
    uint64_t at = shm_copy_wide(shared_words, in, size);
    for (; at + 8 <= size; at += 8)
        shm_store_relaxed_u64(shared_words + at / 8, shm_read_u64(in + at));
    if (at < size)
        shm_store_relaxed_u64(shared_words + at / 8, shm_read_tail(in + at, size - at));
}

static inline void shm_copy_in(uint64_t *shared_words, const void *private_bytes, uint64_t size)
{
    const unsigned char *in = (const unsigned char *)private_bytes;
    if (size == 8) {
        shm_store_relaxed_u64(shared_words, shm_read_u64(in));
    } else if (size == 16) {                   /* a SharedDict's short text, and its values */
        shm_store_relaxed_u64(shared_words, shm_read_u64(in));
        shm_store_relaxed_u64(shared_words + 1, shm_read_u64(in + 8));
    } else {
        shm_copy_in_run(shared_words, private_bytes, size);
    }
}

SHM_APART void shm_copy_words(uint64_t *to, const uint64_t *from, uint64_t word_count)
{
    for (uint64_t i = shm_copy_wide(to, from, word_count * 8) / 8; i < word_count; i++)
        shm_store_relaxed_u64(to + i, shm_load_relaxed_u64(from + i));
}

SHM_APART int shm_equal(const uint64_t *shared_words, const void *private_bytes, uint64_t size)
{
    const unsigned char *in = (const unsigned char *)private_bytes;
    uint64_t at = 0;
#if defined(__SSE2__) && SHM_WIDE
    for (; at + 16 <= size; at += 16) {
        __m128i shared = _mm_loadu_si128((const __m128i *)(const void *)(shared_words + at / 8));
        __m128i wanted = _mm_loadu_si128((const __m128i *)(const void *)(in + at));
        if (_mm_movemask_epi8(_mm_cmpeq_epi8(shared, wanted)) != 0xFFFF)
            return 0;
    }
#endif
    for (; at + 8 <= size; at += 8)
        if (shm_load_relaxed_u64(shared_words + at / 8) != shm_read_u64(in + at))
            return 0;
    return at == size
           || shm_load_relaxed_u64(shared_words + at / 8) == shm_read_tail(in + at, size - at);
}

#define SHM_STATIC_ASSERT(c) _Static_assert(c, #c)

#ifdef SHMRHASH_DEBUG
#define SHM_ASSERT(c)                                                                                \
    do {                                                                                             \
        if (!(c)) {                                                                                  \
            fprintf(stderr, "%s:%d: %s: assertion failed: %s\n", __FILE__, __LINE__, __func__, #c);  \
            abort();                                                                                 \
        }                                                                                            \
    } while (0)
#else
#define SHM_ASSERT(c) ((void)0)
#endif

#endif
