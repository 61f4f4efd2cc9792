/* Writes the counts of a process, so that a SIGKILL in the middle spoils nothing: libgcov merges them
 * into a copy of the counts so far, and the copy takes their place by one rename(). A file that is
 * locked meanwhile has one process at a time do so; the lock ends with whoever holds it. measure.py
 * gives COUNTS, the file of the counts, and SPARE, a folder. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

void __gcov_dump(void);

/* 0, or -1. There need be no counts yet. */
static int copy_counts(const char *to)
{
    struct stat found;
    int source = open(COUNTS, O_RDONLY | O_CLOEXEC);
    int target;
    ssize_t copied = 0;

    if (source < 0)
        return 0;
    target = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (target < 0 || fstat(source, &found) != 0)
        copied = -1;
    while (copied >= 0 && found.st_size > 0) { /* each turn copies a part */
        copied = sendfile(target, source, NULL, (size_t)found.st_size);
        found.st_size -= copied;
    }
    close(source);
    close(target);
    return copied < 0 ? -1 : 0;
}

/* For os._exit(), too, which ends a process without the destructor. */
void coverage_dump(void)
{
    int lock = open(SPARE "/lock", O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    int ready = lock >= 0 && flock(lock, LOCK_EX) == 0 && copy_counts(SPARE COUNTS) == 0;

    if (!ready)
        perror("coverage: the counts of this process are lost");
    setenv("GCOV_PREFIX", ready ? SPARE : "/dev/null", 1); /* libgcov puts it before COUNTS */
    unsetenv("GCOV_PREFIX_STRIP");
    __gcov_dump();
    if (ready)
        rename(SPARE COUNTS, COUNTS);
    if (lock >= 0)
        close(lock);
}

/* Runs before libgcov's own, which then finds that everything is written. */
__attribute__((destructor)) static void coverage_dump_at_exit(void) { coverage_dump(); }
