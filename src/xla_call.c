/* One call of XLA's: from a job to the FxCall that _native.pyx would make of a Plan, and to the value of a reduction, by
 * the rules of fastxent/_reductions.py. */
#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE /* madvise */
#endif
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#include "xla_job.h"

enum { SMALL = 8 }; /* so many sums need no memory of their own */

/* Those of fastxent/_options.py; a test compares them. */
enum { REDUCTION_NONE, REDUCTION_SUM, REDUCTION_MEAN, REDUCTION_SEQUENCE_MEAN, REDUCTION_BATCH_MEAN };

/* ---- errors and memory ---- */

static FxXlaError *error(const FxXlaApi *api, FxXlaCode code, const char *message) {
    FxXlaErrorArguments arguments = {sizeof arguments, NULL, message, code};
    return api->create_error(&arguments);
}

static FxXlaError *no_memory(const FxXlaJob *job) {
    return error(job->api, FX_XLA_RESOURCE_EXHAUSTED, "out of memory");
}

/* Memory that is freed with the job; NULL if there is none. */
static void *allocate(FxXlaJob *job, int64_t count, size_t size) {
    void *p = job->number_allocated < FX_XLA_ALLOCATIONS ? malloc((size_t)(count > 0 ? count : 1) * size) : NULL;
    if (p) job->allocated[job->number_allocated++] = p;
    return p;
}

static void free_all(FxXlaJob *job) {
    while (job->number_allocated) free(job->allocated[--job->number_allocated]);
}

/* A large fresh result costs more in page faults than in work, unless the kernel may use huge pages. */
static void expect_much(void *data, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const uintptr_t page = 4096, first = ((uintptr_t)data + page - 1) / page * page;
    const uintptr_t end = ((uintptr_t)data + (uintptr_t)bytes) / page * page;
    if (bytes >= 1 << 22 && end > first) (void)madvise((void *)first, end - first, MADV_HUGEPAGE);
#else
    (void)data;
    (void)bytes;
#endif
}

/* ---- operands ---- */

static void describe(FxOperand *operand, const FxXlaView *view, int class_axis) {
    operand->data = view->data;
    operand->dtype = view->dtype;
    operand->class_stride = 0;
    if (class_axis >= 0)
        operand->class_stride = view->dims[class_axis] == 1 ? fx_xla_size(view->dtype) : view->stride[class_axis];
    for (int d = 0, k = 0; d < view->nd; d++)
        if (d != class_axis) operand->stride[k++] = view->stride[d];
}

/* Replaces a view by its numbers in float64, which the kernels want of weights. */
static int widen(FxXlaJob *job, FxXlaView *view) {
    if (!view->data || view->dtype == FX_F64) return 1;
    const int64_t n = fx_xla_product(view->dims, view->nd);
    double *to = allocate(job, n, sizeof *to);
    if (!to) return 0;
    fx_fetch_f64(to, view->data, view->dtype, 0, fx_xla_size(view->dtype), n);
    view->data = (char *)to;
    view->dtype = FX_F64;
    fx_xla_lay_out(view);
    return 1;
}

static int64_t integer_at(const char *p, int dtype) {
    switch (dtype) {
    case FX_I8: return *(const int8_t *)p;
    case FX_I16: return *(const int16_t *)p;
    case FX_I32: return *(const int32_t *)p;
    case FX_U8: return *(const uint8_t *)p;
    case FX_U16: return *(const uint16_t *)p;
    case FX_U32: return *(const uint32_t *)p;
    default: return *(const int64_t *)p;
    }
}

/* Where index `flat` of `shape` is in a view that broadcasts to it; `ahead` steps on along the last axis. */
static const char *element(const FxXlaView *view, const int64_t *shape, int nd, int64_t flat, int64_t ahead) {
    const char *p = view->data + (nd ? ahead * view->stride[nd - 1] : 0);
    for (int d = nd - 1; d >= 0; d--) {
        p += flat % shape[d] * view->stride[d];
        flat /= shape[d];
    }
    return p;
}

/* ---- what only the values tell ---- */

static FxXlaError *index_error(const FxXlaJob *job, int64_t flat, int64_t classes) {
    char message[1024], place[256] = "", ahead[256] = "", read_at[320] = "";
    const int nd = job->batch + job->own;
    const int64_t shift = job->integers[FX_XLA_SHIFT];
    const FxXlaView *targets = &job->in[FX_XLA_TARGETS];
    int64_t index[FX_MAX_DIMS];
    int length = 0, shifted = 0;
    for (int64_t d = nd - 1, rest = flat; d >= 0; d--) {
        index[d] = rest % job->shape[d];
        rest /= job->shape[d];
    }
    for (int d = 0; d < nd && length < 200; d++) {
        const char *comma = d ? ", " : "";
        length += snprintf(place + length, sizeof place - (size_t)length, "%s%lld", comma, (long long)index[d]);
        shifted += snprintf(ahead + shifted, sizeof ahead - (size_t)shifted, "%s%lld", comma,
                            (long long)(d == nd - 1 ? index[d] + shift : index[d]));
    }
    if (nd == 1) snprintf(place + length, sizeof place - (size_t)length, ",");
    if (shift) snprintf(read_at, sizeof read_at, " (targets[%s], shift=%lld)", ahead, (long long)shift);
    const char *p = element(targets, job->shape, nd, flat, shift);
    const int64_t value = integer_at(p, targets->dtype);
    if (targets->dtype == FX_U64 && value < 0)
        snprintf(message, sizeof message, "IndexError: the target at position (%s)%s is %llu, outside [0, %lld)", place,
                 read_at, (unsigned long long)value, (long long)classes);
    else
        snprintf(message, sizeof message, "IndexError: the target at position (%s)%s is %lld, outside [0, %lld)", place,
                 read_at, (long long)value, (long long)classes);
    return error(job->api, FX_XLA_OUT_OF_RANGE, message);
}

/* The lengths of all sequences, each from 0 to the number of steps. */
static FxXlaError *read_lengths(FxXlaJob *job, FxCall *call) {
    const FxXlaView *lengths = &job->in[FX_XLA_LENGTHS];
    if (!lengths->data) return NULL;
    int64_t *to = allocate(job, job->sequences, sizeof *to);
    if (!to) return no_memory(job);
    for (int64_t i = 0; i < job->sequences; i++) {
        to[i] = integer_at(element(lengths, job->shape, job->batch + job->own - 1, i, 0), lengths->dtype);
        if (to[i] < 0 || to[i] > job->steps) {
            char message[160];
            snprintf(message, sizeof message, "ValueError: lengths must be from 0 to %lld, got %lld",
                     (long long)job->steps, (long long)to[i]);
            return error(job->api, FX_XLA_INVALID_ARGUMENT, message);
        }
    }
    call->lengths = to;
    return NULL;
}

/* ---- one call ---- */

static FxXlaError *read_class_weight(FxXlaJob *job, FxCall *call) {
    FxXlaView *weight = &job->in[FX_XLA_CLASS_WEIGHT];
    call->class_weight_sum = (double)call->classes;
    if (!weight->data) return NULL;
    if (!widen(job, weight)) return no_memory(job);
    call->class_weight = (const double *)weight->data;
    call->class_weight_r = weight->data;
    call->class_weight_sum = 0;
    for (int64_t i = 0; i < call->classes; i++) call->class_weight_sum += call->class_weight[i];
    if (call->storage == FX_F64) return NULL;
    float *narrow = allocate(job, call->classes, sizeof *narrow);
    if (!narrow) return no_memory(job);
    for (int64_t i = 0; i < call->classes; i++) narrow[i] = (float)call->class_weight[i];
    call->class_weight_r = narrow;
    return NULL;
}

/* Runs all blocks, and sums up by sequence (or by group, if `parts` are those). */
static FxXlaError *run(FxXlaJob *job, FxCall *call, int prepare, int64_t parts, double *sums, double *divisors) {
    atomic_store(&call->bad_position, -1);
    if (fx_run(call, prepare, 0, (int)job->integers[FX_XLA_THREADS], 0) < 0) return no_memory(job);
    const int64_t bad = atomic_load(&call->bad_position);
    if (bad >= 0) return index_error(job, bad, call->classes);
    if (parts == 1) fx_total(call, sums, divisors);
    else if (parts) fx_sequences(call, parts, prepare ? NULL : sums, divisors);
    return NULL;
}

/* What one unit of loss adds to the value, if the value is of one group or sequence. */
static double share_of(const FxXlaJob *job, double divisor) {
    const int64_t reduction = job->integers[FX_XLA_REDUCTION];
    const double by = reduction == REDUCTION_SUM          ? job->numbers[FX_XLA_NORMALIZER]
                      : reduction == REDUCTION_BATCH_MEAN ? (double)(job->sequences / job->groups)
                                                          : divisor;
    return by != 0 ? 1 / by : 0;
}

/* The same for every sequence of several groups. */
static void shares_of(const FxXlaJob *job, const double *divisors, double *share) {
    const int64_t each = job->sequences / job->groups;
    for (int64_t g = 0; g < job->groups; g++) {
        if (job->integers[FX_XLA_REDUCTION] != REDUCTION_SEQUENCE_MEAN) {
            for (int64_t b = g * each; b < (g + 1) * each; b++) share[b] = share_of(job, divisors[g]);
            continue;
        }
        int64_t counted = 0;
        for (int64_t b = g * each; b < (g + 1) * each; b++) counted += divisors[b] != 0;
        for (int64_t b = g * each; b < (g + 1) * each; b++)
            share[b] = divisors[b] != 0 ? 1 / divisors[b] / (double)counted : 0;
    }
}

/* Zeros for what has no share in the value: a kernel multiplies by the share, and 0 times NaN is NaN. */
static void clear_uncounted(const FxXlaJob *job, const double *share, const FxXlaView *grad, int class_axis,
                            int64_t classes) {
    const int nd = job->batch + job->own;
    FxOperand operand;
    describe(&operand, grad, class_axis);
    for (int64_t i = 0; i < job->positions; i++) {
        if (share[i / job->steps] != 0) continue;
        char *p = operand.data;
        for (int64_t d = nd - 1, rest = i; d >= 0; d--) {
            p += rest % job->shape[d] * operand.stride[d];
            rest /= job->shape[d];
        }
        for (int64_t c = 0; c < classes; c++)
            memset(p + c * operand.class_stride, 0, (size_t)fx_xla_size(operand.dtype));
    }
}

static void write_values(const FxXlaJob *job, const double *sums, const double *divisors) {
    const int64_t each = job->groups ? job->sequences / job->groups : 0;
    for (int64_t g = 0; g < job->groups; g++) {
        double value = 0, by = 0;
        switch (job->integers[FX_XLA_REDUCTION]) {
        case REDUCTION_SEQUENCE_MEAN:
            for (int64_t b = g * each; b < (g + 1) * each; b++) {
                if (divisors[b] == 0) continue;
                value += sums[b] / divisors[b];
                by += 1;
            }
            break;
        case REDUCTION_BATCH_MEAN: value = sums[g], by = (double)each; break;
        case REDUCTION_SUM: value = sums[g], by = job->numbers[FX_XLA_NORMALIZER]; break;
        default: value = sums[g], by = divisors[g]; break;
        }
        value = by != 0 ? value / by : job->numbers[FX_XLA_EMPTY_VALUE];
        if (job->out[0].dtype == FX_F64) ((double *)job->out[0].data)[g] = value;
        else ((float *)job->out[0].data)[g] = (float)value;
    }
}

/* A loss that becomes one number for each group, perhaps with its gradient. */
static FxXlaError *reduced(FxXlaJob *job, FxCall *call, int class_axis) {
    const int by_sequence = job->integers[FX_XLA_REDUCTION] == REDUCTION_SEQUENCE_MEAN;
    const int64_t parts = by_sequence ? job->sequences : job->groups;
    const FxXlaView *grad = &job->out[1];
    double few[2][SMALL], *sums = few[0], *divisors = few[1];
    FxXlaError *failed;
    if (parts > SMALL) {
        sums = allocate(job, parts, sizeof *sums);
        divisors = allocate(job, parts, sizeof *divisors);
        if (!sums || !divisors) return no_memory(job);
    }
    if (parts != 1) {
        call->position_weight = allocate(job, job->positions, sizeof(double));
        if (!call->position_weight) return no_memory(job);
    }
    if (grad->data) {
        if ((failed = run(job, call, 1, parts, sums, divisors))) return failed;
        if (parts == 1) {
            call->scale = share_of(job, divisors[0]);
            if (call->scale == 0) { /* nothing counts: the value is `empty_value`, whatever the logits are */
                memset(grad->data, 0, (size_t)(fx_xla_product(grad->dims, grad->nd) * fx_xla_size(grad->dtype)));
                sums[0] = 0;
                write_values(job, sums, divisors);
                return NULL;
            }
        } else if (parts) {
            double *share = allocate(job, job->sequences, sizeof *share);
            if (!share) return no_memory(job);
            shares_of(job, divisors, share);
            call->sequence_scale = share;
        }
    }
    if (parts != 1) {
        call->position_loss = allocate(job, job->positions, call->storage == FX_F64 ? 8 : 4);
        if (!call->position_loss) return no_memory(job);
    }
    if ((failed = run(job, call, 0, parts, sums, divisors))) return failed;
    if (call->sequence_scale) clear_uncounted(job, call->sequence_scale, grad, class_axis, call->classes);
    write_values(job, sums, divisors);
    return NULL;
}

static FxXlaError *call_once(FxXlaJob *job) {
    FxCall call;
    double few[SMALL][2];
    FxXlaError *failed;
    const int64_t operation = job->integers[FX_XLA_OPERATION], reduction = job->integers[FX_XLA_REDUCTION];
    const FxXlaView *x = &job->in[FX_XLA_X];
    const int class_axis = job->batch + (int)job->integers[FX_XLA_CLASS_AXIS];
    const int activation = operation >= FX_OP_SOFTMAX && operation <= FX_OP_LOGSUMEXP;
    memset(&call, 0, sizeof call);
    call.operation = (int)operation;
    call.isa = job->isa;
    call.storage = x->dtype < FX_I8 ? x->dtype : FX_F64;
    call.classes = x->dims[class_axis];
    call.positions = job->positions;
    call.nd = job->batch + job->own;
    memcpy(call.shape, job->shape, sizeof call.shape);
    call.targets_are_probs = job->in[FX_XLA_TARGETS].data && job->in[FX_XLA_TARGETS].nd == x->nd;
    call.has_ignore = (int)job->integers[FX_XLA_HAS_IGNORE];
    call.ignore = job->integers[FX_XLA_IGNORE];
    call.shift = job->integers[FX_XLA_SHIFT];
    call.smoothing = job->numbers[FX_XLA_SMOOTHING];
    call.z_loss = job->numbers[FX_XLA_Z_LOSS];
    call.logit_scale = job->numbers[FX_XLA_LOGIT_SCALE];
    call.softcap = job->numbers[FX_XLA_SOFTCAP];
    /* As in _arguments.py: a cap beyond float32 is none. */
    if (call.storage != FX_F64 && (call.softcap >= 0x1p128 || call.logit_scale < 0x1p-126 * call.softcap))
        call.softcap = 0;
    call.scale = 1;
    call.sequence_length = job->steps;

    if (!widen(job, &job->in[FX_XLA_SAMPLE_WEIGHT]) || !widen(job, &job->in[FX_XLA_UPSTREAM])) return no_memory(job);
    if ((failed = read_class_weight(job, &call)) || (failed = read_lengths(job, &call))) return failed;
    describe(&call.operand[FX_X], x, class_axis);
    describe(&call.operand[FX_Y], &job->in[FX_XLA_TARGETS], call.targets_are_probs ? class_axis : -1);
    describe(&call.operand[FX_MASK], &job->in[FX_XLA_MASK], -1);
    describe(&call.operand[FX_WEIGHT], &job->in[FX_XLA_SAMPLE_WEIGHT], -1);
    describe(&call.operand[FX_UPSTREAM], &job->in[FX_XLA_UPSTREAM], -1);
    const FxXlaView *losses = reduction == REDUCTION_NONE ? &job->out[0] : NULL, *full = &job->out[1];
    if (activation) {
        losses = operation == FX_OP_LOGSUMEXP ? &job->out[0] : NULL;
        full = operation == FX_OP_LOGSUMEXP ? full : &job->out[0];
    }
    if (losses) describe(&call.operand[FX_LOSSES], losses, -1);
    if (full->data) {
        describe(&call.operand[FX_OUT], full, class_axis);
        expect_much(full->data, fx_xla_product(full->dims, full->nd) * fx_xla_size(full->dtype));
    }
    fx_plan_call(&call, call.lengths || call.shift || reduction == REDUCTION_SEQUENCE_MEAN);
    call.partial = call.blocks > SMALL ? allocate(job, call.blocks, sizeof *call.partial) : few;
    if (!call.partial) return no_memory(job);

    if (!losses && !activation) return reduced(job, &call, class_axis);
    double total, divisor;
    if (full->data && !activation)
        if ((failed = run(job, &call, 1, 1, &total, &divisor))) return failed;
    return run(job, &call, 0, 1, &total, &divisor);
}

FxXlaError *fx_xla_call(FxXlaJob *job) {
    FxXlaError *failed = call_once(job);
    free_all(job);
    return failed;
}
