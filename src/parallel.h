/* Blocks of work on a few threads. The only threading code of the library; see parallel.c for how. */
#ifndef FASTXENT_PARALLEL_H
#define FASTXENT_PARALLEL_H

#include <stdint.h>

/* Does block number `block`. `worker` is 0 … threads-1 and no two tasks of one call that run at the same time share
 * it, so it may index scratch memory; the thread that calls fx_parallel is worker 0. */
typedef void (*FxTask)(void *context, int64_t block, int worker);

/* Runs `task` for the blocks first … end-1, each exactly once, handed out in ascending order to at most `threads`
 * threads, the caller among them. Hands out no more once `seconds` have passed (0 or less: never); a block that was handed
 * out is always finished, and at least one is. Returns the first block that was not run: all below it are done, none from
 * it on is, so a caller may go on from there later. A task may call it too.
 *
 * Threads are started when first needed and never for threads == 1 or a single block. While another call uses them,
 * or where they cannot be had, the blocks run on the calling thread. Tasks run in the standard floating-point state
 * (fx_float_state_enter), and the caller's is put back. */
int64_t fx_parallel(FxTask task, void *context, int64_t first, int64_t end, int threads, double seconds);

/* How many threads the pool of this process has started, not counting callers: for tests and show_config. */
int fx_parallel_started(void);

#endif
