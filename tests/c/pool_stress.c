/* Drives src/parallel.c hard, on its own, so that it can be built with ThreadSanitizer. Exits 0 or says what is wrong.
 *
 *   cc -std=c11 -O1 -g -fsanitize=thread -Isrc tests/c/pool_stress.c src/parallel.c src/cpu.c -pthread
 *
 * With -DSTRESS_REFUSE and -Wl,--wrap=pthread_create the system refuses some threads. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "cpu.h"
#include "parallel.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { BLOCKS = 1000, MOST_THREADS = 64 };

#define CHECK(condition)                                                                                               \
    ((condition) ? (void)0 : (fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition), _Exit(1)))

static double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

#ifdef STRESS_REFUSE
static atomic_int threads_allowed;
int __real_pthread_create(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument) {
    return atomic_fetch_sub(&threads_allowed, 1) > 0 ? __real_pthread_create(thread, attributes, start, argument) : 11;
}
#endif

/* What a call leaves behind: plain memory, so that ThreadSanitizer sees a missing order. */
typedef struct {
    int done[BLOCKS];
    int64_t by_worker[MOST_THREADS];
    atomic_int running[MOST_THREADS];
    int threads;
    double length; /* seconds that a block takes */
} Work;

static void burn(double length) {
    for (const double until = seconds_now() + length; seconds_now() < until;) {
    }
}

static void work_block(void *context, int64_t block, int worker) {
    Work *work = context;
    CHECK(worker >= 0 && worker < work->threads);
    CHECK(atomic_fetch_add(&work->running[worker], 1) == 0);
    work->done[block] += 1;
    work->by_worker[worker] += block;
    if (work->length > 0) {
        burn(work->length);
    }
    CHECK(atomic_fetch_sub(&work->running[worker], 1) == 1);
}

static void start(Work *work, int threads) {
    memset(work, 0, sizeof *work);
    work->threads = threads;
}

static void check_done(const Work *work, int64_t first, int64_t end) {
    int64_t total = 0, expected = 0;
    for (int64_t block = 0; block < BLOCKS; ++block) {
        CHECK(work->done[block] == (block >= first && block < end));
        expected += block >= first && block < end ? block : 0;
    }
    for (int worker = 0; worker < MOST_THREADS; ++worker) {
        total += work->by_worker[worker];
    }
    CHECK(total == expected);
}

static void run_all(Work *work, int64_t first, int64_t end, int threads) {
    start(work, threads);
    CHECK(fx_parallel(work_block, work, first, end, threads, 0.0) == end);
    check_done(work, first, end);
}

static void every_size(int repeats) {
    static Work work;
    static const int threads[] = {1, 2, 3, 7, 16, 32, 64, 2, 1};
    static const int64_t ends[] = {0, 1, 2, 3, 31, BLOCKS};
    for (int r = 0; r < repeats; ++r) {
        for (unsigned t = 0; t < sizeof threads / sizeof *threads; ++t) {
            for (unsigned e = 0; e < sizeof ends / sizeof *ends; ++e) {
                run_all(&work, 0, ends[e], threads[t]);
                run_all(&work, ends[e] / 2, ends[e], threads[t]);
            }
        }
    }
}

static void stopping(void) {
    static Work work;
    for (int threads = 1; threads <= 16; threads *= 4) {
        start(&work, threads);
        work.length = 1e-4;
        int64_t next = 0;
        int calls = 0;
        for (; next < BLOCKS; ++calls) {
            const int64_t before = next;
            next = fx_parallel(work_block, &work, next, BLOCKS, threads, 1e-3);
            CHECK(next > before);
            check_done(&work, 0, next);
        }
        CHECK(calls > 1);
    }
}

/* ---- helpers do come: blocks that wait for each other, called while helpers work, spin, fall asleep, sleep ---- */

#ifndef FX_NO_THREADS
static void meet_block(void *context, int64_t block, int worker) {
    atomic_int *arrived = context;
    (void)block;
    (void)worker;
    atomic_fetch_add(arrived, 1);
    for (const double until = seconds_now() + 20; atomic_load(arrived) < 2; sched_yield()) {
        CHECK(seconds_now() < until);
    }
}

static void meetings(int count) {
    for (int i = 0; i < count; ++i) {
        atomic_int arrived = 0;
        CHECK(fx_parallel(meet_block, &arrived, 0, 2, 2, 0.0) == 2);
        burn(1e-7 * (i % 200));
    }
}
#else
static void meetings(int count) { (void)count; }
#endif

/* ---- tasks that call fx_parallel, and several callers at once ---- */

static void outer_block(void *context, int64_t block, int worker) {
    Work inner;
    (void)worker;
    run_all(&inner, block, BLOCKS, 4);
    start(&inner, 4);
    inner.length = 1e-5;
    const int64_t next = fx_parallel(work_block, &inner, 0, BLOCKS, 4, 1e-4); /* must not stop the outer call */
    CHECK(next > 0 && next < BLOCKS);
    check_done(&inner, 0, next);
    ((int *)context)[block] += 1;
}

static void nested(void) {
    int done[40] = {0};
    CHECK(fx_parallel(outer_block, done, 0, 40, 4, 0.0) == 40);
    for (int i = 0; i < 40; ++i) {
        CHECK(done[i] == 1);
    }
}

static atomic_int finish;

static void *keep_calling(void *seed) {
    Work *work = malloc(sizeof *work);
    unsigned x = (unsigned)(uintptr_t)seed;
    while (!atomic_load(&finish)) {
        x = x * 1664525u + 1013904223u;
        run_all(work, 0, (x >> 8) % BLOCKS, 1 + (int)((x >> 20) % 8));
    }
    free(work);
    return NULL;
}

/* ---- forks ---- */

static int must_end_well(pid_t child) {
    for (const double until = seconds_now() + 60; seconds_now() < until;) {
        int status = 0;
        const pid_t ended = waitpid(child, &status, WNOHANG);
        if (ended == child) {
            return WIFEXITED(status) && WEXITSTATUS(status) == 0;
        }
        const struct timespec moment = {0, 200000};
        nanosleep(&moment, NULL);
    }
    kill(child, SIGKILL);
    fprintf(stderr, "a child hangs\n");
    return 0;
}

/* A child uses the pool, and has children before and after that, `depth` generations in all. */
static void fork_and_use(int depth, int threads) {
    if (depth == 0) {
        return;
    }
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        static Work work;
        fork_and_use(depth - 1, threads);
        CHECK(fx_parallel_started() == 0);
        run_all(&work, 0, BLOCKS, threads);
#if !defined(STRESS_REFUSE) && !defined(FX_NO_THREADS)
        CHECK(fx_parallel_started() == threads - 1);
#endif
        run_all(&work, 0, BLOCKS, threads);
        fork_and_use(depth - 1, threads);
        _exit(0);
    }
    CHECK(must_end_well(child));
}

/* ---- the floating-point state ---- */

#if defined(__SSE2__)
#include <xmmintrin.h>
static void see_state(void *context, int64_t block, int worker) {
    (void)worker;
    ((unsigned *)context)[block] = _mm_getcsr() & ~0x3fu;
    burn(1e-4);
}

static void float_state(int threads) {
    unsigned seen[64] = {0};
    const unsigned before = _mm_getcsr(), odd = (before | 0x8040u | 0x2000u) & ~0x3fu; /* FTZ, DAZ, round down */
    _mm_setcsr(odd);
    const int64_t next = fx_parallel(see_state, seen, 0, 64, threads, 0.0);
    const unsigned after = _mm_getcsr();
    _mm_setcsr(before);
    CHECK(next == 64 && after == odd);
    for (int i = 0; i < 64; ++i) {
        CHECK(seen[i] == 0x1f80u);
    }
}
#else
static void float_state(int threads) { (void)threads; }
#endif

int main(int argc, char **argv) {
    const double length = argc > 1 ? atof(argv[1]) : 2.0;
#ifdef STRESS_REFUSE
    atomic_store(&threads_allowed, 3);
    every_size(3);
    CHECK(fx_parallel_started() == 3);
    atomic_store(&threads_allowed, 1000);
#else
    fork_and_use(2, 2); /* the pool was never used here */
    float_state(1);
    float_state(4); /* threads start with their creator's state */
    every_size(3);
#endif
    float_state(8);
    stopping();
    meetings(5000);
    nested();
    for (int threads = 1; threads <= 8; threads *= 2) {
        fork_and_use(3, threads);
    }
    pthread_t callers[4];
    for (uintptr_t i = 0; i < 4; ++i) {
        CHECK(pthread_create(&callers[i], NULL, keep_calling, (void *)(i + 1)) == 0);
    }
    for (const double until = seconds_now() + length; seconds_now() < until;) {
        fork_and_use(1, 4); /* whatever the other threads are doing */
        every_size(1);
    }
    atomic_store(&finish, 1);
    for (int i = 0; i < 4; ++i) {
        pthread_join(callers[i], NULL);
    }
    puts("ok");
    return 0;
}
