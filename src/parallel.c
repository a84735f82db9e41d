/* A small pool of POSIX threads.
 *
 * Not OpenMP: idle libgomp workers spin on the cores that the caller's BLAS wants, it hangs in a forked child, and a
 * second OpenMP runtime beside another library's is trouble. Here an idle worker spins for some microseconds, since
 * calls often follow each other, and then sleeps.
 *
 * One word, `state`, says how many more workers may join the running call (its open places) and how many are at work.
 * A worker joins by exchanging a place for an active count in one compare-and-swap, so:
 *   - the caller never waits for a worker that has not joined. It starts on the blocks at once, and when none is left
 *     it closes the remaining places and waits for those at work only. Many more threads than processors, or slow
 *     wake-ups, cost nothing but the wake-ups;
 *   - a late riser finds no place and goes back to sleep; or finds those of a later call, which it may as well take,
 *     because the call's description is read after joining;
 *   - the place's number is the worker's number, unique in the call.
 * Sleepers wait for a change of `signal`, which a call makes after it has opened its places, and read `signal` before
 * they look for a place: a wake-up cannot get lost.
 *
 * `busy` belongs to one call at a time. A second caller, or a task that calls fx_parallel, runs on its own thread: the
 * processors are taken anyway.
 *
 * fork: only the forking thread exists in the child, so a handler empties the pool there, whatever the other threads
 * of the parent were about to do with it, and the child starts its own threads when it first needs them. Threads are
 * detached and own nothing, so the process may end at any time.
 *
 * No thread-local variable: in a module loaded at run time its memory is found at the first use in each thread, and where
 * there is none the C library ends the process.
 *
 * Without POSIX threads (Windows), or with FX_NO_THREADS, everything runs on the calling thread. FX_NO_FUTEX takes
 * the path of systems other than Linux: a mutex and a condition variable. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* clock_gettime, pthread_setname_np, sched_getaffinity, syscall */
#endif
#if !defined(_WIN32) && !defined(FX_NO_THREADS)
#define FX_POOL 1
#endif

#include "parallel.h"

#include "cpu.h"

#include <time.h>

static int64_t nanoseconds(void) {
    struct timespec t;
#ifdef _WIN32
    (void)timespec_get(&t, TIME_UTC);
#else
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
#endif
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* The time at which to stop, or 0 for never. */
static int64_t deadline_in(double seconds) {
    return seconds > 0.0 && seconds < 1e9 ? nanoseconds() + (int64_t)(seconds * 1e9) : 0;
}

static int passed(int64_t deadline) { return deadline != 0 && nanoseconds() >= deadline; }

static int64_t run_alone(FxTask task, void *context, int64_t first, int64_t end, int64_t deadline) {
    int64_t block = first;
    do {
        task(context, block, 0);
        ++block;
    } while (block < end && !passed(deadline));
    return block;
}

#ifdef FX_POOL

#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <unistd.h>
#ifdef __linux__
#include <sched.h>
#endif
#if defined(__linux__) && !defined(FX_NO_FUTEX)
#define FX_FUTEX 1
#include <linux/futex.h>
#include <sys/syscall.h>
#endif

#define MAX_HELPERS    1023
#define IDLE_SPIN_NS   5000       /* an idle worker spins this long for the next call before it sleeps */
#define CALLER_SPIN_NS 20000      /* the caller spins this long for the last blocks of others before it sleeps */
#define RETRY_NS       1000000000 /* after the system refused a thread, ask again this much later */
#define MOST_BLOCKS    4          /* that a thread takes at once: few, since work may be very uneven */
#define SMALLEST_STACK (1u << 20) /* some systems give a thread far less */

#define ACTIVE  0x0000ffffu /* state: how many helpers are at work, */
#define PLACES  0x7fff0000u /* how many more may join, */
#define PLACE   0x00010000u
#define WAITING 0x80000000u /* and whether the caller sleeps until none is at work */

typedef struct {
    FxTask task;
    void *context;
    int64_t end, deadline;
    int threads;
    _Alignas(64) _Atomic int64_t next; /* the next block to hand out */
    atomic_int stop;
} Call;

static struct {
    atomic_int busy;    /* a call owns what follows up to `call` */
    atomic_int helpers; /* threads started; read by others */
    int processors;
    int64_t retry; /* when to ask for threads again after a refusal */
    Call call;     /* written while no place is open, read by those who joined */
    _Alignas(64) atomic_uint state;
    _Alignas(64) atomic_uint signal; /* changes with every call that has places */
    atomic_int sleeping, spinning;
} pool;

static void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" : : : "memory"); /* yield is a no-op on most cores */
#endif
}

/* ---- sleeping while a word has a value; as a futex, spurious returns are allowed ---- */

#ifdef FX_FUTEX

static void sleep_while(atomic_uint *word, unsigned value) {
    (void)syscall(SYS_futex, (void *)word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void wake(atomic_uint *word, int count) {
    (void)syscall(SYS_futex, (void *)word, FUTEX_WAKE_PRIVATE, count, NULL, NULL, 0);
}

static void reset_sleep(void) {}

#else

static pthread_mutex_t sleep_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t sleep_changed[2] = {PTHREAD_COND_INITIALIZER, PTHREAD_COND_INITIALIZER};

static pthread_cond_t *changed(const atomic_uint *word) { return &sleep_changed[word == &pool.state]; }

static void sleep_while(atomic_uint *word, unsigned value) {
    pthread_mutex_lock(&sleep_lock);
    while (atomic_load(word) == value) {
        pthread_cond_wait(changed(word), &sleep_lock);
    }
    pthread_mutex_unlock(&sleep_lock);
}

static void wake(atomic_uint *word, int count) {
    pthread_mutex_lock(&sleep_lock); /* a thread that has compared is asleep before this succeeds */
    for (int i = 0; i < count; ++i) {
        pthread_cond_signal(changed(word));
    }
    pthread_mutex_unlock(&sleep_lock);
}

static void reset_sleep(void) {
    static const pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static const pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
    sleep_lock = lock;
    sleep_changed[0] = sleep_changed[1] = condition;
}

#endif

/* ---- what a helper does ---- */

/* Neighbouring blocks are taken together, so that a thread reads on where it is; fewer towards the end, so that all end
 * together. What was taken is finished: the blocks that were not run are those from `next` on. */
static void take_blocks(Call *call, int worker) {
    while (!atomic_load_explicit(&call->stop, memory_order_relaxed)) {
        const int64_t left = call->end - atomic_load_explicit(&call->next, memory_order_relaxed);
        int64_t count = left / (8 * call->threads);
        count = count < 1 ? 1 : count > MOST_BLOCKS ? MOST_BLOCKS : count;
        const int64_t block = atomic_fetch_add_explicit(&call->next, count, memory_order_relaxed);
        for (int64_t i = block; i < block + count && i < call->end; ++i) {
            call->task(call->context, i, worker);
        }
        if (block >= call->end) {
            return;
        }
        if (passed(call->deadline)) {
            atomic_store_explicit(&call->stop, 1, memory_order_relaxed);
        }
    }
}

/* Takes a place in the running call: its number, or 0 if there is none. */
static int join_call(void) {
    unsigned state = atomic_load_explicit(&pool.state, memory_order_relaxed);
    while (state & PLACES) {
        if (atomic_compare_exchange_weak_explicit(&pool.state, &state, state - PLACE + 1, memory_order_acquire,
                                                  memory_order_relaxed)) {
            return (int)((state & PLACES) / PLACE);
        }
    }
    return 0;
}

/* A locked instruction on x86, which streaming stores do not pass: the caller sees them. */
static void leave_call(void) {
    if (atomic_fetch_sub_explicit(&pool.state, 1, memory_order_release) == (WAITING | 1)) {
        wake(&pool.state, 1);
    }
}

/* Whether `signal` changed while spinning. No more threads spin than can without holding up the caller. */
static int spin_for_call(unsigned seen) {
    int changed_now = 0;
    if (atomic_fetch_add_explicit(&pool.spinning, 1, memory_order_relaxed) < pool.processors - 1) {
        const int64_t until = nanoseconds() + IDLE_SPIN_NS;
        do {
            for (int i = 0; i < 16 && !changed_now; ++i) {
                relax();
                changed_now = atomic_load_explicit(&pool.signal, memory_order_relaxed) != seen;
            }
        } while (!changed_now && nanoseconds() < until);
    }
    atomic_fetch_sub_explicit(&pool.spinning, 1, memory_order_relaxed);
    return changed_now;
}

static void *help(void *unused) {
    (void)unused;
#if defined(__APPLE__)
    pthread_setname_np("fastxent");
#elif defined(__linux__)
    pthread_setname_np(pthread_self(), "fastxent");
#endif
    int worked = 0;
    for (;;) {
        const unsigned seen = atomic_load_explicit(&pool.signal, memory_order_acquire);
        const int place = join_call();
        if (place != 0) {
            take_blocks(&pool.call, place);
            leave_call();
            worked = 1;
        } else if (!worked || !spin_for_call(seen)) {
            worked = 0;
            atomic_fetch_add(&pool.sleeping, 1);
            sleep_while(&pool.signal, seen);
            atomic_fetch_sub(&pool.sleeping, 1);
        }
    }
    return NULL;
}

/* ---- what the caller does ---- */

static void empty_pool_in_child(void) {
    atomic_store(&pool.state, 0);
    atomic_store(&pool.sleeping, 0);
    atomic_store(&pool.spinning, 0);
    atomic_store(&pool.helpers, 0);
    pool.retry = 0;
    reset_sleep();
    atomic_store(&pool.busy, 0);
}

static int can_fork_safely; /* without the handler a child would wait for threads that it does not have */

static void prepare_once(void) {
    int count = 0;
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        count = CPU_COUNT(&set);
    }
#endif
    if (count < 1) {
        const long online = sysconf(_SC_NPROCESSORS_ONLN);
        count = online < 1 ? 1 : (int)online;
    }
    pool.processors = count;
    can_fork_safely = pthread_atfork(NULL, NULL, empty_pool_in_child) == 0;
}

static int start_thread(void) {
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes) != 0) {
        return 0;
    }
    size_t stack = 0;
    pthread_t thread;
    int ok = pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED) == 0 &&
             pthread_attr_getstacksize(&attributes, &stack) == 0 &&
             (stack >= SMALLEST_STACK || pthread_attr_setstacksize(&attributes, SMALLEST_STACK) == 0);
    ok = ok && pthread_create(&thread, &attributes, help, NULL) == 0;
    pthread_attr_destroy(&attributes);
    return ok;
}

/* Starts what is missing of `wanted` helpers and returns how many there are, at most `wanted`. */
static int provide_helpers(int wanted) {
    int have = atomic_load_explicit(&pool.helpers, memory_order_relaxed);
    if (have >= wanted || (pool.retry != 0 && nanoseconds() < pool.retry)) {
        return have < wanted ? have : wanted;
    }
    /* Signals are for the application's threads; a fault is this thread's own (blocked, it would kill unreported). */
    sigset_t blocked, before;
    sigfillset(&blocked);
    static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGABRT};
    for (unsigned i = 0; i < sizeof faults / sizeof *faults; ++i) {
        sigdelset(&blocked, faults[i]);
    }
    pthread_sigmask(SIG_SETMASK, &blocked, &before);
    while (have < wanted && start_thread()) {
        ++have;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pool.retry = have < wanted ? nanoseconds() + RETRY_NS : 0;
    atomic_store_explicit(&pool.helpers, have, memory_order_relaxed);
    return have;
}

static void open_places(int places) {
    atomic_store(&pool.state, (unsigned)places * PLACE);
    atomic_fetch_add(&pool.signal, 1);
    const int awake = atomic_load(&pool.helpers) - atomic_load(&pool.sleeping); /* these will look before they sleep */
    if (places > awake) {
        wake(&pool.signal, places - awake);
    }
}

static void close_places(void) {
    unsigned state = atomic_fetch_and_explicit(&pool.state, ~PLACES, memory_order_acquire) & ~PLACES;
    if (state != 0 && (int)state < pool.processors) {
        const int64_t until = nanoseconds() + CALLER_SPIN_NS;
        do {
            for (int i = 0; i < 16 && state != 0; ++i) {
                relax();
                state = atomic_load_explicit(&pool.state, memory_order_acquire);
            }
        } while (state != 0 && nanoseconds() < until);
    }
    if (state != 0) {
        state = atomic_fetch_or_explicit(&pool.state, WAITING, memory_order_acquire) | WAITING;
        while (state & ACTIVE) {
            sleep_while(&pool.state, state);
            state = atomic_load_explicit(&pool.state, memory_order_acquire);
        }
    }
}

static int64_t run_together(FxTask task, void *context, int64_t first, int64_t end, int helpers, int64_t deadline) {
    Call *const call = &pool.call;
    call->task = task;
    call->context = context;
    call->end = end;
    call->deadline = deadline;
    call->threads = helpers + 1;
    atomic_store_explicit(&call->next, first, memory_order_relaxed);
    atomic_store_explicit(&call->stop, 0, memory_order_relaxed);
    open_places(helpers);
    take_blocks(call, 0);
    close_places();
    const int64_t next = atomic_load_explicit(&call->next, memory_order_relaxed);
    return next < end ? next : end; /* each thread that found no block has counted one on */
}

static int64_t run_pooled(FxTask task, void *context, int64_t first, int64_t end, int threads, int64_t deadline) {
    static pthread_once_t prepared = PTHREAD_ONCE_INIT;
    pthread_once(&prepared, prepare_once);
    int wanted = threads - 1 < MAX_HELPERS ? threads - 1 : MAX_HELPERS;
    wanted = end - first - 1 < wanted ? (int)(end - first - 1) : wanted;
    int idle = 0;
    if (!can_fork_safely ||
        !atomic_compare_exchange_strong_explicit(&pool.busy, &idle, 1, memory_order_acquire, memory_order_relaxed)) {
        return run_alone(task, context, first, end, deadline);
    }
    const int helpers = provide_helpers(wanted);
    const int64_t next = helpers > 0 ? run_together(task, context, first, end, helpers, deadline)
                                     : run_alone(task, context, first, end, deadline);
    atomic_store_explicit(&pool.busy, 0, memory_order_release);
    return next;
}

int fx_parallel_started(void) { return atomic_load_explicit(&pool.helpers, memory_order_relaxed); }

#else

static int64_t run_pooled(FxTask task, void *context, int64_t first, int64_t end, int threads, int64_t deadline) {
    (void)threads;
    return run_alone(task, context, first, end, deadline);
}

int fx_parallel_started(void) { return 0; }

#endif

int64_t fx_parallel(FxTask task, void *context, int64_t first, int64_t end, int threads, double seconds) {
    if (first >= end) {
        return first;
    }
    const uint64_t float_state = fx_float_state_enter(); /* helpers are started in this state, and keep it */
    const int64_t deadline = deadline_in(seconds);
    const int64_t next = threads > 1 && end - first > 1 ? run_pooled(task, context, first, end, threads, deadline)
                                                        : run_alone(task, context, first, end, deadline);
    fx_float_state_leave(float_state);
    return next;
}
