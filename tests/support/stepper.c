/* Runs a child one instruction at a time and says when shared memory changes.
 *
 * Called by stepping.py through ctypes; knows nothing of what the child does or what the memory
 * means. The parent owns a Watch (its own view of the memory, and a private copy called the
 * shadow) and steps a child that stopped itself in stepper_run().
 *
 *     child   prepare() -> stepper_run: TRACEME, break | operate(state) | phase = DONE, break
 *     parent  fork ------------------> wait            | step, look ... | kill or let go
 *
 * Two ways to the n-th change of shared memory:
 *   stepper_step   PTRACE_SINGLESTEP, a look after each step. Exact; about 20 us a step where a
 *                  hypervisor intercepts debug exceptions, so 0.1 s for a call from Python.
 *   stepper_break  breakpoints on the instructions that an earlier stepper_step saw changing
 *                  memory, full speed between them. About 35 us a change. A look before each of
 *                  them shows whether some other instruction wrote: then it answers DRIFT, and
 *                  the caller steps instead.
 *
 * What counts as a change: any byte of the watched memory, and of a watched file also its
 * existence, size, link count and allocated blocks. Holes of a sparse file are never touched:
 * even a read through a mapping would fill them.
 *
 * Runs on x86-64 and AArch64 (there compiled only, not yet run). On AArch64 an exclusive
 * load/store pair never succeeds under single-step: the code stepped must use LSE atomics.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#if defined(__x86_64__)
#define PROGRAM_COUNTER(regs) ((regs).rip)
#define STACK_POINTER(regs) ((regs).rsp)
#define BREAK_MASK 0xFFUL
#define BREAK_CODE 0xCCUL /* int3; the program counter is past it when it traps. */
#define BREAK_ADVANCE 1
#define BREAK() __asm__ volatile("int3" ::: "memory")
#elif defined(__aarch64__)
#define PROGRAM_COUNTER(regs) ((regs).pc)
#define STACK_POINTER(regs) ((regs).sp)
#define BREAK_MASK 0xFFFFFFFFUL
#define BREAK_CODE 0xD4200000UL /* brk #0; the program counter is still on it when it traps. */
#define BREAK_ADVANCE 0
/* The child stops on the brk itself, so the parent moves it on: see past_marker(). */
#define BREAK() __asm__ volatile("brk #0" ::: "memory")
#else
#error "stepper.c knows x86-64 and AArch64 only"
#endif

typedef struct user_regs_struct Registers;

enum { PHASE_NEW = 0, PHASE_RUNNING = 1, PHASE_DONE = 2 };

/* How a run ended; stepping.py has the same list. */
enum {
    RUN_AT_TARGET = 1, /* Stopped right after the step or change that was asked for. */
    RUN_DONE = 2,      /* operate() returned; the child is stopped behind it. */
    RUN_EXITED = 3,    /* The child is gone; detail is its exit status. */
    RUN_KILLED = 4,    /* The child is gone; detail is the signal that ended it. */
    RUN_FAULT = 5,     /* Stopped at the delivery of a fatal signal, in detail. */
    RUN_LIMIT = 6,     /* Stopped: step_limit steps or change_room changes were used up. */
    RUN_DRIFT = 7,     /* Stopped: an instruction without a breakpoint changed memory. */
    RUN_ERROR = 8,     /* ptrace or waitpid failed; detail is errno. */
};

/* One page shared by parent and child. */
typedef struct Control {
    volatile uint32_t phase;  /* Written by the child only. */
    volatile uint32_t traced; /* Written by the parent; 0 = run to the end, nobody listens. */
    volatile int32_t refusal; /* errno of a refused PTRACE_TRACEME. */
} Control;

/* One change of the watched memory. */
typedef struct Change {
    uint64_t step;   /* Steps done when it was seen; 0 under breakpoints. */
    uint64_t pc;     /* The instruction that made it. */
    uint64_t offset; /* First changed byte; of a file, of the file. */
    uint64_t length; /* First to last changed byte; 0 = only the file's size, links or blocks. */
} Change;

enum { STACK_WORDS = 48 };

/* The outcome of a run. */
typedef struct Run {
    int32_t pid;
    int32_t ending;
    int32_t detail;
    int32_t unused;
    uint64_t steps;
    uint64_t changes;
    uint64_t pc; /* Of the last change, or where the child stands if none. */
    uint64_t stack[STACK_WORDS];
} Run;

typedef struct Range {
    uint64_t start, end;
} Range;

/* What is compared: a piece of memory, or a file that may not exist yet. */
typedef struct Watch {
    char *path;      /* NULL for plain memory. */
    int fd;          /* -1 until the file exists. */
    uint8_t *base;   /* The parent's mapping. */
    uint8_t *shadow; /* The bytes at the last look; zero where the file has a hole. */
    uint64_t size;
    uint64_t data_bytes; /* Sum of the ranges. */
    struct stat facts;   /* At the last look. */
    Range *ranges;       /* What may be read without filling a hole. */
    size_t range_count, range_room;
} Watch;

/* ---- the watched memory ---- */

static void range_add(Watch *watch, uint64_t start, uint64_t end) {
    if (watch->range_count == watch->range_room) {
        watch->range_room = watch->range_room ? 2 * watch->range_room : 16;
        watch->ranges = realloc(watch->ranges, watch->range_room * sizeof(Range));
        if (!watch->ranges)
            abort();
    }
    watch->ranges[watch->range_count++] = (Range){start, end};
    watch->data_bytes += end - start;
}

/* Finds the data of the file anew. The shadow of a hole becomes zero. */
static void watch_rescan(Watch *watch) {
    watch->range_count = 0;
    watch->data_bytes = 0;
    uint64_t hole = 0;
    for (;;) {
        off_t start = lseek(watch->fd, (off_t)hole, SEEK_DATA);
        uint64_t hole_end = start < 0 ? watch->size : (uint64_t)start;
        if (hole_end > hole)
            madvise(watch->shadow + hole, hole_end - hole, MADV_DONTNEED);
        if (start < 0)
            return;
        off_t end = lseek(watch->fd, start, SEEK_HOLE);
        if (end < 0)
            return;
        range_add(watch, (uint64_t)start, (uint64_t)end);
        hole = (uint64_t)end;
    }
}

/* Opens and maps the file if it exists by now. */
static int watch_try_open(Watch *watch) {
    int fd = open(watch->path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return 0;
    if (fstat(fd, &watch->facts) || watch->facts.st_size == 0) {
        close(fd);
        return 0;
    }
    watch->size = ((uint64_t)watch->facts.st_size + 4095) & ~4095ULL;
    watch->base = mmap(NULL, watch->size, PROT_READ, MAP_SHARED | MAP_NORESERVE, fd, 0);
    watch->shadow = mmap(NULL, watch->size, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (watch->base == MAP_FAILED || watch->shadow == MAP_FAILED)
        abort();
    watch->fd = fd;
    watch_rescan(watch);
    return 1;
}

static void watch_copy(Watch *watch) {
    for (size_t i = 0; i < watch->range_count; i++) {
        Range range = watch->ranges[i];
        memcpy(watch->shadow + range.start, watch->base + range.start, range.end - range.start);
    }
}

Watch *stepper_watch_file(const char *path) {
    Watch *watch = calloc(1, sizeof *watch);
    if (!watch)
        return NULL;
    watch->path = strdup(path);
    watch->fd = -1;
    if (watch_try_open(watch))
        watch_copy(watch);
    return watch;
}

Watch *stepper_watch_memory(void *base, uint64_t size) {
    Watch *watch = calloc(1, sizeof *watch);
    if (!watch)
        return NULL;
    watch->fd = -1;
    watch->base = base;
    watch->size = size;
    watch->shadow = malloc(size);
    if (!watch->shadow)
        abort();
    range_add(watch, 0, size);
    watch_copy(watch);
    return watch;
}

void stepper_watch_close(Watch *watch) {
    if (watch->path && watch->fd >= 0) {
        munmap(watch->base, watch->size);
        munmap(watch->shadow, watch->size);
        close(watch->fd);
    } else if (!watch->path) {
        free(watch->shadow);
    }
    free(watch->path);
    free(watch->ranges);
    free(watch);
}

/* Compares one range with its shadow, widens [*first, *last] by what differs, copies it. */
static int range_look(Watch *watch, Range range, uint64_t *first, uint64_t *last) {
    const uint8_t *now = watch->base + range.start;
    uint8_t *then = watch->shadow + range.start;
    uint64_t length = range.end - range.start;
    if (memcmp(now, then, length) == 0)
        return 0;
    uint64_t low = 0, high = length - 1;
    while (now[low] == then[low])
        low++;
    while (now[high] == then[high])
        high--;
    memcpy(then + low, now + low, high - low + 1);
    if (range.start + low < *first)
        *first = range.start + low;
    if (range.start + high > *last)
        *last = range.start + high;
    return 1;
}

/* Says whether anything changed since the last look, and where. */
int stepper_look(Watch *watch, Change *change) {
    int changed = 0;
    if (watch->path) {
        if (watch->fd < 0) {
            if (!watch_try_open(watch))
                return 0;
            changed = 1;
        }
        struct stat facts;
        fstat(watch->fd, &facts);
        if (facts.st_blocks != watch->facts.st_blocks || facts.st_size != watch->facts.st_size ||
            facts.st_nlink != watch->facts.st_nlink)
            changed = 1;
        watch->facts = facts;
        /* Blocks that fallocate gave are no data until their first touch: look again then. */
        if (changed || (uint64_t)facts.st_blocks * 512 > watch->data_bytes)
            watch_rescan(watch);
    }
    uint64_t first = UINT64_MAX, last = 0;
    int bytes_changed = 0;
    for (size_t i = 0; i < watch->range_count; i++)
        bytes_changed |= range_look(watch, watch->ranges[i], &first, &last);
    if (bytes_changed || changed) {
        change->offset = bytes_changed ? first : 0;
        change->length = bytes_changed ? last - first + 1 : 0;
    }
    return bytes_changed | changed;
}

/* ---- in the child ---- */

extern void *PyObject_CallFunctionObjArgs(void *callable, ...);

/* Called with the GIL held (ctypes.PyDLL). Stops for the parent, calls operate(state), stops. */
void *stepper_run(Control *control, void *operate, void *state) {
    if (ptrace(PTRACE_TRACEME, 0, 0, 0)) {
        control->refusal = errno;
        _exit(97);
    }
    control->phase = PHASE_RUNNING;
    BREAK();
    void *result = PyObject_CallFunctionObjArgs(operate, state, NULL);
    control->phase = PHASE_DONE;
    if (control->traced)
        BREAK();
    return result;
}

/* The last resort against a child that waits for ever, which uses no processor. */
#define WALL_SECONDS 540

/* The child ends with its parent, and by itself after some seconds of processor time, which a busy
 * machine does not shorten: no stray processes. */
void stepper_child_limits(int parent, unsigned seconds) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(98);
    struct itimerval limit = {.it_value.tv_sec = seconds};
    signal(SIGPROF, SIG_DFL);
    setitimer(ITIMER_PROF, &limit, NULL);
    signal(SIGALRM, SIG_DFL);
    alarm(WALL_SECONDS);
}

/* ---- in the parent ---- */

static int registers_read(pid_t pid, Registers *registers) {
    struct iovec piece = {registers, sizeof *registers};
    return (int)ptrace(PTRACE_GETREGSET, pid, NT_PRSTATUS, &piece);
}

static int registers_write(pid_t pid, Registers *registers) {
    struct iovec piece = {registers, sizeof *registers};
    return (int)ptrace(PTRACE_SETREGSET, pid, NT_PRSTATUS, &piece);
}

static uint64_t pc_read(pid_t pid) {
    Registers registers;
    return registers_read(pid, &registers) ? 0 : PROGRAM_COUNTER(registers);
}

/* Moves the child behind the marker it stands on, where the machine has not done so. */
static void past_marker(pid_t pid) {
    if (BREAK_ADVANCE == 0) {
        Registers registers;
        if (registers_read(pid, &registers) == 0) {
            PROGRAM_COUNTER(registers) += 4;
            registers_write(pid, &registers);
        }
    }
}

static int is_fatal(int number) {
    return number == SIGSEGV || number == SIGBUS || number == SIGILL || number == SIGFPE ||
           number == SIGABRT || number == SIGSYS;
}

static int is_stop(int number) {
    return number == SIGSTOP || number == SIGTSTP || number == SIGTTIN || number == SIGTTOU;
}

static int finish(Run *run, int ending, int detail) {
    run->ending = ending;
    run->detail = detail;
    return ending;
}

/* Resumes the child until its next SIGTRAP; passes other signals on. 0 = trapped. */
static int resume_until_trap(Run *run, int request) {
    int pass_on = 0;
    for (;;) {
        if (ptrace(request, run->pid, 0, (void *)(intptr_t)pass_on))
            return finish(run, RUN_ERROR, errno);
        int status;
        while (waitpid(run->pid, &status, __WALL) < 0)
            if (errno != EINTR)
                return finish(run, RUN_ERROR, errno);
        if (WIFEXITED(status))
            return finish(run, RUN_EXITED, WEXITSTATUS(status));
        if (WIFSIGNALED(status))
            return finish(run, RUN_KILLED, WTERMSIG(status));
        int number = WSTOPSIG(status);
        if (number == SIGTRAP)
            return 0;
        if (is_fatal(number)) {
            run->pc = pc_read(run->pid);
            return finish(run, RUN_FAULT, number);
        }
        pass_on = is_stop(number) ? 0 : number;
    }
}

static void stack_read(Run *run) {
    Registers registers;
    memset(run->stack, 0, sizeof run->stack);
    if (registers_read(run->pid, &registers))
        return;
    struct iovec here = {run->stack, sizeof run->stack};
    struct iovec there = {(void *)STACK_POINTER(registers), sizeof run->stack};
    process_vm_readv(run->pid, &here, 1, &there, 1, 0);
}

/* Waits for a fresh child to reach its marker. 0 = it stands behind the marker. */
int stepper_attach(Run *run, const Control *control) {
    int status;
    for (;;) {
        while (waitpid(run->pid, &status, __WALL) < 0)
            if (errno != EINTR)
                return finish(run, RUN_ERROR, errno);
        if (WIFEXITED(status))
            return finish(run, RUN_EXITED, WEXITSTATUS(status));
        if (WIFSIGNALED(status))
            return finish(run, RUN_KILLED, WTERMSIG(status));
        if (WSTOPSIG(status) == SIGTRAP && control->phase == PHASE_RUNNING)
            break;
        int pass_on = is_stop(WSTOPSIG(status)) ? 0 : WSTOPSIG(status);
        ptrace(PTRACE_CONT, run->pid, 0, (void *)(intptr_t)pass_on);
    }
    if (ptrace(PTRACE_SETOPTIONS, run->pid, 0, (void *)PTRACE_O_EXITKILL))
        return finish(run, RUN_ERROR, errno);
    past_marker(run->pid);
    run->pc = pc_read(run->pid);
    return 0;
}

/* Steps until the child did step_target steps or change_target changes, or is done.
 * Records the changes it sees; watch may be NULL when only steps count. */
int stepper_step(Run *run, const Control *control, Watch *watch, Change *changes,
                 uint64_t change_room, uint64_t change_target, uint64_t step_target,
                 uint64_t step_limit) {
    run->steps = run->changes = 0;
    uint64_t pc = pc_read(run->pid);
    while (run->steps < step_target && run->changes < change_target) {
        if (run->steps >= step_limit || (watch && run->changes >= change_room))
            return finish(run, RUN_LIMIT, 0);
        if (resume_until_trap(run, PTRACE_SINGLESTEP))
            return run->ending;
        run->steps++;
        Change change = {run->steps, pc, 0, 0};
        if (watch && stepper_look(watch, &change)) {
            changes[run->changes++] = change;
            run->pc = pc;
        }
        if (control->phase == PHASE_DONE)
            return finish(run, RUN_DONE, 0);
        pc = pc_read(run->pid);
    }
    if (!watch)
        run->pc = pc;
    stack_read(run);
    return finish(run, RUN_AT_TARGET, 0);
}

static void break_set(pid_t pid, uint64_t pc, long word) {
    long code = (long)(((unsigned long)word & ~BREAK_MASK) | BREAK_CODE);
    ptrace(PTRACE_POKETEXT, pid, (void *)pc, (void *)code);
}

static void break_clear(pid_t pid, uint64_t pc, long word) {
    /* Another breakpoint may stand within the same word: change only this instruction's part. */
    errno = 0;
    long now = ptrace(PTRACE_PEEKTEXT, pid, (void *)pc, 0);
    if (errno)
        return;
    now = (long)(((unsigned long)now & ~BREAK_MASK) | ((unsigned long)word & BREAK_MASK));
    ptrace(PTRACE_POKETEXT, pid, (void *)pc, (void *)now);
}

static void break_insert(pid_t pid, uint64_t pc) {
    errno = 0;
    long now = ptrace(PTRACE_PEEKTEXT, pid, (void *)pc, 0);
    if (!errno)
        break_set(pid, pc, now);
}

/* The child stands behind the marker of the end, which is no breakpoint of ours. */
static int at_end(const Control *control) { return control->phase == PHASE_DONE; }

/* The breakpoint the child has just hit, or -1. */
static long break_hit(Run *run, const uint64_t *pcs, size_t pc_count) {
    Registers registers;
    if (registers_read(run->pid, &registers))
        return -1;
    uint64_t pc = PROGRAM_COUNTER(registers) - BREAK_ADVANCE;
    for (size_t i = 0; i < pc_count; i++)
        if (pcs[i] == pc) {
            PROGRAM_COUNTER(registers) = pc;
            registers_write(run->pid, &registers);
            return (long)i;
        }
    return -1;
}

/* Steps over the instruction at pc, through all rounds of a repeated one; looks each time.
 * Returns 0 to go on. */
static int step_over(Run *run, const Control *control, Watch *watch, Change *changes,
                     uint64_t change_room, uint64_t change_target, uint64_t pc) {
    do {
        if (resume_until_trap(run, PTRACE_SINGLESTEP))
            return run->ending;
        run->steps++;
        Change change = {0, pc, 0, 0};
        if (stepper_look(watch, &change)) {
            if (run->changes >= change_room)
                return finish(run, RUN_LIMIT, 0);
            changes[run->changes++] = change;
            run->pc = pc;
            if (run->changes == change_target)
                return finish(run, RUN_AT_TARGET, 0);
        }
    } while (!at_end(control) && pc_read(run->pid) == pc);
    return 0;
}

/* Runs to the change_target-th change with breakpoints on pcs, or to the end. */
int stepper_break(Run *run, const Control *control, Watch *watch, Change *changes,
                  uint64_t change_room, uint64_t change_target, const uint64_t *pcs,
                  uint64_t pc_count) {
    run->steps = run->changes = 0;
    if (change_target == 0)
        return finish(run, RUN_AT_TARGET, 0);
    long *words = calloc(pc_count ? pc_count : 1, sizeof(long));
    if (!words)
        return finish(run, RUN_ERROR, ENOMEM);
    for (uint64_t i = 0; i < pc_count; i++)
        words[i] = ptrace(PTRACE_PEEKTEXT, run->pid, (void *)pcs[i], 0);
    for (uint64_t i = 0; i < pc_count; i++)
        break_insert(run->pid, pcs[i]);
    int ending = 0;
    while (!ending) {
        ending = resume_until_trap(run, PTRACE_CONT);
        if (ending)
            break;
        Change unknown = {0, 0, 0, 0};
        if (stepper_look(watch, &unknown)) {
            run->pc = pc_read(run->pid);
            ending = finish(run, RUN_DRIFT, 0);
        } else if (at_end(control)) {
            past_marker(run->pid);
            ending = finish(run, RUN_DONE, 0);
        } else {
            long hit = break_hit(run, pcs, pc_count);
            if (hit < 0) {
                ending = finish(run, RUN_FAULT, SIGTRAP);
                break;
            }
            break_clear(run->pid, pcs[hit], words[hit]);
            ending = step_over(run, control, watch, changes, change_room, change_target,
                               pcs[hit]);
            if (!ending)
                break_insert(run->pid, pcs[hit]);
        }
    }
    if (ending != RUN_EXITED && ending != RUN_KILLED && ending != RUN_ERROR) {
        stack_read(run);
        for (uint64_t i = 0; i < pc_count; i++)
            break_clear(run->pid, pcs[i], words[i]);
    }
    free(words);
    return ending;
}

/* Lets a stopped child run on its own from here to its end. */
int stepper_detach(int pid, Control *control) {
    control->traced = 0;
    return ptrace(PTRACE_DETACH, pid, 0, 0) ? errno : 0;
}

/* ---- known work for the tests of this driver ---- */

void stepper_example_count(volatile uint64_t *words, uint64_t count) {
    for (uint64_t i = 0; i < count; i++)
        words[i] = i + 1;
}

/* Takes and drops a lock bit around each store: the state before is met again. */
void stepper_example_lock(volatile uint64_t *words, uint64_t count) {
    for (uint64_t i = 1; i <= count; i++) {
        __atomic_fetch_or(&words[0], 1, __ATOMIC_ACQUIRE);
        words[i] = i;
        __atomic_fetch_and(&words[0], ~1ULL, __ATOMIC_RELEASE);
    }
}

/* One instruction that stores many times, where the machine has one. */
void stepper_example_fill(volatile uint64_t *words, uint64_t count) {
#if defined(__x86_64__)
    __asm__ volatile("rep stosq" : "+D"(words), "+c"(count) : "a"(7ULL) : "memory");
#else
    for (uint64_t i = 0; i < count; i++)
        words[i] = 7;
#endif
}

/* Each word is written by the kernel: read(2) from a pipe into the shared page. */
int stepper_example_read(uint64_t *words, uint64_t count) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC))
        return errno;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t word = i + 1;
        if (write(ends[1], &word, 8) != 8 || read(ends[0], &words[i], 8) != 8)
            return errno;
    }
    close(ends[0]);
    close(ends[1]);
    return 0;
}

/* Commits a step of a sparse file, maps it and writes a word into each of its pages. */
int stepper_example_commit(int fd, uint64_t offset, uint64_t pages) {
    if (fallocate(fd, FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)(pages * 4096)))
        return errno;
    uint8_t *base = mmap(NULL, pages * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
                         (off_t)offset);
    if (base == MAP_FAILED)
        return errno;
    for (uint64_t i = 0; i < pages; i++)
        *(volatile uint64_t *)(base + i * 4096) = i + 1;
    munmap(base, pages * 4096);
    return 0;
}
