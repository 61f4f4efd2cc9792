/* What keeps the threads of a process apart: the GIL, or what takes its place in a build of Python
 * without one (free-threaded: 3.13t, 3.14t).
 *
 * Most of what threads share lies in the segment, and the protocols keep its users apart whether
 * they are threads or processes. The rest is few words of a handle and of an attachment. With a GIL
 * they are plain words. Without one, counts are atomic, an idle context is taken even for the
 * shortest operation, and what concerns several words is changed under one mutex, the state lock.
 *
 * The state lock is recursive. A thread that holds it runs no Python, frees no object and keeps its
 * thread state attached: so a thread may wait for it without letting go of its own, and
 * os.fork(), for which Python stops all threads that are attached, finds it free. For a C library's
 * fork, which stops nobody, it is taken in the prepare handler: so a child never finds what it
 * protects half changed. Its holder may wait for the mutexes of fork_guard.h, privates.h and the
 * listeners; none of their holders waits for it. So fork takes it before those: its handlers are
 * installed behind theirs, since the last prepare handler runs first. */
#ifndef SHMRHASH_GIL_H
#define SHMRHASH_GIL_H

#include <pthread.h>
#include <stdint.h>

#ifdef Py_GIL_DISABLED
#define SHM_FREE_THREADED 1

static pthread_mutex_t shm_state_mutex = PTHREAD_MUTEX_INITIALIZER;
static __thread unsigned shm_state_depth; /* how often this thread has it */

static inline void shm_state_lock(void)
{
    if (shm_state_depth++ == 0)
        pthread_mutex_lock(&shm_state_mutex);
}

static inline void shm_state_unlock(void)
{
    if (--shm_state_depth == 0)
        pthread_mutex_unlock(&shm_state_mutex);
}

/* In a child of fork, whose parent's other threads do not exist. */
static inline void shm_state_forget(void)
{
    shm_state_depth = 0;
    pthread_mutex_init(&shm_state_mutex, NULL);
}

static void shm_state_before_fork(void)
{
    shm_state_lock();
}

static void shm_state_after_fork(void)
{
    shm_state_unlock();
}

/* Called when the module is imported, behind the other installations of handlers. Returns 0, or the
 * error of pthread_atfork. The child's handler is generation_of_child (generation.h). */
static inline int shm_state_install(void)
{
    static int installed = 0;
    if (installed)
        return 0;
    installed = 1;
    return pthread_atfork(shm_state_before_fork, shm_state_after_fork, NULL);
}

/* Adds to a count of this process, and returns the sum. Sequentially consistent, with a fence: an
 * operation is counted before it looks whether the handle is closed, and close() looks at the count
 * after it has said so; one of them sees the other. */
static inline uint64_t shm_count_add(uint64_t *count, uint64_t more)
{
    uint64_t sum = __atomic_add_fetch(count, more, __ATOMIC_SEQ_CST);
#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__)
    __atomic_signal_fence(__ATOMIC_SEQ_CST); /* the addition is a fence */
#else
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
    return sum;
}

static inline uint64_t shm_count_of(const uint64_t *count)
{
    return __atomic_load_n(count, __ATOMIC_SEQ_CST);
}

/* A flag that another thread may change at any moment. Only these functions access it: of a bare
 * field in `a.b and c` Cython makes two loads, one for the test and one for the result. If the flag
 * is set between the two, the whole expression is true, whatever c is. Unordered: it is a hint, or
 * its users have fences of their own. */
static inline int shm_flag_load(const int *flag)
{
    return __atomic_load_n(flag, __ATOMIC_RELAXED);
}

static inline void shm_flag_store(int *flag, int value)
{
    __atomic_store_n(flag, value, __ATOMIC_RELAXED);
}

#else
#define SHM_FREE_THREADED 0

static inline void shm_state_lock(void)
{
}

static inline void shm_state_unlock(void)
{
}

static inline void shm_state_forget(void)
{
}

static inline int shm_state_install(void)
{
    return 0;
}

static inline uint64_t shm_count_add(uint64_t *count, uint64_t more)
{
    return *count += more;
}

static inline uint64_t shm_count_of(const uint64_t *count)
{
    return *count;
}

static inline int shm_flag_load(const int *flag)
{
    return *flag;
}

static inline void shm_flag_store(int *flag, int value)
{
    *flag = value;
}
#endif

#endif
