/* From a call to its blocks, and the blocks to the threads.
 *
 * How positions are divided follows from shape, dtype and family alone: a row's bits and the order of every sum are then
 * the same for any number of threads. A block holds about as much as L1 and L2 like: 64 to 256 KiB of rows, or a panel of
 * columns that stays in L2 between its passes; of so many classes that none does, lines as long as memory likes them, but
 * for four blocks. */
#include "fastxent.h"

#include <stdlib.h>

#include "parallel.h"

static int storage_size(int storage) { return storage == FX_F64 ? 8 : storage == FX_F32 ? 4 : 2; }

static int64_t clamp(int64_t v, int64_t low, int64_t high) { return v < low ? low : v > high ? high : v; }

/* Drops axes of length 1 and merges neighbours that every operand walks as one; the last axis stays if time matters. */
static void merge_axes(FxCall *call, int keep_time) {
    int kept = 0;
    for (int d = 0; d < call->nd; d++) {
        int last = d == call->nd - 1 && keep_time;
        if (call->shape[d] == 1 && !last) continue;
        int merge = kept > 0 && !last;
        for (int o = 0; merge && o < FX_OPERANDS; o++) {
            const FxOperand *a = &call->operand[o];
            if (a->data && a->stride[kept - 1] != a->stride[d] * call->shape[d]) merge = 0;
        }
        if (merge) call->shape[kept - 1] *= call->shape[d];
        else call->shape[kept++] = call->shape[d];
        for (int o = 0; o < FX_OPERANDS; o++)
            if (call->operand[o].data) call->operand[o].stride[kept - 1] = call->operand[o].stride[d];
    }
    call->nd = kept;
}

/* From here on a row's own lanes pay (measured); shorter ones share a vector with their neighbours. */
static int64_t rows_from(int storage) { return storage == FX_F64 ? FX_ROWS_FROM_F64 : FX_ROWS_FROM_F32; }

/* By classes, dtypes and class stride alone: a row's bits depend on its family, and on nothing else. */
static int family(const FxCall *call) {
    const FxOperand *x = &call->operand[FX_X], *out = &call->operand[FX_OUT];
    const int size = storage_size(call->storage);
    const int own = x->dtype == call->storage && !x->swapped;
    const int64_t item = own                                                                                     ? size
                         : x->dtype == FX_F32 || x->dtype == FX_I32 || x->dtype == FX_U32                        ? 4
                         : x->dtype == FX_F16 || x->dtype == FX_BF16 || x->dtype == FX_I16 || x->dtype == FX_U16 ? 2
                         : x->dtype == FX_I8 || x->dtype == FX_U8                                                ? 1
                                                                                                                 : 8;
    const int scoring = call->operation >= FX_OP_STATISTICS && call->operation <= FX_OP_TOP_K;
    if (call->operation == FX_OP_TOP_K || (scoring && call->transform)) return FX_ROWS;
    if (call->classes == 1) return FX_TILES;
    if (x->class_stride == item || x->class_stride == -item)
        return call->classes >= rows_from(call->storage) ? FX_ROWS : FX_TILES;
    if (!own || call->transform || call->targets_are_probs) return FX_TILES;
    if (out->data && out->dtype != call->storage) return FX_TILES;
    return FX_COLUMNS;
}

static void plan_blocks(FxCall *call) {
    const int size = storage_size(call->storage);
    const int64_t row = (call->classes ? call->classes : 1) * size;
    int64_t width, line = call->nd ? call->shape[call->nd - 1] : 1;
    if (call->operation > FX_OP_DIVERGENCE) width = FX_ELEMENTS;
    else if (call->family == FX_ROWS)
        width = clamp(clamp(call->positions / 64, (1 << 16) / row, (1 << 18) / row), 1, FX_MAX_WIDTH);
    else if (call->family == FX_COLUMNS)
        width = clamp((1 << 20) / row, clamp(call->positions / 4, 256 / size, 1024 / size), FX_MAX_WIDTH) / 16 * 16;
    else width = clamp((1 << 16) / row, 16, FX_MAX_WIDTH) / 16 * 16;
    call->piece = line;
    call->pieces = 1;
    call->lines = 1;
    if (call->positions == 0) {
        call->blocks = 0;
        return;
    }
    if (line > width) {
        int64_t even = (line + (line + width - 1) / width - 1) / ((line + width - 1) / width);
        call->piece = clamp(call->family == FX_ROWS ? even : (even + 15) / 16 * 16, 1, width);
        call->pieces = (line + call->piece - 1) / call->piece;
        call->blocks = call->positions / line * call->pieces;
    } else {
        call->lines = width / line;
        call->blocks = (call->positions / line + call->lines - 1) / call->lines;
    }
}

void fx_plan_call(FxCall *call, int keep_time) {
    const FxOperand *x = &call->operand[FX_X], *out = &call->operand[FX_OUT];
    call->transform = call->softcap > 0 || call->logit_scale < 1e-30;
    call->unit = 1;
    while (call->unit < 4 * call->z_loss * (call->transform ? 1 : call->logit_scale) && call->unit < 0x1p100)
        call->unit *= 2;
    /* Saved are max z and the rest. Only where max z is the logits' own maximum, and no coefficient of it is wanted, do
     * they stand for a pass over the row. */
    if (call->targets_are_probs || (call->logit_scale != 1 && !call->transform)) call->saved = NULL;
    if (call->operation > FX_OP_DIVERGENCE && !keep_time) fx_sort_axes(call);
    merge_axes(call, keep_time);
    call->family = family(call);
    call->stream = out->data && out->data != x->data &&
                   (double)call->positions * (double)call->classes * storage_size(call->storage) > FX_STREAM_BYTES;
    plan_blocks(call);
}

void fx_block_range(const FxCall *call, int64_t block, int64_t *first, int64_t *n) {
    const int64_t line = call->nd ? call->shape[call->nd - 1] : 1;
    if (call->pieces > 1) {
        int64_t piece = block % call->pieces * call->piece;
        *first = block / call->pieces * line + piece;
        *n = line - piece < call->piece ? line - piece : call->piece;
    } else {
        *first = block * call->lines * line;
        *n = call->positions - *first < call->lines * line ? call->positions - *first : call->lines * line;
    }
}

/* Scratch memory is kept between calls, in as many slots as calls are likely to need at once: a small call must not pay
 * for fresh pages. */
enum { SLOTS = 64, MAX_WORKERS = 256 };
static _Atomic(FxScratch *) kept[SLOTS];

static FxScratch *scratch_take(void) {
    for (int i = 0; i < SLOTS; i++) {
        if (!atomic_load_explicit(&kept[i], memory_order_relaxed)) continue;
        FxScratch *s = atomic_exchange(&kept[i], NULL);
        if (s) return s;
    }
    void *raw = malloc(sizeof(FxScratch) + 64 + sizeof(void *));
    if (!raw) return NULL;
    /* Aligned by hand: aligned_alloc is not everywhere. The address to free stands before the block. */
    uintptr_t at = ((uintptr_t)raw + sizeof(void *) + 63) & ~(uintptr_t)63;
    ((void **)at)[-1] = raw;
    return (FxScratch *)at;
}

static void scratch_give(FxScratch *s) {
    for (int i = 0; i < SLOTS; i++) {
        FxScratch *empty = NULL;
        if (!atomic_load_explicit(&kept[i], memory_order_relaxed) &&
            atomic_compare_exchange_strong(&kept[i], &empty, s))
            return;
    }
    free(((void **)s)[-1]);
}

typedef struct {
    FxCall *call;
    FxBlockFn run;
    FxScratch *scratch[MAX_WORKERS];
} Work;

static void work_block(void *context, int64_t block, int worker) {
    Work *work = context;
    work->run(work->call, work->scratch[worker], block);
}

int64_t fx_run(FxCall *call, int prepare, int64_t first_block, int threads, double seconds) {
    const FxKernels *kernels = fx_kernels(call->isa, call->storage);
    Work work;
    work.call = call;
    if (call->linear) work.run = kernels->linear;
    else if (call->operation > FX_OP_DIVERGENCE) work.run = prepare ? kernels->elements_prepare : kernels->elements;
    else if (prepare) work.run = kernels->prepare;
    else work.run = call->operation == FX_OP_DIVERGENCE ? kernels->divergence : kernels->block;
    int64_t left = call->blocks - first_block;
    if (left <= 0) return first_block;
    /* Below some thousand elements a wake-up costs more than it saves. */
    double elements = (double)call->positions * (double)(prepare ? 1 : call->classes);
    if (elements < FX_PARALLEL_ELEMENTS) threads = 1, seconds = 0; /* nor is the clock worth a look */
    if (threads > left) threads = (int)left;
    if (threads > MAX_WORKERS) threads = MAX_WORKERS;
    int have = 0;
    while (have < threads && (work.scratch[have] = scratch_take())) have++;
    if (!have) return -1;
    int64_t next = fx_parallel(work_block, &work, first_block, call->blocks, have, seconds);
    while (have) scratch_give(work.scratch[--have]);
    return next;
}
