/* Keeps fork away while a process holds a descriptor whose lock a child must not inherit.
 *
 * A process opens the segment's file, locks a byte, maps a page that a child does not inherit, and
 * closes the descriptor. A child forked between the first and the last of these calls would inherit
 * the descriptor, and keep the lock for as long as it lives. So those few calls are made under a
 * mutex that fork takes in its prepare handler. The handlers do nothing but lock and unlock the
 * mutex, and a thread that holds the mutex waits for nothing but system calls: so there can be no
 * deadlock. */
#ifndef SHMRHASH_FORK_GUARD_H
#define SHMRHASH_FORK_GUARD_H

#include <pthread.h>

static pthread_mutex_t fork_guard_mutex = PTHREAD_MUTEX_INITIALIZER;

static void fork_guard_begin(void)
{
    pthread_mutex_lock(&fork_guard_mutex);
}

static void fork_guard_end(void)
{
    pthread_mutex_unlock(&fork_guard_mutex);
}

/* Called when the module is imported. Returns 0, or the error of pthread_atfork. */
static inline int fork_guard_install(void)
{
    static int installed = 0;
    if (installed)
        return 0;
    installed = 1;
    return pthread_atfork(fork_guard_begin, fork_guard_end, fork_guard_end);
}

#endif
