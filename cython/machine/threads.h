/* A thread made in C: it runs no Python, takes no signals, and needs a small stack only. */
#ifndef SHM_THREADS_H
#define SHM_THREADS_H

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    SHM_STACK_BYTES = 128 * 1024,
    SHM_GONE_LOOKS_MAX = 1000000 /* the kernel is about to remove a thread that has been joined */
};

static inline int shm_thread_begin(pthread_t *thread, void *(*run)(void *), void *arguments)
{
    pthread_attr_t attributes;
    sigset_t all, before;
    int error = pthread_attr_init(&attributes);
    if (error != 0)
        return error;
    pthread_attr_setstacksize(&attributes, SHM_STACK_BYTES);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* the thread inherits the mask */
    error = pthread_create(thread, &attributes, run, arguments);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return error;
}

static inline int shm_thread_id(void)
{
    return (int)syscall(SYS_gettid);
}

/* Join a thread, and see the kernel forget it: until then it counts among the threads of the
 * process, and Python warns of a fork beside it. */
static inline void shm_thread_end(pthread_t thread, int id)
{
    int looks;
    pthread_join(thread, NULL);
    for (looks = 0; looks < SHM_GONE_LOOKS_MAX; looks++) {
        if (syscall(SYS_tgkill, getpid(), id, 0) != 0)
            break;
        sched_yield();
    }
}

#endif
